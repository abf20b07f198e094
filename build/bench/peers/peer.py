"""Peers: other servers with the same reduced core, asked by the same client load in the same run.

Each round starts every server anew, asks it, and stops it: what one does while nobody asks disturbs no other.
"""

from __future__ import annotations

import http
import http.client
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import tritonclient.grpc as grpcclient
from rich.table import Table

from build import ROOT
from build.bench import load, origin, publication, statistic
from build.bench.caller import TIMEOUT_S, Caller, EnsembleClient, answers_of, full_windows
from build.core.parity import tolerance
from build.server import LOOPBACK, Server, free_ports, reaper
from ensemble.errors import LastrowError
from ensemble.learners.history import History
from ensemble.spec import Spec

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SERVERS = Path(__file__).parent
STARTING_S, STOPPING_S = 120.0, 20.0
BUSY = 16  # streams of one learner each
Progress = Callable[[float | None, str], None]
Encoding = Literal["JSON", "bytes", "gRPC"]


@dataclass(frozen=True)
class Peer:
    """A server.

    package: whose version counts. encodings: JSON is the quick start's, bytes what serves it best. paths: of each over HTTP.
    """

    name: str
    package: str
    file: str
    batching: str
    encodings: tuple[Encoding, ...] = ("JSON", "bytes")
    arguments: tuple[str, ...] = ()
    paths: tuple[str, str] = ("/predict", "/predict")


PEERS = (
    Peer("FastAPI + uvicorn", "fastapi", "fastapi_server.py", "none of its own"),
    Peer("LitServe", "litserve", "litserve_server.py", "max_batch_size=32, batch_timeout=0.001"),
    Peer(
        "BentoML",
        "bentoml",
        "bentoml_server.py",
        "batchable=True, max_batch_size=32",
        paths=("/predict", "/predict_bytes"),
    ),
    Peer("Ray Serve", "ray", "ray_server.py", "@serve.batch(max_batch_size=32, batch_wait_timeout_s=0)"),
    Peer("Ray Serve, no proxy", "ray", "ray_server.py", "as Ray Serve", arguments=("--direct",)),
    Peer("PyTriton", "nvidia-pytriton", "pytriton_server.py", "DynamicBatcher(), max_batch_size=32", ("gRPC",)),
)
OURS = "lastrow"


class PeerError(LastrowError):
    """A peer did not start or did not answer; the message is its own."""


@dataclass
class Measured:
    """What was measured of one server in one encoding: an entry a round."""

    latencies_ms: list[list[float]] = field(default_factory=list)
    throughputs: list[float] = field(default_factory=list)


@dataclass
class Found:
    """What was found of one server. error: why it does not serve here."""

    name: str
    version: str
    batching: str
    starts_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    error: str | None = None


