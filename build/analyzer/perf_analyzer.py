"""The perf_analyzer that runs on this machine: the one on the PATH, else the one inside an older tritonclient wheel.

The perf_analyzer on PyPI wants a newer C library than many servers have. tritonclient 2.50.0's wheel carries one that runs
from glibc 2.34 on, given two shared libraries, which the nvidia-pytriton wheel has.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NoReturn

from build import ARTIFACTS, aside
from ensemble.errors import LastrowError

WHEEL = "tritonclient==2.50.0"
WHEEL_PLATFORM = "manylinux1_x86_64"
MEMBER = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")
INSTEAD = "put a perf_analyzer that runs here on the PATH (it is in Triton's SDK container)"


class PerfAnalyzerError(LastrowError):
    """There is no perf_analyzer that runs here."""


def find() -> tuple[Path, dict[str, str]]:
    """A perf_analyzer that runs, and the environment that it needs.

    Raises:
        PerfAnalyzerError: there is none, and why.
    """
    ours = Path(sys.prefix) / "bin" / "perf_analyzer"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = Path(folder or ".") / "perf_analyzer"
        is_file = candidate.is_file() and os.access(candidate, os.X_OK)
        if is_file and not (ours.exists() and candidate.samefile(ours)) and not _failure(candidate, dict(os.environ)):
            return candidate.resolve(), dict(os.environ)
    kept = ARTIFACTS / "perf_analyzer" / WHEEL.replace("==", "-")
    if not kept.is_dir():
        _install(kept)
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(kept), os.environ.get("LD_LIBRARY_PATH"))))
    why = _failure(kept / "perf_analyzer", environment)
    if why:
        raise PerfAnalyzerError(f"{kept / 'perf_analyzer'} does not run here: {why}; {INSTEAD}")
    return kept / "perf_analyzer", environment


def _failure(executable: Path, environment: dict[str, str]) -> str:
    """Why it does not run; empty if it does."""
    try:
        done = subprocess.run(
            [executable, "--version"], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    said = done.stdout + done.stderr
    return "" if "Perf Analyzer" in said else said.strip()[-500:] or "it says nothing"


def _install(folder: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise PerfAnalyzerError(
            f"no perf_analyzer on the PATH, and none can be had for {platform.system()} on {platform.machine()}; {INSTEAD}"
        )
    from build import server  # here, not for every measurement: a second of imports

    pytriton = server.pytriton()
    if pytriton is None:
        raise PerfAnalyzerError("no perf_analyzer on the PATH and no nvidia-pytriton installed; run `make setup`")
    root = pytriton.parent / server.LIBRARIES
    with aside.beside(folder) as made:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--platform", WHEEL_PLATFORM, "--dest", str(made), WHEEL],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PerfAnalyzerError(f"cannot download {WHEEL}: {done.stderr.strip()[-500:]}; {INSTEAD}")
        whole = made / "whole"
        whole.mkdir()
        (wheel,) = made.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (whole / "perf_analyzer").write_bytes(archive.read(MEMBER))
        (whole / "perf_analyzer").chmod(0o755)
        for library in LIBRARIES:
            stem, _, version = library.partition(".so.")
            # Wheels carry libraries under a name of their own: libb64-1a2b3c.so.0d, libcudart.so.12.4.
            found = sorted(root.glob(f"{stem}[-.]*so.{version}*"))
            if found:
                (whole / library).symlink_to(found[0])
        with contextlib.suppress(FileExistsError, OSError):  # another process was first, with the same content
            whole.rename(folder)
    if not folder.is_dir():
        raise PerfAnalyzerError(f"cannot write {folder}; check the disk and its permissions")


def main() -> NoReturn:
    """`perf_analyzer` of this environment: every argument goes to it as it is."""
    try:
        executable, environment = find()
    except PerfAnalyzerError as e:
        sys.exit(f"error: {e}")
    os.execve(executable, [str(executable), *sys.argv[1:]], environment)  # noqa: S606 no shell: an argument list
