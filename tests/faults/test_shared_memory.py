"""Clients whose tensors lie in shared memory, when the server that knew it dies or is started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from ensemble.client import Client
from ensemble.errors import DeadlineExceededError
from tests.conftest import Served, learner
from tests.faults.conftest import Supervised, regions, supervised, wait_until


@pytest.fixture
def opened(served: Served, tmp_path: Path):
    with supervised(served, tmp_path, "--open", "shared-memory") as found:
        yield found


def served_by_the(number: int, opened: Supervised) -> None:
    """Wait until so many servers, one after the other, have come up."""
    wait_until(lambda: opened.said("is ready: gRPC") == number and opened.ready(), 90, f"server {number} is ready")


def halted(process: psutil.Process) -> bool:
    """Whether all its threads have stopped: a signal is on its way for as long as the one that takes it gets no core."""
    stats = [Path(f"/proc/{process.pid}/task/{thread.id}/stat").read_text() for thread in process.threads()]
    return all(stat.rpartition(") ")[2].startswith("T") for stat in stats)


def test_a_client_goes_on_when_its_server_does(opened: Supervised, served: Served):
    """On the same port: idle over a restart, then with calls while the server is away."""
    before = regions()
    with (
        Client(opened.url, spec=served.spec, shared_memory=True, retries=60, deadline_s=60) as local,
        Client(opened.url, spec=served.spec, retries=60, deadline_s=60) as client,
    ):
        expected = client.predict(learner(20)).probabilities
        np.testing.assert_array_equal(local.predict(learner(20)).probabilities, expected)
        served_by_the(1, opened)
        os.kill(opened.server().pid, signal.SIGKILL)
        served_by_the(2, opened)
        np.testing.assert_array_equal(local.predict(learner(20)).probabilities, expected)
        os.kill(opened.server().pid, signal.SIGKILL)
        np.testing.assert_array_equal(local.predict(learner(20)).probabilities, expected)
    assert {name for name in regions() - before if name.startswith(f"lastrow_{os.getpid()}_")} == set()


def test_a_server_that_halts_holds_nobody_longer_than_the_deadline(opened: Supervised, served: Served):
    """It takes connections and answers nothing: not even whether it has been told of new regions."""
    with Client(opened.url, spec=served.spec, shared_memory=True, deadline_s=1) as local:
        expected = local.predict(learner(20)).probabilities
        server = opened.server()
        server.suspend()
        try:
            wait_until(lambda: halted(server), 10, "every thread of the server has stopped")
            for call in (lambda: local.predict(learner(9)), lambda: local.predict(learner(9)), local.status):
                with pytest.raises(DeadlineExceededError):
                    call()
            with pytest.raises(DeadlineExceededError):
                Client(opened.url, spec=served.spec, shared_memory=True, deadline_s=1)
        finally:
            server.resume()
        np.testing.assert_array_equal(local.predict(learner(20), deadline_s=20).probabilities, expected)
