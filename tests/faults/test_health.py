"""The container's health check, against a server whose steps die."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from build import ROOT
from build.bench import variant
from build.repository import assembly as repository
from build.server import Server, free_ports
from tests.conftest import Served

SCRIPT = ROOT / "build" / "deploy" / "container" / "health.py"
CHECKS = 5  # each of them has to see it


def check(folder: Path, server: Server) -> subprocess.CompletedProcess[str]:
    """As the container does, where nothing is installed; on another port."""
    command = [sys.executable, "-I", "-S", SCRIPT, folder, f"http://{server.http_url}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("step", "instances"), [("preprocess", 2), ("core", 1), ("postprocess", 2), ("propose", 1)])
def test_a_dead_step_is_seen(served: Served, tmp_path: Path, step: str, instances: int):
    folder = tmp_path / "models"
    shutil.copytree(served.repository, folder)
    spec = variant.changed(served.spec, **{f"steps__{step}__instances": instances})
    repository.build(spec, served.checkpoint, folder)
    with Server(folder, log=tmp_path / "log") as server:
        done = check(folder, server)
        assert (done.returncode, done.stderr) == (0, "")
        stubs = [one for one in server.processes.tree() if f"/{step}/1/" in " ".join(one.cmdline())]
        assert len(stubs) == instances
        stubs[-1].kill()
        with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200  # which is why readiness alone is not asked
        for _ in range(CHECKS):
            done = check(folder, server)
            assert done.returncode == 1
            assert f"{step}_0_" in done.stderr
        server.processes.kill()  # its own end would wait half a minute for the dead one


def test_no_server_is_said(tmp_path: Path):
    (port,) = free_ports(1)
    command = [sys.executable, "-I", "-S", SCRIPT, tmp_path, f"http://127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("there is no answer: ")
    assert done.stderr.count("\n") == 1
