"""One real tritonserver a session, over a repository of the default dimensions and untrained weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from build import checkpoint, repository
from build.network import Network
from build.parity import probabilities
from build.server import Server
from ensemble.client import Client
from ensemble.history import History
from ensemble.spec import Spec
from tests.conftest import untrained


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


@pytest.fixture(scope="session")
def served(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    model = untrained(spec)
    checkpoint.save(model, folder / "model.pt")
    built = repository.build(spec, folder / "model.pt", folder / "models")
    with Server(built.folder, log=folder / "server.log") as server:
        yield Served(spec, model, folder / "model.pt", built.folder, server)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.server.grpc_url, spec=served.spec) as client:
        yield client
