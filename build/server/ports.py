"""Where a server listens: which ports are free, and which arguments say so."""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections.abc import Sequence

from build.server.errors import ServerError

PORTS = {"http-port": 8000, "grpc-port": 8001, "metrics-port": 8002}  # tritonserver's own defaults
LOOPBACK = "127.0.0.1"


def check_ports(arguments: Sequence[str]) -> None:
    """Refuse to start where a port is taken, before minutes are spent on loading models.

    Args:
        arguments: tritonserver's own; its defaults stand for what is not given.

    Raises:
        ServerError: names the port, its option and the address.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option, port in PORTS.items():
        parser.add_argument(f"--{option}", type=int, default=port)
        parser.add_argument(f"--{option.replace('port', 'address')}", default="0.0.0.0")  # noqa: S104 Triton's default
        parser.add_argument(f"--allow-{option.split('-')[0]}", default="true")
    given = vars(parser.parse_known_args(arguments)[0])
    for option in PORTS:
        key = option.replace("-", "_")
        protocol = option.split("-")[0]
        if given[f"allow_{protocol}"].lower() in ("false", "0"):
            continue
        port, address = given[key], given[key.replace("port", "address")]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as e:
                raise ServerError(
                    f"port {port} on {address} is not free ({e.strerror}); stop what listens there, or choose another "
                    f"with --{option} (make serve: {protocol.upper()}_PORT=)"
                ) from e


def free_ports(count: int = 3) -> list[int]:
    """Ports on loopback that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


def listens(port: int) -> bool:
    """Whether the port is open. Triton opens that of its metrics last, a moment after it is ready for gRPC."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def loopback() -> list[str]:
    """Arguments that keep every endpoint on this machine: listening wider is an explicit choice."""
    return [f"--{protocol}-address={LOOPBACK}" for protocol in ("http", "grpc", "metrics")]
