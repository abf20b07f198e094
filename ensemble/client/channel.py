"""Where a client's channel leads, how large its messages may be, and what encrypts it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from ensemble.errors import InvalidRequestError
from ensemble.interface import Interface, size

ENVELOPE = 64 * 1024  # bytes of a message beside its tensors
DEFAULT_URL = "127.0.0.1:8001"
RESOLVERS = ("dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds")  # gRPC's own schemes of a URL
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


def limits(interface: Interface | None) -> list[tuple[str, int]]:
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
