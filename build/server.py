"""The tritonserver that serves a repository: the one on the PATH, else the one inside the nvidia-pytriton wheel.

That wheel has tritonserver and its Python backend but no ONNX Runtime backend; `build/backends` supplies one. Its parts
are put together once, in a folder of their own, because Triton wants the Python stub beside its backend library.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import ctypes.util
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil
import tritonclient.grpc as grpcclient

from build import ARTIFACTS
from ensemble.errors import LastrowError

PORTS = {"http-port": 8000, "grpc-port": 8001, "metrics-port": 8002}  # tritonserver's own defaults
LOOPBACK = "127.0.0.1"
STUB = "triton_python_backend_stub"
KILLED_WITHIN_S, HALTS_WITHIN_S = 5.0, 1.0
BURIED_WITHIN_S = 1.0  # a stub that a starting server ended itself is gone by then
# Errors only to servers that have a GPU.
NO_CAUSE = r'^E.*"(CudaDriverHelper has not been initialized\.|unable to create stream for .*CUDA driver version.*)"$'
REGION = r"/dev/shm/triton_\S+_shm_region_[\w-]+"  # noqa: S108 where Triton puts what it shares with a stub


class ServerError(LastrowError):
    """tritonserver cannot be found, cannot run here, or did not become ready."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started: its file, the arguments it needs first, and its environment."""

    executable: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    embedded: bool

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The whole command line. A --backend-directory among `arguments` wins over the installation's own."""
        given = any(a.split("=")[0] == "--backend-directory" for a in arguments)
        return [str(self.executable), *(() if given else self.arguments), *arguments]


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


def _embedded() -> Installation:
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        raise ServerError(
            "no tritonserver on the PATH and no nvidia-pytriton installed; run `make setup` for the latter"
        )
    root = Path(package.submodule_search_locations[0])
    server, libraries = root / "tritonserver", root.parent / "nvidia_pytriton.libs"
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
    parts = {
        "python/libtriton_python.so": server / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": server / "backends" / "python" / "triton_python_backend_utils.py",
        f"python/{STUB}": stub,
        "onnxruntime/model.py": Path(__file__).with_name("backends") / "onnxruntime" / "model.py",
    }
    digest = hashlib.sha256()
    for name, source in parts.items():
        if not source.is_file():
            raise ServerError(f"{source} is missing; reinstall with `pip install --force-reinstall nvidia-pytriton`")
        digest.update(name.encode() + source.read_bytes())
    # Named by its content: what is there is complete, and a server that runs from it keeps it while another is made.
    folder = ARTIFACTS / "backends" / digest.hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            for name, source in parts.items():
                target = Path(aside) / "whole" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            with contextlib.suppress(FileExistsError, OSError):  # another process was first, with the same content
                (Path(aside) / "whole").rename(folder)
        if not folder.is_dir():
            raise ServerError(f"cannot write {folder}; check the disk and its permissions")
    return folder


def check_ports(arguments: Sequence[str]) -> None:
    """Refuse to start where a port is taken, before minutes are spent on loading models.

    Args:
        arguments: tritonserver's own; its defaults stand for what is not given.

    Raises:
        ServerError: names the port, its option and the address.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option, port in PORTS.items():
        parser.add_argument(f"--{option}", type=int, default=port)
        parser.add_argument(f"--{option.replace('port', 'address')}", default="0.0.0.0")  # noqa: S104 Triton's default
        parser.add_argument(f"--allow-{option.split('-')[0]}", default="true")
    given = vars(parser.parse_known_args(arguments)[0])
    for option in PORTS:
        key = option.replace("-", "_")
        protocol = option.split("-")[0]
        if given[f"allow_{protocol}"].lower() in ("false", "0"):
            continue
        port, address = given[key], given[key.replace("port", "address")]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as e:
                raise ServerError(
                    f"port {port} on {address} is not free ({e.strerror}); stop what listens there, or choose another "
                    f"with --{option} (make serve: {protocol.upper()}_PORT=)"
                ) from e


def free_ports(count: int = 3) -> list[int]:
    """Ports on loopback that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


def check_repository(folder: Path) -> None:
    """Refuse a repository that a server would never finish loading: it waits for ever for a Python step without its file.

    Raises:
        ServerError: there is no such folder, or it lacks a model.py.
    """
    if not folder.is_dir():
        raise ServerError(f"there is no model repository {folder}; run `make repo` first")
    for config in sorted(folder.glob("*/config.pbtxt")):
        text = config.read_text(encoding="utf-8", errors="replace")
        if not re.search(r'^backend:\s*"python"', text, re.MULTILINE) or "default_model_filename" in text:
            continue
        for version in sorted(path for path in config.parent.iterdir() if path.name.isdigit()):
            if not (version / "model.py").is_file():
                raise ServerError(f"{version / 'model.py'} is missing; run `make repo` again")


