"""What lastrow wrote into a folder, so that it takes away what it no longer makes, and never what somebody put there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from build import aside

NAME = ".lastrow.sha256"  # in the form of sha256sum, which reads it with --check


def of(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files, by relative path."""
    return "".join(f"{digest(content)}  {name}\n" for name, content in sorted(files.items())).encode()


def read(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that was written into this folder, by relative path; empty where nothing says so."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    entries = (line.partition("  ") for line in lines)
    return {name: digest for digest, _, name in entries if _inside(folder, name)}


def changed(folder: Path, written: Mapping[str, str]) -> list[str]:
    """The files that were written and that somebody has changed since, by relative path."""
    return [name for name in written if (folder / name).is_file() and not is_written(folder, name, written)]


def update(folder: Path, written: Mapping[str, str], wanted: Mapping[str, bytes]) -> None:
    """Write the manifest of the wanted files, which are there, and remove those that were written and are no longer wanted.

    What somebody has changed stays, and so does every folder with something else in it.
    """
    for name in written:
        if name not in wanted and is_written(folder, name, written):
            remove(folder, folder / name)
    content, path = of(wanted), folder / NAME
    if not path.is_file() or path.read_bytes() != content:
        with aside.beside(folder) as made:  # not in it: Triton may poll the folder, and takes what is there for a model
            (made / NAME).write_bytes(content)
            (made / NAME).replace(path)


def is_written(folder: Path, name: str, written: Mapping[str, str]) -> bool:
    """Whether the file is there, and is what was written."""
    path = folder / name
    return path.is_file() and digest(path.read_bytes()) == written.get(name)


def remove(folder: Path, file: Path) -> None:
    """Remove a file, what Python compiled of it, and the folders that this leaves empty."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()
    file.unlink()
    for parent in (file.parent / "__pycache__", *file.parents):
        if parent == folder:
            break
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _inside(folder: Path, name: str) -> bool:
    return bool(name) and (folder / name).resolve().is_relative_to(folder.resolve())


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
