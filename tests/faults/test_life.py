"""Processes that die, servers that stop, files that are broken: what callers see, how soon service is back, what is left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as grpcclient
from onnx import numpy_helper
from tritonclient.utils import InferenceServerException

from build.server import Processes, Server, ServerError, free_ports, loopback, reaper, supervisor
from ensemble.client import STOPPING, Client
from ensemble.errors import ServingError
from tests.conftest import Served, learner
from tests.faults.conftest import Supervised, regions, replace, supervised, wait_until
from tests.faults.traffic import Known, Traffic

BACK_WITHIN_S = 15.0
HANGS_S = 8.0  # callers would wait for 10
STOPS_WITHIN_S = 30.0
STARTS = 6  # twenty every night
GONE_WITHIN_S = 10.0


def test_whatever_dies_is_back_and_nobody_hangs(served: Served, known: Known, tmp_path: Path):
    before = regions()
    with supervised(served, tmp_path) as serving, Traffic(serving.url, served.spec, known, callers=6) as traffic:
        for kind in (signal.SIGKILL, signal.SIGSEGV):
            for victim in ("preprocess", "postprocess", "core", "tritonserver"):
                # Callers may be answered before the supervisor has looked; until then an end is a failed start to it.
                wait_until(
                    lambda: serving.said("is ready") > serving.said("starting again"), BACK_WITHIN_S, "seen as ready"
                )
                traffic.wait_for(20)
                old = serving.server()
                process = old if victim == "tritonserver" else serving.stubs(victim)[0]
                process.send_signal(kind)
                took = wait_until(
                    lambda old=old: not old.is_running() and serving.ready(), BACK_WITHIN_S, f"service after {victim}"
                )
                print(f"{kind.name} of {victim}: back after {took:.1f} s")
        traffic.wait_for(20)
    assert set(traffic.statuses()) <= {"OK", "UNAVAILABLE", "INTERNAL"}
    assert traffic.wrong() == []
    assert max(outcome.took_s for outcome in traffic.outcomes) < HANGS_S
    assert serving.said("starting again") == 8
    assert regions() <= before


def test_without_a_supervisor_a_dead_step_is_an_error_and_no_wait(served: Served, tmp_path: Path):
    before = regions()
    with Server(served.repository, log=tmp_path / "log") as server:
        with Client(server.grpc_url, spec=served.spec, retries=0) as client:
            client.predict(learner(3))
            assert server.processes.dead_stubs() == []
            (core,) = [p for p in server.processes.tree() if "/core/1/" in " ".join(p.cmdline())]
            core.kill()
            for _ in range(3):
                start = time.monotonic()
                with pytest.raises(ServingError, match="not healthy"):
                    client.predict(learner(3))
                assert time.monotonic() - start < HANGS_S
        assert server.processes.dead_stubs() == ["core_0_0"]
        server.processes.kill()  # its own end would wait half a minute for the dead one
    assert regions() <= before


def test_what_is_under_way_is_finished_and_nothing_new_begun(served: Served, known: Known, tmp_path: Path):
    before = regions()
    # Two batches' worth: of one, all may be before the first step at once, and then nothing is under way behind it.
    callers = 2 * served.spec.batching.max_batch_size
    with supervised(served, tmp_path) as serving, Traffic(serving.url, served.spec, known, callers) as traffic:
        traffic.wait_for(200)
        asked = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(STOPS_WITHIN_S) == 0, serving.log.read_text()[-2000:]
        stopped = time.monotonic()
    print(f"stopped after {stopped - asked:.1f} s")
    # Callers who go on asking do not keep it from ending.
    assert stopped - asked < supervisor.DRAIN_S
    under_way = [o for o in traffic.outcomes if o.begun < asked < o.ended]
    new = [o for o in traffic.outcomes if o.begun > asked + 1.0]
    # Who had not reached the first step is told so; nobody is let go of between two steps.
    refused = [o for o in under_way if "the server is stopping" in o.message]
    assert [o for o in under_way if o not in refused and o.status != "OK"] == []
    assert len(under_way) > len(refused)
    assert new
    refused_as = {(o.status, STOPPING.get(o.status, "") in o.message) for o in new}
    assert ("UNAVAILABLE", True) in refused_as
    assert refused_as <= {("UNAVAILABLE", True), *((status, True) for status in STOPPING)}
    assert any("the server is stopping" in o.message for o in traffic.outcomes)
    assert traffic.wrong() == []
    assert regions() <= before


def test_what_does_not_come_back_is_given_up(copy, tmp_path: Path):
    """A step's file is damaged while it serves: that shows when the step has to be started again."""
    folder, (http, grpc, metrics) = copy(), free_ports(3)
    program = f"""
import sys
from pathlib import Path
from build.server import ServerError
from build.server.supervisor import Ports, Supervisor
try:
    Supervisor(Path({str(folder)!r}), "knowledge_tracing", Ports({http}, {grpc}, {metrics})).run()
except ServerError as e:
    sys.exit(f"serve: {{e}}")
"""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
    serving = Supervised(process, http, grpc, metrics, tmp_path / "log")
    try:
        wait_until(serving.ready, 60, "ready")
        append(folder / "preprocess/1/model.py", "import os\nos._exit(3)\n")
        serving.stubs("preprocess")[0].kill()
        assert process.wait(90) == 1
    finally:
        process.kill()
    text = serving.log.read_text()
    assert text.count("trying again") == supervisor.GIVE_UP_AFTER - 1
    assert re.search(r"serve: tritonserver does not start: .* died", text.splitlines()[-1])


