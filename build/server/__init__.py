"""The tritonserver that serves a repository: found, started, watched and ended."""

from build.server.errors import ServerError
from build.server.installation import LIBRARIES, Installation, find, pytriton
from build.server.launcher import main
from build.server.log import failures
from build.server.ports import LOOPBACK, PORTS, check_free, check_ports, free_ports, loopback
from build.server.processes import BURIED_WITHIN_S, Processes
from build.server.repository import check_repository
from build.server.server import Server

__all__ = [
    "BURIED_WITHIN_S",
    "LIBRARIES",
    "LOOPBACK",
    "PORTS",
    "Installation",
    "Processes",
    "Server",
    "ServerError",
    "check_free",
    "check_ports",
    "check_repository",
    "failures",
    "find",
    "free_ports",
    "loopback",
    "main",
    "pytriton",
]
