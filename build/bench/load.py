"""Closed-loop load: so many streams, each asking again as soon as it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from build.bench.caller import Caller
from ensemble.history import History


@dataclass(frozen=True)
class Turn:
    """What one turn measured.

    Attributes:
        latencies_ms: of every call.
        client_ms: processor time that the calling thread itself spent in each: building, serialising, reading.
        throughput: learners a second.
    """

    latencies_ms: list[float]
    client_ms: list[float]
    throughput: float


def run(callers: Sequence[Caller], histories: Sequence[History], size: int, seconds: float, warm_up: int = 1) -> Turn:
    """Ask for `seconds` and at least once a stream; the streams go through `histories` in turns.

    Args:
        callers: one a stream.
        size: learners a request.
        warm_up: calls of every stream that do not count.

    Raises:
        Whatever a caller raises, first come.
    """
    calls: list[tuple[float, float, float]] = []  # end, latency, client
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(callers))
    deadline = 0.0

    def stream(number: int, caller: Caller) -> None:
        nonlocal deadline
        position = number * size
        try:
            for _ in range(warm_up):
                caller.ask(pick(position))
            if barrier.wait(timeout=300) == 0:
                deadline = time.perf_counter() + seconds
            barrier.wait(timeout=300)
            while True:
                learners = pick(position)
                position += len(callers) * size
                start, used = time.perf_counter(), time.thread_time()
                caller.ask(learners)
                end = time.perf_counter()
                calls.append((end, end - start, time.thread_time() - used))
                if end >= deadline or errors:
                    return
        except BaseException as e:
            errors.append(e)
            barrier.abort()

    def pick(position: int) -> list[History]:
        return [histories[(position + n) % len(histories)] for n in range(size)]

    if len(callers) == 1:
        stream(0, callers[0])
    else:
        threads = [threading.Thread(target=stream, args=pair) for pair in enumerate(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return Turn(
        latencies_ms=[latency * 1e3 for _, latency, _ in calls],
        client_ms=[client * 1e3 for _, _, client in calls],
        throughput=_throughput(calls, len(callers), size),
    )


def _throughput(calls: list[tuple[float, float, float]], streams: int, size: int) -> float:
    """Learners a second between the first answer and the last; as many calls as there are streams began before the first."""
    ends = sorted(end for end, _, _ in calls)
    if len(ends) > streams and ends[-1] > ends[0]:
        return (len(ends) - streams) * size / (ends[-1] - ends[0])
    return len(ends) * size / (ends[-1] - min(end - latency for end, latency, _ in calls))