def test_a_supervisor_that_is_killed_takes_its_server_along(served: Served, tmp_path: Path):
    before = regions()
    with supervised(served, tmp_path) as serving:
        tree = [serving.server(), *serving.server().children(recursive=True)]
        serving.process.kill()
        serving.process.wait()
        wait_until(lambda: not any(runs(p) for p in tree), STOPS_WITHIN_S, "its processes are gone")
    assert regions() <= before


def test_who_stops_reading_the_log_ends_nothing(served: Served, tmp_path: Path):
    read, write = os.pipe()
    with supervised(served, tmp_path, output=write) as serving:
        os.close(write)
        os.close(read)  # what a pager or `head` does when it has seen enough
        old = serving.server()
        serving.stubs("core")[0].kill()
        wait_until(lambda: not old.is_running() and serving.ready(), BACK_WITHIN_S, "service after core")
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(STOPS_WITHIN_S) == 0


def status(process: psutil.Process) -> str:
    """As psutil names it; "gone" where there is no such process, perhaps since a moment ago."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() if process.is_running() else "gone"
    return "gone"


def runs(process: psutil.Process) -> bool:
    """Whether it does, and is not only waiting to be buried."""
    return status(process) not in ("gone", psutil.STATUS_ZOMBIE)


def test_starts_and_kills_leave_nothing(served: Served, tmp_path: Path):
    started_and_killed(served, tmp_path, STARTS)


def started_and_killed(served: Served, folder: Path, starts: int) -> None:
    """Start servers and end them at any moment, every second one by force; nothing may stay."""
    before, moments = regions(), np.random.default_rng(0).uniform(0.2, 3.0, starts)
    for number, moment in enumerate(moments):
        ports = free_ports(3)
        names = ("http", "grpc", "metrics")
        arguments = [f"--model-repository={served.repository}", *loopback()]
        arguments += [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
        with (folder / "log").open("wb") as log:
            processes = Processes(arguments, log)
        end, stubs = time.monotonic() + moment, set()
        while time.monotonic() < end:
            processes.dead_stubs()
            stubs |= set(processes.tree())
            time.sleep(0.05)
        if number % 2:
            processes.kill()
        else:
            processes.end(STOPS_WITHIN_S)
        assert not any(runs(process) for process in stubs)
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        assert regions() <= before, f"start {number}, ended after {moment:.1f} s"
    assert [p for p in psutil.Process().children(recursive=True) if status(p) == psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(("number", "ignored"), [("SIGTERM", ""), ("SIGHUP", ""), ("SIGTERM", "SIGHUP")])
def test_a_command_that_is_ended_takes_its_server_along(number: str, ignored: str, served: Served, tmp_path: Path):
    """ignored: sent first, and ignored as under nohup, which may be how these tests were started themselves."""
    before, ready = regions(), tmp_path / "ready"
    program = f"""
import signal
import time
from pathlib import Path
import typer
from build.server import Server
from ensemble.command import run

signal.signal(signal.SIGHUP, signal.SIG_{"IGN" if ignored else "DFL"})
app = typer.Typer()

@app.command()
def measure():
    with Server(Path({str(served.repository)!r})) as server:
        Path({str(ready)!r}).write_text(str(server.processes.popen.pid))
        time.sleep(600)

run(app)
"""
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: ready.exists() and ready.read_text(), 60, "ready")
        server = psutil.Process(int(ready.read_text()))
        tree = [server, *server.children(recursive=True)]
        if ignored:
            process.send_signal(signal.Signals[ignored])
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
        process.send_signal(signal.Signals[number])
        assert process.wait(STOPS_WITHIN_S) == 128 + signal.Signals[number]
    finally:
        process.kill()
    assert not any(runs(one) for one in tree)
    assert regions() <= before


@pytest.mark.parametrize("when", ["it starts", "it serves", "it rests", "a step is dead"])
def test_a_command_that_is_killed_leaves_nothing(when: str, served: Served, tmp_path: Path):
    said = tmp_path / "said"
    program = f"""
import time
from pathlib import Path
from build.server import Server, reaper

def say():
    text = f"{{server.processes.popen.pid}} {{reaper.marked()[reaper.MARK]}}"
    Path({str(said)!r}).write_text(text)

