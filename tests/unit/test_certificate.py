"""Test certificates: who signed whom, for what use, for how long, and who can read the keys."""

import datetime
import stat

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from build.certificate import DAYS, CertificateError, Files, make

USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


def read(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("owner", USES)
def test_the_authority_signs_for_one_use_and_a_month(tmp_path, owner):
    files = make(tmp_path / "new" / "folder")
    authority, certificate = read(files.ca), read(files.certificate(owner))
    certificate.verify_directly_issued_by(authority)
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [USES[owner]]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=DAYS - 1) < left <= datetime.timedelta(days=DAYS)


def test_keys_are_this_users_alone_and_the_authoritys_is_nowhere(tmp_path):
    files = make(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "ca.crt",
        "server.crt",
        "server.key",
        "client.crt",
        "client.key",
    }
    assert all(stat.S_IMODE(files.key(owner).stat().st_mode) == 0o600 for owner in USES)


def test_new_ones_take_the_place_of_the_old(tmp_path):
    before = make(tmp_path).ca.read_bytes()
    files = make(tmp_path)
    assert files.ca.read_bytes() != before
    read(files.certificate("client")).verify_directly_issued_by(read(files.ca))


@pytest.mark.parametrize("missing", ["server.crt", "server.key", "ca.crt"])
def test_a_missing_file_is_named(tmp_path, missing):
    files = make(tmp_path)
    assert f"--grpc-server-key={tmp_path}/server.key" in files.arguments(mutual=False)
    assert "--grpc-use-ssl-mutual=true" in files.arguments(mutual=True)
    (tmp_path / missing).unlink()
    with pytest.raises(CertificateError, match=rf"there is no {tmp_path}/{missing}.*make serve-tls"):
        Files(tmp_path).arguments(mutual=False)
