"""The lock: every package of `.venv`, by version and checksum, and which build of PyTorch belongs to it.

requirements.lock has what everybody gets. PyTorch comes in two builds, each with a lock on top of that one:

- requirements-cuda.lock: the build on PyPI, and CUDA's libraries, without which it does not even import. A GPU needs them.
- requirements-cpu.lock: a build without CUDA, a tenth of the size. PyPI has none for x86_64, but pip may be configured to
  find one elsewhere, as on many CI machines.

One lock that allowed both would always install the first: of two files that fit, pip prefers the one whose checksum an index
tells beforehand, and a folder of wheels tells none. And no marker tells the builds apart, to leave CUDA's libraries out.

Nothing but Python is needed to choose one: this file runs before anything is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build import ROOT
from ensemble.errors import LastrowError

COMMON, CUDA, CPU = "requirements.lock", "requirements-cuda.lock", "requirements-cpu.lock"
PYTHONS = ("3.10", "3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_35"  # the oldest C library that nvidia-pytriton's wheel runs on
CUDA_LIBRARY = re.compile(r"cuda-|nvidia-|triton$")
OURS = {"lastrow", "lastrow-build"}
HEADERS = {
    COMMON: "Everything but PyTorch",
    CUDA: "PyTorch as PyPI has it, with CUDA's libraries",
    CPU: "PyTorch without CUDA, where pip is configured to find a file with one of these checksums",
}


class LockError(LastrowError):
    """A lock cannot be read, made, or chosen; says what failed."""


@dataclass(frozen=True)
class Pin:
    """A package of a lock. pythons: those it is for; hashes: SHA-256 of every file of that version; via: who wants it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    pythons: tuple[str, ...] = PYTHONS
    via: frozenset[str] = frozenset()

    def __str__(self) -> str:
        marker = " or ".join(f'python_version == "{python}"' for python in self.pythons)
        head = f"{self.name}=={self.version}" + ("" if self.pythons == PYTHONS else f" ; {marker}")
        return " \\\n    ".join([head, *(f"--hash=sha256:{sha}" for sha in self.hashes)])


def read(text: str) -> list[Pin]:
    """The pins of a requirements file, this module's or uv's with its annotations."""
    pins = []
    for name, version, rest in re.findall(r"^([\w.-]+)==([^\s;\\]+)(.*(?:\n[ ].*)*)", text, re.MULTILINE):
        pythons = tuple(re.findall(r'python_version == "([\d.]+)"', rest)) or PYTHONS
        via = re.findall(r"^    # (?:via | )\s*([\w.-]+)", rest, re.MULTILINE)
        pins.append(Pin(name, version, tuple(re.findall(r"sha256:(\w+)", rest)), pythons, frozenset(via)))
    return pins


def merge(resolved: Mapping[str, Iterable[Pin]]) -> list[Pin]:
    """One list out of each Python's: what differs between them is named once a version, with the Pythons that get it."""
    merged: dict[tuple[str, str], Pin] = {}
    for python, pins in resolved.items():
        for pin in pins:
            known = merged.get((pin.name, pin.version))
            pythons, via = (known.pythons, known.via) if known else ((), frozenset())
            merged[pin.name, pin.version] = Pin(pin.name, pin.version, pin.hashes, (*pythons, python), via | pin.via)
    return [merged[key] for key in sorted(merged)]


def cuda_libraries(pins: Iterable[Pin]) -> set[str]:
    """What only PyTorch's CUDA build wants: its libraries, and theirs."""
    found: set[str] = set()
    left = {pin.name: frozenset[str]().union(*(p.via for p in pins if p.name == pin.name)) for pin in pins}
    while True:
        more = {
            name
            for name, via in left.items()
            if name not in found and via and via <= {"torch"} | found and (via & found or CUDA_LIBRARY.match(name))
        }
        if not more:
            return found
        found |= more


