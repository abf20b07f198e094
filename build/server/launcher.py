"""`tritonserver` of this environment: the server that `find` names, started with what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from build.server.errors import ServerError
from build.server.installation import find
from build.server.ports import check_ports
from build.server.reaper import MARK
from build.server.repository import check_repository


def _become(arguments: Sequence[str]) -> None:
    installation = find()
    for argument in arguments:
        if argument.startswith("--model-repository="):
            check_repository(Path(argument.partition("=")[2]))
    check_ports(arguments)
    # Model Analyzer starts servers by this command, and is marked by who started it.
    region = f"{os.environ[MARK]}-{os.getpid()}-" if MARK in os.environ else ""
    command = installation.command(arguments, region)
    os.execve(command[0], command, installation.environment)  # noqa: S606 no shell: an argument list


def main() -> int:
    """`tritonserver` of this environment: every argument goes to the server as it is."""
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h", "--version"} & set(arguments):
            installation = find()
            command = installation.command(arguments)
            os.execve(command[0], command, installation.environment)  # noqa: S606
        _become(arguments)
    except ServerError as e:
        print(f"tritonserver: {e}", file=sys.stderr)
    return 1
