"""When a call has to be over, whether it is tried again, and how its end is named: the same for both clients."""

from __future__ import annotations

import math
import numbers
import random
import threading
import time
from dataclasses import dataclass

import grpc

from ensemble.errors import (
    ClosedClientError,
    DeadlineExceededError,
    InvalidRequestError,
    ServingError,
    UnavailableError,
)

LONGEST_DEADLINE_S = 366 * 24 * 3600.0  # longer ones are none: gRPC counts nanoseconds in 64 bits, and would overflow
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 1.0
# How a server that stops refuses what it has not begun with, before its connections close: gRPC cancels what it had not
# handed on (its issue 41785), and Triton does not find a model that it has taken down already.
STOPPING = {"CANCELLED": "", "NOT_FOUND": "has no available versions"}
# And how one refuses whose step has died, until its supervisor starts it again.
BROKEN = {"INTERNAL": "is not healthy"}
# Where something takes the connection and closes it at the first words of gRPC.
NO_GRPC = (
    "; what listens there does not speak gRPC without TLS: is it the port of HTTP or of the metrics (Triton's own are 8000 "
    "for HTTP, 8001 for gRPC, 8002 for metrics), or does it ask for TLS?"
)


@dataclass
class Retry:
    """The tries of one call.

    What a server that stops, breaks or is gone did not answer is tried again, and not by a client closed meanwhile. It may
    have been answered all the same, on a connection that broke: a repeat is safe, since an answer depends on the history and
    the model alone and changes nothing at the server. The waits double and are spread at random, so that clients of a server
    that returns do not all come at once.

    Attributes:
        url: who is asked. closed: set by another thread, perhaps, while the call is under way.
        retries: tries after the first, at most. deadline: on the monotonic clock, of all tries together.
        several: whether the next try is another server's, perhaps, and need not wait.
        request: its name in the server's log, the number of its first history in the call, and what a history is called.
    """

    url: str
    closed: threading.Event
    retries: float
    deadline: float
    request: tuple[str, int, str] = ("", 0, "")
    tries: int = 0
    several: bool = False

    @property
    def timeout(self) -> float | None:
        """What is left of the time, for gRPC."""
        return remaining(self.deadline)

    def begin(self) -> None:
        """Count a try.

        Raises:
            ClosedClientError: there is none any more.
        """
        check_open(self.url, self.closed)
        self.tries += 1

    def after(self, error: Exception) -> float:
        """Seconds to wait before the next try; raises the project's error where there is none."""
        check_open(self.url, self.closed, error)
        if not isinstance(error, grpc.RpcError):
            raise error
        doublings = min(self.tries - 1, 30)  # far beyond the longest wait; the power of a thousand tries is no float
        wait = min(FIRST_BACKOFF_S * 2**doublings, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        if self.several and self.tries == 1:
            wait = 0.0
        if not unavailable(error) or self.tries > self.retries or time.monotonic() + wait >= self.deadline:
            raise failure(self.url, error, *self.request) from error
        return wait


def check_open(url: str, closed: threading.Event, error: BaseException | None = None) -> None:
    """Raise ClosedClientError where the client is closed; what a call under way ended with then only follows from it."""
    if closed.is_set():
        raise ClosedClientError(f"this client of {url} is closed; make a new one") from error


def failure(url: str, error: grpc.RpcError, name: str = "", first: int = 0, history: str = "history") -> ServingError:
    """The project's error for gRPC's. The server counts a request's histories from 0: number `first` of the call."""
    status, text = error.code().name, error.details()
    named = f" (request {name})" if name else ""
    if unavailable(error):
        hint = NO_GRPC if "failed to connect" in text and "Socket closed" in text else ""
        return UnavailableError(f"{url} is not available: {text}{hint}{named}", status)
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceededError(f"{url} did not answer in time: {text}{named}", status)
    if status == "INVALID_ARGUMENT":
        counted = f" ({history} 0 of this request is number {first} of the call)" if first else ""
        return InvalidRequestError(text + counted + named, status)
    return ServingError(f"{url}: {text}{named}", status)


def unavailable(error: grpc.RpcError) -> bool:
    """Whether another try may find the server, or another one, ready."""
    status, known = error.code().name, {**STOPPING, **BROKEN}
    return status == "UNAVAILABLE" or (status in known and known[status] in error.details())


def remaining(deadline: float) -> float | None:
    """Seconds from now to a moment on the monotonic clock, as a timeout for gRPC; over, it is as good as over.

    >>> remaining(math.inf) is None, remaining(time.monotonic() - 5)
    (True, 0.001)
    """
    return None if math.isinf(deadline) else max(deadline - time.monotonic(), 1e-3)


def seconds(deadline_s: object) -> float:
    """A deadline, infinite where there is none.

    >>> seconds(2), seconds(1e9)
    (2.0, inf)
    """
    if not isinstance(deadline_s, numbers.Real) or isinstance(deadline_s, bool) or not float(deadline_s) > 0:
        raise InvalidRequestError(
            f"deadline_s is {deadline_s!r}; give seconds above 0, or math.inf for no deadline", "INVALID_ARGUMENT"
        )
    given = float(deadline_s)
    return given if given <= LONGEST_DEADLINE_S else math.inf


def count(retries: object) -> float:
    """How often a call is tried again, at most."""
    if not isinstance(retries, numbers.Real) or isinstance(retries, bool) or not float(retries) >= 0:
        raise InvalidRequestError(f"retries is {retries!r}; give a number from 0 up, or math.inf", "INVALID_ARGUMENT")
    return float(retries)
