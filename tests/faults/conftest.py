"""Servers to be broken: `make serve` as a person starts it, and repositories with one thing changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from build import ROOT
from build.server import Server, free_ports, reaper
from ensemble.learners.history import History
from tests.conftest import Served, learner
from tests.faults.traffic import Known

LENGTHS = (0, 1, 3, 20, 20, 37, 64, 100, 128, 300, 511, 512, 700)


def regions() -> set[str]:
    """What the servers of this run have in shared memory, and clients of this process, or of one that is no more."""
    server, names = reaper.marked()[reaper.MARK], {path.name for path in reaper.SHM.iterdir()}
    clients = {name for name in names if name.startswith("lastrow_") and name.split("_")[1].isdigit()}
    beside = {name for name in clients if psutil.pid_exists(pid := int(name.split("_")[1])) and pid != os.getpid()}
    return {name for name in names if name.startswith(server)} | (clients - beside)


def wait_until(done: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until it was done."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < timeout_s, f"{what}: not after {timeout_s} s"
        time.sleep(0.05)
    return time.monotonic() - start


def samples(page: str) -> Iterator[Sample]:
    """Every sample of a page of metrics, in the name that it is exported in.

    Of what the page calls a counter the parser writes names as OpenMetrics would have them, with _total behind.
    """
    untyped = "\n".join(line for line in page.splitlines() if not line.startswith("#"))
    return (sample for family in text_string_to_metric_families(untyped + "\n") for sample in family.samples)


@dataclass(frozen=True)
class Supervised:
    """A running `make serve`."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int
    log: Path
    health: int = 0

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def ready(self) -> bool:
        """Whether it says so, and its metrics are there, which Triton opens last."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=2) as answer:
                return answer.status == 200 and bool(self.read_metrics())
        except OSError:
            return False

    def healthy(self) -> int:
        """What its health port answers, 0 where nothing does."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as e:
            return e.code
        except OSError:
            return 0

    def said(self, words: str) -> int:
        """How often its log has them."""
        return self.log.read_text(encoding="utf-8", errors="replace").count(words)

    def read_metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def server(self) -> psutil.Process:
        """The tritonserver of now."""
        (found,) = [p for p in psutil.Process(self.process.pid).children(recursive=True) if p.name() == "tritonserver"]
        return found

    def stubs(self, step: str) -> list[psutil.Process]:
        return [p for p in self.server().children(recursive=True) if f"/{step}/1/" in " ".join(p.cmdline())]


@contextlib.contextmanager
def supervised(
    served: Served,
    folder: Path,
    *options: str,
    wait: bool = True,
    output: int | None = None,
    announce_s: float = 0.0,
) -> Iterator[Supervised]:
    """What `make serve` runs, for a repository that is there. output: a descriptor, in place of the log file."""
    http, grpc, metrics, health = free_ports(4)
    command = [sys.executable, "-m", "build", "serve", "--checkpoint", str(served.checkpoint)]
    command += ["--out", str(served.repository), "--http-port", str(http), "--grpc-port", str(grpc)]
    own = ["--health-port", str(health), "--announce-s", str(announce_s)]
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--metrics-port", str(metrics), *own, *options],
            cwd=ROOT,
            stdout=file if output is None else output,
            stderr=subprocess.STDOUT,
        )
    found = Supervised(process, http, grpc, metrics, log, health)
    try:
        if wait:
            wait_until(lambda: found.ready() or process.poll() is not None, 90, "make serve is ready")
            assert process.poll() is None, log.read_text()
        yield found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def known(served: Served) -> Known:
    """Learners of many lengths, and what they get alone."""
    histories = [History(str(number), *_columns(length, number)) for number, length in enumerate(LENGTHS)]
    return Known.ask(served.server.grpc_url, served.spec, histories)


def _columns(length: int, seed: int):
    history = learner(length, seed)
    return history.problem_ids, history.responses


@pytest.fixture
def copy(served: Served, tmp_path: Path) -> Callable[..., Path]:
    """Copies of the served repository: copy(edit) where edit(folder) changes something in it."""

    def make(edit: Callable[[Path], object] = lambda _: None) -> Path:
        folder = tmp_path / f"models-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(served.repository, folder)
        edit(folder)
        return folder

    return make


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text in a file, which has to be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def still_answers(server: Server, spec, known: Known) -> None:
    """The server is ready and gives every known learner the known answer."""
    again = Known.ask(server.grpc_url, spec, known.histories)
    for name, (answer,) in again.answers.items():
        assert known.holds(name, answer), f"learner {name}"
