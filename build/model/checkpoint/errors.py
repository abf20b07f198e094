"""What is wrong with a checkpoint, for a person to act on."""

from __future__ import annotations

from pathlib import Path

from ensemble.errors import LastrowError


class CheckpointError(LastrowError):
    """The checkpoint is missing, damaged, or of another model than the spec's."""


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error that a file which cannot be opened is."""
    return CheckpointError(
        f"cannot read the checkpoint {path}: {error.strerror}. Give one with CHECKPOINT=, or make one with `make train`"
    )