class HttpPeer:
    """A peer over HTTP, in the quick starts' JSON or with numbers as bytes."""

    def __init__(self, port: int, encoding: Encoding, path: str, problems: int) -> None:
        self._path = path
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
        self._json = encoding == "JSON"
        self._problems = problems

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        (history,) = histories
        if self._json:
            table = {"problem_ids": history.problem_ids.tolist(), "responses": history.responses.tolist()}
            content = self._post(json.dumps(table).encode(), "application/json")
            answer = np.array(json.loads(content)["probabilities"], np.float32)
        else:
            body = np.stack([history.problem_ids, history.responses]).tobytes()
            answer = np.frombuffer(self._post(body, "application/octet-stream"), np.float32)
        if answer.shape != (self._problems,):
            raise PeerError(f"it answered {answer.shape} and not {self._problems} probabilities")
        return [answer]

    def close(self) -> None:
        self._connection.close()

    def _post(self, body: bytes, kind: str) -> bytes:
        self._connection.request("POST", self._path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise PeerError(f"HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content


class PytritonPeer:
    """PyTriton's gRPC endpoint."""

    def __init__(self, port: int) -> None:
        self._client = grpcclient.InferenceServerClient(f"{LOOPBACK}:{port}")

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        (history,) = histories
        inputs = []
        for name, values in (("problem_ids", history.problem_ids), ("responses", history.responses)):
            inputs.append(grpcclient.InferInput(name, [1, len(values)], "INT32"))
            inputs[-1].set_data_from_numpy(values[None])
        return list(self._client.infer("knowledge_tracing", inputs).as_numpy("probabilities"))

    def close(self) -> None:
        self._client.close()


def compare(
    spec: Spec, repository: Path, rounds: int, turn_s: float, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Measure every peer and the ensemble of `repository`; a peer that does not serve keeps its row, with its error.

    Raises:
        PeerError: the peers' environment is not there.
    """
    if not PYTHON.exists():
        raise PeerError(f"there is no {PYTHON}; `make bench-peers` makes it")
    begun = origin.record()
    folder.mkdir(parents=True, exist_ok=True)
    core = repository / "core" / "1" / "model.onnx"
    learners = full_windows(spec)
    expected = answers_of(core, spec, learners)
    found = [Found(OURS, "this", "Triton's dynamic batcher, in each step")]
    found += [Found(peer.name, _version(peer.package), peer.batching) for peer in PEERS]
    steps = rounds * len(found)
    for number in range(rounds):
        for place, entry in enumerate(found):
            if entry.error is not None:
                continue
            progress((number * len(found) + place) / steps, entry.name)
            peer = next((peer for peer in PEERS if peer.name == entry.name), None)
            try:
                serving = _ensemble(repository, spec, folder) if peer is None else _peer(peer, core, spec, folder)
                with serving as (started_s, pid, connections):
                    entry.starts_s.append(started_s)
                    for encoding, connect in connections.items():
                        to = entry.measured.setdefault(encoding, Measured())
                        _measure(to, connect, learners, expected, turn_s, tolerance(spec)[1])
                    entry.memory_mb.append(_memory(pid))
            except (LastrowError, OSError, http.client.HTTPException, grpcclient.InferenceServerException) as e:
                entry.error = str(e)
    return {
        **begun,
        "model": {"network": spec.network.type, "problems": spec.model.problems, "window": spec.model.window},
        "settings": {"rounds": rounds, "turn_s": turn_s, "streams": BUSY},
        "servers": [_reported(entry) for entry in found],
    }


def table(report: dict[str, Any]) -> Table:
    """The peers as they are shown in a terminal."""
    shown = Table(title=f"the same core, history of {report['model']['window']}, one learner a request")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in COLUMNS[:3] else "right")
    for row in rows(report):
        shown.add_row(*row)
    return shown


COLUMNS = ("server", "version", "encoding", "p50 ms at 1", "p95", f"learners/s at {BUSY}", "memory MB", "start s")


def rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """The table's rows, one a server and encoding."""
    for server in report["servers"]:
        if server["error"]:
            yield [server["name"], server["version"], f"does not serve here: {server['error']}", *([""] * 5)]
        for encoding, one in server["encodings"].items():
            yield [
                server["name"],
                server["version"],
                encoding,
                f"{one['p50_ms']:.2f}",
                f"{one['p95_ms']:.2f}",
                f"{one['throughput']:.0f}",
                f"{server['memory_mb']:.0f}",
                f"{server['start_s']:.1f}",
            ]


def summary(report: dict[str, Any]) -> dict[str, float]:
    """The ensemble beside the best peer: in any encoding, and in the quick starts' own (JSON; PyTriton's is binary)."""
    ours = next(s for s in report["servers"] if s["name"] == OURS)["encodings"]
    if not ours:
        return {}
    (mine,) = ours.values()
    found = {}
    own = {peer.name: peer.encodings[0] for peer in PEERS}
    for label, quick_start in (("best peer", False), ("best peer as its quick start has it", True)):
        theirs = [
            one
            for server in report["servers"]
            if server["name"] in own
            for encoding, one in server["encodings"].items()
            if not quick_start or encoding == own[server["name"]]
        ]
        if theirs:
            found[f"p50 at 1 over the {label}"] = mine["p50_ms"] / min(one["p50_ms"] for one in theirs)
            found[f"throughput at {BUSY} over the {label}"] = mine["throughput"] / max(
                one["throughput"] for one in theirs
            )
    return found


def section(report: dict[str, Any]) -> str:
    """The section of bench's README in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---" + "|--:" * (len(COLUMNS) - 3) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    batching = ", ".join(f"{server['name']}: {server['batching']}" for server in report["servers"])
    said = [
        f"A history of {report['model']['window']}, one learner a request, {report['settings']['rounds']} rounds in turns "
        f"on {origin.sentence(report)}. Memory is of the whole process tree. Batching: {batching}.",
        "",
        *lines,
        "",
        *(f"- {name}: {value:.2f}" for name, value in summary(report).items()),
    ]
    return "\n".join(said) + "\n"


def publish(report: dict[str, Any]) -> list[Path]:
    """Write the report into the repository: as JSON and into bench's README. Returns what was written."""
    file = publication.FOLDER / "peers.json"
    publication.save(report, file)
    publication.publish(publication.README, "peers", section(report))
    return [file, publication.README]


def _measure(
    entry: Measured,
    connect: Callable[[], Caller],
    learners: Sequence[History],
    expected: Sequence[np.ndarray],
    turn_s: float,
    allowed: float,
) -> None:
    with ExitStack() as stack:
        callers = []
        for _ in range(BUSY):
            callers.append(connect())
            stack.callback(callers[-1].close)
        for history, answer in zip(learners, expected, strict=True):
            difference = float(np.abs(callers[0].ask([history])[0] - answer).max())
            if not difference <= allowed:
                raise PeerError(f"its answer is {difference:.1e} off ONNX Runtime's")
        load.run(callers, learners, 1, 0.3)
        entry.latencies_ms.append(load.run(callers[:1], learners, 1, turn_s, warm_up=3).latencies_ms)
        entry.throughputs.append(load.run(callers, learners, 1, turn_s, warm_up=3).throughput)


@contextmanager
def _ensemble(
    repository: Path, spec: Spec, folder: Path
) -> Iterator[tuple[float, int, dict[str, Callable[[], Caller]]]]:
    began = time.perf_counter()
    with Server(repository, log=folder / f"{OURS}.log") as server:
        started = time.perf_counter() - began
        assert server.processes is not None
        yield started, server.processes.popen.pid, {"gRPC": lambda: EnsembleClient(server.grpc_url, spec)}


@contextmanager
def _peer(
    peer: Peer, core: Path, spec: Spec, folder: Path
) -> Iterator[tuple[float, int, dict[str, Callable[[], Caller]]]]:
    (port,) = free_ports(1)
    command = [str(PYTHON), str(SERVERS / peer.file), "--core", str(core), "--port", str(port), "--threads", "0"]
    command += [
        "--window",
        str(spec.model.window),
        "--max-batch-size",
        str(spec.batching.max_batch_size),
        *peer.arguments,
    ]
    log = folder / f"{re.sub(r'[^a-z]+', '_', peer.name.lower())}.log"
    mark = reaper.mark()
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, reaper.MARK: mark, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"},
        )
    try:

        def connect(encoding: Encoding) -> Caller:
            if encoding == "gRPC":
                return PytritonPeer(port)
            return HttpPeer(port, encoding, peer.paths[encoding == "bytes"], spec.model.problems)

        _wait(process, lambda: connect(peer.encodings[0]), log)
        started = time.perf_counter() - began
        yield started, process.pid, {encoding: lambda e=encoding: connect(e) for encoding in peer.encodings}  # type: ignore[misc]
    finally:
        reaper.reap(mark, STOPPING_S)
        process.wait()


def _wait(process: subprocess.Popen[bytes], connect: Callable[[], Caller], log: Path) -> None:
    """Until it answers a learner.

    Raises:
        PeerError: it ended, or did not answer in time; with the last line that it wrote.
    """
    deadline, reason = time.monotonic() + STARTING_S, "it did not listen"
    learner = History("0", np.zeros(3, np.int32), np.zeros(3, np.int32))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"it ended with exit code {process.returncode}: {_last(log)}")
        caller = connect()
        try:
            caller.ask([learner])
            return
        except (OSError, http.client.HTTPException, PeerError, grpcclient.InferenceServerException) as e:
            reason = str(e)
        finally:
            caller.close()
        time.sleep(0.1)
    raise PeerError(f"it did not answer within {STARTING_S:.0f} s ({reason}); its last line: {_last(log)}")


def _memory(pid: int) -> float:
    """Megabytes of the process and all below it; what they share counts once (PSS)."""
    total = 0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 1e6


def _reported(entry: Found) -> dict[str, Any]:
    encodings = {}
    for encoding, measured in entry.measured.items():
        calls = [value for turn in measured.latencies_ms for value in turn]
        if not calls or not measured.throughputs:
            continue
        medians = [statistics.median(turn) for turn in measured.latencies_ms]
        encodings[encoding] = {
            "p50_ms": statistics.median(calls),
            "p95_ms": float(np.percentile(calls, 95)),
            "interval_ms": statistic.interval(medians),
            "rounds_ms": medians,
            "throughput": statistics.median(measured.throughputs),
            "throughput_rounds": measured.throughputs,
        }
    return {
        "name": entry.name,
        "version": entry.version,
        "batching": entry.batching,
        "error": entry.error,
        "start_s": statistics.median(entry.starts_s) if entry.starts_s else None,
        "memory_mb": statistics.median(entry.memory_mb) if entry.memory_mb else None,
        "encodings": encodings,
    }


def _version(package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()[:300]
