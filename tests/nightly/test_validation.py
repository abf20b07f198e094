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
from build.model.simulation import simulate
from build.server import Server
from ensemble.client import Client
from ensemble.errors import ServingError
from ensemble.learners.history import History
from tests.conftest import Served

ROUNDS, TURN_S = 20, 0.75
AT_LEAST = 0.97
# A file turns the checks off and on in one and the same server: two servers differ by more than the checks cost.
SWITCHED = {
    "preprocess": """
CHECKED = check
def check(inputs, *others):
    if os.path.exists({switch!r}):
        values = next(iter(inputs.values()))
        return np.full(len(values), values.shape[1], np.int32)
    return CHECKED(inputs, *others)
""",
    "postprocess": """
import os
CHECKED = damage
def damage(*logits):
    return None if os.path.exists({switch!r}) else CHECKED(*logits)
""",
}


def switched(repository: Path, folder: Path, switch: Path) -> Path:
    """The repository, its steps taking everything for good while the file `switch` is there."""
    shutil.copytree(repository, folder)
    for step, text in SWITCHED.items():
        with (folder / step / "1" / "model.py").open("a", encoding="utf-8") as file:
            file.write(text.format(switch=str(switch)))
    return folder


@pytest.fixture
def turns(served: Served, tmp_path: Path) -> dict[str, list[float]]:
    """Learners a second with the checks and without, turn by turn."""
    learners = simulate(served.spec.model.problems, 64)
    bad = History("bad", [served.spec.model.problems], [0])  # the core alone would take it for a problem answered right
    switch = tmp_path / "off"
    cells = {"on": Cell(), "off": Cell()}
    served.server.rest()
    with ExitStack() as stack:
        stack.callback(served.server.wake)
        repository = switched(served.repository, tmp_path / "switched", switch)
        server = stack.enter_context(Server(repository, log=tmp_path / "server.log"))
        counters = stack.enter_context(grpcclient.InferenceServerClient(server.grpc_url))
        with Client(server.grpc_url, spec=served.spec) as client:
            with pytest.raises(ServingError, match="allowed are 0 to"):
                client.predict(bad)
            switch.touch()
            client.predict(bad)
        callers = [EnsembleClient(server.grpc_url, served.spec) for _ in range(contest.BUSY)]
        for caller in callers:
            stack.callback(caller.close)
        load.run(callers, learners, 1, 1.0)
        server.rest()
        stack.callback(server.wake)
        for turn in range(ROUNDS):
            for name in ("on", "off") if turn % 2 else ("off", "on"):
                switch.touch() if name == "off" else switch.unlink(missing_ok=True)
                cells[name].measure(server, counters, callers, learners, TURN_S, served.spec.model.name)
    return {name: cell.throughputs for name, cell in cells.items()}


def test_throughput_with_validation(turns: dict[str, list[float]]):
    ratio, low, high = contest.gain(turns["off"], turns["on"])
    print(
        f"validation on / off: {ratio:.3f} ({low:.3f} to {high:.3f}), {statistics.median(turns['on']):.0f} learners/s"
    )
    # A noisy machine moves the median of turns: only what the interval rules out is a failure.
    assert high >= AT_LEAST
