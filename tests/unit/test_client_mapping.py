"""Histories as mappings by input name, over gRPC to a small server that keeps the contract as the first step does."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

from build.repository import config
from ensemble import chain
from ensemble.client import AsyncClient, Client
from ensemble.contract import RefusedError
from ensemble.errors import HistoryError, InvalidRequestError, SpecError
from ensemble.learners.history import History
from ensemble.spec import Spec
from tests.unit.test_interface import next_item

COLUMNS = np.arange(101, dtype=np.float32)


@dataclass
class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Scores a column by its number, and a history by what it holds; keeps what it was asked."""

    spec: Spec
    bare: bool = False  # its configuration does not say what clients need
    asked: list[service_pb2.ModelInferRequest] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name != self.spec.model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        ensemble = config.repository(self.spec)[request.name]
        if self.bare:
            ensemble.parameters.clear()
        return service_pb2.ModelConfigResponse(config=ensemble)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.asked.append(request)
        contract = self.spec.contract
        given = {}
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
            values = np.frombuffer(content, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
            scalar = tensor.name in contract.contexts and not contract.contexts[tensor.name].shape
            given[tensor.name] = values[:, 0] if scalar else values
        try:
            lengths = contract.check(given)
            contract.feed(given, lengths, {name: values.dtype for name, values in given.items()})
        except RefusedError as e:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        rows = self.rows(given, lengths)
        asked, response = {output.name for output in request.outputs}, service_pb2.ModelInferResponse()
        for answer in self.spec.answers:
            names = [tensor.name for tensor in answer.tensors]
            if asked.isdisjoint(names):
                continue
            own, at = rows, next((link[1] for link in answer.chain if link[0] == "at"), None)
            if at:
                own = np.take_along_axis(rows, np.maximum(given[at], 0), axis=1)
            for tensor, array in zip(answer.tensors, chain.answer(answer.chain, own, given), strict=True):
                response.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=array.shape)
                response.raw_output_contents.append(array.tobytes())
        return response

    @staticmethod
    def rows(given: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        spent = np.nansum(given["prices"], axis=(1, 2)) if "prices" in given else np.zeros(len(lengths))
        own = lengths + spent + given.get("age", 0)
        return (COLUMNS + own[:, None]).astype(np.float32)


@contextlib.contextmanager
def serving(servicer: Servicer) -> Iterator[str]:
    """The URL of a server."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def servicer() -> Servicer:
    return Servicer(next_item())


@pytest.fixture
def url(servicer: Servicer) -> Iterator[str]:
    with serving(servicer) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, model="sasrec") as client:
        yield client


def user(*items: int, **context: Any) -> dict[str, Any]:
    return {"item_ids": list(items), "prices": [[1, 0.5]] * len(items), "profile": [0, 0, 1], **context}


def test_one_history_answers_as_arrays_by_name(client: Client):
    answer = client.predict(user(5, 9, 3))
    assert list(answer) == ["scores"]
    np.testing.assert_array_equal(answer["scores"], COLUMNS + 3 + 4.5)
    assert answer["scores"].dtype == np.float32


def test_answers_are_chosen_and_come_without_their_padding(client: Client):
    every_item = user(*range(5, 101))
    with pytest.raises(InvalidRequestError, match="at most 20 items a user: send the most recent"):
        client.predict(every_item)
    answer = client.predict(user(*range(82, 101)), answers=["next_items", "scores"])
    assert list(answer) == ["next_items_ids", "next_items_values", "scores"]
    assert answer["next_items_ids"].tolist() == list(range(81, 71, -1))
    few = Servicer(next_item(sizes={"items": 12, "columns": 13}))
    few.rows = lambda _, lengths: np.tile(COLUMNS[:13], (len(lengths), 1))
    with serving(few) as url, Client(url, spec=few.spec) as small:
        answer = small.predict(user(1, 2, 3, 4, 5), answers="next_items")
    assert answer["next_items_ids"].tolist() == [12, 11, 10, 9, 8, 7, 6]  # of ten places
    assert answer["next_items_values"].tolist() == [12, 11, 10, 9, 8, 7, 6]


def test_many_of_unequal_length_are_one_request_for_every_batch(client: Client, servicer: Servicer):
    users = [user(*range(1, 1 + n)) for n in (3, 1, 7, 2, 5, 4)]
    answers = client.predict(iter(users))
    assert [list(request.inputs[0].shape) for request in servicer.asked] == [[4, 7], [2, 5]]
    for given, answer in zip(users, answers, strict=True):
        np.testing.assert_array_equal(answer["scores"], client.predict(given)["scores"])
    assert client.predict([]) == []


def test_optional_contexts_split_requests_and_candidates_are_padded(client: Client, servicer: Servicer):
    users = [
        user(5, candidate_ids=[1, 2, 3]),
        user(6, candidate_ids=[4], age=30),
        user(7, 8, candidate_ids=np.array([], np.int64)),
        user(9, candidate_ids=(7, 1), age=np.int64(40)),
    ]
    answers = client.predict(users, answers=["candidate_scores"])
    assert [[(t.name, list(t.shape)) for t in request.inputs] for request in servicer.asked] == [
        [("item_ids", [2, 2]), ("prices", [2, 2, 2]), ("candidate_ids", [2, 3]), ("profile", [2, 3])],
        [("item_ids", [2, 1]), ("prices", [2, 1, 2]), ("candidate_ids", [2, 2]), ("age", [2, 1]), ("profile", [2, 3])],
    ]
    assert [answer["candidate_scores"].tolist() for answer in answers] == [
        [3.5, 4.5, 5.5],
        [4 + 31 + 1.5],
        [],
        [7 + 41 + 1.5, 1 + 41 + 1.5],
    ]
    with pytest.raises(InvalidRequestError, match="candidate_scores is about candidate_ids, which user 1 has not"):
        client.predict([users[0], user(5)], answers=["candidate_scores"])


def test_what_is_not_padded_goes_by_its_length():
    spec = next_item(model={"name": "sasrec", "window": 8, "padding": "none"})
    servicer = Servicer(spec)
    with serving(servicer) as url, Client(url, spec=spec) as client:
        answers = client.predict([user(*range(1, 1 + n)) for n in (2, 3, 2, 3, 1)])
    assert sorted(list(request.inputs[0].shape) for request in servicer.asked) == [[1, 1], [2, 2], [2, 3]]
    assert [answer["scores"][0] for answer in answers] == [n + n * 1.5 for n in (2, 3, 2, 3, 1)]


async def test_asyncio_is_no_different(client: Client, url: str):
    users = [user(*range(1, 1 + n), candidate_ids=[n]) for n in (3, 1, 7, 2, 5)]
    async with AsyncClient(url, model="sasrec") as asynchronous:
        assert await asynchronous.interface() == client.interface()
        wanted = ["next_items", "candidate_scores"]
        mine, theirs = await asynchronous.predict(users, answers=wanted), client.predict(users, answers=wanted)
        for one, other in zip(mine, theirs, strict=True):
            assert list(one) == list(other) == ["next_items_ids", "next_items_values", "candidate_scores"]
            for name, values in one.items():
                np.testing.assert_array_equal(values, other[name])
        alone = await asynchronous.predict(users[0])
        np.testing.assert_array_equal(alone["scores"], client.predict(users[0])["scores"])
        with pytest.raises(InvalidRequestError, match=r"^item_ids: user 1, position 0 is 101; allowed are 1 to 100"):
            await asynchronous.predict([users[0], user(101)])


@pytest.mark.parametrize(
    "values",
    [
        [5.0, 9.0, 3.0],
        np.array([5, 9, 3], np.uint64),
        np.array([5, 9, 3], object),
        (5, 9, 3),
        np.float16([5, 9, 3]),
        np.arange(99)[[5, 9, 3]],
    ],
)
def test_whole_numbers_are_taken_whatever_they_come_in(client: Client, servicer: Servicer, values: Any):
    client.predict({**user(5, 9, 3), "item_ids": values})
    assert servicer.asked[-1].raw_input_contents[0] == np.array([5, 9, 3], np.int32).tobytes()


NEEDED = "item_ids, prices, candidate_ids (optional), age (optional), profile"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": [5, 3.5]}, "item_ids: user {n}, position 1 is 3.5; allowed are 1 to 100"),
        ({"item_ids": [5, "9"]}, "item_ids: user {n}, position 1 is '9'; allowed are 1 to 100"),
        ({"item_ids": [5, None]}, "item_ids: user {n}, position 1 is None; allowed are 1 to 100"),
        ({"item_ids": [5, float("nan")]}, "item_ids: user {n}, position 1 is nan; allowed are 1 to 100"),
        ({"item_ids": [5, 2**40]}, "item_ids: user {n}, position 1 is 1099511627776; allowed are 1 to 100"),
        ({"item_ids": [5, 2**80]}, f"item_ids: user {{n}}, position 1 is {2**80}; allowed are 1 to 100"),
        ({"item_ids": [True, False]}, "item_ids: user {n}, position 0 is True; allowed are 1 to 100"),
        ({"item_ids": [5, 1j]}, "item_ids: user {n}, position 0 is (5+0j); allowed are 1 to 100"),
        ({"item_ids": np.array(["2026-01-01"] * 2, "M8[D]")}, "item_ids: user {n}, position 0 is datetime.date(2026"),
        ({"item_ids": "59"}, "item_ids: user {n} is '59'; needed is [items]"),
        ({"item_ids": {5, 9}}, "item_ids: user {n} is {{9, 5}}; needed is [items]"),
        ({"item_ids": 5}, "item_ids: user {n} is 5; needed is [items]"),
        ({"item_ids": [[5], [9]]}, "item_ids: user {n} has shape [2, 1]; needed is [items]"),
        ({"item_ids": [5, [9]]}, "item_ids: user {n} has lists of unequal length; needed is [items]"),
        ({"item_ids": np.ma.masked_equal([5, 9], 9)}, "item_ids: user {n} has masked values; needed is [items]"),
        (
            {"item_ids": [5, 0]},
            "item_ids: user {n}, position 1 is 0; allowed are 1 to 100, and -1 as padding after the",
        ),
        ({"item_ids": [-1, 5]}, "item_ids: user {n}, position 0 is -1, but items follow it"),
        ({"item_ids": [5, -1], "prices": [[1, 2], [np.nan] * 2]}, "item_ids: user {n} ends in -1, which stands for"),
        ({"item_ids": [], "prices": []}, "item_ids: user {n} has 0 items; this model answers from 1 on"),
        ({"prices": [[1, 2, 3]] * 2}, "prices: user {n} has shape [2, 3]; needed is [items, 2]"),
        ({"prices": [[1, 2]]}, "item_ids has shape [1, 2] and prices [1, 1, 2]; both need the same [users, items]"),
        ({"prices": [[1, 2], [3, np.inf]]}, "prices: user {n}, position 1 is [3.0, inf]; allowed are finite numbers"),
        ({"prices": [[1, 2], [3, 1e39]]}, "prices: user {n}, position 1, 1 is 1e+39; allowed are finite numbers"),
        ({"prices": np.array([[1, 2], [3, 2**24 + 1]])}, "prices: user {n}, position 1, 1 is 16777217; allowed are"),
        ({"profile": [1, 2]}, "profile: user {n} has shape [2]; needed is [3]"),
        ({"profile": [1, 2, np.nan]}, "profile: user {n}, position 2 is nan; allowed are finite numbers"),
        ({"age": 121}, "age: user {n} is 121; allowed are 0 to 120"),
        ({"age": [30]}, "age: user {n} has shape [1]; needed is one number"),
        ({"candidate_ids": [5, 101]}, "candidate_ids: user {n}, position 1 is 101; allowed are 1 to 100"),
        ({"item_id": [5]}, f"'item_id' is no input of sasrec; it takes {NEEDED}"),
    ],
)
@pytest.mark.parametrize("number", [0, 5])
def test_refusals_come_before_anything_is_sent(
    client: Client, servicer: Servicer, changes: dict[str, Any], message: str, number: int
):
    users = [user(5, 9) for _ in range(number)]
    with pytest.raises(InvalidRequestError) as raised:
        client.predict([*users, {**user(5, 9), **changes}])
    assert message.format(n=number) in str(raised.value).replace("{5, 9}", "{9, 5}")
    if "user {n}" not in message:
        assert str(raised.value).endswith(f" (user {number} of the call)" if number else "")
    assert raised.value.status == "INVALID_ARGUMENT"
    assert not servicer.asked


@pytest.mark.parametrize("missing", ["item_ids", "prices", "profile"])
def test_what_is_missing_is_named(client: Client, missing: str):
    given = user(5)
    del given[missing]
    with pytest.raises(InvalidRequestError, match=rf"^{missing} is missing; this model needs it of each user$"):
        client.predict(given)
    with pytest.raises(InvalidRequestError, match=rf"^{missing} is missing; .* \(user 1 of the call\)$"):
        client.predict([user(5), given])


def test_a_refusal_is_the_servers_word(client: Client, servicer: Servicer):
    """Also where the client sees it first: the server is asked without the client's check."""
    bad = {**user(5, 9), "item_ids": [5, 0]}
    with pytest.raises(InvalidRequestError) as own:
        client.predict(bad)
    arrays = {name: np.array([bad[name]], kind) for name, kind in (("item_ids", np.int32), ("prices", np.float32))}
    arrays["profile"] = np.array([bad["profile"]], np.float32)
    request = client._request(client.interface(), 0, arrays, ["scores"], carried=True)
    with pytest.raises(grpc.RpcError) as theirs:
        client._stub.ModelInfer(request.message)
    assert str(own.value) == theirs.value.details()


def test_a_row_outside_of_the_window_is_refused_before_it_is_sent(servicer: Servicer):
    context = {"at": {"dtype": "INT32", "values": [0, 99]}}
    spec = next_item(
        context=context,
        history={"item_ids": {"dtype": "INT32", "values": [1, "items"]}},
        inputs={"ids": "item_ids"},
        row={"select": "index", "index": "at"},
        answer=[{"name": "scores"}],
    )
    with Client("127.0.0.1:1", spec=spec) as client:
        message = r"^at: user 1 has 0; of its 10 items the model sees 2 to 9, and answers one of these$"
        with pytest.raises(InvalidRequestError, match=message):
            client.predict([{"item_ids": range(1, 11), "at": 9}, {"item_ids": range(1, 11), "at": 0}])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "nothing is asked for; sasrec has scores, next_items, candidate_scores"),
        (["score"], "answers has 'score'; sasrec has scores, next_items, candidate_scores"),
        ("next_items_ids", "answers has 'next_items_ids'; sasrec has"),
    ],
)
def test_answers_that_there_are_not(client: Client, answers: Any, message: str):
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        client.predict(user(5), answers=answers)


