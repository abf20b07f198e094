"""What a process started is ended when it is gone, however it went: SIGKILL leaves nobody in it to do so.

Whatever is started carries a mark in its environment, and so does all that it starts in turn. A process in a session of its
own waits for the end of its parent, then ends who still carries the mark, and removes their shared memory, whose names begin
with it. This file is that process too: it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "LASTROW_MARK"
SHM = Path("/dev/shm")  # noqa: S108 where the system keeps shared memory
LOOK_EVERY_S, ASK_EVERY_S = 0.2, 0.05
ENDS_WITHIN_S = 5.0  # after SIGTERM; then SIGKILL
SETTLED_S = 0.5  # one that was forked at the last moment carries the mark only once it runs a program of its own
GIVES_UP_S = 60.0


def marked() -> dict[str, str]:
    """Environment variables for all that this process starts and that must not outlive it.

    A process that carries a mark itself adds to it, so that who started it can tell all of its kin too.
    """
    return {MARK: _watched(os.getpid())}


def region() -> str:
    """A name for the shared memory of a server that is about to start; those of its regions begin with it."""
    return f"{marked()[MARK]}-{secrets.token_hex(4)}-"


@functools.cache
def _watched(pid: int) -> str:
    """The mark of a process, which from here on has somebody waiting for its end. A fork has another one."""
    mark = f"{os.environ.get(MARK, 'lastrow')}-{secrets.token_hex(6)}"
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(pid), mark],
        env={name: value for name, value in os.environ.items() if name != MARK},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends its parent by its group or terminal spares it
        cwd="/",
    )
    return mark


def carrying(mark: str) -> dict[int, int]:
    """Who runs and carries the mark, or one that was made from it: process ids, and their parents'."""
    wanted, found = f"\0{MARK}={mark}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if wanted in b"\0" + (folder / "environ").read_bytes():
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
                found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def reap(mark: str) -> None:
    """End who carries the mark, parents before their children, as a supervisor would; then remove their shared memory."""
    begun = seen = time.monotonic()
    asked: set[int] = set()
    while time.monotonic() - seen < SETTLED_S and time.monotonic() - begun < GIVES_UP_S:
        alive = carrying(mark)
        for pid, parent in alive.items():
            seen = time.monotonic()
            if seen - begun > ENDS_WITHIN_S:
                _send(pid, signal.SIGKILL)
                continue
            if parent not in alive and pid not in asked:
                asked.add(pid)
                _send(pid, signal.SIGTERM)
            _send(pid, signal.SIGCONT)  # one that rests would not hear it
        time.sleep(ASK_EVERY_S)
    for path in SHM.glob(f"{mark}*"):
        path.unlink(missing_ok=True)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def main() -> None:
    """Wait for the parent's end. Arguments: its process id, and the mark."""
    parent, mark = int(sys.argv[1]), sys.argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    reap(mark)


if __name__ == "__main__":
    main()
