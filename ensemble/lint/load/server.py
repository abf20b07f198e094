"""A tritonserver for one question: started on a free loopback port, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPException
from pathlib import Path

from ensemble.lint.repository import LintError

HOST = "127.0.0.1"
TRIES = 5  # ports that another process may have been quicker to take
STOPS_WITHIN_S = 5.0
POLL_S = 0.05


class TimeIsUp(Exception):
    """The server did not answer within the time limit."""


class Died(Exception):
    """The server ended by itself."""


def find() -> Path:
    """The tritonserver of this environment, which knows the embedded one, else the first on the PATH.

    Raises:
        LintError: there is none.
    """
    own = Path(sys.prefix) / "bin" / "tritonserver"
    found = str(own) if own.is_file() else shutil.which("tritonserver")
    if found is None:
        raise LintError(
            "--load asks a tritonserver, and there is none on the PATH; run inside Triton's container, "
            "or in a checkout's environment (`make setup`)"
        )
    return Path(found)


class Server:
    """A server over a repository, with explicit model control. Use it in a `with` statement."""

    def __init__(self, executable: Path, repository: Path, deadline: float, flags: Sequence[str] = ()) -> None:
        """deadline: of time.monotonic(), for everything that is asked of it."""
        self._executable, self._repository, self._deadline, self._flags = executable, repository, deadline, flags
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._region = f"lint-{os.getpid()}-{id(self)}-"
        # A file that has no name any more, so that nothing is left of it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__

    def __enter__(self) -> Server:
        try:
            for _ in range(TRIES):
                self._start()
                try:
                    self._wait_until_live()
                    return self
                except Died:
                    if "Address already in use" not in self.log() and "failed to start" not in self.log():
                        raise
        except BaseException:
            self.__exit__()
            raise
        raise LintError(f"{self._executable} finds no free port: {self.log()[-300:]}")

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._port = free.getsockname()[1]
        command = [
            str(self._executable),
            f"--model-repository={self._repository}",
            "--model-control-mode=explicit",
            f"--http-address={HOST}",
            f"--http-port={self._port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=2",
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            *self._flags,
        ]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )

    def _wait_until_live(self) -> None:
        while time.monotonic() < self._deadline:
            if not self._alive():
                raise Died(self.log()[-500:])
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self._url("v2/health/live"), timeout=1).close()  # noqa: S310 http, on 127.0.0.1
                return
            time.sleep(0.05)
        raise TimeIsUp

    def _url(self, path: str) -> str:
        return f"http://{HOST}:{self._port}/{path}"

    def load(self, model: str) -> str:
        """Load a model; "" where it is loaded, else what Triton says of it.

        Raises:
            TimeIsUp: before it was.
            Died: the server, of it.
        """
        begun = self._size()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self._ask_to_load, model)
            # A stub that outlives the server holds the connection open: only the process tells that it is gone.
            while not asked.done() and self._alive() and time.monotonic() < self._deadline:
                wait([asked], timeout=POLL_S)
            if not asked.done() or not self._alive():
                late = self._alive()
                self._end()
                raise TimeIsUp if late else Died
        return f"{asked.result()}\n{self.log(begun)}" if asked.result() else ""

    def _ask_to_load(self, model: str) -> str:
        path = f"v2/repository/models/{urllib.parse.quote(model, safe='')}/load"
        request = urllib.request.Request(self._url(path), b"{}", {"Content-Type": "application/json"})  # noqa: S310
        try:
            urllib.request.urlopen(request).close()  # noqa: S310 http, on 127.0.0.1
            return ""
        except urllib.error.HTTPError as e:
            return str(json.loads(e.read() or b"{}").get("error", e))
        except (OSError, HTTPException) as e:  # it ended, or was ended
            return str(e) or type(e).__name__

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _size(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def log(self, begin: int = 0) -> str:
        """What it has said since a place in its log."""
        return os.pread(self._log.fileno(), self._size() - begin, begin).decode("utf-8", errors="replace")

    def _end(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOPS_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):  # stubs that it left behind, and itself if it hangs
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._end()
        for region in Path("/dev/shm").glob(f"{self._region}*"):  # noqa: S108 where Triton's stubs have theirs
            region.unlink(missing_ok=True)
        self._log.close()
