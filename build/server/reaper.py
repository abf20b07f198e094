"""Ending what was started, and all that it started in turn; also when who started it is gone, SIGKILL included.

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
GIVES_UP_S = 60.0  # after SIGKILL


def marked() -> dict[str, str]:
    """Environment variables for all that this process starts and that must not outlive it.

    A process that carries a mark itself adds to it, so that who started it can tell all of its kin too.
    """
    return {MARK: _watched(os.getpid())}


def new_mark() -> str:
    """A mark for one process that is about to start, by which `reap` finds it and all that it starts."""
    return f"{marked()[MARK]}-{secrets.token_hex(4)}"


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


def carrying(mark: str, known: set[tuple[int, str]] | None = None) -> dict[int, int]:
    """Who runs and carries the mark, or one made from it, or was started by such a one: process ids, and their parents'.

    known: who was found before, and has it from here on: a program that writes its title over its environment is known by
    its parent alone, and only while that runs.
    """
    wanted, known = f"\0{MARK}={mark}".encode(), set() if known is None else known
    parents: dict[int, int] = {}
    started: dict[int, str] = {}
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if stat[0] in "ZX":  # it has ended, and nobody has buried it
                continue
            pid = int(folder.name)
            parents[pid], started[pid] = int(stat[1]), stat[19]
            if (pid, started[pid]) in known or wanted in b"\0" + (folder / "environ").read_bytes():
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    known |= {(pid, started[pid]) for pid in found}
    return {pid: parents[pid] for pid in found}


def reap(mark: str, within_s: float = ENDS_WITHIN_S, settled_s: float = 0.0) -> None:
    """End who carries the mark, parents before their children, as a supervisor would; then remove their shared memory.

    within_s: how long after SIGTERM the rest gets SIGKILL. settled_s: how long nobody has to be seen.
    """
    begun = seen = time.monotonic()
    asked: set[int] = set()
    known: set[tuple[int, str]] = set()
    while True:
        alive = carrying(mark, known)
        now = time.monotonic()
        seen = now if alive else seen
        if (not alive and now - seen >= settled_s) or now - begun > within_s + GIVES_UP_S:
            break
        for pid, parent in alive.items():
            if now - begun >= within_s:
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
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended, or became somebody else's
        os.kill(pid, number)


def main() -> None:
    """Wait for the parent's end. Arguments: its process id, and the mark."""
    parent, mark = int(sys.argv[1]), sys.argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    reap(mark, settled_s=SETTLED_S)


if __name__ == "__main__":
    main()
