"""A server's processes: started, watched and ended together."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

from build.server import reaper
from build.server.installation import STUB, find

BURIED_WITHIN_S = 1.0  # a stub that a starting server ended itself is gone by then


class Processes:
    """A started tritonserver and its Python stubs: watched together, ended together, nothing of theirs left behind.

    They are a process group of their own, so that Ctrl-C reaches whoever started them, and not them as well. They are ended
    too when this process is gone, however it went.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: IO[bytes] | int,
        environment: dict[str, str] | None = None,
    ) -> None:
        """environment: more variables than this process has.

        Raises:
            ServerError: there is no server to start.
        """
        installation = find()
        self._mark = reaper.new_mark()
        self._stubs: dict[int, str] = {}
        self._dead_since: dict[int, float] = {}
        self.popen = subprocess.Popen(
            installation.command(arguments, f"{self._mark}-"),
            env=installation.environment | {reaper.MARK: self._mark} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def returncode(self) -> int | None:
        """The server's exit code; None while it runs."""
        return self.popen.poll()

    def tree(self) -> list[psutil.Process]:
        """The server and its stubs, as far as they run."""
        if self.returncode is not None:
            return []
        root = psutil.Process(self.popen.pid)
        return [root, *root.children(recursive=True)]

    def listen(self, port: int) -> bool:
        """Whether the server has opened the port. That of its metrics comes last, a moment after it is ready for gRPC."""
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self.popen.pid).net_connections("tcp")
            return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)
        return False

    def dead_stubs(self, for_s: float = 0.0) -> list[str]:
        """Instances whose process has ended on its own, e.g. "core_0_0". Triton serves on without them and stays "ready".

        To be asked now and then: it is also how this object learns what a process was.

        Args:
            for_s: only those that have been dead since a look so long ago. A server that starts ends some stubs itself,
                and takes a moment to bury them.
        """
        dead, now = [], time.monotonic()
        for process in self.tree()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended in an orderly way, and was waited for
                if process.status() == psutil.STATUS_ZOMBIE:
                    if now - self._dead_since.setdefault(process.pid, now) >= for_s:
                        dead.append(self._stubs.get(process.pid, f"process {process.pid}"))
                elif process.pid not in self._stubs and (instance := _instance(process.cmdline())):
                    self._stubs[process.pid] = instance
        return dead

    def regions(self) -> list[Path]:
        """The files of what the server shares with its stubs. One that is killed, or whose stub was, leaves them there."""
        return list(reaper.SHM.glob(f"{self._mark}*"))

    def end(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL to all of them if that does not end the server in time; its exit code."""
        reaper.reap(self._mark, timeout_s if self.returncode is None else 0.0)
        return self.popen.wait()

    def kill(self) -> int:
        """SIGKILL to whatever still runs, and their shared memory removed; the server's exit code."""
        return self.end(0.0)


def _instance(command: Sequence[str]) -> str | None:
    """A stub's instance by its command line, whose first argument is the model's file and one of whose last is the name.

    None for what is no stub yet: a process that the server has just forked has the server's own command line.
    """
    if len(command) < 2 or Path(command[0]).name != STUB:
        return None
    model = Path(command[1]).parent.parent.name
    return next((argument for argument in command if argument.startswith(f"{model}_")), model)
