"""How every command line of the project ends."""

from __future__ import annotations

import sys

import typer

from ensemble.errors import LastrowError


def run(app: typer.Typer) -> None:
    """Run a command line; a user's mistake ends in one line on stderr and exit code 1, without a traceback."""
    try:
        app()
    except LastrowError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(1)
