"""The served contract, over gRPC, against PyTorch."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from build.core.parity import batches, windows
from build.repository import assembly as repository
from build.server import Server
from ensemble.client import AsyncClient, Client
from ensemble.errors import ClosedClientError, DeadlineExceededError, InvalidRequestError, UnavailableError
from ensemble.learners.history import History, pad
from tests.conftest import Served, answer_of, learner


def expected(served: Served, history: History) -> np.ndarray:
    return answer_of(served.model, history, served.spec.model.window)


def infer(served: Served, ids: np.ndarray, responses: np.ndarray, outputs: list[str] | None = None):
    """A request as tritonclient alone makes it, without any check of our own client."""
    inputs = []
    types = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
    for name, values in (("problem_ids", ids), ("responses", responses)):
        inputs.append(grpcclient.InferInput(name, list(values.shape), types[values.dtype]))
        inputs[-1].set_data_from_numpy(values)
    with grpcclient.InferenceServerClient(served.server.grpc_url) as client:
        wanted = [grpcclient.InferRequestedOutput(o) for o in outputs] if outputs else None
        return client.infer(served.spec.model.name, inputs, outputs=wanted)


@pytest.mark.parametrize("length", [0, 1, 2, 20, 511, 512, 513, 900])
def test_the_answer_is_pytorchs(served: Served, client: Client, length: int):
    history = learner(length)
    answer = client.predict(history)
    assert answer.probabilities is not None
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.shape == (served.spec.model.problems,)
    assert np.abs(answer.probabilities - expected(served, history)).max() < 1e-5


def test_the_gates_own_batches_pass_through_the_ensemble(served: Served, client: Client):
    for lengths in batches(served.spec):
        ids, responses, _ = windows(lengths, served.spec)
        histories = [History(str(row), ids[row, :n], responses[row, :n]) for row, n in enumerate(lengths)]
        for history, answer in zip(histories, client.predict(histories), strict=True):
            assert np.abs(answer.probabilities - expected(served, history)).max() < 1e-5


def test_many_learners_answer_as_they_do_alone(served: Served, client: Client):
    histories = [learner(n, seed) for seed, n in enumerate([0, 3, 700, 1, 45, 512, 20, 0, 130, 7] * 4)]
    together = client.predict(histories, next_problems=True)
    assert [a.learner for a in together] == [h.learner for h in histories]  # 40 learners: more than one request
    for history, answer in zip(histories[:10], together, strict=False):
        alone = client.predict(history, next_problems=True)
        np.testing.assert_allclose(alone.probabilities, answer.probabilities, atol=1e-6)
    assert client.predict([]) == []


async def test_histories_may_come_from_anything_that_has_an_order(served: Served, client: Client):
    histories = [learner(n) for n in (3, 0, 20)]
    expected = client.predict(histories)
    async with AsyncClient(served.server.grpc_url, spec=served.spec) as asynchronous:
        for answers in (client.predict(h for h in histories), await asynchronous.predict(iter(histories))):
            assert [answer.learner for answer in answers] == [history.learner for history in histories]
            for answer, reference in zip(answers, expected, strict=True):
                np.testing.assert_array_equal(answer.probabilities, reference.probabilities)


def test_a_refusal_in_a_later_request_says_whose(client: Client):
    histories = [learner(3, seed) for seed in range(40)]
    histories[35] = History("bad", [1, 99999], [0, 1])
    with pytest.raises(
        InvalidRequestError, match=r"learner 3, position 1 is 99999.*learner 0 of this request is number 32"
    ):
        client.predict(histories)


async def test_asyncio_gives_the_same(served: Served, client: Client):
    histories = [learner(n, seed) for seed, n in enumerate([0, 5, 600] * 15)]
    async with AsyncClient(served.server.grpc_url, spec=served.spec) as asynchronous:
        answers = await asynchronous.predict(histories)
        one = await asynchronous.predict(histories[1], probabilities=False, next_problems=True)
        assert await asynchronous.status() == client.status()
    for answer, reference in zip(answers, client.predict(histories), strict=True):
        np.testing.assert_allclose(answer.probabilities, reference.probabilities, atol=1e-6)
    assert one.probabilities is None
    assert len(one.next_problem_ids) == served.spec.next_problems.count


def test_one_asyncio_client_serves_several_event_loops(served: Served, client: Client):
    asynchronous = AsyncClient(served.server.grpc_url, spec=served.spec)
    reference = client.predict(learner(20)).probabilities

    async def ask(times: int = 1) -> np.ndarray:
        return [await asynchronous.predict(learner(20)) for _ in range(times)][-1].probabilities

    for _ in range(3):  # one loop after another
        np.testing.assert_array_equal(asyncio.run(ask()), reference)
    with ThreadPoolExecutor(3) as pool:  # and at once
        for found in pool.map(lambda _: asyncio.run(ask(20)), range(3)):
            np.testing.assert_array_equal(found, reference)
    asyncio.run(asynchronous.close())  # in a loop that it never asked in
    with pytest.raises(ClosedClientError, match="is closed"):
        asyncio.run(ask())


async def test_what_another_event_loop_has_under_way_ends_when_the_client_is_closed(served: Served):
    asynchronous = AsyncClient(served.server.grpc_url, spec=served.spec, deadline_s=60)
    many = [learner(512, seed) for seed in range(128)]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: asyncio.run(asynchronous.predict(many)))
        await asyncio.sleep(0.2)
        assert call.running()
        await asynchronous.close()
        with pytest.raises(ClosedClientError, match="is closed"):
            await asyncio.wait_for(asyncio.wrap_future(call), 2)


async def test_requests_of_one_call_end_together(served: Served):
    """One is refused, or the caller is cancelled: nothing of the call goes on, in the client or before the server."""
    many = [learner(512, seed) for seed in range(128)]
    bad = [History("bad", [99999], [0]), *many]
    async with AsyncClient(served.server.grpc_url, spec=served.spec, deadline_s=60) as asynchronous:
        await asynchronous.predict(many[0])
        with pytest.raises(InvalidRequestError, match="learner 0, position 0 is 99999"):
            await asynchronous.predict(bad)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        call = asyncio.create_task(asynchronous.predict(many))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await asynchronous.predict(many[0])).probabilities is not None


def test_padding_changes_no_bit(served: Served):
    ids, responses = pad([learner(20)])
    plain = infer(served, ids, responses).as_numpy("probabilities")
    wide = [np.pad(x, ((0, 0), (0, 300)), constant_values=-1) for x in (ids, responses)]
    np.testing.assert_array_equal(infer(served, *wide).as_numpy("probabilities"), plain)


def test_next_problems_are_unanswered_and_nearest(served: Served, client: Client):
    history = learner(700)  # some of these answers lie before the window
    answer = client.predict(history, next_problems=True)
    distance = np.abs(answer.probabilities - np.float32(served.spec.next_problems.target_success_rate))
    distance[history.problem_ids] = np.inf
    best = np.argsort(distance, kind="stable")[: served.spec.next_problems.count]
    assert answer.next_problem_ids.tolist() == best.tolist()
    assert answer.next_problem_probabilities.tolist() == answer.probabilities[best].tolist()


def test_replies_carry_what_was_asked_for_alone(served: Served):
    ids, responses = pad([learner(512)])
    whole = infer(served, ids, responses, ["probabilities"]).get_response()
    assert [o.name for o in whole.outputs] == ["probabilities"]
    assert whole.ByteSize() < 57_000
    proposals = infer(served, ids, responses, ["next_problem_ids", "next_problem_probabilities"]).get_response()
    assert {o.name for o in proposals.outputs} == {"next_problem_ids", "next_problem_probabilities"}
    assert proposals.ByteSize() < 1_000


def array(*rows: list[int], dtype: type = np.int32) -> np.ndarray:
    return np.array(rows, dtype)


@pytest.mark.parametrize(
    ("ids", "responses", "message"),
    [
        (array([1, 14041]), array([0, 1]), "problem_ids: learner 0, position 1 is 14041; allowed are 0 to 14040"),
        (
            array([1, 2], [3, -2]),
            array([0, 1], [1, 0]),
            "problem_ids: learner 1, position 1 is -2; allowed are 0 to 14040",
        ),
        (array([1, 2**31 - 1]), array([0, 1]), "position 1 is 2147483647"),
        (array([1, -(2**31)]), array([0, 1]), "position 1 is -2147483648"),
        (array([1, -1, 4]), array([0, -1, 1]), "problem_ids: learner 0, position 1 is -1, but interactions follow it"),
        (array([1, 2]), array([0, 2]), "responses: learner 0, position 1 is 2; allowed are 0 (wrong) and 1 (correct)"),
        (array([1, -1]), array([0, 0]), "responses: learner 0, position 1 is 0; where problem_ids is -1 only -1"),
        (array([1, 2]), array([0]), "problem_ids has shape [1, 2] and responses [1, 1]"),
        (array([1, 2], [3, 4]), array([0, 1]), "batch size does not match other inputs"),
        (array([1, 2], dtype=np.int64), array([0, 1]), "data-type is 'INT64', but"),
        (array([1, 2]), array([0, 1], dtype=np.float32), "data-type is 'FP32', but"),
        (np.array([1, 2], np.int32), np.array([0, 1], np.int32), "Expected [-1,-1], got [2]"),
        (np.zeros((1, 1, 2), np.int32), np.zeros((1, 1, 2), np.int32), "Expected [-1,-1], got [1,1,2]"),
        (np.zeros((0, 5), np.int32), np.zeros((0, 5), np.int32), "Expected 20, got 0"),
        (np.zeros((33, 5), np.int32), np.zeros((33, 5), np.int32), "batch-size must be <= 32"),
    ],
)
def test_bad_input_is_refused_and_nothing_else_changes(served: Served, ids, responses, message):
    good = pad([learner(20)])
    before = infer(served, *good).as_numpy("probabilities")
    with pytest.raises(InferenceServerException) as raised:
        infer(served, ids, responses)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in raised.value.message()
    np.testing.assert_array_equal(infer(served, *good).as_numpy("probabilities"), before)


def test_a_missing_tensor_is_named(served: Served):
    ids = grpcclient.InferInput("problem_ids", [1, 2], "INT32")
    ids.set_data_from_numpy(array([1, 2]))
    with (
        grpcclient.InferenceServerClient(served.server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="expected 2 inputs but got 1 inputs"),
    ):
        client.infer(served.spec.model.name, [ids])


def test_http_refuses_with_400(served: Served):
    body = {
        "inputs": [
            {"name": "problem_ids", "shape": [1, 1], "datatype": "INT32", "data": [99999]},
            {"name": "responses", "shape": [1, 1], "datatype": "INT32", "data": [1]},
        ]
    }
    url = f"http://{served.server.http_url}/v2/models/{served.spec.model.name}/infer"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    assert raised.value.code == 400
    assert "position 0 is 99999" in raised.value.read().decode()


def test_a_bad_request_fails_alone_among_good_ones(served: Served, client: Client):
    histories = [learner(n, seed=9) for n in (3, 30, 300, 512, 1, 64, 128)]
    alone = [client.predict(h).probabilities for h in histories]
    bad = History("bad", [1, 2, 14041], [0, 1, 1])
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            futures = [pool.submit(client.predict, h) for h in [*histories, bad]]
            for future, reference in zip(futures[:-1], alone, strict=True):
                np.testing.assert_allclose(future.result().probabilities, reference, atol=1e-6)
            with pytest.raises(InvalidRequestError, match="learner 0, position 2 is 14041"):
                futures[-1].result()


def test_the_deadline_covers_the_call(client: Client):
    with pytest.raises(DeadlineExceededError, match="did not answer in time"):
        client.predict(learner(512), deadline_s=0.001)
    assert client.predict(learner(512)).probabilities is not None


@pytest.mark.parametrize("deadline", [math.inf, 1e10, 1e12, 1e300, 10, np.float32(10)])
def test_any_longer_deadline_is_waited_for(served: Served, client: Client, deadline):
    assert client.predict(learner(3), deadline_s=deadline).probabilities is not None
    with Client(served.server.grpc_url, spec=served.spec, deadline_s=deadline) as patient:
        assert patient.predict(learner(3)).probabilities is not None
        assert patient.status() == client.status()


def test_a_port_that_speaks_http_is_named(served: Served):
    for url in (served.server.http_url, served.server.metrics_url[len("http://") : -len("/metrics")]):
        with (
            Client(url, spec=served.spec, retries=0) as lost,
            pytest.raises(UnavailableError, match=r"does not speak gRPC .* is it the port of HTTP or of the metrics"),
        ):
            lost.predict(learner(3))


def test_nothing_asked_for_is_an_error(client: Client):
    with pytest.raises(InvalidRequestError, match="nothing is asked for"):
        client.predict(learner(3), probabilities=False)


WIDE = ("problem_ids", "responses", "recent_problem_ids", "recent_responses")


@pytest.mark.parametrize(
    ("reduce", "wide"),
    [({"where": "postprocess"}, ()), ({"where": "postprocess"}, WIDE), ({"length_aware": False}, WIDE)],
    ids=["postprocess", "postprocess-int64", "whole-window-int64"],
)
def test_other_specs_answer_the_same(served: Served, tmp_path, reduce: dict[str, object], wide: tuple[str, ...]):
    tensors = {name: getattr(served.spec.tensors, name).model_copy(update={"dtype": "INT64"}) for name in wide}
    spec = served.spec.model_copy(
        update={
            "reduce": served.spec.reduce.model_copy(update=reduce),
            "tensors": served.spec.tensors.model_copy(update=tensors),
        }
    )
    built = repository.build(spec, served.checkpoint, tmp_path / "models")
    with Server(built.folder, log=tmp_path / "server.log") as server, Client(server.grpc_url, spec=spec) as client:
        histories = [learner(n) for n in (1, 20, 512, 600)]
        for history, answer in zip(histories, client.predict(histories, next_problems=True), strict=True):
            assert np.abs(answer.probabilities - expected(served, history)).max() < 1e-5
            assert not set(answer.next_problem_ids) & set(history.problem_ids)
        if spec.reduce.where == "core":
            cold = client.predict(learner(0)).probabilities
            assert np.abs(cold - expected(served, learner(0))).max() < 1e-5
            return
        with pytest.raises(InvalidRequestError, match="learner 0 has 0 interactions; this model answers from 1 on"):
            client.predict(learner(0))


def test_proposals_are_computed_for_those_who_ask(served: Served, client: Client):
    def runs(step: str) -> int:
        with grpcclient.InferenceServerClient(served.server.grpc_url) as channel:
            (model,) = channel.get_inference_statistics(step, as_json=True)["model_stats"]
        return int(model.get("inference_count", 0))

    def more(postprocess: int, propose: int) -> None:
        """Triton counts a moment after it has answered."""
        wanted, deadline = [before[0] + postprocess, before[1] + propose], time.monotonic() + 5
        while (now := [runs("postprocess"), runs("propose")]) != wanted:
            assert time.monotonic() < deadline, (now, wanted)
            time.sleep(0.02)

    time.sleep(0.5)  # what was asked before is counted by then
    before = [runs("postprocess"), runs("propose")]
    client.predict(learner(20))
    more(1, 0)
    client.predict(learner(20), probabilities=False, next_problems=True)
    more(1, 1)
    client.predict(learner(20), next_problems=True)
    more(2, 2)
