"""Requests sent side by side, every one accounted for: what was sent, when, and how it ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ensemble.client import AsyncClient, Client
from ensemble.errors import ServingError
from ensemble.learners.history import History
from ensemble.spec import Spec

PAUSE_S = 0.02  # after a refusal, as a client's back-off would
DEADLINE_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """One request: moments on the monotonic clock, gRPC's status or "OK", and for an answer whether it is the known one."""

    learner: str
    begun: float
    ended: float
    status: str
    message: str = ""
    same: bool = True

    @property
    def took_s(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True)
class Known:
    """Learners and their answers, each asked for alone on a quiet server."""

    histories: Sequence[History]
    answers: dict[str, list[np.ndarray]]  # by learner; more than one where several models may answer

    @classmethod
    def ask(cls, url: str, spec: Spec, histories: Sequence[History]) -> Known:
        with Client(url, spec=spec) as client:
            answers = {history.learner: [client.predict(history).probabilities] for history in histories}
        return cls(histories, answers)

    def or_of(self, other: Known) -> Known:
        """The same learners, whose answers may be the other's too."""
        return Known(self.histories, {name: answers + other.answers[name] for name, answers in self.answers.items()})

    def holds(self, learner: str, probabilities: np.ndarray) -> bool:
        """Whether this is a known answer of this learner, to the last bit."""
        return any(np.array_equal(probabilities, answer) for answer in self.answers[learner])


class Traffic:
    """So many callers, each with one request under way, for as long as a `with` block runs; then `outcomes` are whole.

    good: learners with known answers. bad: learners that a server has to refuse; asked for in turn with the good ones.
    """

    def __init__(
        self,
        url: str,
        spec: Spec,
        known: Known,
        callers: int = 8,
        bad: Sequence[History] = (),
        deadline_s: float = DEADLINE_S,
        rate: float | None = None,
        bad_share: float | None = None,
        requests_a_connection: int | None = None,
    ) -> None:
        """How they ask.

        rate: requests a second over all callers, at moments as random as strangers' would be; None: as fast as they are
        answered. bad_share: of the requests; None: good and bad learners alike. requests_a_connection: then a caller
        connects anew; None: never.
        """
        self.outcomes: list[Outcome] = []
        self.sent = 0
        self._url, self._spec, self._known = url, spec, known
        self._histories = [*known.histories, *bad]
        shares = None if bad_share is None else (1 - bad_share, bad_share)
        self._chances = (
            None
            if shares is None
            else [share / len(part) for share, part in zip(shares, (known.histories, bad), strict=True) for _ in part]
        )
        self._requests_a_connection = requests_a_connection
        self._callers, self._deadline_s, self._rate = callers, deadline_s, rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        assert self.sent == len(self.outcomes)

    def statuses(self) -> Counter[str]:
        return Counter(outcome.status for outcome in self.outcomes)

    def wrong(self) -> list[Outcome]:
        """Answers that are not the learner's."""
        return [outcome for outcome in self.outcomes if not outcome.same]

    def wait_for(self, count: int, status: str = "OK", timeout_s: float = 60.0) -> None:
        """Block until so many requests more have ended so."""
        goal, end = self.statuses()[status] + count, time.monotonic() + timeout_s
        while self.statuses()[status] < goal:
            assert time.monotonic() < end, f"{self.statuses()} after {timeout_s} s: {self.outcomes[-1:]}"
            time.sleep(0.02)

    async def _run(self) -> None:
        await asyncio.gather(*(self._call(number) for number in range(self._callers)))

    async def _call(self, number: int) -> None:
        order, due = np.random.default_rng(number), time.monotonic()
        while not self._stop.is_set():
            async with AsyncClient(self._url, spec=self._spec, retries=0, deadline_s=self._deadline_s) as client:
                asked = 0
                while not self._stop.is_set() and asked != self._requests_a_connection:
                    asked += 1
                    if self._rate is not None:  # from one due moment to the next: what an answer takes is no pause
                        due += order.exponential(self._callers / self._rate)
                        await asyncio.sleep(due - time.monotonic())
                    await self._ask(client, order)

    async def _ask(self, client: AsyncClient, order: np.random.Generator) -> None:
        self.sent += 1
        outcome = await ask(client, self._histories[order.choice(len(self._histories), p=self._chances)], self._known)
        self.outcomes.append(outcome)
        if outcome.status not in ("OK", "INVALID_ARGUMENT"):
            await asyncio.sleep(PAUSE_S)


async def ask(client: AsyncClient, history: History, known: Known) -> Outcome:
    """One request, and how it ended."""
    begun = time.monotonic()
    try:
        answer = await client.predict(history)
    except ServingError as e:
        return Outcome(history.learner, begun, time.monotonic(), e.status, str(e))
    ended = time.monotonic()
    assert answer.probabilities is not None
    same = history.learner in known.answers and known.holds(history.learner, answer.probabilities)
    return Outcome(history.learner, begun, ended, "OK", same=same)
