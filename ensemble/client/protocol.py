"""What both clients share: how a request is built and an answer read; when one is tried again stands in retry.

Messages are written here and not by tritonclient's client, whose objects around every tensor cost 0.3 ms a request.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from ensemble.client import knowledge_tracing as learners
from ensemble.client import raw
from ensemble.client.batch import batches
from ensemble.client.channel import Tls, balancing, credentials, is_several, limits, target
from ensemble.client.retry import Retry, count, seconds
from ensemble.contract import PADDING
from ensemble.errors import InvalidRequestError, ServingError, SpecError
from ensemble.interface import Answered, Interface
from ensemble.learners.history import History
from ensemble.spec import Spec

Message, Answer = service_pb2.ModelInferRequest, service_pb2.ModelInferResponse


@dataclass(frozen=True)
class Status:
    """What the server says of itself and of the model, e.g. Status(True, True, True, "2.51.0", ("1",))."""

    live: bool
    ready: bool
    model_ready: bool
    server_version: str
    model_versions: tuple[str, ...]

    @classmethod
    def of(cls, answers: Mapping[str, Any]) -> Status:
        """The answers to `Protocol.questions`; of a model that is not ready there are no versions."""
        live, ready, model = (answers[of] for of in ("ServerLive", "ServerReady", "ModelReady"))
        versions = answers["ModelMetadata"].versions if model.ready else ()
        return cls(live.live, ready.ready, model.ready, answers["ServerMetadata"].version, tuple(versions))


Given = Mapping[str, npt.ArrayLike]  # a history's inputs by name
Answers = dict[str, np.ndarray]  # its answers' tensors by name


class Chosen(TypedDict, total=False):
    """The options of `predict` for mappings, as type checkers see them."""

    answers: str | Sequence[str] | None
    deadline_s: float | None


@dataclass(frozen=True)
class Request:
    """A message for so many histories, of which the first has the number `first` in the call.

    shapes: [histories, ...] of what it asks for. values: of its inputs, where the message does not carry them.
    """

    first: int
    histories: int
    message: service_pb2.ModelInferRequest
    shapes: Mapping[str, list[int]]
    values: Sequence[np.ndarray] = ()


class Call(NamedTuple):
    """One call of `predict`: its requests, and what their answers' arrays by name amount to."""

    requests: Iterable[Request]
    result: Callable[[list[dict[str, np.ndarray]]], Any]


