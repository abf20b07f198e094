"""Everything that the ladder needs, for a machine that has PyTorch and no network: carried there in parts.

`pack` makes a folder: this file, a manifest with checksums, and parts of one tar archive: wheels, and the project as git has
it. There, `python3 FOLDER/carry.py TARGET` puts it together: a virtual environment over the machine's own PyTorch, in which
the ladder runs. This file needs nothing but Python for that.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PART_BYTES = 48_000_000
MANIFEST, SCRIPT, PART = "manifest.json", "carry.py", "part."
WHEELS, PROJECT = "wheels", "project"
TESTS = ("pytest>=8", "pytest-asyncio>=0.23", "hypothesis>=6.100")
# pip takes these tags word by word, and has to be told each that a wheel may carry.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
LADDER = ("bench", "--device", "gpu")


class CarryError(Exception):
    """The folder cannot be made, or what arrived of it is not what was sent; names the file and what to do."""


def pack(
    folder: Path,
    project: Path,
    python: str = "3.12",
    onnxruntime: str | None = None,
    wheels: Path | None = None,
    part_bytes: int = PART_BYTES,
) -> list[Path]:
    """Make `folder`; returns its files.

    Args:
        project: a git work tree; what is committed is carried.
        python: of the bare machine, e.g. "3.12".
        onnxruntime: version of onnxruntime-gpu, where the newest is for another CUDA than that machine's.
        wheels: folder of wheels to take instead of downloading what the project needs.
        part_bytes: a part's size at most.

    Raises:
        CarryError: the folder is not empty, or pip or git cannot give what is needed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CarryError(f"{folder} is not empty; name another folder, or empty it")
    with tempfile.TemporaryDirectory(prefix="lastrow-carry-") as aside:
        if wheels is None:
            wheels = Path(aside) / WHEELS
            _download(requirements(project, onnxruntime), python, wheels)
        archive = _run(["git", "-C", str(project), "archive", "--format=tar", "HEAD"], "git archive")
        folder.mkdir(parents=True, exist_ok=True)
        with _Parts(folder, part_bytes) as parts, tarfile.open(fileobj=parts, mode="w|") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, f"{WHEELS}/{wheel.name}")
            entry = tarfile.TarInfo(f"{PROJECT}.tar")
            entry.size = len(archive)
            tar.addfile(entry, io.BytesIO(archive))
    manifest = {"python": python, "parts": parts.checksums}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.copy(__file__, folder / SCRIPT)
    return sorted(folder.iterdir())


def requirements(project: Path, onnxruntime: str | None = None) -> list[str]:
    """What the project needs beside PyTorch, as pyproject.toml says it, and its tests' runner."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:dependencies|build) = \[[^\n]*\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    if len(listed) != 2:
        raise CarryError(f"{project}/pyproject.toml has not the two lists dependencies and build")
    named = re.findall(r'^\s*"([^"]+)"', "".join(listed), re.MULTILINE)
    found = [name for name in named if not name.startswith("torch")]
    if onnxruntime is not None:
        found = [f"onnxruntime-gpu=={onnxruntime}" if name.startswith("onnxruntime-gpu") else name for name in found]
    return [*found, *TESTS]


def _download(wanted: Sequence[str], python: str, into: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, *platforms, "--dest", str(into), *wanted]
    _run(command, "pip download")


def _run(command: Sequence[str], what: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CarryError(f"{what} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


class _Parts(io.RawIOBase):
    """A file to write that becomes part.000, part.001, ...; their checksums by name, when it is closed."""

    def __init__(self, folder: Path, size: int) -> None:
        self.checksums: dict[str, str] = {}
        self._folder, self._size = folder, size
        self._buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        self._buffer += data
        while len(self._buffer) >= self._size:
            self._cut()
        return len(data)

    def close(self) -> None:
        if not self.closed and self._buffer:
            self._cut()
        super().close()

    def _cut(self) -> None:
        part, self._buffer = bytes(self._buffer[: self._size]), self._buffer[self._size :]
        name = f"{PART}{len(self.checksums):03}"
        (self._folder / name).write_bytes(part)
        self.checksums[name] = hashlib.sha256(part).hexdigest()


class _Joined(io.RawIOBase):
    """The parts, read one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._chunks = self._read(paths)
        self._rest = b""

    @staticmethod
    def _read(paths: Sequence[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        self._rest = self._rest or next(self._chunks, b"")
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def check(folder: Path) -> list[Path]:
    """The parts in their order, each as it was when it was made.

    Raises:
        CarryError: names the part that is missing or damaged, or the Python that is not the one the wheels are for.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CarryError(f"cannot read {folder / MANIFEST}: {e}") from e
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if manifest["python"] != own:
        raise CarryError(
            f"the wheels are for Python {manifest['python']}, and this is {own}; run it with the other, or pack anew"
        )
    for name, expected in manifest["parts"].items():
        if not (folder / name).is_file():
            raise CarryError(f"{folder / name} is missing; carry it again")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise CarryError(f"{folder / name} is damaged: its checksum is not the manifest's; carry it again")
    return [folder / name for name in manifest["parts"]]


def unpack(folder: Path, target: Path) -> Path:
    """Put everything together in `target`; returns the Python that runs the project there.

    Raises:
        CarryError: as `check`, or there is no PyTorch, or the wheels do not install.
    """
    parts = check(folder)
    if target.exists() and any(target.iterdir()):
        raise CarryError(f"{target} is not empty; name another folder, or empty it")
    torch = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False)
    if torch.returncode:
        raise CarryError(f"{sys.executable} has no PyTorch; run this file with the Python that has it")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BufferedReader(_Joined(parts)), mode="r|") as tar:
        tar.extractall(target, filter="data")
    project = target / PROJECT
    project.mkdir()
    with tarfile.open(target / f"{PROJECT}.tar") as tar:
        tar.extractall(project, filter="data")
    (target / f"{PROJECT}.tar").unlink()
    environment = target / "venv"
    _run([sys.executable, "-m", "venv", str(environment)], "python -m venv")
    python = environment / "bin" / "python"
    wheels = sorted(map(str, (target / WHEELS).glob("*.whl")))
    # They fit each other: pip chose them together. PyTorch is not among them.
    install = [str(python), "-m", "pip", "install", "--no-index", "--find-links", str(target / WHEELS), "--no-deps"]
    _run([*install, *wheels], "pip install")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    # This Python's own packages come last: numpy < 2 of the new environment stays in front of theirs.
    own = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    (packages / "carried.pth").write_text("\n".join([str(project), *own]) + "\n", encoding="utf-8")
    for path in own:  # ONNX Runtime looks for NVIDIA's libraries beside itself
        if (Path(path) / "nvidia").is_dir() and not (packages / "nvidia").exists():
            (packages / "nvidia").symlink_to(Path(path) / "nvidia")
    return python


def main() -> int:
    """Put together what lies beside this file, and run the ladder, or other words of `python -m build`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--no-run", action="store_true", help="only put it together")
    parser.add_argument("target", type=Path, help="an empty folder, or one to be made")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=f"what to run there instead of {' '.join(LADDER)}")
    given = parser.parse_args()
    try:
        python = unpack(Path(__file__).resolve().parent, given.target.resolve())
    except CarryError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    project = given.target.resolve() / PROJECT
    print(f"cd {project} && {python} -m build ...", flush=True)
    if given.no_run:
        return 0
    os.chdir(project)
    return subprocess.run([str(python), "-m", "build", *(given.words or LADDER)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