def write(uv: Path, folder: Path = ROOT) -> None:
    """Resolve anew what pyproject.toml asks for, for every Python, and write the three locks.

    Raises:
        LockError: what is asked for does not fit together, as uv says it.
    """
    pins = merge({python: read(_resolve(uv, python, folder)) for python in PYTHONS})
    only_cuda = {"torch"} | cuda_libraries(pins)
    (torch,) = (pin for pin in pins if pin.name == "torch")
    _write(folder / COMMON, [pin for pin in pins if pin.name not in only_cuda])
    _write(folder / CUDA, [pin for pin in pins if pin.name in only_cuda])
    known = read((folder / CPU).read_text(encoding="utf-8")) if (folder / CPU).is_file() else []
    version, sha = offered(torch.version)
    cpu = f"{torch.version}+cpu"
    hashes = {sha for pin in known if pin.version == cpu for sha in pin.hashes} | ({sha} if version == cpu else set())
    if hashes:
        _write(folder / CPU, [Pin("torch", cpu, tuple(sorted(hashes)))])
    else:
        (folder / CPU).unlink(missing_ok=True)


def _resolve(uv: Path, python: str, folder: Path) -> str:
    """What uv would install, as a requirements file. It prefers nothing that a lock has."""
    command = [str(uv), "pip", "compile", "--quiet", "--no-header", "--generate-hashes", "--annotation-style=split"]
    command += ["--only-binary=:all:", "--extra=test", f"--python-version={python}", f"--python-platform={PLATFORM}"]
    done = subprocess.run([*command, "pyproject.toml"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LockError(f"uv finds nothing that fits for Python {python}: {done.stderr.strip()}")
    return done.stdout


def _write(path: Path, pins: Iterable[Pin]) -> None:
    """An option of pip's, too, is part of a lock: no package is built here, with tools that nobody pinned."""
    first = "--only-binary=:all:" if path.name == COMMON else f"-r {COMMON}"
    lines = [f"# {HEADERS[path.name]}. Written by `make lock`.", first, *map(str, pins)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def offered(version: str) -> tuple[str, str]:
    """The PyTorch that pip, as it is configured here, would take for a version: its full version and its file's SHA-256.

    Raises:
        LockError: it finds none; with its own words.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-", "--no-deps"]
    command += ["--ignore-installed", f"torch=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LockError(f"pip finds no torch {version}: {'; '.join(done.stderr.strip().splitlines())}")
    (torch,) = json.loads(done.stdout)["install"]
    return torch["metadata"]["version"], torch["download_info"]["archive_info"]["hashes"]["sha256"]


def torch_lock(folder: Path = ROOT) -> str:
    """The lock of the PyTorch that this machine gets: without CUDA where pip would take such a file, and the lock knows it.

    Raises:
        LockError: there is no lock, or pip finds no PyTorch.
    """
    try:
        (torch,) = (pin for pin in read((folder / CUDA).read_text(encoding="utf-8")) if pin.name == "torch")
    except (OSError, ValueError) as e:
        raise LockError(f"{folder / CUDA} names no torch: {e}; run `make lock`") from e
    known = read((folder / CPU).read_text(encoding="utf-8")) if (folder / CPU).is_file() else []
    version, sha = offered(torch.version)
    return CPU if any(pin.version == version and sha in pin.hashes for pin in known) else CUDA


def differences(installed: Mapping[str, str], folder: Path = ROOT) -> list[str]:
    """Where packages, {name: version}, differ from the lock of this Python and of the PyTorch among them; a line each."""
    locks = [COMMON, CPU if "+cpu" in installed.get("torch", "") else CUDA]
    pins = [pin for lock in locks for pin in read((folder / lock).read_text(encoding="utf-8"))]
    here = ".".join(platform.python_version_tuple()[:2])
    locked = {pin.name: pin.version for pin in pins if here in pin.pythons}
    return [
        f"{name} {locked.get(name, 'is not')} in the lock, {installed.get(name, 'not installed')} here"
        for name in sorted({*locked, *installed} - OURS)
        if locked.get(name) != installed.get(name)
    ]


def _installed() -> dict[str, str]:
    """{name: version} of this environment, named as the lock names them."""
    found = importlib.metadata.distributions()
    return {re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version for package in found}


def main() -> int:
    """Choose PyTorch's lock, say where this environment differs from the lock, or write it anew."""
    parser = argparse.ArgumentParser(prog="python -m build.make.lock", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("torch", help="print the name of PyTorch's lock for this machine")
    commands.add_parser("compare", help="print where this environment differs from the lock")
    commands.add_parser("write", help="resolve anew, and write the locks").add_argument("uv", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "torch":
            print(torch_lock())
        elif given.command == "write":
            write(given.uv)
        else:
            print("\n".join(differences(_installed())) or "every package is as in the lock")
    except LockError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