class Protocol:
    """What both clients know: the model's interface, the deadline, the retries, and how to speak with the ensemble."""

    def __init__(
        self,
        url: str | Sequence[str],
        spec: Spec | None,
        model: str | None,
        deadline_s: float,
        retries: int,
        tls: Tls | None,
    ) -> None:
        self.url = target(url)
        if spec is not None and model is not None:
            raise InvalidRequestError(f"spec and model={model!r} are both given; give one of them", "INVALID_ARGUMENT")
        self._spec = Spec.read() if spec is None and model is None else spec
        self._interface = None if self._spec is None else Interface.of(self._spec)
        self.model = model if self._spec is None else self._spec.model.name
        self.deadline_s = seconds(deadline_s)
        self.retries = count(retries)
        self._closed = threading.Event()  # set by another thread, perhaps, while a call is under way
        self._credentials = credentials(tls)
        self._limits = [*limits(self._interface), *balancing(self.url)]
        self._word = self._interface.contract.words.history if self._interface else "history"
        # Every request has a name of its own: the server's log says it where it refuses one, and so does the error here.
        self._name, self._numbers = uuid.uuid4().hex[:12], itertools.count(1)

    @property
    def spec(self) -> Spec:
        """What the client was made with.

        Raises:
            SpecError: a model's name; its interface is all that is known.
        """
        if self._spec is None:
            raise SpecError(f"this client was given the name of {self.model} and no spec; ask it for interface()")
        return self._spec

    @staticmethod
    def listed(given: object) -> object:
        """What `predict` is given, read: as a list, if it is about several histories."""
        if isinstance(given, Iterable) and not isinstance(given, (str, Mapping, Set)):
            return list(given)
        return given

    def call(
        self,
        interface: Interface,
        given: object,
        asked: learners.Asked,
        answers: str | Sequence[str] | None,
        carried: bool = True,
    ) -> Call:
        """What a call of `predict` asks, of what `listed` gives. carried: whether the messages have the values in them."""
        if answers is not None or _has_names(given) or not learners.is_taken(interface):
            if asked.candidates is not None or asked != learners.Asked():
                raise InvalidRequestError(
                    "probabilities, next_problems and candidates are for a History; choose answers, of "
                    f"{', '.join(answer.name for answer in interface.answers)}",
                    "INVALID_ARGUMENT",
                )
            return self._of_mappings(interface, given, answers, carried)
        histories = learners.histories_of(given)
        if asked.candidates is not None:
            named = learners.mappings(histories, asked.candidates, interface)
            made = self._of_mappings(interface, named, asked.answers(), carried)

            def shared(arrays: list[dict[str, np.ndarray]]) -> Any:
                pairs = zip(histories, made.result(arrays), strict=True)
                found = [learners.prediction(history, share, interface) for history, share in pairs]
                return found if isinstance(given, list) else found[0]

            return Call(made.requests, shared)

        def requests() -> Iterator[Request]:
            wanted = _tensors(_wanted(interface, asked.answers()))
            for first, arrays in learners.batches(histories, interface):
                yield self._request(interface, first, arrays, wanted, carried)

        def result(arrays: list[dict[str, np.ndarray]]) -> Any:
            predictions = learners.predictions(histories, arrays, interface)
            return predictions if isinstance(given, list) else predictions[0]

        return Call(requests(), result)

    def _of_mappings(
        self, interface: Interface, given: object, answers: str | Sequence[str] | None, carried: bool
    ) -> Call:
        histories = given if isinstance(given, list) else [given]
        wanted = _wanted(interface, answers)
        made = (raw.batches if interface.function else batches)(histories, interface)
        for batch in [] if interface.function else made:
            lacking = next((answer for answer in wanted if answer.at and answer.at not in batch.arrays), None)
            if lacking is not None:
                raise InvalidRequestError(
                    f"{lacking.name} is about {lacking.at}, which {interface.contract.words.history} {batch.numbers[0]} has "
                    "not",
                    "INVALID_ARGUMENT",
                )
        names = _tensors(wanted)
        requests = [self._request(interface, batch.numbers[0], batch.arrays, names, carried) for batch in made]

        def result(arrays: list[dict[str, np.ndarray]]) -> Any:
            found: dict[int, dict[str, np.ndarray]] = {}
            for batch, answered in zip(made, arrays, strict=True):
                for row, number in enumerate(batch.numbers):
                    found[number] = _share(answered, row, wanted, batch.given[row])
            several = [found[number] for number in range(len(histories))]
            return several if isinstance(given, list) else several[0]

        return Call(requests, result)

    def _request(
        self, interface: Interface, first: int, arrays: Mapping[str, np.ndarray], wanted: Sequence[str], carried: bool
    ) -> Request:
        inputs = [tensor for tensor in interface.inputs if tensor.name in arrays]
        # Triton knows no single number a history: a context of one is [batch, 1].
        values = [
            (arrays[t.name] if arrays[t.name].ndim > 1 else arrays[t.name][:, None]).astype(
                triton_to_np_dtype(t.dtype), copy=False
            )
            for t in inputs
        ]
        message = Message(
            model_name=interface.name,
            id=f"{self._name}-{next(self._numbers)}",
            inputs=[
                Message.InferInputTensor(name=tensor.name, datatype=tensor.dtype, shape=value.shape)
                for tensor, value in zip(inputs, values, strict=True)
            ],
            outputs=[Message.InferRequestedOutputTensor(name=name) for name in wanted],
        )
        lengths = {
            name: arrays[answer.at].shape[1]
            for answer in interface.answers
            for name in answer.tensors
            if answer.at is not None and answer.at in arrays
        }
        shapes = {
            tensor.name: [len(values[0]), *(lengths.get(tensor.name, -1) if d == -1 else int(d) for d in tensor.shape)]
            for tensor in interface.outputs
            if tensor.name in wanted
        }
        if carried:
            message.raw_input_contents.extend(map(raw.as_sent, values))
        return Request(first, len(values[0]), message, shapes, () if carried else values)

    def arrays(
        self,
        interface: Interface,
        answer: service_pb2.ModelInferResponse,
        request: Request,
        read: Callable[[str, Sequence[int]], np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """What a reply has of the tensors asked for, [histories, ...] by name.

        read: a tensor of this name and shape, where the message does not carry it.
        """
        found = {output.name: (number, output) for number, output in enumerate(answer.outputs)}
        arrays: dict[str, np.ndarray] = {}
        elsewhere = {output.name for output in request.message.outputs if output.parameters}
        for tensor in interface.outputs:
            shape = request.shapes.get(tensor.name)
            if shape is None:
                continue
            number, output = found.get(tensor.name, (0, Answer.InferOutputTensor()))
            fits = len(output.shape) == len(shape) and all(
                wanted in (-1, given) for wanted, given in zip(shape, output.shape, strict=True)
            )
            if output.datatype != tensor.dtype or not fits:
                by, remedy = "the spec", "Give the client the spec that the server was built from"
                if self._spec is None:
                    by, remedy = "its configuration", "The model was changed meanwhile: make a new client"
                given = f"{output.datatype or 'nothing'} {list(output.shape)}"
                raise ServingError(
                    f"{self.url} answered {tensor.name} as {given}; by {by} it is {tensor.dtype} {shape}. {remedy}",
                    "FAILED_PRECONDITION",
                )
            if read is not None and tensor.name in elsewhere:
                arrays[tensor.name] = read(tensor.name, shape)
            else:
                content = answer.raw_output_contents[number]
                arrays[tensor.name] = np.frombuffer(content, triton_to_np_dtype(tensor.dtype)).reshape(output.shape)
        return arrays

    def question(self) -> Any:
        """The message of gRPC's ModelConfig, whose answer `learn` takes."""
        return service_pb2.ModelConfigRequest(name=self.model)

    def learn(self, answer: Any) -> None:
        """Take what the server says that the model takes and answers."""
        self._interface = Interface.of_config(answer.config)
        self._word = self._interface.contract.words.history

    def questions(self, answers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What `status` asks in turn: gRPC's method and its message; each answer is put into `answers` by its method."""
        name = self.model
        yield "ServerLive", service_pb2.ServerLiveRequest()
        yield "ServerReady", service_pb2.ServerReadyRequest()
        yield "ModelReady", service_pb2.ModelReadyRequest(name=name)
        yield "ServerMetadata", service_pb2.ServerMetadataRequest()
        if answers["ModelReady"].ready:
            yield "ModelMetadata", service_pb2.ModelMetadataRequest(name=name)

    def deadline(self, deadline_s: float | None) -> float:
        """The moment, on the monotonic clock, at which a call has to be over, every retry included."""
        return time.monotonic() + (self.deadline_s if deadline_s is None else seconds(deadline_s))

    def retry(self, deadline: float, request: Request | None = None) -> Retry:
        """The tries of one call."""
        named = ("", 0, "") if request is None else (request.message.id, request.first, self._word)
        return Retry(self.url, self._closed, self.retries, deadline, named, several=is_several(self.url))


def _has_names(given: object) -> bool:
    """Whether a call is about mappings by input name."""
    if isinstance(given, list):
        return bool(given) and isinstance(given[0], Mapping)
    return isinstance(given, Mapping) and not any(isinstance(value, History) for value in given.values())


def _wanted(interface: Interface, answers: str | Sequence[str] | None) -> list[Answered]:
    """The answers of these names; the first where none is named."""
    if answers is None:
        return [interface.answers[0]]
    named = [answers] if isinstance(answers, str) else list(answers)
    found = [interface.answer(name) for name in dict.fromkeys(named)]
    wanted = [answer for answer in found if answer is not None]
    if not wanted or len(wanted) < len(found):
        unknown = next((name for name in named if interface.answer(name) is None), None)
        raise InvalidRequestError(
            f"{'nothing is asked for' if unknown is None else f'answers has {unknown!r}'}; {interface.name} has "
            f"{', '.join(answer.name for answer in interface.answers)}",
            "INVALID_ARGUMENT",
        )
    return wanted


def _tensors(wanted: Iterable[Answered]) -> list[str]:
    return [name for answer in wanted for name in answer.tensors]


def _share(
    arrays: Mapping[str, np.ndarray], row: int, wanted: Sequence[Answered], given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One history's part of a reply, without padding."""
    share: dict[str, np.ndarray] = {}
    for answer in wanted:
        own = [arrays[name][row] for name in answer.tensors]
        if answer.picks:
            picked = own[0] != PADDING  # the server fills up where a history leaves fewer columns
            own = [values[picked] for values in own]
        elif answer.at is not None and answer.at in given:  # else a function named the columns
            own = [values[: len(given[answer.at])] for values in own]
        share.update(zip(answer.tensors, own, strict=True))
    return share
