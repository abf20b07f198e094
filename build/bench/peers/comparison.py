"""The ensemble and its peers under the same load.

Each round starts every server anew, asks it, and stops it: what one does while nobody asks disturbs no other. As its quick
start a peer leaves the core's threads to ONNX Runtime; at its best it gets as many as serve it best here, by the rule that
the ladder chooses ours by.
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

from build.bench import load, machine, origin, reply, statistic
from build.bench.caller import Caller, answers_of, difference, full_windows, of_ensemble
from build.bench.peers import process
from build.bench.peers.peer import PEERS, Encoding, Peer, PeerError
from build.bench.peers.process import Running
from build.bench.question import Question
from build.bench.reply import Expected
from build.core.parity import tolerance
from build.repository.assembly import core_file
from build.server import Server
from ensemble.errors import LastrowError
from ensemble.spec import Spec

OURS = "lastrow"
BUSY = 16  # streams of one question each
NEAR = 1.1  # times the lowest p50: what is as fast
Progress = Callable[[float | None, str], None]


@dataclass
class Measured:
    """What was measured of one server in one encoding: an entry a round. threads: of one run of the core; 0: as it likes."""

    threads: int = 0
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
    if spec.reduce.where != "core":
        raise PeerError(f'peers serve a core of one row: set reduce.where = "core" in the spec of {spec.model.name}')
    begun = origin.record()
    folder.mkdir(parents=True, exist_ok=True)
    contest = _Comparison(spec, repository, turn_s, folder)
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
                contest.measure(entry, peer)
            except (LastrowError, OSError, http.client.HTTPException) as e:
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


class _Comparison:
    """What all are asked, and what they have to answer."""

    def __init__(self, spec: Spec, repository: Path, turn_s: float, folder: Path) -> None:
        self._spec, self._repository, self._turn_s, self._folder = spec, repository, turn_s, folder
        self._core = core_file(spec, repository, reply.core_of(spec, reply.whole(spec)).step)
        self._asked = full_windows(spec)
        self._expected = answers_of(repository, spec, self._asked)

    def measure(self, entry: Found, peer: Peer | None) -> None:
        """One round of a peer, or of the ensemble.

        Raises:
            PeerError: it does not serve here, or answers something else.
        """
        if peer is None:
            with self._ensemble() as running:
                self._take(entry, "gRPC", running)
            return
        for encoding in peer.encodings:
            to = entry.measured.get(encoding)
            best = encoding == peer.encodings[-1]
            threads = to.threads if to else self._best_threads(peer, encoding) if best else 0
            with process.serving(peer, encoding, threads, self._core, self._spec, self._folder) as running:
                self._take(entry, encoding, running)
            entry.measured[encoding].threads = threads

    def _best_threads(self, peer: Peer, encoding: Encoding) -> int:
        """Of those whose p50 is within a tenth of the lowest, the one of the highest throughput; all of them tried."""
        tried: dict[int, Measured] = {}
        for _, threads in machine.shares():
            with process.serving(peer, encoding, threads, self._core, self._spec, self._folder) as running:
                self._measure(tried.setdefault(threads, Measured()), running, self._turn_s / 2)
        p50s = {threads: statistics.median(found.latencies_ms[0]) for threads, found in tried.items()}
        near = [threads for threads, p50 in p50s.items() if p50 <= NEAR * min(p50s.values())]
        return max(near, key=lambda threads: tried[threads].throughputs[0])

    def _take(self, entry: Found, encoding: Encoding, running: Running) -> None:
        entry.starts_s.append(running.started_s)
        self._measure(entry.measured.setdefault(encoding, Measured()), running, self._turn_s)
        entry.memory_mb.append(process.memory(running.pid))

    def _measure(self, to: Measured, running: Running, seconds: float) -> None:
        with ExitStack() as stack:
            callers: list[Caller] = []
            for _ in range(BUSY):
                callers.append(running.connect())
                stack.callback(callers[-1].close)
            check(callers[0], self._spec, self._asked, self._expected)
            load.run(callers, self._asked, 1, 0.3)
            to.latencies_ms.append(load.run(callers[:1], self._asked, 1, seconds, warm_up=3).latencies_ms)
            to.throughputs.append(load.run(callers, self._asked, 1, seconds, warm_up=3).throughput)

    @contextmanager
    def _ensemble(self) -> Iterator[Running]:
        began = time.perf_counter()
        with Server(self._repository, log=self._folder / f"{OURS}.log") as server:
            started = time.perf_counter() - began
            assert server.processes is not None
            yield Running(started, server.processes.popen.pid, lambda: of_ensemble(server.grpc_url, self._spec))


def check(caller: Caller, spec: Spec, asked: Sequence[Question], expected: Sequence[Expected]) -> None:
    """Every answer is the core's.

    Raises:
        PeerError: one is not.
    """
    for question, answer in zip(asked, expected, strict=True):
        off = difference(spec, caller.ask([question])[0], answer)
        if not off <= tolerance(spec)[1]:
            raise PeerError(f"its answer is {off:.1e} off ONNX Runtime's; allowed is {tolerance(spec)[1]:.0e}")


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
            "threads": measured.threads,
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
