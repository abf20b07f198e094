"""The ensemble and its peers under the same load.

Each round starts every server anew, asks it, and stops it: what one does while nobody asks disturbs no other.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

from build.bench import load, origin, reply, statistic
from build.bench.caller import Caller, answers_of, difference, full_windows, of_ensemble
from build.bench.peers import process
from build.bench.peers.peer import PEERS, PeerError
from build.bench.peers.process import Running
from build.bench.question import Question
from build.bench.reply import Expected
from build.core.parity import tolerance
from build.server import Server
from ensemble.errors import LastrowError
from ensemble.spec import Spec

OURS = "lastrow"
BUSY = 16  # streams of one question each
Progress = Callable[[float | None, str], None]


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


def compare(
    spec: Spec, repository: Path, rounds: int, turn_s: float, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Measure every peer and the ensemble of `repository`; a peer that does not serve keeps its row, with its error.

    Raises:
        PeerError: the peers' environment is not there.
    """
    if not process.PYTHON.exists():
        raise PeerError(f"there is no {process.PYTHON}; `make bench-peers` makes it")
    begun = origin.record()
    folder.mkdir(parents=True, exist_ok=True)
    core = repository / reply.core_of(spec, reply.whole(spec)).step / "1" / "model.onnx"
    asked = full_windows(spec)
    expected = answers_of(repository, spec, asked)
    found = [Found(OURS, "this", "Triton's dynamic batcher, in each step")]
    found += [Found(peer.name, process.version(peer.package), peer.batching) for peer in PEERS]
    steps = rounds * len(found)
    for number in range(rounds):
        for place, entry in enumerate(found):
            if entry.error is not None:
                continue
            progress((number * len(found) + place) / steps, entry.name)
            peer = next((peer for peer in PEERS if peer.name == entry.name), None)
            try:
                serving = (
                    _ensemble(repository, spec, folder) if peer is None else process.serving(peer, core, spec, folder)
                )
                with serving as running:
                    entry.starts_s.append(running.started_s)
                    for encoding, connect in running.connections.items():
                        to = entry.measured.setdefault(encoding, Measured())
                        _measure(to, connect, spec, list(zip(asked, expected, strict=True)), turn_s)
                    entry.memory_mb.append(process.memory(running.pid))
            except (LastrowError, OSError, http.client.HTTPException, grpcclient.InferenceServerException) as e:
                entry.error = str(e)
    return {
        **begun,
        "model": {
            "network": spec.network.type,
            "title": reply.title(spec),
            "window": spec.model.window,
            "words": spec.contract.words._asdict(),
        },
        "settings": {"rounds": rounds, "turn_s": turn_s, "streams": BUSY},
        "servers": [_reported(entry) for entry in found],
    }


def _measure(
    entry: Measured,
    connect: Callable[[], Caller],
    spec: Spec,
    answered: Sequence[tuple[Question, Expected]],
    turn_s: float,
) -> None:
    asked = [question for question, _ in answered]
    with ExitStack() as stack:
        callers = []
        for _ in range(BUSY):
            callers.append(connect())
            stack.callback(callers[-1].close)
        for question, answer in answered:
            off = difference(spec, callers[0].ask([question])[0], answer)
            if not off <= tolerance(spec)[1]:
                raise PeerError(f"its answer is {off:.1e} off ONNX Runtime's")
        load.run(callers, asked, 1, 0.3)
        entry.latencies_ms.append(load.run(callers[:1], asked, 1, turn_s, warm_up=3).latencies_ms)
        entry.throughputs.append(load.run(callers, asked, 1, turn_s, warm_up=3).throughput)


@contextmanager
def _ensemble(repository: Path, spec: Spec, folder: Path) -> Iterator[Running]:
    began = time.perf_counter()
    with Server(repository, log=folder / f"{OURS}.log") as server:
        started = time.perf_counter() - began
        assert server.processes is not None
        yield Running(started, server.processes.popen.pid, {"gRPC": lambda: of_ensemble(server.grpc_url, spec)})


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
