"""Who may do what: management is closed, inference open, TLS lets the right ones in, and a server without rights serves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from build.server import PORTS, certificate, free_ports, loopback
from build.server.endpoints import ADMIN_HEADER, ADMIN_KEY
from ensemble.client import Client, Tls
from ensemble.errors import ServingError, UnavailableError
from tests.conftest import Served
from tests.faults.conftest import Supervised, supervised, wait_until
from tests.faults.traffic import Known

KEY = "let-me-in"
NOBODY = 65534
# Becomes a user who may read what root's Python lies behind, and has no other right.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_NOBODY += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
Call = Callable[[grpcclient.InferenceServerClient, dict[str, str]], object]

# Every management endpoint: the gRPC call, and the HTTP method, path and body.
GRPC: dict[str, Call] = {
    "repository index": lambda client, headers: client.get_model_repository_index(headers),
    "load": lambda client, headers: client.load_model("core", headers),
    "unload": lambda client, headers: client.unload_model("core", headers),
    "shared memory status": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "shared memory": lambda client, headers: client.register_system_shared_memory("r", "/r", 8, headers=headers),
    "shared memory off": lambda client, headers: client.unregister_system_shared_memory(headers=headers),
    "CUDA shared memory status": lambda client, headers: client.get_cuda_shared_memory_status(headers=headers),
    "CUDA shared memory": lambda client, headers: client.register_cuda_shared_memory("r", b"", 0, 8, headers),
    "CUDA shared memory off": lambda client, headers: client.unregister_cuda_shared_memory(headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "trace set": lambda client, headers: client.update_trace_settings(settings={"trace_rate": "9"}, headers=headers),
    "log": lambda client, headers: client.get_log_settings(headers),
    "log set": lambda client, headers: client.update_log_settings({"log_verbose_level": 1}, headers),
}
HTTP = {
    "repository index": ("POST", "repository/index", {}),
    "load": ("POST", "repository/models/core/load", {}),
    "unload": ("POST", "repository/models/core/unload", {}),
    "shared memory status": ("GET", "systemsharedmemory/status", None),
    "shared memory": ("POST", "systemsharedmemory/region/r/register", {"key": "/r", "offset": 0, "byte_size": 8}),
    "shared memory off": ("POST", "systemsharedmemory/unregister", {}),
    "CUDA shared memory status": ("GET", "cudasharedmemory/status", None),
    "CUDA shared memory off": ("POST", "cudasharedmemory/unregister", {}),
    "trace": ("GET", "trace/setting", None),
    "trace set": ("POST", "trace/setting", {"trace_rate": "9"}),
    "trace of a model": ("GET", "models/core/trace/setting", None),
    "log": ("GET", "logging", None),
    "log set": ("POST", "logging", {"log_verbose_level": 1}),
}
READ = ("shared memory status", "trace", "log")  # of both, what may be asked for and changes nothing
OPEN = (
    "health/live",
    "health/ready",
    "",
    "models/core",
    "models/core/config",
    "models/core/stats",
    "models/core/ready",
)


def asked(server: Supervised, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[int, str]:
    """HTTP's status and what it said."""
    content = None if body is None else json.dumps(body).encode()
    url = f"http://127.0.0.1:{server.http}/v2/{path}".rstrip("/")
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def closed(server: Supervised, headers: dict[str, str], but: tuple[str, ...] = ()) -> None:
    """Every management endpoint refuses these headers, over both protocols, and says that it is the key it misses."""
    over_grpc = {f"triton-grpc-protocol-{name}": value for name, value in headers.items()}
    for name, (method, path, body) in HTTP.items():
        status, said = asked(server, method, path, body, headers)
        assert (status == 403) != (name in but), f"{name}: {status} {said}"
    with grpcclient.InferenceServerClient(server.url) as client:
        for name, call in GRPC.items():
            if name not in but:
                with pytest.raises(InferenceServerException, match="protocol is restricted"):
                    call(client, over_grpc)


