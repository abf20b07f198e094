"""Requests by the thousand, good and bad, against an oracle that reads the contract differently; and NaN out of the core."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from build.server import Server
from ensemble.client import Client
from ensemble.errors import ServingError
from tests.conftest import Served, learner
from tests.faults.conftest import still_answers
from tests.faults.traffic import Known

EXAMPLES, A_TIME = 100, 20  # 2,000 requests, so many at once; five times as many every night
INT32 = (-(2**31), 2**31 - 1)
TYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}
Message = service_pb2.ModelInferRequest


@dataclass(frozen=True)
class Request:
    """Two tensors as rows of numbers, and how they are sent; None: the tensor is left out."""

    ids: list[list[int]] | None
    responses: list[list[int]] | None
    ids_type: str = "INT32"
    responses_type: str = "INT32"
    flat: bool = False  # as [time] instead of [learners, time]

    def arrays(self) -> dict[str, tuple[str, np.ndarray]]:
        given = {"problem_ids": (self.ids_type, self.ids), "responses": (self.responses_type, self.responses)}
        return {
            name: (kind, np.array(rows, TYPES[kind]).reshape(-1 if self.flat else (len(rows), -1)))
            for name, (kind, rows) in given.items()
            if rows is not None
        }


def wrong(request: Request, problems: int) -> list[list[str]]:
    """What a refusal may say, read off the contract number by number; nothing: it has to be answered.

    Each is the parts of a message. Several where tritonserver itself may look at one of several mistakes first.
    """
    if request.ids is None or request.responses is None:
        return [["expected 2 inputs but got 1 inputs"]]
    said = [
        [f"input '{name}' data-type is '{kind}'", "'INT32'"]
        for name, kind in (("problem_ids", request.ids_type), ("responses", request.responses_type))
        if kind != "INT32"
    ]
    shapes = [(len(rows), len(rows[0])) for rows in (request.ids, request.responses)]
    if request.flat:
        said += [["Expected [-1,-1], got ["], ["batch-size must be <= 32"]]
    if shapes[0][0] != shapes[1][0] or (request.flat and shapes[0] != shapes[1]):
        said.append(["batch size does not match other inputs"])
    if said:
        return said
    if shapes[0] != shapes[1]:
        return [[f"problem_ids has shape {list(shapes[0])} and responses {list(shapes[1])}"]]
    for number, (ids, responses) in enumerate(zip(request.ids, request.responses, strict=True)):
        found = first_wrong(ids, responses, problems)
        if found:
            position, tensor, value, allowed = found
            return [[f"{tensor}: learner {number}, position {position} is {value}", allowed]]
    return []


def first_wrong(ids: list[int], responses: list[int], problems: int) -> tuple[int, str, int, str] | None:
    """The first bad position of one learner, with tensor, value and what is allowed there."""
    in_range = f"allowed are 0 to {problems - 1}"
    known = sum(0 <= i < problems for i in ids)  # so many interactions there would be if all of them came first
    for position, (problem, response) in enumerate(zip(ids, responses, strict=True)):
        if problem == -1 and (position < known or response != -1):
            if any(later != -1 for later in ids[position + 1 :]):
                return position, "problem_ids", -1, "allowed only as padding"
            return position, "responses", response, "only -1 is allowed"
        if problem != -1 and not 0 <= problem < problems:
            return position, "problem_ids", problem, in_range
        if position < known and response not in (0, 1):
            return position, "responses", response, "allowed are 0 (wrong) and 1 (correct)"
    return None


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A good request with nothing, one or several things done to it."""
    seed, learners, time = draw(st.integers(0, 2**16)), draw(st.integers(1, 4)), draw(st.integers(1, 24))
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, time + 1, learners)
    ids = [[*rng.integers(0, 14041, n).tolist(), *[-1] * int(time - n)] for n in lengths]
    responses = [[*rng.integers(0, 2, n).tolist(), *[-1] * int(time - n)] for n in lengths]
    made = {"ids": ids, "responses": responses}
    kinds = ("id", "id", "response", "response", "missing", "type", "flat", "short", "fewer")
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=2)):
        which = draw(st.sampled_from(["ids", "responses"]))
        rows = made[which]
        if kind == "missing":
            made[which] = None
        elif kind == "type":
            made[f"{which}_type"] = draw(st.sampled_from(["INT64", "FP32", "UINT8"]))
        elif kind == "flat":
            made["flat"] = True
        elif kind == "short" and rows:
            made[which] = [[*row, -1] for row in rows]
        elif kind == "fewer" and rows:
            made[which] = [*rows, rows[0]]
        elif kind in ("id", "response") and (rows := made["ids" if kind == "id" else "responses"]):
            row = draw(st.integers(0, len(rows) - 1))
            limits = (-2, -1, 14040, 14041, *INT32) if kind == "id" else (-2, -1, 0, 1, 2, *INT32)
            rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(st.sampled_from(limits) | st.integers(*INT32))
    missing = made["ids"] is None and made["responses"] is None
    unsigned = "UINT8" in (made.get("ids_type"), made.get("responses_type"))
    if missing or unsigned:  # nothing at all is no request; UINT8 holds no such numbers, only its refusal matters
        made |= {"ids": [[1]], "responses": [[1]]}
    return Request(**made)


