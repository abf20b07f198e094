"""`make serve`: a tritonserver that is watched, started again when it or one of its stubs dies, and drained before it stops.

A stop is announced first, at the health port, while everything is answered as before; then comes the drain, which refuses.

Triton does not start a Python stub again that has died: requests that need it fail after a second each, for ever. 2.51 even
stays "ready"; from 26.02 on a step's own is_ready() counts. And on SIGTERM its ensembles refuse the next step of requests
that are half done. Both are settled from outside, here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prometheus_client.parser import text_string_to_metric_families

from build.server import (
    BURIED_WITHIN_S,
    LOOPBACK,
    Processes,
    ServerError,
    check_ports,
    check_repository,
    failures,
    health,
)
from build.server.health import Health
from build.server.ports import listening, reached, url
from build.server.signals import StopRequest
from ensemble.tables import PREPROCESS

# The environment variable that tells the first step which file to look for: once it is there, that step refuses.
DRAIN = "LASTROW_DRAIN"
PENDING = "nv_inference_pending_request_count"
LOOK_EVERY_S = 0.25
START_S = 180.0
ANNOUNCED_S = 5.0  # a balancer that asks every second or two has seen it by then, three times over
DRAIN_S = 20.0
# A server with nothing queued that has answered nothing for so long, and for so many times its mean, has nothing to answer.
QUIET_S, QUIET_MEANS = 1.0, 4
EXIT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
GIVE_UP_AFTER = 5  # restarts in a row that did not end in a ready server
LOG_LINES = 200


@dataclass(frozen=True)
class Ports:
    """Where the server listens. http_address is that of HTTP and metrics, which are not encrypted.

    health: the supervisor's own, at `address`, since who balances is where callers are; 0: whichever is free.
    """

    http: int
    grpc: int
    metrics: int
    health: int = 0
    address: str = LOOPBACK
    http_address: str = LOOPBACK

    def arguments(self) -> list[str]:
        """As tritonserver's arguments."""
        return [
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={self.metrics}",
            *listening(self.address, self.http_address),
        ]


class Supervisor:
    """Serves a repository until it is told to stop, by SIGTERM or SIGINT.

    Args:
        model: the ensemble's name, whose requests are waited for at the end.
        arguments: more of tritonserver's own.
        announced_s: how long after SIGTERM everything is answered still, while the health port says 404. Ctrl-C, of a person
            who waits at a terminal, does without.
        say: takes what happens, a line each.
    """

    def __init__(
        self,
        repository: Path,
        model: str,
        ports: Ports,
        arguments: Sequence[str] = (),
        announced_s: float = ANNOUNCED_S,
        say: Callable[[str], None] = lambda line: _write(f"{line}\n".encode()),
    ) -> None:
        self._arguments = [f"--model-repository={repository.resolve()}", *ports.arguments(), *arguments]
        self._repository = repository
        self._model = model
        self._ports = ports
        self._announced_s = announced_s
        self._say = say
        self._running: _Running | None = None

    def run(self) -> int:
        """Serve. Returns the exit code: 0 after an orderly stop, else what ended the last server.

        Raises:
            ServerError: a port is taken, the repository is missing, or the server does not start.
        """
        check_repository(self._repository)
        check_ports(self._arguments)
        failed, begun = 0, False
        with (
            StopRequest() as stop,
            Health(self._ports.address, self._ports.health, self._answers) as told,
            tempfile.TemporaryDirectory(prefix="lastrow-serve-") as folder,
        ):
            while True:
                drain = Path(folder) / "drain"
                self._running = running = _Running(self._arguments, drain, self._ports)
                try:
                    reason = self._watch(running, stop, told)
                    if reason is None:
                        told.status = health.STOPPING
                        if running.ready() and stop.number == signal.SIGTERM:
                            self._announce(running)
                        return self._stop(running, drain)
                    told.status = health.BROKEN
                    failed, begun = 0, True
                    self._say(f"{reason}; starting again")
                except ServerError as e:
                    failed += 1
                    if not begun or failed == GIVE_UP_AFTER:
                        raise
                    self._say(f"{e}; trying again")
                finally:
                    running.processes.kill()
                if stop.wait(_pause(failed)):
                    return 0

    def _answers(self) -> bool:
        """For the health port: whether the server that runs now answers for the model."""
        return self._running is not None and self._running.ready(f"/v2/models/{self._model}/ready")

    def _watch(self, running: _Running, stop: StopRequest, told: Health) -> str | None:
        """Wait until the server is ready, then until it breaks; why it broke, None where the supervisor is to stop."""
        start, ready = time.monotonic(), False
        while not stop.wait(LOOK_EVERY_S):
            code = running.processes.returncode
            if code is not None:
                if not ready:
                    raise ServerError(f"tritonserver ended with exit code {code} while it started. {running.causes()}")
                return f"tritonserver ended with exit code {code}"
            dead = running.processes.dead_stubs(0.0 if ready else BURIED_WITHIN_S)
            if dead and not ready:
                raise ServerError(f"tritonserver does not start: {', '.join(dead)} died. {running.causes()}")
            if dead:
                return f"{', '.join(dead)} died"
            if not ready and running.ready():
                ready, told.status = True, health.SERVING
                self._say(f"{self._model} is ready: gRPC {url(self._ports.address, self._ports.grpc)}")
            if not ready and time.monotonic() - start > START_S:
                raise ServerError(f"tritonserver was not ready after {START_S:.0f} s. {running.causes()}")
        return None

    def _announce(self, running: _Running) -> None:
        """Answer on, so that nobody is sent here any more by the time that somebody is refused."""
        self._say(f"stopping: not ready any more; answering for {self._announced_s:g} s still")
        deadline = time.monotonic() + self._announced_s
        # A server that breaks now is not started again: its callers are on their way elsewhere.
        while time.monotonic() < deadline and running.processes.returncode is None:
            time.sleep(min(LOOK_EVERY_S, max(deadline - time.monotonic(), 0.0)))

    def _stop(self, running: _Running, drain: Path) -> int:
        """New requests are refused from here on; those under way get their answers; then the server ends."""
        drain.touch()
        # Triton itself finishes what one model has under way; between an ensemble's steps it lets go of requests.
        if running.ready() and (self._repository / PREPROCESS).is_dir():
            self._say("stopping: finishing what is under way")
            quiet_s = max(QUIET_S, QUIET_MEANS * running.mean_s(self._model))
            deadline, last, since = time.monotonic() + DRAIN_S, running.progress(self._model), time.monotonic()
            while time.monotonic() < deadline and time.monotonic() - since < quiet_s:
                time.sleep(LOOK_EVERY_S / 5)
                progress = running.progress(self._model)
                if progress != last or progress[1]:
                    last, since = progress, time.monotonic()
        return running.processes.end(EXIT_S)


