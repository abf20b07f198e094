"""Certificates for trying TLS out, not for production: an authority, a server's and a client's, for a month."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ensemble.errors import LastrowError

DAYS = 30


class CertificateError(LastrowError):
    """A file of TLS is missing."""


@dataclass(frozen=True)
class Files:
    """A folder's PEM files, by what they are. `ca` signs: whom it signed is trusted."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def certificate(self, owner: str) -> Path:
        """owner: "server" or "client"."""
        return self.folder / f"{owner}.crt"

    def key(self, owner: str) -> Path:
        """owner: "server" or "client"; readable by this user alone."""
        return self.folder / f"{owner}.key"

    def arguments(self, mutual: bool) -> list[str]:
        """tritonserver's arguments for gRPC; mutual: clients, too, have to show a certificate that `ca` signed.

        Raises:
            CertificateError: a file that the server would need is missing; it would say nothing and encrypt nothing.
        """
        for path in (self.certificate("server"), self.key("server"), self.ca):
            if not path.is_file():
                raise CertificateError(
                    f"there is no {path}; put server.crt, server.key and ca.crt there, or try `make serve-tls`"
                )
        return [
            "--grpc-use-ssl=true",
            *(["--grpc-use-ssl-mutual=true"] if mutual else []),
            f"--grpc-server-cert={self.certificate('server')}",
            f"--grpc-server-key={self.key('server')}",
            f"--grpc-root-cert={self.ca}",
        ]


def make(folder: Path) -> Files:
    """Write a new authority and what it signs; its own key is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("lastrow test authority")
    ca = _builder(issuer, issuer, authority.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(files.ca, ca.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    for owner, usage in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(f"lastrow test {owner}"), issuer, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(_this_machine(), critical=False)
        certificate = builder.sign(authority, hashes.SHA256())
        _write(files.certificate(owner), certificate.public_bytes(serialization.Encoding.PEM))
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        _write(files.key(owner), key.private_bytes(encoding, form, serialization.NoEncryption()))
    return files


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _this_machine() -> x509.SubjectAlternativeName:
    names = [x509.DNSName(name) for name in dict.fromkeys(("localhost", socket.gethostname()))]
    return x509.SubjectAlternativeName([*names, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
