"""Rubbish sent to every model of the repository, beside good requests to the ensemble that share its batches."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from build.model import checkpoint
from build.repository import assembly as repository
from build.repository import config
from build.server import Server
from ensemble.client import AsyncClient, Client, Prediction
from ensemble.errors import ServingError
from ensemble.learners.history import History
from ensemble.spec import Spec
from ensemble.tables import PYTHON_STEPS
from tests.conftest import Served, learner, resized, untrained
from tests.faults import conftest

CALLERS, RUBBISH_CALLERS = 8, 3
PROBLEMS, WIDTHS = 40, (8, 32)
TYPES = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
INT32 = np.iinfo(np.int32)
Message = service_pb2.ModelInferRequest


@dataclass(frozen=True)
class Request:
    """Tensors for a model, as anybody may send them: of each its type, its shape and its bytes.

    said: parts of an error that it has to get; None: an error or an answer of its own, as many rows as it sent.
    """

    what: str
    model: str
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    said: tuple[str, ...] | None = None
    request_id: str = ""
    wanted: tuple[str, ...] = ()

    def message(self) -> Message:
        message = Message(model_name=self.model, id=self.request_id)
        message.outputs.extend(Message.InferRequestedOutputTensor(name=name) for name in self.wanted)
        for name, (kind, shape, content) in self.tensors.items():
            message.inputs.append(Message.InferInputTensor(name=name, datatype=kind, shape=shape))
            message.raw_input_contents.append(content)
        return message


class Model:
    """One model's good request, and what can be done to it."""

    def __init__(self, configuration: ModelConfig) -> None:
        self.name = configuration.name
        self.limit = configuration.max_batch_size
        self.values = {}
        for tensor in configuration.input:
            dims = [WIDTHS[0] if dim == -1 else dim for dim in tensor.dims]
            kind = DataType.Name(tensor.data_type).removeprefix("TYPE_")
            self.values[tensor.name] = np.full((1, *dims), WIDTHS[0] if tensor.name == "lengths" else 1, TYPES[kind])

    def request(self, what: str, *said: str, **changed: np.ndarray | None) -> Request:
        """A good request but for the tensors given; None: left out."""
        values = {name: value for name, value in {**self.values, **changed}.items() if value is not None}
        kinds = {np.dtype(kind): name for name, kind in TYPES.items()}
        tensors = {name: (kinds[value.dtype], value.shape, value.tobytes()) for name, value in values.items()}
        return Request(what, self.name, tensors, said or None)

    def rubbish(self) -> Iterator[Request]:
        for name, good in self.values.items():
            yield self.request(f"no {name}", name, **{name: None})
            for kind in TYPES.values():
                if kind != good.dtype:
                    yield self.request(f"{name} {kind.__name__}", name, **{name: good.astype(kind)})
            said = ["batch size"] if len(self.values) > 1 else []
            yield self.request(f"{name} of two rows", *said, **{name: np.concatenate([good, good])})
            yield self.request(f"{name} flat", **{name: good[0]})
            yield self.request(f"{name} deep", name, **{name: good[..., None]})
            yield self.request(f"{name} without columns", **{name: good[:, :0]})
            yield self.request(f"{name} of a column more", **{name: np.concatenate([good, good[:, :1]], 1)})
            extremes = (
                (np.nan, np.inf, -np.inf, 3e38, -3e38) if good.dtype == np.float32 else (INT32.min, -99999, -2, -1, 0)
            )
            extremes += () if good.dtype == np.float32 else (WIDTHS[0] + 1, WIDTHS[1] + 1, PROBLEMS, 99999, INT32.max)
            for value in extremes:
                yield self.request(f"{name} {value}", **{name: np.full_like(good, value)})
        for rows in (0, self.limit, self.limit + 1, 1000):
            many = {name: np.repeat(value, rows, axis=0) for name, value in self.values.items()}
            yield self.request(f"{rows} rows", *(["batch-size must be"] if rows > self.limit else []), **many)
        yield self.request(
            "no columns",
            **{name: value[:, :0] if value.shape[1] == WIDTHS[0] else value for name, value in self.values.items()},
        )
        yield self.request("nothing", **dict.fromkeys(self.values))


