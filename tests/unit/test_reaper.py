"""Ending what was started: who is asked, who is killed, and who is found without carrying the mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from build.server import reaper

# Starts a child that has shed the mark, says both process ids, and waits; {handler} is what it does on SIGTERM.
PROGRAM = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, {handler})
bare = {{name: value for name, value in os.environ.items() if name != "{mark}"}}
child = subprocess.Popen(["sleep", "600"], env=bare, start_new_session=True)
with open(sys.argv[1], "w") as said:
    said.write(f"{{child.pid}}\\n")
time.sleep(600)
"""


def started(folder: Path, handler: str) -> tuple[str, subprocess.Popen[bytes], int]:
    """Its mark, the process, and its child's id."""
    mark, said = reaper.new_mark(), folder / "said"
    program = PROGRAM.format(handler=handler, mark=reaper.MARK)
    process = subprocess.Popen([sys.executable, "-c", program, said], env={**os.environ, reaper.MARK: mark})
    while not (said.exists() and said.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    return mark, process, int(said.read_text())


@pytest.mark.parametrize("resting", [False, True])
def test_who_is_asked_ends_in_order_and_what_it_started_after_it(tmp_path: Path, resting: bool):
    mark, process, child = started(tmp_path, "lambda *_: sys.exit(7)")
    assert set(reaper.carrying(mark)) == {process.pid, child}
    if resting:
        process.send_signal(signal.SIGSTOP)
    region = reaper.SHM / f"{mark}-region"
    region.touch()
    begun = time.monotonic()
    reaper.reap(mark, within_s=30.0)
    assert time.monotonic() - begun < 15.0
    assert process.wait() == 7
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()
    assert reaper.carrying(mark) == {}
    assert not region.exists()


def test_who_does_not_listen_is_killed_when_the_time_is_over(tmp_path: Path):
    mark, process, _ = started(tmp_path, "signal.SIG_IGN")
    begun = time.monotonic()
    reaper.reap(mark, within_s=0.5)
    assert time.monotonic() - begun >= 0.5
    assert process.wait() == -signal.SIGKILL
    assert reaper.carrying(mark) == {}


def test_others_are_left_alone(tmp_path: Path):
    mark, process, _ = started(tmp_path, "signal.SIG_IGN")
    try:
        reaper.reap(reaper.new_mark(), within_s=0.0)
        assert process.poll() is None
    finally:
        reaper.reap(mark, within_s=0.0)
        process.wait()
