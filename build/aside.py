"""Files made beside their place, then moved into it: nobody ever reads half of one, and a failure leaves what was there.

Not synced to the disk: all of it can be made again after a power cut.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder on the file system of `path`, for what is then moved to it; gone at the end, with all that was not moved.

    Example:
        with beside(target) as folder:
            save(model, folder / target.name)
            (folder / target.name).replace(target)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lastrow-") as folder:
        yield Path(folder)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, text as UTF-8, in place of the one that is there."""
    with beside(path) as folder:
        made = folder / path.name
        made.write_bytes(content if isinstance(content, bytes) else content.encode())
        made.replace(path)
