"""What checking every request, and every number that the core answers, costs at full load."""

from __future__ import annotations

import shutil
import statistics
from contextlib import ExitStack
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient

from build.bench import contest, load
from build.bench.caller import EnsembleClient
from build.bench.cell import Cell
from build.server import Server
from build.simulation import simulate
from ensemble.client import Client
from ensemble.errors import ServingError
from ensemble.history import History
from tests.conftest import Served

ROUNDS, TURN_S = 20, 0.75
AT_LEAST = 0.97
UNCHECKED = {
    "preprocess": """
def check(problem_ids, responses, *_):
    return np.full(len(problem_ids), problem_ids.shape[1], np.int32)
""",
    "postprocess": """
def damage(logits):
    return None
""",
}


def unchecked(repository: Path, folder: Path) -> Path:
    """The repository, its steps taking everything for good."""
    shutil.copytree(repository, folder)
    for step, text in UNCHECKED.items():
        with (folder / step / "1" / "model.py").open("a", encoding="utf-8") as file:
            file.write(text)
    return folder


@pytest.fixture
def turns(served: Served, tmp_path: Path) -> dict[str, list[float]]:
    """Learners a second of either, turn by turn, each resting while the other is loaded."""
    learners = simulate(served.spec.model.problems, 64)
    repositories = {"on": served.repository, "off": unchecked(served.repository, tmp_path / "unchecked")}
    served.server.rest()
    cells = {name: Cell() for name in repositories}
    with ExitStack() as stack:
        stack.callback(served.server.wake)
        ready = {}
        for name, repository in repositories.items():
            server = stack.enter_context(Server(repository, log=tmp_path / f"{name}.log"))
            bad = History("bad", [served.spec.model.problems], [1])
            with Client(server.grpc_url, spec=served.spec) as client:
                if name == "on":
                    with pytest.raises(ServingError, match="allowed are 0 to"):
                        client.predict(bad)
                client.predict(learners[0])
            counters = stack.enter_context(grpcclient.InferenceServerClient(server.grpc_url))
            callers = [EnsembleClient(server.grpc_url, served.spec) for _ in range(contest.BUSY)]
            stack.callback(server.wake)
            for caller in callers:
                stack.callback(caller.close)
            stack.callback(server.wake)
            load.run(callers, learners, 1, 1.0)
            server.rest()
            ready[name] = server, counters, callers
        for turn in range(ROUNDS):
            for name in ("on", "off") if turn % 2 else ("off", "on"):
                server, counters, callers = ready[name]
                cells[name].measure(server, counters, callers, learners, TURN_S, served.spec.model.name)
    return {name: cell.throughputs for name, cell in cells.items()}


def test_throughput_with_validation(turns: dict[str, list[float]]):
    ratio, low, high = contest.gain(turns["off"], turns["on"])
    print(
        f"validation on / off: {ratio:.3f} ({low:.3f} to {high:.3f}), {statistics.median(turns['on']):.0f} learners/s"
    )
    # A noisy machine moves the median of turns: only what the interval rules out is a failure.
    assert high >= AT_LEAST