def no_learners(model: Model, columns: int) -> Request:
    """A shape of 0 rows with the bytes of one, which Triton takes for right."""
    values = {
        name: np.ones((1, columns, *value.shape[2:]), value.dtype) if value.shape[1] == WIDTHS[0] else value
        for name, value in model.values.items()
    }
    right = model.request(f"no learners of {columns} columns", "has 0 learners; send at least 1", **values)
    none = {name: (kind, (0, *shape[1:]), content) for name, (kind, shape, content) in right.tensors.items()}
    return replace(right, tensors=none)


def named(models: dict[str, Model]) -> Iterator[Request]:
    """Requests of which it is known what they have to be told."""
    for name, model in models.items():
        # Not to the core: Triton itself fails the batch for it, before any backend is asked.
        if name in PYTHON_STEPS:
            for columns in (0, 3, WIDTHS[0], 50):
                yield no_learners(model, columns)
        for tensor, value in model.values.items():
            if value.dtype == np.float32:
                yield model.request(
                    "not finite",
                    f"{tensor} has",
                    "not finite for learner 0; allowed",
                    **{tensor: np.full_like(value, np.nan)},
                )
    for value in (-2, INT32.min, PROBLEMS, 99999, INT32.max):
        said = f"problem_ids: learner 0, position 1 is {value}; allowed are 0 to {PROBLEMS - 1}"
        for name in ("preprocess", "propose"):
            yield models[name].request(
                "a problem that is none", said, problem_ids=_second(models[name], "problem_ids", value)
            )
        core = models["core"]
        if value != -2:
            yield core.request(
                "a problem that is none",
                "recent_problem_ids int32 [1, 8] from",
                f"{value}",
                **{"recent_problem_ids": _second(core, "recent_problem_ids", value)},
            )
    for value in (-1, 9, INT32.min, INT32.max):
        given = np.array([[value]], np.int32)
        if "lengths" in models["core"].values:
            yield models["core"].request("a length without a row", f"lengths int32 [1] from {value}", lengths=given)
        else:
            for name in ("postprocess", "propose"):
                said = f"lengths: learner 0 has {value}; all_logits has 8 rows a learner, so allowed are 1 to 8"
                yield models[name].request("a length without a row", said, lengths=given)


def _second(model: Model, name: str, value: int) -> np.ndarray:
    """A good row but for its second number."""
    row = model.values[name].copy()
    row[0, 1] = value
    return row


