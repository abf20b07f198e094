"""Test certificates: who signed whom, in what name, for how long, and who can read the keys."""

import datetime
import socket
import ssl
import stat

import pytest
from cryptography import x509

from build.server import certificate
from build.server.certificate import DAYS, CertificateError, Files, make

OWNERS = ("server", "client")


def read(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path):
    return read(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize("owner", OWNERS)
def test_the_authority_signs_for_a_month(tmp_path, owner):
    files = make(tmp_path / "new" / "folder")
    authority, certificate = read(files.ca), read(files.certificate(owner))
    certificate.verify_directly_issued_by(authority)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=DAYS - 1) < left <= datetime.timedelta(days=DAYS)
    assert certificate.not_valid_before_utc < datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


@pytest.mark.parametrize("host", ["box", "my_host"])
def test_the_server_is_this_machine_and_a_client_is_none(tmp_path, monkeypatch, host):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    files = make(tmp_path)
    server = names(files.certificate("server"))
    assert server.get_values_for_type(x509.DNSName) == ["localhost", *([host] if host == "box" else [])]
    assert {"127.0.0.1", "::1"} == set(map(str, server.get_values_for_type(x509.IPAddress)))
    client = names(files.certificate("client"))
    assert not client.get_values_for_type(x509.DNSName)
    assert not client.get_values_for_type(x509.IPAddress)


def test_who_has_a_clients_key_cannot_pose_as_the_server(tmp_path):
    files = make(tmp_path)
    assert shake_hands(files, "server", "localhost") == shake_hands(files, "server", "127.0.0.1") == ""
    assert "not valid for 'localhost'" in shake_hands(files, "client", "localhost")
    assert "IP address mismatch" in shake_hands(files, "client", "127.0.0.1")


def shake_hands(files, owner, name):
    """What a client that trusts the authority says of a server that shows the owner's certificate; empty if it trusts it."""
    as_client, as_server = (
        ssl.create_default_context(cafile=files.ca),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
    )
    as_server.load_cert_chain(files.certificate(owner), files.key(owner))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = as_client.wrap_bio(down, up, server_hostname=name)
    server = as_server.wrap_bio(up, down, server_side=True)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as e:
            return e.verify_message
    return ""


def test_keys_are_this_users_alone_and_the_authoritys_is_nowhere(tmp_path):
    files = make(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "ca.crt",
        "server.crt",
        "server.key",
        "client.crt",
        "client.key",
    }
    assert all(stat.S_IMODE(files.key(owner).stat().st_mode) == 0o600 for owner in OWNERS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_stays_until_new_ones_are_asked_for(tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    assert make(tmp_path) == Files(tmp_path)
    assert contents(tmp_path) == before
    files = make(tmp_path, renew=True)
    after = contents(tmp_path)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())
    read(files.certificate("client")).verify_directly_issued_by(read(files.ca))


def test_somebodys_own_server_needs_no_client_beside_it(tmp_path):
    files = make(tmp_path)
    for path in (files.certificate("client"), files.key("client")):
        path.unlink()
    before = contents(tmp_path)
    make(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "missing", [["server.crt"], ["server.key"], ["ca.crt"], ["client.key"], ["ca.crt", "client.crt", "client.key"]]
)
def test_a_part_is_refused_and_kept(tmp_path, missing):
    make(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(CertificateError, match=rf"and no {', '.join(missing[:1])}.*RENEW=1") as raised:
        make(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert contents(tmp_path) == before


def test_an_expired_one_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as then:
        then.setattr(certificate, "DAYS", -1)
        make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CertificateError, match=rf"{tmp_path}/server.crt expired on \d{{4}}-.*RENEW=1"):
        make(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "server.crt").write_text("mine")
    with pytest.raises(CertificateError, match="is no certificate in PEM form"):
        make(tmp_path)


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "tls").write_text("mine")
    with pytest.raises(CertificateError, match=r"cannot write certificates into .*tls"):
        make(tmp_path / "tls")
    assert (tmp_path / "tls").read_text() == "mine"


@pytest.mark.parametrize("missing", ["server.crt", "server.key", "ca.crt"])
def test_a_missing_file_is_named(tmp_path, missing):
    files = make(tmp_path)
    assert f"--grpc-server-key={tmp_path}/server.key" in files.arguments(mutual=False)
    assert "--grpc-use-ssl-mutual=true" in files.arguments(mutual=True)
    (tmp_path / missing).unlink()
    with pytest.raises(CertificateError, match=rf"there is no {tmp_path}/{missing}.*make serve-tls"):
        files.arguments(mutual=True)


def test_an_authority_is_needed_only_to_ask_clients(tmp_path):
    files = make(tmp_path)
    assert f"--grpc-root-cert={files.ca}" in files.arguments(mutual=False)
    files.ca.unlink()
    assert not any("root-cert" in argument for argument in files.arguments(mutual=False))