@pytest.fixture(scope="module")
def keyed(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ADMIN_KEY, KEY)
        with supervised(served, tmp_path_factory.mktemp("keyed")) as server:
            yield server


def test_it_listens_on_this_machine_alone(keyed: Supervised):
    of_all = [psutil.Process(keyed.process.pid), *psutil.Process(keyed.process.pid).children(recursive=True)]
    sockets = [connection for process in of_all for connection in process.net_connections("inet")]
    listening = {
        (s.laddr.ip.removeprefix("::ffff:"), s.laddr.port)  # gRPC's socket spells an IPv4 address so
        for s in sockets
        if s.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", port) for port in (keyed.http, keyed.grpc, keyed.metrics, keyed.health)}


@pytest.mark.parametrize("headers", [{}, {ADMIN_HEADER: "open-sesame"}, {"other": KEY}], ids=["none", "wrong", "other"])
def test_management_is_closed(keyed: Supervised, headers: dict[str, str]):
    closed(keyed, headers)


def test_inference_is_open(keyed: Supervised, served: Served, known: Known):
    for path in OPEN:
        assert asked(keyed, "GET", path, None, {})[0] == 200, path
    body = {
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [1, 1], "data": [1]} for name in ("problem_ids", "responses")
        ]
    }
    assert asked(keyed, "POST", f"models/{served.spec.model.name}/infer", body, {})[0] == 200
    with grpcclient.InferenceServerClient(keyed.url) as client:
        assert client.is_server_ready()
        assert client.get_server_metadata().name == "triton"
        assert client.get_model_config("core").config.name == "core"
        assert client.get_inference_statistics("core").model_stats
    again = Known.ask(keyed.url, served.spec, known.histories[:3])
    assert all(known.holds(name, answer) for name, (answer,) in again.answers.items())


def test_the_key_opens_management(keyed: Supervised):
    with grpcclient.InferenceServerClient(keyed.url) as client:
        for name in READ:
            method, path, body = HTTP[name]
            assert asked(keyed, method, path, body, {ADMIN_HEADER: KEY})[0] == 200, name
            GRPC[name](client, {f"triton-grpc-protocol-{ADMIN_HEADER}": KEY})


def test_a_closed_shared_memory_says_how_to_open_it(keyed: Supervised, served: Served):
    with pytest.raises(ServingError, match="make serve OPEN=shared-memory"):
        Client(keyed.url, spec=served.spec, shared_memory=True)


def test_a_message_beyond_the_limits_is_refused(keyed: Supervised, served: Served, known: Known):
    """One learner of 64 MB, and more learners than a request may have."""
    limits = served.spec.batching
    with grpcclient.InferenceServerClient(keyed.url) as client:
        for shape, message in (
            ((1, 8_000_000), f"allowed are at most {limits.longest_history} interactions"),
            ((limits.max_batch_size + 1, 1), f"batch-size must be <= {limits.max_batch_size}"),
        ):
            inputs = [grpcclient.InferInput(name, shape, "INT32") for name in ("problem_ids", "responses")]
            for tensor in inputs:
                tensor.set_data_from_numpy(np.zeros(shape, np.int32))
            with pytest.raises(InferenceServerException, match=message) as raised:
                client.infer(served.spec.model.name, inputs)
            assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    again = Known.ask(keyed.url, served.spec, known.histories[:3])
    assert all(known.holds(name, answer) for name, (answer,) in again.answers.items())


def answers(url: str, served: Served, tls: Tls | None, known: Known) -> bool:
    """Whether such a client gets the known answer; False where no connection comes about."""
    history = known.histories[3]
    with Client(url, spec=served.spec, tls=tls, retries=0, deadline_s=5) as client:
        try:
            answer = client.predict(history).probabilities
        except UnavailableError:
            return False
    assert answer is not None
    assert known.holds(history.learner, answer)
    return True


