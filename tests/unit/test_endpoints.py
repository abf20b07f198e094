"""What closes a server's management, worked out without one; tests/faults asks a real one."""

import subprocess
import sys
from pathlib import Path

import pytest

from build import ROOT
from build.server import endpoints, free_ports
from build.server.endpoints import MANAGEMENT, closed, observed


def rules(arguments: list[str]) -> dict[str, tuple[set[str], str]]:
    """By option: the closed endpoints, and the key."""
    found = {}
    for argument in arguments:
        option, _, rule = argument.partition("=")
        names, _, header = rule.partition(":")
        name, _, key = header.partition("=")
        assert name == endpoints.ADMIN_HEADER
        found[option] = (set(names.split(",")), key)
    return found


def test_all_management_is_closed_on_both_protocols():
    found = rules(closed(admin_key="k"))
    assert found == dict.fromkeys(("--grpc-restricted-protocol", "--http-restricted-api"), (set(MANAGEMENT), "k"))


def test_without_a_key_nobody_has_one():
    (_, first), (_, again) = rules(closed()).values()
    (_, later), _ = rules(closed()).values()
    assert first == again != later
    assert len(first) >= 32
    assert closed(admin_key="")[0] != closed(admin_key="")[0]


def test_what_is_opened_is_left_out():
    assert all(names == set(MANAGEMENT) - {"trace"} for names, _ in rules(closed(["trace"])).values())
    assert closed(MANAGEMENT) == []


@pytest.mark.parametrize("key", ["two words", "a:b", "a=b", "a,b", "ключ", "tab\t"])
def test_a_key_that_would_change_the_rule_is_refused(key):
    with pytest.raises(ValueError, match="one word of ASCII"):
        closed(admin_key=key)


def test_an_endpoint_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"no endpoint 'inference' to open; there are model-repository, shared-memory"):
        closed(["inference"])


def test_tracing_is_off_unless_it_has_a_collector():
    assert not any("trace" in argument for argument in observed())
    assert "--trace-config=opentelemetry,url=http://c:4318/v1/traces" in observed("http://c:4318/v1/traces")


@pytest.mark.parametrize("environment", [{}, {"LASTROW_ADMIN_KEY": "k", "LASTROW_TRACE": "http://c/v1/traces"}])
def test_a_repository_alone_is_served_closed(tmp_path: Path, environment: dict[str, str]):
    server, folder = tmp_path / "tritonserver", tmp_path / "a folder"
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "config.pbtxt").write_text('platform: "ensemble"\n')
    options = [
        f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics", "health"), free_ports(4), strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "build.server", folder, *options, "--log-verbose=1"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert "tritonserver ended with exit code 0 while it started" in said[-1]
    assert {f"--model-repository={folder}", options[1], "--log-verbose=1", "--grpc-address=127.0.0.1"} <= set(said)
    found = rules([argument for argument in said if "restricted" in argument])
    assert {option.rsplit("-", 1)[0] for option in found} == {"--grpc-restricted", "--http-restricted"}
    assert all(names == set(MANAGEMENT) for names, _ in found.values())
    assert ("k" in {key for _, key in found.values()}) == bool(environment)
    assert any("url=http://c/v1/traces" in argument for argument in said) == bool(environment)
    assert any("service.name=mine" in argument for argument in said) == bool(environment)
