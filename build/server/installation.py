"""The tritonserver that serves a repository: the one on the PATH, else the one inside the nvidia-pytriton wheel.

That wheel has tritonserver and its Python backend but no ONNX Runtime backend; `build/server/backends` has one. Its parts
are put together once, in a folder of their own, because Triton wants the Python stub beside its backend library.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build import ARTIFACTS, ROOT, aside
from build.server.errors import ServerError

STUB = "triton_python_backend_stub"
LIBRARIES = "nvidia_pytriton.libs"
CLIENT_SHM = "--allow-client-shm"
HELPS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started: its file, the arguments it needs first, and its environment."""

    executable: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    embedded: bool

    def command(self, arguments: Sequence[str], region: str = "") -> list[str]:
        """The whole command line. A --backend-directory among `arguments` wins over the installation's own.

        region: what the names of shared memory between the server and its stubs begin with; empty: Triton's own choice.
        """
        given = any(a.split("=")[0] == "--backend-directory" for a in arguments)
        backends = ("python", "onnxruntime") if self.embedded else ("python",)  # those that have stubs
        named = [f"--backend-config={name},shm-region-prefix-name={region}" for name in backends if region]
        return [str(self.executable), *(() if given else self.arguments), *named, *arguments]

    def client_shared_memory(self) -> list[str]:
        """Arguments that let clients register shared memory: none where Triton, before 26.04, always does.

        Raises:
            ServerError: the server does not run.
        """
        return [f"{CLIENT_SHM}=true"] if self._knows(CLIENT_SHM) else []

    def _knows(self, option: str) -> bool:
        command = [str(self.executable), "--help"]
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=HELPS_WITHIN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise ServerError(f"{' '.join(command)} does not run: {e}") from e
        said = done.stdout + done.stderr
        if "--model-repository" not in said:
            raise ServerError(f"{' '.join(command)} lists no options, but says: {said.strip()[-300:] or 'nothing'}")
        return re.search(rf"^\s*{option}\b", said, re.MULTILINE) is not None


def find() -> Installation:
    """The tritonserver on the PATH, used as it is; else the embedded one, checked and put together.

    Raises:
        ServerError: there is neither, or the embedded one lacks something; says what to install.
    """
    ours = Path(sys.prefix) / "bin" / "tritonserver"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = Path(folder or ".") / "tritonserver"
        is_file = candidate.is_file() and os.access(candidate, os.X_OK)
        if is_file and not (ours.exists() and candidate.samefile(ours)):
            return Installation(candidate.resolve(), (), dict(os.environ), embedded=False)
    return _embedded()


def pytriton() -> Path | None:
    """The folder of nvidia-pytriton's package, tritonserver in it and its libraries beside it; None if not installed."""
    package = importlib.util.find_spec("pytriton")
    return Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None


def _embedded() -> Installation:
    root = pytriton()
    if root is None:
        raise ServerError(
            "no tritonserver on the PATH and no nvidia-pytriton installed; run `make setup` for the latter"
        )
    server, libraries = root / "tritonserver", root.parent / LIBRARIES
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / STUB
    if not stub.is_file():
        offered = sorted((p.name for p in (server / "python_backend_stubs").glob("3.*")), key=lambda v: int(v[2:]))
        raise ServerError(f"the embedded tritonserver has no Python stub for {python}; use Python {', '.join(offered)}")
    if not libraries.is_dir():
        raise ServerError(f"{libraries} is missing; reinstall with `pip install --force-reinstall nvidia-pytriton`")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {numpy} is installed, and under numpy 2 the embedded tritonserver's Python stub answers every output "
            "with zero bytes; run `pip install 'numpy<2'`"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        raise ServerError("onnxruntime is not installed; run `pip install onnxruntime-gpu` (it runs without a GPU too)")
    environment = dict(os.environ)
    given = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(libraries), *given, *_libpython(python, given)])
    # The stub looks for its standard library and packages where the first python3 on the PATH has them.
    environment["PATH"] = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)))
    backends = _backends(server, stub)
    return Installation(
        server / "bin" / "tritonserver", (f"--backend-directory={backends}",), environment, embedded=True
    )


def _libpython(python: str, given: Sequence[str]) -> list[str]:
    """Folders in which a stub finds its libpython, beside those of LD_LIBRARY_PATH and the loader's own.

    python: the stub's, e.g. "3.12". given: the folders of LD_LIBRARY_PATH. A Python from Debian has its library where the
    loader looks. One from pyenv, conda or uv has it in a folder of its own, which that Python alone knows.

    Raises:
        ServerError: it is nowhere.
    """
    name = f"libpython{python}.so.1.0"
    if any((Path(folder) / name).is_file() for folder in given) or ctypes.util.find_library(f"python{python}"):
        return []
    own = dict.fromkeys(map(str, (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib")))
    found = [folder for folder in own if (Path(folder) / name).is_file()]
    if not found:
        raise ServerError(
            f"{name}, which the embedded tritonserver's Python stub needs, is neither where the loader looks nor in "
            f"{' or '.join(own)}; install it (Debian: `apt install libpython{python}`), or use a Python built with "
            "--enable-shared"
        )
    return found


def _backends(server: Path, stub: Path) -> Path:
    """The backend folder, its parts copied side by side: Triton refuses a library that links out of its folder."""
    own = ROOT / "build" / "server" / "backends"
    parts = {
        "python/libtriton_python.so": server / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": server / "backends" / "python" / "triton_python_backend_utils.py",
        f"python/{STUB}": stub,
        **{path.relative_to(own).as_posix(): path for path in sorted(own.glob("onnxruntime/**/*.py"))},
    }
    digest = hashlib.sha256()
    for name, source in parts.items():
        if not source.is_file():
            raise ServerError(f"{source} is missing; reinstall with `pip install --force-reinstall nvidia-pytriton`")
        digest.update(name.encode() + source.read_bytes())
    # Named by its content: what is there is complete, and a server that runs from it keeps it while another is made.
    folder = ARTIFACTS / "backends" / digest.hexdigest()[:16]
    if not folder.is_dir():
        with aside.beside(folder) as made:
            for name, source in parts.items():
                target = made / "whole" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            with contextlib.suppress(FileExistsError, OSError):  # another process was first, with the same content
                (made / "whole").rename(folder)
        if not folder.is_dir():
            raise ServerError(f"cannot write {folder}; check the disk and its permissions")
    return folder
