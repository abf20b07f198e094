"""pip-audit's answer, read: what is vulnerable, what nobody could say anything of, what was accepted."""

import subprocess

import pytest

from build.make import audit
from ensemble.errors import LastrowError

VULNERABLE = {
    "name": "old",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1", "2.0"]}],
}
PACKAGES = [
    {"name": "fine", "version": "2.0", "vulns": []},
    VULNERABLE,
    {"name": "ours", "skip_reason": "not published"},
]


def test_what_is_vulnerable_is_named_with_its_cure():
    found = audit.read(PACKAGES)
    assert found.asked == 2
    assert found.left_out == ("ours",)
    assert found.vulnerable == ("old 1.0: PYSEC-1, fixed in 1.1, 2.0",)


def test_a_vulnerability_without_a_cure_says_so():
    package = {**VULNERABLE, "vulns": [{"id": "PYSEC-1", "aliases": [], "fix_versions": []}]}
    assert audit.read([package]).vulnerable == ("old 1.0: PYSEC-1, fixed in no version",)


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_accepted_advisory_is_left_out_by_any_of_its_names(monkeypatch, name):
    monkeypatch.setattr(audit, "ACCEPTED", {name: "that part is not used"})
    assert audit.read(PACKAGES).vulnerable == ()


def test_a_failure_of_pip_audit_is_not_taken_for_a_clean_answer(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="no such option\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(LastrowError, match="pip-audit failed: no such option"):
        audit.audit()
