"""A client whose tensors lie in shared memory gets the answers that every client gets, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from ensemble.client import Client
from ensemble.errors import InvalidRequestError
from ensemble.history import History
from tests.conftest import Served, learner


def registered(served: Served) -> set[str]:
    with grpcclient.InferenceServerClient(served.server.grpc_url) as asked:
        return set(asked.get_system_shared_memory_status().regions)


def files() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if "lastrow" in path.name}  # noqa: S108


@pytest.mark.parametrize("next_problems", [False, True])
def test_the_answers_are_the_same(served: Served, client: Client, next_problems: bool):
    # 40,000 interactions are more than the region holds: they travel over the socket.
    learners = [learner(length) for length in (0, 1, 20, 512, 700, 40_000)]
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        for batch in [*([one] for one in learners), learners[:5], learners]:
            expected = client.predict(batch, next_problems=next_problems)
            answered = local.predict(batch, next_problems=next_problems)
            for mine, theirs in zip(answered, expected, strict=True):
                np.testing.assert_array_equal(mine.probabilities, theirs.probabilities)
                np.testing.assert_array_equal(mine.next_problem_ids, theirs.next_problem_ids)


def test_an_answer_outlives_the_next_one(served: Served):
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        (first,) = local.predict([learner(3)])
        kept = np.array(first.probabilities)
        local.predict([learner(9)])
        np.testing.assert_array_equal(first.probabilities, kept)


def test_a_refusal_changes_nothing(served: Served, client: Client):
    bad = History("bad", [served.spec.model.problems], [1])
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        with pytest.raises(InvalidRequestError, match="position 0"):
            local.predict([bad])
        (mine,), (theirs,) = local.predict([learner(5)]), client.predict([learner(5)])
        np.testing.assert_array_equal(mine.probabilities, theirs.probabilities)


def test_nothing_is_left_behind(served: Served):
    before, names = files(), registered(served)
    local = Client(served.server.grpc_url, spec=served.spec, shared_memory=True)
    assert len(registered(served) - names) == 2
    assert files() == before  # nameless from the start: a client that is killed leaves none
    local.predict([learner(2)])
    local.close()
    assert (files(), registered(served)) == (before, names)
