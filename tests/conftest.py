"""What the tests share: small specs, untrained models with spread answers, the steps' modules, and a real tritonserver a
session, over a repository of the default dimensions."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import tomlkit
import torch
from filelock import FileLock

from build import ROOT
from build.core.parity import probabilities
from build.model import checkpoint
from build.model.network import Network, Recurrent, create
from build.repository import assembly as repository
from build.server import Server, find, pytriton, reaper
from ensemble.client import Client
from ensemble.learners.history import History
from ensemble.spec import DEFAULT_SPEC, Spec
from ensemble.tables import RecurrentNetwork, TransformerNetwork
from tests import exports

# How long an example takes tells of the machine, and of who else is on it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Every reference architecture, small enough for a test.
NETWORKS: dict[str, RecurrentNetwork | TransformerNetwork] = {
    "dkt": RecurrentNetwork(type="dkt", embedding=8, hidden=12),
    "gru": RecurrentNetwork(type="gru", embedding=8, hidden=12),
    "transformer": TransformerNetwork(type="transformer", embedding=8, blocks=2, heads=2),
}

# Of a dozen numbers in 8 bits each counts, more than of the hundreds that a model has.
SMALL_INT8_TOLERANCE = 5e-2


def pytest_configure() -> None:
    """A run that is told to end takes its servers along, and all that the commands it starts start."""
    os.environ.update(reaper.marked())
    signal.signal(signal.SIGTERM, lambda number, _: pytest.exit("SIGTERM", 128 + number))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


def resized(spec: Spec, network: str = "dkt", **model: object) -> Spec:
    """The spec with other dimensions, and a network small enough for a test."""
    return spec.model_copy(
        update={"model": spec.model.model_copy(update={"buckets": (), **model}), "network": NETWORKS[network]},
    )


def small_document() -> dict[str, Any]:
    """The default spec as a document that keeps its comments, with the dimensions of `small_spec`."""
    document: dict[str, Any] = tomlkit.parse(DEFAULT_SPEC.read_text(encoding="utf-8"))
    document["model"].update(problems=40, window=32, buckets=[])
    document["network"].update(embedding=8, hidden=12)
    return document


def untrained(spec: Spec, seed: int = 0) -> Network:
    """A model of random weights, large enough that its probabilities spread over most of 0 to 1."""
    torch.manual_seed(seed)
    model = create(spec).eval()
    with torch.no_grad():
        model.out_layer.weight *= 20 if isinstance(model, Recurrent) else 2
        model.interaction_emb.weight *= 2
    return model


def load_module(path: Path) -> ModuleType:
    """Import a file that only Triton imports otherwise, under a name of its own, in a package as Triton does."""
    installed = pytriton()
    assert installed is not None
    backend = installed / "tritonserver" / "backends" / "python"
    if str(backend) not in sys.path:
        sys.path.append(str(backend))  # the server's own triton_python_backend_utils
    folder = ModuleType(f"{path.parents[1].name}_{path.parent.name}")
    # What a build copies beside the file comes from where it is copied from: there may have been no build, or an older one.
    folder.__path__ = [str(ROOT / "ensemble"), str(path.parent)]
    sys.modules[folder.__name__] = folder
    return importlib.import_module(f"{folder.__name__}.{path.stem}")


@pytest.fixture(scope="session", autouse=True)
def exporter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exports.kept(torch.onnx.export))
        yield


@pytest.fixture(scope="session")
def spec() -> Spec:
    return Spec.read()


@pytest.fixture(scope="session")
def small_spec(spec: Spec) -> Spec:
    return resized(spec, problems=40, window=32)


@pytest.fixture(scope="session")
def small_checkpoint(small_spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    checkpoint.save(untrained(small_spec), path)
    return path


@pytest.fixture(scope="session")
def preprocess() -> ModuleType:
    return load_module(ROOT / "models" / "preprocess" / "1" / "model.py")


@pytest.fixture(scope="session")
def postprocess() -> ModuleType:
    return load_module(ROOT / "models" / "postprocess" / "1" / "model.py")


@dataclass(frozen=True)
class Served:
    spec: Spec
    model: Network
    checkpoint: Path
    repository: Path
    server: Server


def learner(length: int, seed: int = 0, problems: int = 14041) -> History:
    rng = np.random.default_rng([seed, length])
    return History(f"{seed}-{length}", rng.integers(0, problems, length), rng.integers(0, 2, length))


def answer_of(model: Network, history: History, window: int) -> np.ndarray:
    """PyTorch's answer for one learner, from the full forward where there is a row to take."""
    ids, responses = (torch.from_numpy(x[-window:].copy())[None] for x in (history.problem_ids, history.responses))
    with torch.inference_mode():
        if len(history):
            return probabilities(model(ids, responses)[0, -1].numpy())
        zero = torch.zeros(1, 1, dtype=torch.int32)
        return probabilities(model.last(zero, zero, torch.zeros(1, dtype=torch.int32))[0].numpy())


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run's, which its processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def served(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Built once, whoever of several processes is the first; each has a server of its own."""
    folder, own = shared(tmp_path_factory) / "served", tmp_path_factory.mktemp("server")
    model = untrained(spec)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            checkpoint.save(model, folder / "model.pt")
        built = repository.build(spec, folder / "model.pt", folder / "models")
    arguments = find().client_shared_memory()  # some tests' clients are on its host
    with Server(built.folder, arguments=arguments, log=own / "server.log") as server:
        yield Served(spec, model, folder / "model.pt", built.folder, server)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.server.grpc_url, spec=served.spec) as client:
        yield client
