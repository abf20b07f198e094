"""A server for as long as something is measured or tested."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpcclient

from build import ARTIFACTS
from build.server.errors import ServerError
from build.server.log import failures
from build.server.ports import LOOPBACK, free_ports, loopback
from build.server.processes import BURIED_WITHIN_S, Processes
from build.server.repository import check_repository

STARTS = 3  # with other ports each, where another process took one between the look and the start
PORT_TAKEN = "already in use"  # what Triton says of each of its three endpoints then


class PortTakenError(ServerError):
    """Another process listens on a port that was free a moment ago."""


class Server:
    """A tritonserver on loopback and free ports, for as long as a `with` block runs.

    Example:
        with Server(Path("models")) as server:
            Client(server.grpc_url).predict(history)

    Raises:
        ServerError: it ended or was not ready in time; the message carries what Triton said, and where its log lies.
    """

    def __init__(
        self,
        repository: Path,
        *,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        timeout_s: float = 180.0,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """arguments, environment: more of tritonserver's own. waiting: called now and then until the server is ready."""
        self.repository = repository
        self._arguments = arguments
        self._environment = environment
        self._timeout_s = timeout_s
        self._waiting = waiting
        self.log = log or ARTIFACTS / "tritonserver.log"
        self.processes: Processes | None = None

    def __enter__(self) -> Server:
        check_repository(self.repository)
        for _ in range(STARTS - 1):
            with contextlib.suppress(PortTakenError):
                return self._start()
        return self._start()

    def _start(self) -> Server:
        http, grpc, metrics = free_ports()
        self.http_url, self.grpc_url = f"{LOOPBACK}:{http}", f"{LOOPBACK}:{grpc}"
        self.metrics_url = f"http://{LOOPBACK}:{metrics}/metrics"
        arguments = [
            f"--model-repository={self.repository.resolve()}",
            *loopback(),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            *self._arguments,
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.processes = Processes(arguments, log, self._environment)
        try:
            self._wait_until_ready(metrics)
        except BaseException:
            self.processes.kill()  # there is nothing under way, and one that waits for a stub would wait on
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, metrics_port: int) -> None:
        assert self.processes is not None
        deadline = time.monotonic() + self._timeout_s
        with contextlib.closing(grpcclient.InferenceServerClient(self.grpc_url)) as client:
            while time.monotonic() < deadline:
                if self.processes.returncode is not None:
                    causes = self._causes()
                    raise (PortTakenError if PORT_TAKEN in causes else ServerError)(
                        f"tritonserver ended with exit code {self.processes.returncode} while it started. "
                        f"{causes} The whole log: {self.log}"
                    )
                # Triton would wait for them for ever.
                dead = self.processes.dead_stubs(BURIED_WITHIN_S)
                if dead:
                    raise ServerError(
                        f"tritonserver does not start: {', '.join(dead)} died. {self._causes()} "
                        f"The whole log: {self.log}"
                    )
                with contextlib.suppress(grpcclient.InferenceServerException):  # refused until the port is open
                    if client.is_server_ready(client_timeout=1.0) and self.processes.listen(metrics_port):
                        return
                self._waiting()
                time.sleep(0.1)
        raise ServerError(f"tritonserver was not ready after {self._timeout_s:.0f} s. The whole log: {self.log}")

    def _causes(self) -> str:
        return failures(self.log.read_text(encoding="utf-8", errors="replace"))

    def rest(self) -> None:
        """Stop the server's processes where they are, so that they take nothing of the machine; `wake` lets them go on."""
        for process in self.processes.tree() if self.processes else ():
            process.suspend()

    def wake(self) -> None:
        """Let a resting server go on; nothing for one that is awake."""
        for process in self.processes.tree() if self.processes else ():
            process.resume()

    def stop(self, timeout_s: float = 40.0) -> int | None:
        """End the server as a supervisor would, with SIGTERM; with SIGKILL only if that does not end it in time.

        Returns:
            Its exit code; None if it never ran.
        """
        return None if self.processes is None else self.processes.end(timeout_s)