@pytest.mark.parametrize("mutual", [True, False], ids=["mutual", "server"])
def test_tls_lets_the_right_clients_in(served: Served, known: Known, tmp_path: Path, mutual: bool):
    ours, theirs = certificate.Files(tmp_path / "ours"), certificate.make(tmp_path / "theirs")
    options = ["--tls", str(ours.folder), "--test-certificates"]
    # Nobody was given a key, and so nobody has one; shared memory is open to everybody.
    options += ["--mutual"] if mutual else ["--open", "shared-memory"]
    with supervised(served, tmp_path, *options) as server:
        everything = Tls(ours.ca, ours.key("client"), ours.certificate("client"))
        assert answers(server.url, served, everything, known)
        assert answers(server.url, served, Tls(ours.ca), known) is not mutual
        signed_by_others = Tls(ours.ca, theirs.key("client"), theirs.certificate("client"))
        assert answers(server.url, served, signed_by_others, known) is not mutual
        assert not answers(server.url, served, None, known)
        assert not answers(server.url, served, Tls(theirs.ca, ours.key("client"), ours.certificate("client")), known)
        assert answers(server.url, served, everything, known)
        assert ours.key("server").stat().st_mode & 0o077 == 0
        memory = {name for name in HTTP if "shared memory" in name}
        for name, (method, path, body) in HTTP.items():
            is_open = not mutual and name in memory
            assert (asked(server, method, path, body, {ADMIN_HEADER: ""})[0] != 403) == is_open, name


def test_a_server_that_asks_no_client_needs_no_authority(served: Served, known: Known, tmp_path: Path):
    ours = certificate.make(tmp_path / "ours")
    authority = ours.ca.rename(tmp_path / "authority.crt")
    before = {path.name: path.read_bytes() for path in ours.folder.iterdir()}
    with supervised(served, tmp_path, "--tls", str(ours.folder)) as server:
        assert answers(server.url, served, Tls(authority), known)
        assert not answers(server.url, served, None, known)
    assert {path.name: path.read_bytes() for path in ours.folder.iterdir()} == before


def test_missing_certificates_are_one_line(served: Served, tmp_path: Path):
    command = [sys.executable, "-m", "build", "serve", "--checkpoint", str(served.checkpoint), "--tls", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(served.repository)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"there is no {tmp_path}/server.crt" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_a_user_without_rights_serves_a_repository_that_nobody_can_write(served: Served, known: Known):
    launcher = Path(sys.prefix) / "bin" / "tritonserver"
    if subprocess.run([*AS_NOBODY, sys.executable, "-c", "import numpy"], check=False, capture_output=True).returncode:
        pytest.skip(f"setpriv may not drop rights here, or user {NOBODY} cannot run {sys.executable}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        repository = Path(shutil.copytree(served.repository, Path(folder) / "models"))
        shutil.rmtree(repository / "preprocess" / "1" / "__pycache__", ignore_errors=True)
        for path in [repository, *repository.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path: path.stat().st_mtime_ns for path in [repository, *repository.rglob("*")]}
        ports = free_ports(3)
        options = [*loopback(), *(f"--{option}={port}" for option, port in zip(PORTS, ports, strict=True))]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [*AS_NOBODY, launcher, f"--model-repository={repository}", *options],
                cwd="/",
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        url = f"127.0.0.1:{ports[1]}"
        try:
            with Client(url, spec=served.spec) as client:
                wait_until(lambda: process.poll() is not None or ready(client), 90, "the server is ready")
            assert process.poll() is None, (Path(folder) / "log").read_text()
            everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            assert len(everybody) > 3  # the server and its stubs
            assert {uid for process in everybody for uid in process.uids()} == {NOBODY}
            again = Known.ask(url, served.spec, known.histories)
            assert all(known.holds(name, answer) for name, (answer,) in again.answers.items())
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert {path: path.stat().st_mtime_ns for path in [repository, *repository.rglob("*")]} == before


def ready(client: Client) -> bool:
    try:
        return client.status().model_ready
    except ServingError:
        return False
