"""Certificates for trying TLS out, not for production: an authority, a server's and a client's, for a month."""

from __future__ import annotations

import datetime
import functools
import socket
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509

from build import aside
from ensemble.errors import LastrowError

DAYS = 30
HERE, CLIENT = ("localhost", "127.0.0.1", "::1"), "client@lastrow.test"
NAMES = ("server.crt", "server.key", "ca.crt", "client.crt", "client.key")


class CertificateError(LastrowError):
    """A file of TLS is missing, unreadable or out of date."""


@dataclass(frozen=True)
class Files:
    """A folder's PEM files, by what they are. `ca` signs: whom it signed is trusted. Without it, no client is asked."""

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
        for path in (self.certificate("server"), self.key("server"), *([self.ca] if mutual else [])):
            if not path.is_file():
                needed = "server.crt, server.key and ca.crt" if mutual else "server.crt and server.key"
                raise CertificateError(f"there is no {path}; put {needed} there, or try `make serve-tls`")
        return [
            "--grpc-use-ssl=true",
            *(["--grpc-use-ssl-mutual=true"] if mutual else []),
            f"--grpc-server-cert={self.certificate('server')}",
            f"--grpc-server-key={self.key('server')}",
            *([f"--grpc-root-cert={self.ca}"] if self.ca.is_file() else []),
        ]


def make(folder: Path, renew: bool = False) -> Files:
    """Write a new authority and what it signs, into a folder that has none of it; what is there already is used as it is.

    Args:
        renew: overwrite what is there.

    Raises:
        CertificateError: a part of the files is there, or a certificate that has expired; or the folder cannot be written.
    """
    files = Files(folder)
    try:
        if not renew and any((folder / name).exists() for name in NAMES):
            _check(files)
            return files
        with aside.beside(files.ca) as made:
            _write_all(Files(made))
            for name in NAMES:
                (made / name).replace(folder / name)
    except OSError as e:
        raise CertificateError(f"cannot write certificates into {folder}: {e.strerror} ({e.filename})") from e
    return files


def _check(files: Files) -> None:
    """What is there is a whole: a server's pair and its authority, and a client's pair or none; and still valid."""
    there = [name for name in NAMES if (files.folder / name).is_file()]
    client = {"client.crt", "client.key"}
    needed = [name for name in NAMES if name not in client or client & set(there)]
    missing = [name for name in needed if name not in there]
    if missing:
        raise CertificateError(
            f"{files.folder} has {', '.join(there) or 'folders of these names'} and no {', '.join(missing)}: put the rest "
            f"there, name another folder as TLS=, or have all of {', '.join(NAMES)} written anew with RENEW=1"
        )
    path = files.certificate("server")
    try:
        end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except ValueError as e:
        raise CertificateError(f"{path} is no certificate in PEM form: {e}") from e
    if end < datetime.datetime.now(datetime.timezone.utc):
        raise CertificateError(f"{path} expired on {end:%Y-%m-%d}; RENEW=1 writes new ones over all of {files.folder}")


def _write_all(files: Files) -> None:
    """A new authority, and what it signs; its own key is not kept."""
    authority = trustme.CA(path_length=0, organization_name="lastrow", organization_unit_name="test authority")
    _write(files.ca, authority.cert_pem.bytes())
    for owner in ("server", "client"):
        signed = _signed(authority, owner)
        _write(files.certificate(owner), signed.cert_chain_pems[0].bytes())
        _write(files.key(owner), signed.private_key_pem.bytes())


def _signed(authority: trustme.CA, owner: str) -> trustme.LeafCert:
    """trustme's are good for both ends of a connection; but the client's names no machine, so none is taken for it."""
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=DAYS)
    issue = functools.partial(authority.issue_cert, organization_unit_name=f"test {owner}", not_after=until)
    if owner == "client":
        return issue(CLIENT)
    try:
        return issue(*dict.fromkeys((*HERE, socket.gethostname())))
    except UnicodeError:  # a host name that no certificate can have, such as my_host
        return issue(*HERE)


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
