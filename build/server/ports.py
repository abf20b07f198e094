"""Where a server listens: which ports are free, and which arguments say so."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from build.server.errors import ServerError

PORTS = {"http-port": 8000, "grpc-port": 8001, "metrics-port": 8002}  # tritonserver's own defaults
LOOPBACK = "127.0.0.1"
FIRST_PORT = 10_000  # services of a machine's own mostly lie below
OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_OUTGOING = 32_768
HTTP_IPV6 = "ipv6:"  # what HTTP wants before such an address


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
        port, address = given[key], given[key.replace("port", "address")].removeprefix(HTTP_IPV6).strip("[]")
        check_free(address, port, option)


def check_free(address: str, port: int, option: str) -> None:
    """Refuse a port that is taken; option: the command line's for it, e.g. "http-port"."""
    try:
        with socket.socket(family(address)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as e:
        raise not_free(e, address, port, option) from e


def not_free(error: OSError, address: str, port: int, option: str) -> ServerError:
    """What is said where a port cannot be listened on."""
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ServerError(f"this machine has no address {address}; `ip address` lists those it has")
    return ServerError(
        f"port {port} on {address} is not free ({error.strerror}); stop what listens there, or choose another "
        f"with --{option} (make serve: {option.split('-')[0].upper()}_PORT=)"
    )


def free_ports(count: int = 3, address: str = LOOPBACK) -> list[int]:
    """Ports on the address that nothing listens on now.

    They lie below those that the system gives to outgoing connections, which could take one before its server does.
    """
    ports: list[int] = []
    for port in random.sample(range(FIRST_PORT, _first_outgoing()), k=_first_outgoing() - FIRST_PORT):
        with socket.socket(family(address)) as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise ServerError(f"{address} has no {count} free ports from {FIRST_PORT} to {_first_outgoing() - 1}")


def _first_outgoing() -> int:
    """The first port that an outgoing connection may get; Linux' own default where the system names none that helps."""
    with contextlib.suppress(OSError, ValueError):
        first = int(OUTGOING.read_text(encoding="ascii").split()[0])
        if first > 2 * FIRST_PORT:
            return first
    return DEFAULT_OUTGOING


def family(address: str) -> socket.AddressFamily:
    """Of an IP address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def url(address: str, port: int) -> str:
    """As gRPC and HTTP clients take it: "127.0.0.1:8001", "[::1]:8001"."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def reached(address: str) -> str:
    """Where this machine reaches what listens on the address: loopback, where that is all of them."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address, address)  # noqa: S104 compared, not bound


def listening(grpc: str, http: str) -> list[str]:
    """Arguments that have the endpoints listen on IPv4 or IPv6 addresses: gRPC on one, HTTP and metrics on another.

    Triton spells IPv6 in a way of its own for each protocol, and a name that HTTP cannot read it takes for 255.255.255.255.

    Raises:
        ServerError: one is no address.
    """
    for address in (grpc, http):
        try:
            ipaddress.ip_address(address)
        except ValueError as e:
            raise ServerError(
                f"{address!r} is no IP address; give one to listen on, such as 127.0.0.1, ::1, 0.0.0.0 or ::"
            ) from e
    http = f"{HTTP_IPV6}{http}" if ":" in http else http
    return [
        f"--grpc-address={f'[{grpc}]' if ':' in grpc else grpc}",
        f"--http-address={http}",
        f"--metrics-address={http}",
    ]


def loopback() -> list[str]:
    """Arguments that keep every endpoint on this machine: listening wider is an explicit choice."""
    return listening(LOOPBACK, LOOPBACK)
