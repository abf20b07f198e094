"""Model Analyzer for real: a short sweep, interrupted and resumed; a server that runs already."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tomlkit

from build import ARTIFACTS, ROOT
from build.analyzer import analysis, perf_analyzer, profile, result, sweep
from build.analyzer.result import Setting
from build.repository import assembly as repository
from build.repository.workspace import Workspace
from build.server import reaper
from ensemble.spec import Spec
from tests.conftest import Served, small_document

SHORT = dataclasses.replace(
    profile.ENSEMBLE_SWEEP,
    instances=(1,),
    batches=(32,),
    delays=(0, profile.SEED_DELAY_US),
    concurrency=(1,),
    requests=20,
    stability=50,  # what is tested is not how steady this machine is
)


@pytest.fixture
def workspace(small_checkpoint: Path, tmp_path: Path) -> Workspace:
    """A small model, as somebody's first attempt would serve it: 100 ms delay, one instance of everything."""
    document = small_document()
    for step in ("preprocess", "core", "postprocess", "propose"):
        document["steps"][step]["instances"] = 1
    document["steps"]["core"]["queue_delay_us"] = profile.SEED_DELAY_US
    spec_file = tmp_path / "spec.toml"
    spec_file.write_text(tomlkit.dumps(document), encoding="utf-8")
    made = Workspace(Spec.read(spec_file), spec_file, small_checkpoint, tmp_path / "models", checkpoint_given=True)
    repository.build(made.spec, made.checkpoint, made.out)
    return made


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_perf_analyzer_runs_here():
    executable, environment = perf_analyzer.find()
    done = subprocess.run([executable, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert "Perf Analyzer" in done.stdout + done.stderr
    script = Path(sys.prefix) / "bin" / "perf_analyzer"
    again = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert (again.stdout, again.stderr) == (done.stdout, done.stderr)


def test_a_sweep_is_interrupted_and_goes_on(workspace: Workspace, tmp_path: Path):
    before = contents(workspace.out)
    ready = sweep.prepare(SHORT, workspace.spec, workspace.out, tmp_path / "work")
    log = ready.work / "model-analyzer.log"

    def interrupt() -> None:
        while not log.exists() or not sweep.MEASURED.search(log.read_text(errors="replace")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(sweep.InterruptedSweepError, match="the same command goes on"):
        sweep.run(ready, lambda *_: None)
    thread.join()
    assert list((ready.work / "checkpoints").glob("*.ckpt"))
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler

    again = sweep.prepare(SHORT, workspace.spec, workspace.out, tmp_path / "work")
    assert again.work == ready.work
    notes = []
    sweep.run(again, lambda fraction, note: notes.append((fraction, note)))
    assert "Existing measurement found" in log.read_text(errors="replace")
    points = result.read(again)
    assert {0, profile.SEED_DELAY_US} <= {p.setting.queue_delay_us for p in points}
    slow = min(p.mean_ms for p in points if p.setting.queue_delay_us and p.concurrency == 1)
    fast = min(p.mean_ms for p in points if not p.setting.queue_delay_us)
    assert slow > 100 > fast
    assert any("callers" in note for _, note in notes)
    assert contents(workspace.out) == before

    third = sweep.prepare(SHORT, workspace.spec, workspace.out, tmp_path / "work")
    assert not (third.work / "checkpoints").exists()  # a complete sweep is measured again


def test_a_server_that_runs_already_is_measured_as_it_is(served: Served, tmp_path: Path):
    running = profile.Endpoints(served.server.grpc_url, served.server.http_url, served.server.metrics_url)
    setting = analysis.served_setting(running.url, served.spec)
    assert setting == Setting.of(served.spec)
    wanted = dataclasses.replace(analysis.as_served(SHORT, setting), concurrency=(1, 4))
    ready = sweep.prepare(wanted, served.spec, served.repository, tmp_path, running)
    sweep.run(ready, lambda *_: None)
    points = result.read(ready, setting)
    assert {1, 4} <= {p.concurrency for p in points}
    assert {p.setting for p in points} == {setting}


def test_a_server_that_is_not_there(spec: Spec):
    with pytest.raises(sweep.SweepError, match="check URL="):
        analysis.served_setting("127.0.0.1:9", spec)


def test_a_model_that_does_not_load_is_named(workspace: Workspace, tmp_path: Path):
    (workspace.out / "core" / "1" / "model.onnx").write_bytes(b"damaged")
    ready = sweep.prepare(SHORT, workspace.spec, workspace.out, tmp_path / "work")
    with pytest.raises(sweep.SweepError, match="core"):
        sweep.run(ready, lambda *_: None)


def test_an_interrupted_command_says_how_to_go_on(workspace: Workspace):
    command = ["nohup", sys.executable, "-m", "build", "analyze", "--spec", str(workspace.spec_file)]
    command += ["--checkpoint", str(workspace.checkpoint), "--out", str(workspace.out), "--quick"]
    logs = ARTIFACTS / "analyzer" / workspace.spec_file.parent.name
    shutil.rmtree(logs, ignore_errors=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def logged(text: str) -> bool:
        return any(text in log.read_text(errors="replace") for log in logs.rglob("model-analyzer.log"))

    while not logged("Profiling server"):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGHUP)  # nohup has it ignored
    time.sleep(2)
    assert not logged("Received SIGINT")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_killed_command_leaves_nothing(workspace: Workspace):
    command = [sys.executable, "-m", "build", "analyze", "--spec", str(workspace.spec_file)]
    command += ["--checkpoint", str(workspace.checkpoint), "--out", str(workspace.out), "--quick"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before, tree = regions(), []
    try:
        while not {"perf_analyzer", "triton_python_b"} <= {one.name()[:15] for one in tree if one.is_running()}:
            assert process.poll() is None
            time.sleep(0.1)
            tree = psutil.Process(process.pid).children(recursive=True)
        assert regions() > before
    finally:
        process.kill()
        process.wait()
    psutil.wait_procs(tree, timeout=15)
    assert [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert regions() <= before


def regions() -> set[Path]:
    """Shared memory of the servers that this run has started."""
    return set(reaper.SHM.glob(f"{reaper.marked()[reaper.MARK]}*"))
