"""How every command line of the project ends."""

from __future__ import annotations

import signal
import sys

import typer

from ensemble.errors import LastrowError


def run(app: typer.Typer) -> None:
    """Run a command line; a user's mistake ends in one line on stderr and exit code 1, without a traceback."""
    end_on_signals()
    try:
        app()
    except LastrowError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(1)


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, by an exception: the servers that it started end with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)
