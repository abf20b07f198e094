"""The launcher and the server's life: what a person types, and how it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from build import ROOT
from build.server import PORTS, Server, ServerError, free_ports, loopback, server
from ensemble.client import Client
from tests.conftest import Served, answer_of, learner, needs_ipv6

LAUNCHER = Path(sys.prefix) / "bin" / "tritonserver"


def ports() -> tuple[list[str], int]:
    free = free_ports(3)
    return [*loopback(), *(f"--{o}={p}" for o, p in zip(PORTS, free, strict=True))], free[1]


def wait_until_ready(port: int, timeout_s: float = 90, host: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + timeout_s
    with grpcclient.InferenceServerClient(f"{host}:{port}") as client:
        while time.monotonic() < deadline:
            try:
                if client.is_server_ready():
                    return
            except InferenceServerException:
                time.sleep(0.2)
    raise AssertionError(f"not ready after {timeout_s} s")


def test_tritonserver_of_the_environment_serves_and_stops_on_ctrl_c(served: Served):
    arguments, port = ports()
    process = subprocess.Popen(
        [LAUNCHER, f"--model-repository={served.repository}", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_make_serve_stops_on_ctrl_c(served: Served):
    http, grpc, metrics, health = free_ports(4)
    process = subprocess.Popen(
        [
            *("make", "serve", f"CHECKPOINT={served.checkpoint}", f"OUT={served.repository}"),
            *(f"HTTP_PORT={http}", f"GRPC_PORT={grpc}", f"METRICS_PORT={metrics}", f"HEALTH_PORT={health}"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_ready(grpc)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends: to make and to the server alike
        process.wait(60)
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("make serve left processes behind")
    except ProcessLookupError:
        pass  # none of them is left


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("opened", ["", "trace", "shared-memory"])
def test_shared_memory_is_asked_for_where_it_is_known(served: Served, tmp_path: Path, newer: bool, opened: str):
    """The newer server is not to be had here: a script stands for it that writes down how it is started, and ends."""
    said, script = tmp_path / "said", tmp_path / "tritonserver"
    known = "--allow-client-shm <boolean>" if newer else ""
    script.write_text(
        f"""#!/bin/sh
if [ "$*" = --help ]; then echo "  --model-repository <string>"; echo "  {known}"; exit; fi
echo "$@" > {said}
"""
    )
    script.chmod(0o755)
    command = [sys.executable, "-m", "build", "serve", "--checkpoint", served.checkpoint, "--out", served.repository]
    for option, port in zip([*PORTS, "health-port"], free_ports(4), strict=True):
        command += [f"--{option}", str(port)]
    done = subprocess.run(
        [*command, "--open", opened],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "tritonserver ended with exit code 0 while it started" in done.stderr
    arguments = said.read_text().split()
    assert f"--model-repository={served.repository}" in arguments
    assert ("--allow-client-shm=true" in arguments) == (newer and opened == "shared-memory")


@needs_ipv6
def test_make_serve_listens_on_ipv6(served: Served, tmp_path: Path):
    http, grpc, metrics, health = free_ports(4, "::1")
    command = ["make", "serve", f"CHECKPOINT={served.checkpoint}", f"OUT={served.repository}", "ADDRESS=::1"]
    command += [f"HTTP_PORT={http}", f"GRPC_PORT={grpc}", f"METRICS_PORT={metrics}", f"HEALTH_PORT={health}"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_ready(grpc, host="[::1]")
        with Client(f"[::1]:{grpc}", spec=served.spec) as client:
            history = learner(20)
            (answer,) = client.predict([history])
        expected = answer_of(served.model, history, served.spec.model.window)
        np.testing.assert_allclose(answer.probabilities, expected, rtol=0, atol=1e-5)
        with urllib.request.urlopen(f"http://[::1]:{metrics}/metrics", timeout=5) as page:
            assert b"nv_inference_request_success" in page.read()
        tree = psutil.Process(process.pid).children(recursive=True)
        listening = {
            (socket.laddr.ip, socket.laddr.port)
            for one in tree
            for socket in one.net_connections()
            if socket.status == psutil.CONN_LISTEN
        }
        assert listening == {("::1", port) for port in (http, grpc, metrics, health)}
        deadline = time.monotonic() + 10  # the supervisor looks four times a second
        while f"is ready: gRPC [::1]:{grpc}" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert f"is ready: gRPC [::1]:{grpc}" in log.read_text()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        psutil.wait_procs(tree, timeout=10)  # one of them watches for the end of the others
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_taken_port_is_one_line(served: Served):
    arguments, _ = ports()
    taken = served.server.grpc_url.split(":")[1]
    done = subprocess.run(
        [LAUNCHER, f"--model-repository={served.repository}", *arguments, f"--grpc-port={taken}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"tritonserver: port {taken} on 127.0.0.1 is not free")
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_lost_before_the_start_is_another_the_next_time(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lost = taken.getsockname()[1]
        lost_ones = [[lost, *free_ports(2)], [*free_ports(2), lost], [free_ports(1)[0], lost, free_ports(1)[0]]]
        given = [*lost_ones[:2], free_ports(3), *lost_ones]
        monkeypatch.setattr(server, "free_ports", lambda: given.pop(0))
        with Server(served.repository, log=tmp_path / "tritonserver.log") as started:
            assert lost not in {int(url.rpartition(":")[2]) for url in (started.http_url, started.grpc_url)}
        with pytest.raises(server.PortTakenError, match=f"{lost}.* already in use"):
            Server(served.repository, log=tmp_path / "tritonserver.log").__enter__()
        assert not given


def test_a_damaged_repository_is_explained(served: Served, tmp_path: Path):
    broken = shutil.copytree(served.repository, tmp_path / "models")
    (broken / "core" / "1" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ServerError, match=r"tritonserver ended with exit code 1 .*model\.onnx"):
        Server(broken, log=tmp_path / "log").__enter__()


def test_a_missing_repository_is_explained(tmp_path: Path):
    with pytest.raises(ServerError, match=r"there is no model repository .*run `make repo` first"):
        Server(tmp_path / "absent").__enter__()


def test_sigterm_ends_it_cleanly(served: Served, tmp_path: Path):
    with Server(served.repository, log=tmp_path / "log") as server:
        assert server.stop() == 0