class _Running:
    """One tritonserver, its log, and what it says of itself."""

    def __init__(self, arguments: Sequence[str], drain: Path, ports: Ports) -> None:
        self._ports = ports
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        read, write = os.pipe()
        self.processes = Processes(arguments, write, {DRAIN: str(drain)})
        os.close(write)
        threading.Thread(target=self._relay, args=(os.fdopen(read, "rb"),), daemon=True).start()

    def _relay(self, lines: IO[bytes]) -> None:
        """Pass the server's log on, and keep the end of it: it says why models did not load."""
        with lines:
            for line in lines:
                _write(line)
                self._log.append(line.decode(errors="replace"))

    def causes(self) -> str:
        return failures("".join(self._log))

    def ready(self, path: str = "/v2/health/ready") -> bool:
        return self._get(self._ports.http, path) is not None

    def progress(self, model: str) -> tuple[int, float]:
        """How many requests were answered, and how many wait before some step that will take them.

        Those before the first step it refuses: callers who ask again and again would keep a server that stops from ending.
        """
        return self._answered(model)[0], self._waiting()

    def mean_s(self, model: str) -> float:
        """How long a request took so far, queues included."""
        count, took_s = self._answered(model)
        return took_s / max(count, 1)

    def _answered(self, model: str) -> tuple[int, float]:
        """How many requests, and in how many seconds of all of them."""
        page = self._get(self._ports.http, f"/v2/models/{model}/stats")
        every = [version["inference_stats"]["success"] for version in json.loads(page)["model_stats"]] if page else []
        return sum(one["count"] for one in every), sum(one["ns"] for one in every) / 1e9

    def _waiting(self) -> float:
        """What the queues behind the first step hold. Triton has it among its metrics alone, not in its statistics."""
        families = text_string_to_metric_families(self._get(self._ports.metrics, "/metrics") or "")
        samples = [sample for family in families for sample in family.samples if family.name == PENDING]
        return sum(sample.value for sample in samples if sample.labels["model"] != PREPROCESS)

    def _get(self, port: int, path: str) -> str | None:
        """A page of the server's; None while there is none."""
        connection = http.client.HTTPConnection(reached(self._ports.http_address), port, timeout=2.0)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.read().decode() if answer.status == http.client.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _write(line: bytes) -> None:
    """To stderr. A reader that is gone, or a full disk, ends neither the server, whose log this is, nor its watch.

    Past Python's own buffer, which would keep what could not be written, and fail over it again at the very end.
    """
    if sys.stderr is None:  # closed by whoever started this
        return
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(sys.stderr.fileno(), line) :]


def _pause(failed: int) -> float:
    """Seconds before the next start: none after a first fault, then doubling."""
    return 0.0 if failed == 0 else min(FIRST_PAUSE_S * 2 ** (failed - 1), LONGEST_PAUSE_S)