@pytest.mark.parametrize("given", [None, 5, "ada", [[1, 2]], [History("ada", [1], [1])], History("ada", [1], [1])])
def test_what_is_no_mapping_is_named(client: Client, given: Any):
    with pytest.raises(InvalidRequestError, match=re.escape(f"; needed is a mapping of {NEEDED}")):
        client.predict(given)
    with pytest.raises(InvalidRequestError, match=r"^user 1 is 5; needed is a mapping of"):
        client.predict([user(5), 5])


def test_what_knowledge_tracing_alone_has_is_refused(client: Client):
    with pytest.raises(InvalidRequestError, match="choose answers, of scores, next_items, candidate_scores"):
        client.predict(user(5), next_problems=True)


def test_a_model_is_named_or_described(url: str, servicer: Servicer, spec: Spec):
    with pytest.raises(InvalidRequestError, match="spec and model='sasrec' are both given"):
        Client(url, spec=spec, model="sasrec")
    with Client(url, model="gru4rec") as unknown, pytest.raises(Exception, match="unknown model: 'gru4rec'"):
        unknown.predict(user(5))
    with Client(url, model="sasrec") as named:
        assert named.model == "sasrec"
        with pytest.raises(SpecError, match="given the name of sasrec and no spec"):
            named.spec  # noqa: B018
    servicer.bare = True
    with Client(url, model="sasrec") as bare, pytest.raises(SpecError, match="does not say what it takes"):
        bare.interface()