class Processes:
    """A started tritonserver and its Python stubs: watched together, ended together, nothing of theirs left behind.

    They are a process group of their own, so that Ctrl-C reaches whoever started them, and not them as well.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: IO[bytes] | int,
        environment: dict[str, str] | None = None,
        ends_with_parent: bool = False,
    ) -> None:
        """environment: more variables than this process has. ends_with_parent: SIGTERM when this thread is gone.

        Raises:
            ServerError: there is no server to start.
        """
        installation = find()
        self._regions: set[Path] = set()
        self._stubs: dict[int, str] = {}
        self._dead_since: dict[int, float] = {}
        self.popen = subprocess.Popen(
            installation.command(arguments),
            env=installation.environment | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if ends_with_parent else None,
        )

    @property
    def returncode(self) -> int | None:
        """The server's exit code; None while it runs."""
        return self.popen.poll()

    def tree(self) -> list[psutil.Process]:
        """The server and its stubs, as far as they run."""
        if self.returncode is not None:
            return []
        root = psutil.Process(self.popen.pid)
        return [root, *root.children(recursive=True)]

    def dead_stubs(self, for_s: float = 0.0) -> list[str]:
        """Instances whose process has ended on its own, e.g. "core_0_0". Triton serves on without them and stays "ready".

        To be asked now and then: it is also how this object learns what a process was, and what shared memory the server
        has.

        Args:
            for_s: only those that have been dead since a look so long ago. A server that starts ends some stubs itself,
                and takes a moment to bury them.
        """
        self._remember_regions()
        dead, now = [], time.monotonic()
        for process in self.tree()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended in an orderly way, and was waited for
                if process.status() == psutil.STATUS_ZOMBIE:
                    if now - self._dead_since.setdefault(process.pid, now) >= for_s:
                        dead.append(self._stubs.get(process.pid, f"process {process.pid}"))
                elif process.pid not in self._stubs and (instance := _instance(process.cmdline())):
                    self._stubs[process.pid] = instance
        return dead

    def end(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL to all of them if that does not end the server in time; its exit code."""
        self._look_a_last_time()
        if self.returncode is None:
            self.popen.send_signal(signal.SIGTERM)
            self.popen.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to whatever still runs, and their shared memory removed; the server's exit code."""
        self._look_a_last_time()
        with contextlib.suppress(ProcessLookupError):  # all of the group have ended
            os.killpg(self.popen.pid, signal.SIGKILL)
        code = self.popen.wait()
        deadline = time.monotonic() + KILLED_WITHIN_S
        while self._running() and time.monotonic() < deadline:
            time.sleep(0.02)
        for region in self._regions:
            region.unlink(missing_ok=True)
        return code

    def _running(self) -> bool:
        """Whether any of the group runs still. The dead whom nobody buries count as ended."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(process.pid) == self.popen.pid and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def _look_a_last_time(self) -> None:
        """Halt the server and remember its regions: between the look and a signal that ends it, it would make others."""
        self.popen.send_signal(signal.SIGSTOP)  # nothing, where it is known to have ended
        deadline = time.monotonic() + HALTS_WITHIN_S
        while not self._halted() and time.monotonic() < deadline:
            time.sleep(0.001)
        self._remember_regions()

    def _halted(self) -> bool:
        """Whether none of the server's threads runs."""
        states = []
        for status in Path(f"/proc/{self.popen.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # this one has ended
                states.append(status.read_text(encoding="utf-8").rpartition(")")[2].split()[0])
        return set(states) <= {"T", "t", "Z", "X"}

    def _remember_regions(self) -> None:
        """A server that is killed, or whose stub was, leaves its regions in /dev/shm. Their names tell nobody's whose.

        One that was just made is open, and not mapped yet.
        """
        process = Path("/proc") / str(self.popen.pid)
        with contextlib.suppress(OSError):  # it has ended
            self._regions |= set(map(Path, re.findall(REGION, (process / "maps").read_text(encoding="utf-8"))))
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since
                    self._regions |= set(map(Path, re.findall(REGION, str(descriptor.readlink()))))


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _instance(command: Sequence[str]) -> str | None:
    """A stub's instance by its command line, whose first argument is the model's file and one of whose last is the name.

    None for what is no stub yet: a process that the server has just forked has the server's own command line.
    """
    if len(command) < 2 or Path(command[0]).name != STUB:
        return None
    model = Path(command[1]).parent.parent.name
    return next((argument for argument in command if argument.startswith(f"{model}_")), model)


class Server:
    """A tritonserver on loopback and free ports, for as long as a `with` block runs.

    Example:
        with Server(Path("models")) as server:
            Client(server.grpc_url).predict(history)

    Raises:
        ServerError: it ended or was not ready in time; the message carries what Triton said, and where its log lies.
    """

    def __init__(
        self,
        repository: Path,
        *,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        timeout_s: float = 180.0,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """arguments, environment: more of tritonserver's own. waiting: called now and then until the server is ready."""
        self.repository = repository
        self._arguments = arguments
        self._environment = environment
        self._timeout_s = timeout_s
        self._waiting = waiting
        self.log = log or ARTIFACTS / "tritonserver.log"
        self.processes: Processes | None = None

    def __enter__(self) -> Server:
        check_repository(self.repository)
        http, grpc, metrics = free_ports()
        self.http_url, self.grpc_url = f"{LOOPBACK}:{http}", f"{LOOPBACK}:{grpc}"
        self.metrics_url = f"http://{LOOPBACK}:{metrics}/metrics"
        arguments = [
            f"--model-repository={self.repository.resolve()}",
            *loopback(),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            *self._arguments,
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.processes = Processes(arguments, log, self._environment)
        try:
            self._wait_until_ready(metrics)
        except BaseException:
            self.processes.kill()  # there is nothing under way, and one that waits for a stub would wait on
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, metrics_port: int) -> None:
        assert self.processes is not None
        deadline = time.monotonic() + self._timeout_s
        with contextlib.closing(grpcclient.InferenceServerClient(self.grpc_url)) as client:
            while time.monotonic() < deadline:
                if self.processes.returncode is not None:
                    raise ServerError(
                        f"tritonserver ended with exit code {self.processes.returncode} while it started. "
                        f"{self._causes()} The whole log: {self.log}"
                    )
                # Triton would wait for them for ever.
                dead = self.processes.dead_stubs(BURIED_WITHIN_S)
                if dead:
                    raise ServerError(
                        f"tritonserver does not start: {', '.join(dead)} died. {self._causes()} "
                        f"The whole log: {self.log}"
                    )
                with contextlib.suppress(grpcclient.InferenceServerException):  # refused until the port is open
                    if client.is_server_ready(client_timeout=1.0) and _listens(metrics_port):
                        return
                self._waiting()
                time.sleep(0.1)
        raise ServerError(f"tritonserver was not ready after {self._timeout_s:.0f} s. The whole log: {self.log}")

    def _causes(self) -> str:
        return failures(self.log.read_text(encoding="utf-8", errors="replace"))

    def rest(self) -> None:
        """Stop the server's processes where they are, so that they take nothing of the machine; `wake` lets them go on."""
        for process in self.processes.tree() if self.processes else ():
            process.suspend()

    def wake(self) -> None:
        """Let a resting server go on; nothing for one that is awake."""
        for process in self.processes.tree() if self.processes else ():
            process.resume()

    def stop(self, timeout_s: float = 40.0) -> int | None:
        """End the server as a supervisor would, with SIGTERM; with SIGKILL only if that does not end it in time.

        Returns:
            Its exit code; None if it never ran.
        """
        return None if self.processes is None else self.processes.end(timeout_s)


def _listens(port: int) -> bool:
    """Whether the port is open. Triton opens that of its metrics last, a moment after it is ready for gRPC."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def loopback() -> list[str]:
    """Arguments that keep every endpoint on this machine: listening wider is an explicit choice."""
    return [f"--{protocol}-address={LOOPBACK}" for protocol in ("http", "grpc", "metrics")]


def failures(text: str) -> str:
    """What a tritonserver log says about why models did not load, one sentence a cause."""
    text = re.sub(NO_CAUSE, "", text, flags=re.MULTILINE)
    causes = re.findall(r"^[EF]\d{4} .*?\] \"?(.*?)\"?$", text, re.MULTILINE)
    causes += re.findall(r"^error: (.*)$", text, re.MULTILINE)
    causes += re.findall(r"^(\S+: error while loading shared libraries: .*)$", text, re.MULTILINE)  # the loader's own
    return " ".join(dict.fromkeys(causes)) or "It gave no reason."


def _become(arguments: Sequence[str]) -> None:
    installation = find()
    for argument in arguments:
        if argument.startswith("--model-repository="):
            check_repository(Path(argument.partition("=")[2]))
    check_ports(arguments)
    command = installation.command(arguments)
    os.execve(command[0], command, installation.environment)  # noqa: S606 no shell: an argument list


def main() -> int:
    """`tritonserver` of this environment: every argument goes to the server as it is."""
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h", "--version"} & set(arguments):
            installation = find()
            command = installation.command(arguments)
            os.execve(command[0], command, installation.environment)  # noqa: S606
        _become(arguments)
    except ServerError as e:
        print(f"tritonserver: {e}", file=sys.stderr)
    return 1
