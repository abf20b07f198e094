"""A client whose tensors lie in shared memory gets the answers that every client gets, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from ensemble.client import Client
from ensemble.errors import ClosedClientError, DeadlineExceededError, InvalidRequestError, ServingError
from ensemble.learners.history import History
from tests.conftest import Served, learner


def registered(served: Served) -> set[str]:
    with grpcclient.InferenceServerClient(served.server.grpc_url) as asked:
        return set(asked.get_system_shared_memory_status().regions)


def files() -> set[str]:
    """Of the clients of this process."""
    return {path.name for path in Path("/dev/shm").glob(f"lastrow_{os.getpid()}_*")}  # noqa: S108


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


def test_the_tensors_do_not_cross_the_wire(served: Served, monkeypatch: pytest.MonkeyPatch):
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        ask, sizes = local._stub.ModelInfer, []

        def measured(message, **options):
            answer = ask(message, **options)
            sizes.append(message.ByteSize() + answer.ByteSize())
            return answer

        monkeypatch.setattr(local._stub, "ModelInfer", measured)
        local.predict([learner(512)])
    assert 0 < max(sizes) < 2000


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


def same(local: Client, client: Client) -> bool:
    (mine,), (theirs,) = local.predict([learner(7)]), client.predict([learner(7)])
    return np.array_equal(mine.probabilities, theirs.probabilities)


@pytest.mark.parametrize("failure", ["deadline", "refusal"])
def test_after_a_failure_others_are_used_and_the_first_taken_back(served: Served, client: Client, failure: str):
    """The server may still be reading and writing the first ones."""
    many, before = [learner(512, seed) for seed in range(32)], registered(served)
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        first = registered(served) - before
        if failure == "deadline":
            with pytest.raises(DeadlineExceededError):
                local.predict(many, deadline_s=0.02)
        else:
            with pytest.raises(InvalidRequestError):
                local.predict(History("bad", [served.spec.model.problems], [1]))
        assert same(local, client)
        second = registered(served) - before - first
        assert len(second) == 2
        client.predict(many)  # queued behind the request that was given up
        assert same(local, client)
        assert registered(served) - before == second
    assert registered(served) == before


def test_closing_waits_for_what_the_server_still_writes(served: Served):
    many, before = [learner(512, seed) for seed in range(32)], registered(served)
    with (
        Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local,
        pytest.raises(DeadlineExceededError),
    ):
        local.predict(many, deadline_s=0.02)
    assert registered(served) == before


def test_a_server_that_has_lost_the_regions_is_told_again(served: Served, client: Client):
    before = registered(served)
    with Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local:
        with grpcclient.InferenceServerClient(served.server.grpc_url) as other:
            for name in registered(served) - before:
                other.unregister_system_shared_memory(name)
        assert same(local, client)


def test_another_threads_call_is_refused(served: Served, client: Client):
    many = [learner(512, seed) for seed in range(160)]
    expected = client.predict(many)
    with (
        Client(served.server.grpc_url, spec=served.spec, shared_memory=True) as local,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(local.predict, many)
        time.sleep(0.2)
        with pytest.raises(ServingError, match=r"another thread has a call .* give each thread a client of its own"):
            local.predict(learner(3))
        for mine, theirs in zip(call.result(), expected, strict=True):
            np.testing.assert_allclose(mine.probabilities, theirs.probabilities, atol=1e-6)
        assert same(local, client)  # one after the other, threads may share it


def test_a_call_under_way_ends_when_another_thread_closes_the_client(served: Served):
    before = registered(served)
    local = Client(served.server.grpc_url, spec=served.spec, shared_memory=True)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(local.predict, [learner(512, seed) for seed in range(160)])
        time.sleep(0.2)
        local.close()
        with pytest.raises(ClosedClientError, match="is closed"):
            call.result(1)
    assert registered(served) == before


@pytest.mark.parametrize("shared_memory", [False, True])
def test_an_answer_that_is_not_the_specs_is_refused(served: Served, shared_memory: bool):
    model = served.spec.model.model_copy(update={"problems": 20_000})
    other = served.spec.model_copy(update={"model": model})
    with (
        Client(served.server.grpc_url, spec=other, shared_memory=shared_memory) as wrong,
        pytest.raises(
            ServingError, match=r"FP32 \[1, 14041\]; by the spec it is FP32 \[1, 20000\]\. Give the client the"
        ),
    ):
        wrong.predict(learner(3))
