import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from build import ROOT, server
from build.server import ServerError, check_ports, failures, find, free_ports, installation, ports, processes
from tests.conftest import needs_ipv6


def executable(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "tritonserver"
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_server_on_the_path_comes_first(tmp_path, monkeypatch):
    theirs = executable(tmp_path / "opt")
    monkeypatch.setenv("PATH", f"{tmp_path / 'opt'}{os.pathsep}{os.environ['PATH']}")
    found = find()
    assert found.executable == theirs
    assert not found.embedded
    assert found.command(["--model-repository=m"]) == [str(theirs), "--model-repository=m"]


@pytest.mark.parametrize(
    ("known", "passed"), [("", []), ("  --allow-client-shm <boolean>", ["--allow-client-shm=true"])]
)
def test_clients_get_shared_memory_by_what_the_server_knows(tmp_path, monkeypatch, known, passed):
    theirs = executable(tmp_path / "opt")
    theirs.write_text(f'#!/bin/sh\n[ "$*" = --help ] || exit 1\necho "  --model-repository <string>\n{known}" >&2\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'opt'}{os.pathsep}{os.environ['PATH']}")
    assert find().client_shared_memory() == passed


def test_the_embedded_server_lets_clients_share_memory_without_being_told(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    assert find().client_shared_memory() == []


@pytest.mark.parametrize("script", ["#!/bin/sh\necho no such library\nexit 127\n", "#!/nowhere\n"])
def test_a_server_that_does_not_run_is_said(tmp_path, monkeypatch, script):
    executable(tmp_path / "opt").write_text(script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'opt'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ServerError, match=r"opt/tritonserver --help (lists no options.*no such library|does not run)"):
        find().client_shared_memory()


def test_our_own_launcher_is_not_taken_for_one(tmp_path, monkeypatch):
    ours = executable(tmp_path / "bin")
    monkeypatch.setattr(installation.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(ours.parent))
    assert find().embedded


def test_the_embedded_server_is_whole(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    found = find()
    backends = Path(found.arguments[0].split("=")[1])
    assert {p.name for p in (backends / "python").iterdir()} >= {"libtriton_python.so", "triton_python_backend_stub"}
    ours = ROOT / "build" / "server" / "backends"
    parts = [path.relative_to(ours) for path in ours.rglob("*.py")]
    assert Path("onnxruntime/model.py") in parts
    assert all((backends / part).read_bytes() == (ours / part).read_bytes() for part in parts)
    assert not any(path.is_symlink() for path in backends.rglob("*"))  # Triton refuses libraries that link out
    assert found.command(["--backend-directory=/mine"])[1:] == ["--backend-directory=/mine"]


def test_numpy_2_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(installation.importlib.metadata, "version", lambda _: "2.1.0")
    with pytest.raises(ServerError, match=r"numpy 2\.1\.0 is installed.*pip install 'numpy<2'"):
        find()


def test_a_python_without_a_stub_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(installation.sys, "version_info", type("V", (), {"major": 3, "minor": 99}))
    with pytest.raises(ServerError, match=r"no Python stub for 3\.99; use Python .*3\.10, 3\.11"):
        find()


@pytest.fixture
def library(monkeypatch, tmp_path: Path) -> Path:
    """The folder of a Python whose library the loader does not know."""
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(installation.sys, "base_prefix", str(tmp_path / "base"))
    return tmp_path


def test_a_python_that_keeps_its_library_to_itself_is_told_to_the_stub(monkeypatch, library):
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    with pytest.raises(ServerError, match=rf"{name}.* nor in {library} or {library}/base/lib; install it .*libpython3"):
        find()
    (library / name).touch()
    assert find().environment["LD_LIBRARY_PATH"].endswith(f"nvidia_pytriton.libs:{library}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))  # then its place is the user's choice
    assert find().environment["LD_LIBRARY_PATH"].endswith(f"nvidia_pytriton.libs:{library}")
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda name: name)
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert find().environment["LD_LIBRARY_PATH"].endswith("nvidia_pytriton.libs")


@pytest.mark.parametrize("said", ["32768\t60999\n", "1024\t65535\n", "nothing", None])
def test_free_ports_are_none_that_an_outgoing_connection_may_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
):
    monkeypatch.setattr(ports, "OUTGOING", tmp_path / "ip_local_port_range")
    if said is not None:
        ports.OUTGOING.write_text(said)
    found = free_ports(100)
    assert len(set(found)) == 100
    assert ports.FIRST_PORT <= min(found) <= max(found) < 32_768
    monkeypatch.setattr(ports, "FIRST_PORT", found[0])
    monkeypatch.setattr(ports, "DEFAULT_OUTGOING", found[0] + 1)
    monkeypatch.setattr(ports, "OUTGOING", tmp_path / "missing")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", found[0]))
        with pytest.raises(ServerError, match=f"no 1 free ports from {found[0]}"):
            free_ports(1)


def test_a_taken_port_is_named():
    free = free_ports(3)
    arguments = [f"--{option}={port}" for option, port in zip(server.PORTS, free, strict=True)] + server.loopback()
    check_ports(arguments)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free[1]))
        taken.listen()
        with pytest.raises(ServerError, match=rf"port {free[1]} on 127\.0\.0\.1 is not free.*--grpc-port"):
            check_ports(arguments)
        check_ports([*arguments, "--allow-grpc=false"])


@needs_ipv6
def test_a_taken_port_is_named_on_ipv6():
    free = free_ports(3, "::1")
    arguments = [f"--{option}={port}" for option, port in zip(ports.PORTS, free, strict=True)]
    arguments += ports.listening("::1", "::1")
    check_ports(arguments)
    for number, option in ((0, "http"), (1, "grpc"), (2, "metrics")):
        with socket.socket(socket.AF_INET6) as taken:
            taken.bind(("::1", free[number]))
            taken.listen()
            with pytest.raises(ServerError, match=rf"port {free[number]} on ::1 is not free.*--{option}-port"):
                check_ports(arguments)


def test_each_protocol_has_its_own_spelling_of_ipv6():
    assert ports.listening("::", "::1") == [
        "--grpc-address=[::]",
        "--http-address=ipv6:::1",
        "--metrics-address=ipv6:::1",
    ]
    assert (ports.url("::1", 8001), ports.url("127.0.0.1", 8001)) == ("[::1]:8001", "127.0.0.1:8001")
    everywhere = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104 compared, not bound
    assert {address: ports.reached(address) for address in everywhere} == everywhere
    assert ports.reached("10.0.0.7") == "10.0.0.7"


@pytest.mark.parametrize("address", ["localhost", "[::1]", "127.0.0.1:8001", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ServerError, match=r"is no IP address; give one to listen on, such as 127\.0\.0\.1, ::1"):
        ports.listening(address, "127.0.0.1")


def test_an_address_of_another_machine_is_named():
    arguments = ports.listening("2001:db8::1", "127.0.0.1")
    arguments += [f"--{option}={port}" for option, port in zip(ports.PORTS, free_ports(3), strict=True)]
    with pytest.raises(ServerError, match="this machine has no address 2001:db8::1"):
        check_ports(arguments)


@pytest.mark.parametrize(
    ("command", "instance"),
    [
        (["/b/triton_python_backend_stub", "/m/propose/1/model.py", "region", "propose_0_1", "DEFAULT"], "propose_0_1"),
        (["/b/triton_python_backend_stub", "/m/core/1/model.onnx", "region", "core_0_0", "/b/onnxruntime"], "core_0_0"),
        (["/bin/tritonserver", "--backend-directory=/artifacts/backends/0"], None),  # forked, and not yet started
        ([], None),  # ended
    ],
)
def test_a_stub_is_known_by_its_command_line(command, instance):
    assert processes._instance(command) == instance


def test_why_models_did_not_load():
    log = """E1124 04:34:32.255836 13846 server.cc:241] "CudaDriverHelper has not been initialized."
E1124 04:34:33.000000 13846 model_lifecycle.cc:654] "failed to load 'core' version 1: no such file"
E1124 04:34:33.100000 13846 ensemble_scheduler.cc:1468] "unable to create stream for e: CUDA driver version is insufficient"
I1124 04:34:33.000000 13846 server.cc:674] "nothing"
error: creating server: Internal - failed to load all models
"""
    said = "failed to load 'core' version 1: no such file creating server: Internal - failed to load all models"
    assert failures(log) == said
    loader = "/b/stub: error while loading shared libraries: libpython3.12.so.1.0: cannot open shared object file"
    assert failures(f"{loader}\n{loader}\n") == loader
    assert failures("") == "It gave no reason."