@pytest.fixture(scope="module", params=["core", "postprocess"])
def small(request, spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of two widths; the row is taken by the core, or behind it."""
    table = resized(spec, problems=PROBLEMS, window=WIDTHS[-1], buckets=WIDTHS).model_dump()
    if request.param == "postprocess":
        table["reduce"]["where"] = "postprocess"
        table["model"]["cold_start"] = False
    made = Spec.model_validate(table)
    folder = tmp_path_factory.mktemp("small")
    model = untrained(made)
    checkpoint.save(model, folder / "model.pt")
    built = repository.build(made, folder / "model.pt", folder / "models")
    with Server(built.folder, log=folder / "server.log") as server:
        yield Served(made, model, folder / "model.pt", built.folder, server)


@dataclass
class Good:
    """Requests to the ensemble that are known to be good, with what they are answered alone."""

    spec: Spec
    histories: list[History]
    answers: list[Prediction]
    outcomes: Counter[str]

    @classmethod
    def ask(cls, served: Served, server: Server) -> Good:
        histories = [learner(length, seed, PROBLEMS) for seed, length in enumerate((1, 3, 8, 9, 20, 32, 33, 70))]
        with Client(server.grpc_url, spec=served.spec) as client:
            return cls(served.spec, histories, [client.predict(h, next_problems=True) for h in histories], Counter())

    async def call(self, url: str, number: int, stop: asyncio.Event) -> None:
        """Ask for them in turn until `stop`, and count "same", "changed", and how else it ended."""
        async with AsyncClient(url, spec=self.spec, retries=0, deadline_s=20) as client:
            while not stop.is_set():
                number = (number + 1) % len(self.histories)
                try:
                    found = await client.predict(self.histories[number], next_problems=True)
                except ServingError as e:
                    self.outcomes[f"{e.status}: {e}"] += 1
                else:
                    self.outcomes["same" if _equal(found, self.answers[number]) else "changed"] += 1


def _equal(one: Prediction, other: Prediction) -> bool:
    """Whether they are the same to the last bit."""
    parts = ("probabilities", "next_problem_ids", "next_problem_probabilities")
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in parts)


async def beside(good: Good, server: Server, rubbish: list[Request], seconds: float) -> list[str]:
    """Send the rubbish over and over while good requests go on; what was wrong with what the rubbish got."""
    stop, wrong, end = asyncio.Event(), [], time.monotonic() + seconds
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(server.grpc_url, options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def send(requests: list[Request]) -> None:
            while True:
                for request in requests:
                    complaint = complain(request, *await infer(stub, request))
                    if complaint:
                        wrong.append(complaint)
                if time.monotonic() > end:
                    return

        callers = [asyncio.create_task(good.call(server.grpc_url, number, stop)) for number in range(CALLERS)]
        await asyncio.gather(*(send(rubbish[part::RUBBISH_CALLERS]) for part in range(RUBBISH_CALLERS)))
        stop.set()
        await asyncio.gather(*callers)
    return wrong


async def infer(stub: service_pb2_grpc.GRPCInferenceServiceStub, request: Request) -> tuple[str, object]:
    """The status, and the answer or the message."""
    try:
        return "OK", await stub.ModelInfer(request.message(), timeout=20)
    except grpc.aio.AioRpcError as e:
        return e.code().name, e.details()


def complain(request: Request, status: str, found: object) -> str | None:
    """What is wrong with the answer to rubbish; None where nothing is."""
    where = f"{request.model}, {request.what}: {status} {found if status != 'OK' else ''}"
    if status == "OK":
        rows = {shape[0] for _, shape, _ in request.tensors.values()}
        right = all([output.shape[0]] == [*rows] for output in found.outputs)
        return None if right and request.said is None else where
    if status not in ("INVALID_ARGUMENT", "INTERNAL") or "Failed to process the request(s)" in found:
        return where
    return None if all(part in found for part in request.said or ()) else f"{where}; expected {request.said}"


def test_rubbish_is_its_own_trouble(small: Served):
    models = {name: Model(each) for name, each in config.repository(small.spec).items()}
    rubbish = [*named(models), *(request for model in models.values() for request in model.rubbish())]
    good = Good.ask(small, small.server)
    stubs = {process.pid for process in small.server.processes.tree()}
    wrong = asyncio.run(beside(good, small.server, rubbish, 10.0))
    print(len(rubbish), good.outcomes)
    assert not wrong, "\n".join(sorted(set(wrong)))
    assert set(good.outcomes) == {"same"}
    assert good.outcomes["same"] >= 200
    assert {process.pid for process in small.server.processes.tree()} == stubs
    assert not small.server.processes.dead_stubs()


def test_a_fault_of_the_step_itself_is_one_requests(small: Served, tmp_path: Path):
    """A step whose arithmetic fails for one request, in a way that nobody thought of."""
    folder = shutil.copytree(small.repository, tmp_path / "models")
    for step in PYTHON_STEPS:
        line = "    def _answer(self, request):\n"
        fault = f'        if request.request_id() == "{step}":\n            raise KeyError("nobody thought of it")\n'
        conftest.replace(folder / step / "1" / "model.py", line, line + fault)
    models = {name: Model(each) for name, each in config.repository(small.spec).items()}
    ensemble = models[small.spec.model.name]
    rubbish = []
    for step, answer in zip(PYTHON_STEPS, ("probabilities", "probabilities", "next_problem_ids"), strict=True):
        said = f"{step} failed at this request: KeyError: 'nobody thought of it'"
        rubbish.append(replace(models[step].request("a fault", said), request_id=step))
        # One answer alone: Triton 2.51 itself does not survive an ensemble of which one of two last steps fails.
        rubbish.append(replace(ensemble.request("a fault", said), request_id=step, wanted=(answer,)))
    log = tmp_path / "log"
    with Server(folder, log=log) as server:
        good = Good.ask(small, server)
        wrong = asyncio.run(beside(good, server, rubbish, 3.0))
        assert not server.processes.dead_stubs()
    assert not wrong, "\n".join(sorted(set(wrong)))
    assert set(good.outcomes) == {"same"}
    assert good.outcomes["same"] >= 100
    said = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in said
    assert "in _answer" in said