class Sender:
    """Sends requests as nobody's client would have to, over gRPC and HTTP."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.http = f"http://{served.server.http_url}/v2/models/{served.spec.model.name}/infer"

    def over_grpc(self, many: list[Request]) -> list[tuple[str, str | np.ndarray]]:
        """Of each the status, and the message or the answer; all under way at once."""
        return asyncio.run(self._all(many))

    async def _all(self, many: list[Request]) -> list[tuple[str, str | np.ndarray]]:
        async with grpc.aio.insecure_channel(self.served.server.grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return await asyncio.gather(*(self._one(stub, request) for request in many))

    async def _one(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, request: Request):
        message = Message(
            model_name=self.served.spec.model.name,
            outputs=[Message.InferRequestedOutputTensor(name="probabilities")],
        )
        for name, (kind, values) in request.arrays().items():
            message.inputs.append(Message.InferInputTensor(name=name, datatype=kind, shape=values.shape))
            message.raw_input_contents.append(values.tobytes())
        try:
            answer = await stub.ModelInfer(message, timeout=20)
        except grpc.aio.AioRpcError as e:
            return e.code().name, e.details()
        return "OK", np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)

    def over_http(self, request: Request) -> tuple[int, str]:
        """The status, and the body."""
        inputs = [
            {"name": name, "datatype": kind, "shape": values.shape, "data": values.ravel().tolist()}
            for name, (kind, values) in request.arrays().items()
        ]
        body = json.dumps({"inputs": inputs, "outputs": [{"name": "probabilities"}]}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.http, body), timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())["error"]

    def ready(self) -> bool:
        with urllib.request.urlopen(f"http://{self.served.server.http_url}/v2/health/ready", timeout=5) as answer:
            return answer.status == 200


def test_every_request_is_answered_or_told_why_not(served: Served, client: Client):
    answered_or_told_why_not(served, client, EXAMPLES)


def answered_or_told_why_not(served: Served, client: Client, examples: int) -> None:
    """Send examples x A_TIME requests, and hold every answer and every refusal against the contract."""
    sender, problems, good = Sender(served), served.spec.model.problems, learner(20)
    reference = client.predict(good).probabilities
    seen = {"answered": 0, "refused": 0, "http": 0}

    @given(st.lists(requests(), min_size=A_TIME, max_size=A_TIME))
    @settings(
        max_examples=examples,
        derandomize=True,
        phases=(Phase.generate,),  # a failure names its request: to make twenty at once smaller takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    def ask(many: list[Request]) -> None:
        for request, (status, found) in zip(many, sender.over_grpc(many), strict=True):
            expected = wrong(request, problems)
            if not expected:
                assert status == "OK", (request, found)
                assert found.shape == (len(request.ids), problems)
                assert np.isfinite(found).all()
                seen["answered"] += 1
            else:
                assert status == "INVALID_ARGUMENT", (request, status, found)
                assert any(all(part in found for part in parts) for parts in expected), (expected, found, request)
                seen["refused"] += 1
        status, found = sender.over_http(many[0])
        expected = wrong(many[0], problems)
        assert status == (400 if expected else 200), (many[0], status, found)
        if expected:
            assert any(all(part in found for part in parts) for parts in expected), (many[0], expected, found)
        seen["http"] += 1
        assert sender.ready()
        np.testing.assert_array_equal(client.predict(good).probabilities, reference)

    ask()
    print(seen)
    assert seen["answered"] + seen["refused"] >= examples * A_TIME
    assert min(seen.values()) >= examples


def test_a_history_beyond_the_limit_is_refused(served: Served, client: Client):
    limit = served.spec.batching.longest_history
    assert client.predict(learner(limit)).probabilities is not None
    with pytest.raises(ServingError, match=f"allowed are at most {limit} interactions") as raised:
        client.predict(learner(limit + 1))
    assert raised.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_core_answers_errors_never_nan(served: Served, copy, tmp_path: Path, value: float):
    def damage(folder: Path) -> None:
        path = folder / "core" / "1" / "model.onnx"
        model = onnx.load(path)
        weights = next(
            tensor for tensor in model.graph.initializer if list(tensor.dims) == [served.spec.model.problems]
        )
        array = numpy_helper.to_array(weights).copy()
        array[7] = value
        weights.CopyFrom(numpy_helper.from_array(array, weights.name))
        onnx.save(model, path)

    with (
        Server(copy(damage), log=tmp_path / "log") as server,
        Client(server.grpc_url, spec=served.spec) as client,
    ):
        for histories in ([learner(20)], [learner(n) for n in (0, 3, 600)]):
            for wanted in ({"next_problems": False}, {"probabilities": False, "next_problems": True}):
                with pytest.raises(ServingError, match="not finite for learner 0") as raised:
                    client.predict(histories, **wanted)
                assert raised.value.status == "INTERNAL"
        assert client.status().ready


def test_after_all_of_it_the_server_answers_as_before(served: Served, known: Known):
    still_answers(served.server, served.spec, known)
    assert shutil.which("tritonserver") is not None or served.server.processes.returncode is None
