"""One real tritonserver a session, over a repository of the default dimensions and untrained weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build import checkpoint, repository
from build.network import Network
from build.server import Server
from ensemble.client import Client
from ensemble.spec import Spec
from tests.conftest import untrained


@dataclass(frozen=True)
class Served:
    spec: Spec
    model: Network
    checkpoint: Path
    repository: Path
    server: Server


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
