"""What one server, or one process, did under one load, turn by turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

from build.bench import load, machine, statistic
from build.bench.caller import Caller
from build.bench.question import Question
from build.server import Server

AWAKE = 3  # calls that a server which has just been woken answers before it is timed


@dataclass
class Cell:
    """A list entry a turn."""

    latencies_ms: list[list[float]] = field(default_factory=list)
    client_ms: list[list[float]] = field(default_factory=list)
    throughputs: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    wire_bytes: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)  # of every call, by CUDA events

    @property
    def p50s_ms(self) -> list[float]:
        """The median of each turn."""
        return [statistics.median(turn) for turn in self.latencies_ms]

    def measure(
        self,
        server: Server,
        statistics_of: grpcclient.InferenceServerClient,
        callers: Sequence[Caller],
        questions: Sequence[Question],
        seconds: float,
        asked: str,
        size: int = 1,
    ) -> None:
        """One turn of a resting server.

        Args:
            statistics_of: a connection to ask the server for its own counters.
            callers: one a stream.
            asked: the model that they ask.
            size: questions a request.
        """
        server.wake()
        for _ in range(AWAKE):
            callers[0].ask(questions[:size])
        before, sent = statistic.counters(statistics_of), machine.loopback_bytes()
        turn = load.run(callers, questions, size, seconds, warm_up=0)
        arrived, after = machine.loopback_bytes(), statistic.counters(statistics_of)
        server.rest()
        self.latencies_ms.append(turn.latencies_ms)
        self.client_ms.append(turn.client_ms)
        self.throughputs.append(turn.throughput)
        self.parts.append(statistic.parts(before, after, asked))
        if sent is not None and arrived is not None:
            self.wire_bytes.append((arrived - sent) / len(turn.latencies_ms))

    def summary(self) -> dict[str, Any]:
        """p50, p95, p99 and the interval of p50 in milliseconds, histories a second, and the parts, which add up to p50."""
        calls = [value for turn in self.latencies_ms for value in turn]
        p50 = statistics.median(calls)
        found: dict[str, Any] = {
            "p50_ms": p50,
            "p95_ms": float(np.percentile(calls, 95)),
            "p99_ms": float(np.percentile(calls, 99)),
            "interval_ms": statistic.interval(self.p50s_ms),
            "rounds_ms": self.p50s_ms,
            "calls": len(calls),
            "throughput": statistics.median(self.throughputs),
            "throughput_rounds": self.throughputs,
        }
        if self.parts:
            # Triton counts means, and a mean is above the median: shares of the mean are shares of p50.
            means = [statistics.fmean(turn) for turn in self.latencies_ms]

            def share(spent: Iterable[float]) -> float:
                return p50 * statistics.median(ms / mean for ms, mean in zip(spent, means, strict=True))

            phases = {key: share(turn.get(key, 0.0) for turn in self.parts) for key in self.parts[0]}
            outside = p50 - sum(phases.values())
            # A client's thread may be busy waiting while the server works; that is not the client's share.
            client = max(min(share(statistics.fmean(turn) for turn in self.client_ms), outside), 0.0)
            found["parts_ms"] = {"client": client, "wire": outside - client, **phases}
            found["wire_and_client_ms"] = outside
        if self.device_ms:
            found["device_p50_ms"] = statistics.median(self.device_ms)
        if self.wire_bytes:
            found["wire_bytes"] = statistics.median(self.wire_bytes)
        return found
