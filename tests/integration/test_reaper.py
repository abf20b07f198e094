"""What a killed measurement leaves of what it has started beside the ensemble's server: nothing. See also tests/faults."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from build.server import reaper
from ensemble.spec import DEFAULT_SPEC
from tests.conftest import Served

GONE_WITHIN_S = 15.0


def shared(tree: list[psutil.Process]) -> set[Path]:
    """Files in /dev/shm that the processes have mapped."""
    found: set[Path] = set()
    for process in tree:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            found |= {path for path in map(Path, re.findall(rf"{reaper.SHM}/\S+", maps)) if path.exists()}
    return found


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def killed(program: str, said: Path) -> tuple[list[psutil.Process], set[Path]]:
    """Run it, kill it when it has written that file, and wait until all that it started has ended.

    Returns:
        What it had started, and the shared memory of that.
    """
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 90
        while not said.exists():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        tree = psutil.Process(process.pid).children(recursive=True)
        memory = shared(tree)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := [one for one in tree if runs(one)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    return tree, memory


def test_a_resting_process_without_a_server_goes_along(served: Served, tmp_path: Path):
    said = tmp_path / "said"
    core = served.repository / "core" / "1" / "model.onnx"
    program = f"""
import time
from pathlib import Path
from build.bench.ladder.local import Local
local = Local("onnxruntime", Path({str(DEFAULT_SPEC)!r}), Path({str(served.checkpoint)!r}), Path({str(core)!r}))
Path({str(said)!r}).touch()
time.sleep(600)
"""
    tree, _ = killed(program, said)
    assert len(tree) == 2  # and the one that waits


def test_a_server_beside_ours_goes_along(served: Served, tmp_path: Path):
    said = tmp_path / "said"
    core = served.repository / "core" / "1" / "model.onnx"
    program = f"""
import sys, time
from pathlib import Path
from build.bench.peers import peer, process
from build.server import reaper
from ensemble.spec import Spec
process.PYTHON = Path(sys.executable)
(pytriton,) = [one for one in peer.PEERS if one.name == "PyTriton"]
with process.serving(pytriton, "gRPC", 1, Path({str(core)!r}), Spec.read(), Path({str(tmp_path)!r})):
    Path({str(said)!r}).touch()
    time.sleep(600)
"""
    tree, memory = killed(program, said)
    assert len(tree) > 3
    assert memory
    assert not any(path.exists() for path in memory)
