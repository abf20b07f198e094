"""SIGTERM and SIGINT while `make serve` runs: a request to stop that can be waited for.

What the supervisor does on it is `Supervisor._stop`. Every other command ends as ensemble/command.py has it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether one of SIGNALS has come while the `with` block runs. The second of them ends the process at once.

    A handler in Python runs inside whatever the main thread is doing, locks that it holds included: one that takes a lock,
    as threading.Event does to be set, may wait for ever for the very code it interrupted. So the interpreter itself writes a
    byte to a pipe the moment a signal comes, and who waits does so on that pipe. To be used in the main thread.
    """

    def __enter__(self) -> StopRequest:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._asked, self._came = False, 0
        self.number = 0  # of the signal that came first
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._count) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has come, so many seconds at most; whether it has."""
        deadline = time.monotonic() + timeout_s
        while not self._asked:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                break
            came = [number for number in os.read(self._read, 512) if number in SIGNALS]  # a byte a signal, its number
            self._asked, self.number = bool(came), came[0] if came else 0
        return self._asked

    def _count(self, number: int, _: FrameType | None) -> None:
        self._came += 1
        if self._came > 1:
            raise SystemExit(128 + number)