log = Path({str(tmp_path / "log")!r})
starting = say if {when == "it starts"} else lambda: None
server = Server(Path({str(served.repository)!r}), log=log, waiting=starting)
with server:
    if {when == "it rests"}:
        server.rest()
    say()
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: said.exists() and len(said.read_text().split()) == 2, 60, when)
        pid, mark = said.read_text().split()
        if when == "it starts":
            wait_until(lambda: any(name.startswith(mark) for name in regions()), 60, "its first region is there")
        server = psutil.Process(int(pid))
        tree = [server, *server.children(recursive=True)]
        if when == "a step is dead":
            (core,) = [one for one in tree if "/core/1/" in " ".join(one.cmdline())]
            core.kill()
        assert server.pid in reaper.carrying(mark)
        assert any(name.startswith(mark) for name in regions())
    finally:
        process.kill()
        process.wait()
    took = wait_until(
        lambda: (
            not (
                any(runs(one) for one in tree)
                or reaper.carrying(mark)
                or any(name.startswith(mark) for name in regions())
            )
        ),
        GONE_WITHIN_S,
        "all is gone",
    )
    print(f"killed when {when}: all was gone after {took:.1f} s")


def shifted(folder: Path, version: int, shift: float = 0.5, problems: int | None = None) -> None:
    """A new version of the core: every logit a little higher, or one that knows other problems."""
    path = folder / "core" / "1" / "model.onnx"
    model = onnx.load(path)
    count = next(o.type.tensor_type.shape.dim[-1].dim_value for o in model.graph.output)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [count])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    if problems is not None:
        model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = problems
        for tensor in model.graph.initializer:
            if count in tensor.dims:
                axis = list(tensor.dims).index(count)
                array = np.take(numpy_helper.to_array(tensor), range(problems), axis)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    target = folder / "core" / str(version) / "model.onnx"
    target.parent.mkdir()
    onnx.save(model, target)


def test_the_core_is_reloaded_under_load(served: Served, known: Known, copy, tmp_path: Path):
    other = copy(lambda folder: shifted(folder, 2))
    with Server(other, log=tmp_path / "other.log") as server:
        new = Known.ask(server.grpc_url, served.spec, known.histories)
    assert not any(known.holds(name, answer) for name, (answer,) in new.answers.items())
    folder, model = copy(), served.spec.model.name
    control = ["--model-control-mode=explicit", f"--load-model={model}"]
    with (
        Server(folder, arguments=control, log=tmp_path / "log") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as admin,
    ):
        with Traffic(server.grpc_url, served.spec, known.or_of(new), callers=8) as traffic:
            traffic.wait_for(50)
            shifted(folder, 2)
            admin.load_model("core")
            traffic.wait_for(50)
            after = Known.ask(server.grpc_url, served.spec, known.histories)
            # What cannot be served changes nothing, and says why.
            (folder / "core" / "3").mkdir()
            (folder / "core" / "3" / "model.onnx").write_bytes(b"no model")
            with pytest.raises(InferenceServerException, match=r"core/3/model\.onnx"):
                admin.load_model("core")
            traffic.wait_for(50)
            shutil.rmtree(folder / "core" / "3")
            shifted(folder, 4, problems=40)
            with pytest.raises(InferenceServerException, match=r"logits.*14041"):
                admin.load_model("core")
            traffic.wait_for(50)
            assert Known.ask(server.grpc_url, served.spec, known.histories).answers.keys() == new.answers.keys()
        assert set(traffic.statuses()) == {"OK"}, [o for o in traffic.outcomes if o.status != "OK"][:3]
        assert traffic.wrong() == []
        for name, (answer,) in after.answers.items():
            assert new.holds(name, answer)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no core": (lambda f: (f / "core/1/model.onnx").unlink(), r"core"),
    "half a core": (lambda f: truncate(f / "core/1/model.onnx"), r"core/1/model\.onnx"),
    "no core configuration": (lambda f: shutil.rmtree(f / "core"), r"core"),
    "a damaged configuration": (
        lambda f: replace(f / "core/config.pbtxt", "max_batch_size", "max_batch"),
        r"core/config\.pbtxt",
    ),
    "no step": (lambda f: (f / "preprocess/1/model.py").unlink(), r"preprocess/1/model\.py"),
    "a damaged step": (lambda f: replace(f / "postprocess/1/model.py", "import json", "import jsom"), r"jsom"),
    "a step that ends at once": (lambda f: append(f / "propose/1/model.py", "import os\nos._exit(3)\n"), r"propose"),
    "a missing warm-up": (lambda f: shutil.rmtree(f / "core/warmup"), r"core/warmup/length_256"),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize("what", list(BROKEN))
def test_a_broken_repository_is_not_served_at_all(copy, tmp_path: Path, what: str):
    edit, named = BROKEN[what]
    before = regions()
    server = Server(copy(edit), log=tmp_path / "log")
    with pytest.raises(ServerError, match=named) as raised:
        server.__enter__()
    assert "\n" not in str(raised.value)
    if server.processes:  # else nothing was started
        assert server.processes.returncode not in (0, None)
        assert server.processes.tree() == []
        with (
            contextlib.closing(grpcclient.InferenceServerClient(server.grpc_url)) as client,
            pytest.raises(InferenceServerException),
        ):
            client.is_server_ready()
    assert regions() <= before


def test_tritonserver_itself_does_not_wait_for_a_missing_step(copy):
    folder = copy(BROKEN["no step"][0])
    command = [Path(sys.executable).with_name("tritonserver"), f"--model-repository={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"tritonserver: {folder}/preprocess/1/model.py is missing; run `make repo` again\n"
