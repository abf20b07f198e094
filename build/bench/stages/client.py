"""The project's own client, noting when a request is begun, sent, answered and read."""

from __future__ import annotations

import time
from typing import Any

from build.bench.question import Question
from build.bench.stages.timeline import Mark
from ensemble.client import Client
from ensemble.client.retry import Retry


class Timed(Client):
    """A client whose calls leave a Mark."""

    def ask(self, asked: Question) -> Mark:
        """One history's first answer, and when it was where; a History or a mapping, as `predict` takes them."""
        begun = time.monotonic_ns()
        self.predict(asked)  # type: ignore[call-overload]
        read = time.monotonic_ns()
        return Mark(self._name_of_it, begun, self._sent, self._answered, read)

    def _call(self, method: str, message: Any, retry: Retry) -> Any:
        self._name_of_it, self._sent = message.id, time.monotonic_ns()
        answer = super()._call(method, message, retry)
        self._answered = time.monotonic_ns()
        return answer
