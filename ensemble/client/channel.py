"""Where a client's channel leads, how large its messages may be, and what encrypts it."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from ensemble.errors import InvalidRequestError
from ensemble.interface import Interface, size

ENVELOPE = 64 * 1024  # bytes of a message beside its tensors
DEFAULT_URL = "127.0.0.1:8001"
RESOLVERS = ("dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds")  # gRPC's own schemes of a URL
RECONNECT_MS = 5000  # a server that is started again is asked after so long at most; gRPC's own limit is two minutes
LARGEST_MESSAGE = 2**31 - 1  # bytes; gRPC's own limit


@dataclass(frozen=True)
class Tls:
    """Encrypted transport. Without root_certificates the system's are used; key and chain are for mutual TLS.

    Example:
        Client("triton.example:8001", tls=Tls(root_certificates=Path("ca.pem")))
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


def target(url: object) -> str:
    """What gRPC connects to: an URL as it is, of several addresses a list that it goes through in turn.

    >>> target(["127.0.0.1:8001", "127.0.0.1:9001"])
    'ipv4:127.0.0.1:8001,127.0.0.1:9001'

    Names in a list are looked up once, here; one name that has several addresses gRPC looks up again as they change.
    """
    if isinstance(url, str) or not isinstance(url, Sequence):
        return endpoint(url)
    found = [_address(each) for each in url]
    kinds = {"ipv6" if host.version == 6 else "ipv4" for host, _ in found}
    if len(kinds) != 1:
        said = "none" if not found else "IPv4 and IPv6"
        raise InvalidRequestError(
            f"the URLs are {said}; give addresses of one kind, host:port each", "INVALID_ARGUMENT"
        )
    addresses = dict.fromkeys(f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}" for host, port in found)
    return f"{kinds.pop()}:{','.join(addresses)}"


def _address(url: object) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """One of several addresses, a name looked up."""
    host, _, port = endpoint(url).rpartition(":")
    if host.partition(":")[0] in RESOLVERS:
        raise InvalidRequestError(f"{url!r} stands among several URLs; give host:port there", "INVALID_ARGUMENT")
    try:
        return ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        pass
    try:
        known = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as e:
        raise InvalidRequestError(f"nobody knows the address of {url!r}: {e}", "INVALID_ARGUMENT") from e
    return ipaddress.ip_address(sorted(known, key=lambda each: each[0] != socket.AF_INET)[0][4][0]), int(port)


def is_several(url: str) -> bool:
    """Whether more than one server may stand behind what gRPC connects to: several addresses, or a name that may have them.

    >>> is_several("ipv4:10.0.0.1:8001,10.0.0.2:8001"), is_several("fleet.example:8001"), is_several("[::1]:8001")
    (True, True, False)
    """
    scheme, _, rest = url.partition(":")
    if scheme in RESOLVERS:
        return scheme in ("dns", "xds") or "," in rest
    host = url.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def balancing(url: str) -> list[tuple[str, str | int]]:
    """gRPC's options for several servers behind one URL: each call goes to the next of those that can be reached."""
    if not is_several(url):
        return []
    return [("grpc.lb_policy_name", "round_robin"), ("grpc.max_reconnect_backoff_ms", RECONNECT_MS)]


def endpoint(url: object) -> str:
    """The URL, if gRPC takes it for what was meant."""
    example = f"give host:port of the server's gRPC endpoint, e.g. {DEFAULT_URL}"
    if not isinstance(url, str):
        raise InvalidRequestError(f"the URL is {url!r}; {example}", "INVALID_ARGUMENT")
    scheme, named, _ = url.partition("://")
    if named and scheme not in RESOLVERS:
        raise InvalidRequestError(f"the URL is {url!r}; {example}, without {scheme}://", "INVALID_ARGUMENT")
    if url.partition(":")[0] not in RESOLVERS and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", url):
        raise InvalidRequestError(f"the URL is {url!r}; {example}", "INVALID_ARGUMENT")
    return url


def limits(interface: Interface | None) -> list[tuple[str, str | int]]:
    """gRPC's limits on a message, in bytes: the largest request and the largest answer that the model allows."""
    sent = received = LARGEST_MESSAGE
    if interface is not None and interface.contract.longest is not None:
        histories, longest = interface.max_batch_size, interface.contract.longest
        sent, received = (
            histories * sum(size(tensor, longest) for tensor in tensors)
            for tensors in (interface.inputs, interface.outputs)
        )
        if any(tensor.dtype == "BYTES" for tensor in interface.inputs):  # a text is as long as it is
            sent = LARGEST_MESSAGE
    return [
        ("grpc.max_send_message_length", min(sent + ENVELOPE, LARGEST_MESSAGE)),
        ("grpc.max_receive_message_length", min(received + ENVELOPE, LARGEST_MESSAGE)),
    ]


def credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    if tls is None:
        return None
    contents: list[bytes | None] = []
    for name in ("root_certificates", "private_key", "certificate_chain"):
        path = getattr(tls, name)
        try:
            content = None if path is None else Path(path).read_bytes()
        except OSError as e:
            message = f"TLS: cannot read the {name} file {path}: {e.strerror}"
            raise InvalidRequestError(message, "INVALID_ARGUMENT") from e
        if content is not None and b"-----BEGIN " not in content:
            raise InvalidRequestError(f"TLS: the {name} file {path} has nothing in PEM format", "INVALID_ARGUMENT")
        contents.append(content)
    if (contents[1] is None) != (contents[2] is None):  # gRPC ends the process
        raise InvalidRequestError(
            "TLS: private_key and certificate_chain go together; give both, or neither", "INVALID_ARGUMENT"
        )
    return grpc.ssl_channel_credentials(*contents)