def test_learners_may_be_mappings_and_are_told_from_histories(spec: Spec, small_spec: Spec):
    servicer = Servicer(small_spec)
    servicer.rows = lambda _, lengths: np.tile(np.linspace(-3, 3, 40, dtype=np.float32), (len(lengths), 1))
    with serving(servicer) as url, Client(url, model=small_spec.model.name) as client:
        given = {"problem_ids": [3, 4], "responses": [True, False]}
        (mapped,) = client.predict([given], answers=["probabilities", "next_problems"])
        (learner,) = client.predict([History("ada", [3, 4], [1, 0])], next_problems=True)
        cold = client.predict({"problem_ids": [], "responses": []})
        for mistaken in ({"ada": History("ada", [1], [1])}, [None], 5):
            with pytest.raises(HistoryError, match=r"History"):
                client.predict(mistaken)
        with pytest.raises(InvalidRequestError, match=r"^responses: learner 0, position 1 is 2; allowed are 0 \(wrong"):
            client.predict({"problem_ids": [3, 4], "responses": [1, 2]})
    assert servicer.asked[0].raw_input_contents == servicer.asked[1].raw_input_contents
    np.testing.assert_array_equal(mapped["probabilities"], learner.probabilities)
    np.testing.assert_array_equal(mapped["next_problem_ids"], learner.next_problem_ids)
    np.testing.assert_array_equal(mapped["next_problem_probabilities"], learner.next_problem_probabilities)
    assert cold["probabilities"].shape == (40,)
    assert list(servicer.asked[2].inputs[0].shape) == [1, 1]  # without elements it could not say how many it is about
