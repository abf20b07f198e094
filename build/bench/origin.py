"""Where figures come from: the machine, the commit and the day that they were measured on."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from build import ROOT
from build.bench import machine


def record() -> dict[str, Any]:
    """A report's first keys, to be asked for before the measurement: the tree may change while it runs.

    dirty: whether a tracked file was other than the commit has it. Both are None where there is no git to ask.
    """
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "machine": machine.describe(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def sentence(report: dict[str, Any]) -> str:
    """What `record` found, in a line."""
    state = {True: ", with changes on top", False: "", None: ", changes on top not recorded"}[report["dirty"]]
    commit = f"commit {report['commit']}{state}" if report["commit"] else "a tree without git"
    return f"{machine.sentence(report['machine'])}; {commit}, {report['time'].split()[0]}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},  # no other project's that lies around it
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
