"""The variables of the command line: the help lines are true, and what no goal takes is refused before anything is done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build import ROOT
from build.make import variables
from build.repository import workspace
from build.repository.workspace import open_workspace

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TAKEN = variables.taken(MAKEFILE)
NAMES = sorted({*re.findall(r"^([A-Z0-9_]+) \?=", MAKEFILE, re.MULTILINE)} - {"PYTHON"})


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make`, as from a shell of its own: the tests themselves may be a target's."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", *NAMES)}
    return subprocess.run(
        ["make", *words],  # noqa: S607
        cwd=folder,
        env={**inherited, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A dry run here."""
    return run(ROOT, "--dry-run", *words, **environment)


@pytest.mark.parametrize("target", TAKEN)
def test_a_target_takes_what_its_help_says_and_no_more(target: str):
    plain = make(target)
    assert plain.returncode == 0, plain.stderr
    # The environment is not checked, and so shows what the recipe reads.
    taken = set(TAKEN[target]) - {"PYTHON"}
    assert make(target, **dict.fromkeys(set(NAMES) - taken, "7")).stdout == plain.stdout
    for name in taken:
        assert make(target, **{name: "7"}).stdout != plain.stdout, name
        assert make(target, f"{name}=7").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["repo", "NETWROK=gru"], "there is no NETWROK=; the nearest is NETWORK="),
        (["repo", "network=gru"], "there is no network=; the nearest is NETWORK="),
        (["repo", "QQQ=1"], "there is no QQQ=; `make help` lists all"),
        (["repo", "MODEL=x"], "there is no MODEL=; "),  # the Makefile's own
        (["GIVEN="], "there is no GIVEN=; "),
        (["lint", "NETWORK=gru"], "`make lint` takes no NETWORK=; it goes with demo, train, "),
        (["NETWORK=gru"], "`make help` takes no NETWORK="),
        (["repo", "NETWORK="], None),
        (["-j4", "repo", "serve", "MUTUAL=1", "NETWORK=gru"], None),
        (["-j4", "repo", "lint", "MUTUAL=1"], "`make repo lint` takes no MUTUAL=; it goes with serve"),
        (["lint", "SHELL=/bin/bash", f"PYTHON={sys.executable}"], None),
        (["rpeo", "NETWORK=gru"], "No rule to make target 'rpeo'"),
        ([".venv/.installed", "NETWROK=gru"], "there is no NETWROK="),
    ],
)
def test_what_no_goal_takes_is_refused(words: list[str], message: str | None):
    done = make(*words)
    if message is None:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_refused_command_does_nothing(tmp_path: Path):
    for name in ("Makefile", "build/make/variables.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "build" / "artifacts").mkdir()
    refused = run(tmp_path, "clean", "NETWORK=gru")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (tmp_path / "build" / "artifacts").is_dir()
    assert run(tmp_path, "clean").returncode == 0
    assert not (tmp_path / "build" / "artifacts").exists()


def test_clean_keeps_a_spec_that_somebody_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(ROOT / "Makefile", tmp_path)
    monkeypatch.setattr(workspace, "ARTIFACTS", tmp_path / "build" / "artifacts")
    derived = [open_workspace(network=network).spec_file for network in ("gru", "transformer")]
    changed = derived[1].read_text().replace("queue_delay_us = 0", "queue_delay_us = 5")
    derived[1].write_text(changed)
    (derived[1].parent / "models").mkdir()
    (derived[1].parent / "checkpoint.pt").write_text("built")
    (tmp_path / "build" / "artifacts" / "link").symlink_to(tmp_path)
    done = run(tmp_path, "clean")
    assert f"kept: {derived[1].relative_to(tmp_path)}" in done.stdout
    assert [path for path in (tmp_path / "build").rglob("*") if path.is_file()] == [derived[1]]
    assert derived[1].read_text() == changed
    assert (tmp_path / "Makefile").is_file()
    derived[1].unlink()
    assert run(tmp_path, "clean").returncode == 0
    assert not (tmp_path / "build" / "artifacts").exists()


def test_the_environment_is_nobodys_mistake():
    assert make("lint", NETWROK="gru", NETWORK="gru").returncode == 0


@pytest.fixture
def linted(tmp_path: Path) -> Path:
    """A project whose tools are all content, to begin with."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "build").mkdir()
    for name in ("pyproject.toml", "build/pyproject.toml"):
        (tmp_path / name).touch()
    for name in ("ruff", "mypy", "python", "pip-audit", ".installed"):
        path = tmp_path / ".venv" / ("bin" if name != ".installed" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def test_a_vulnerability_fails_lint(linted: Path):
    assert run(linted, "lint").returncode == 0
    (linted / ".venv/bin/pip-audit").write_text('#!/bin/sh\necho "Found 1 known vulnerability"\nexit 1\n')
    done = run(linted, "lint")
    assert done.returncode == 2
    assert "Found 1 known vulnerability" in done.stdout


def test_without_advisories_lint_says_that_nothing_was_audited(linted: Path):
    (linted / ".venv/bin/pip-audit").write_text("#!/bin/sh\nexit 1\n")
    asked = linted / ".venv/bin/python"
    asked.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    done = run(linted, "lint", HTTPS_PROXY="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert done.returncode == 0
    assert "NOT AUDITED: no advisories from PyPI here (requests.exceptions.ProxyError: " in done.stdout
    (linted / ".venv/bin/mypy").write_text("#!/bin/sh\nexit 1\n")
    assert run(linted, "lint").returncode == 2
