"""Closed-loop load: so many streams, each asking again as soon as it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from build.bench.caller import Caller
from build.bench.question import Question


@dataclass(frozen=True)
class Turn:
    """What one turn measured.

    Attributes:
        latencies_ms: of every call.
        client_ms: processor time that the calling thread itself spent in each: building, serialising, reading.
        throughput: histories a second, each stream's own until its last answer: none waits for the others' ends.
    """

    latencies_ms: list[float]
    client_ms: list[float]
    throughput: float


def run(callers: Sequence[Caller], questions: Sequence[Question], size: int, seconds: float, warm_up: int = 1) -> Turn:
    """Ask for `seconds` and at least once a stream; the streams go through `questions` in turns.

    Args:
        callers: one a stream.
        size: questions a request.
        warm_up: calls of every stream that do not count.

    Raises:
        Whatever a caller raises, first come.
    """
    calls: list[tuple[float, float]] = []  # latency, client
    rates: list[float] = []  # calls a second of each stream
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
            began, answered = time.perf_counter(), 0
            while True:
                asked = pick(position)
                position += len(callers) * size
                start, used = time.perf_counter(), time.thread_time()
                caller.ask(asked)
                end = time.perf_counter()
                calls.append((end - start, time.thread_time() - used))
                answered += 1
                if end >= deadline or errors:
                    rates.append(answered / (end - began))
                    return
        except BaseException as e:
            errors.append(e)
            barrier.abort()

    def pick(position: int) -> list[Question]:
        return [questions[(position + n) % len(questions)] for n in range(size)]

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
        latencies_ms=[latency * 1e3 for latency, _ in calls],
        client_ms=[client * 1e3 for _, client in calls],
        throughput=sum(rates) * size,
    )
