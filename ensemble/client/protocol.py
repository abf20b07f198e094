"""What both clients share: how a request is built and an answer read; when one is tried again stands in retry.

Messages are written here and not by tritonclient's client, whose objects around every tensor cost 0.3 ms a request.
"""

from __future__ import annotations

import itertools
import re
import reprlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from ensemble.client.retry import Retry, count, seconds
from ensemble.contract import PADDING
from ensemble.errors import HistoryError, InvalidRequestError, ServingError
from ensemble.learners.history import History, pad
from ensemble.spec import Spec
from ensemble.tables import Tensor

Message, Answer = service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
ENVELOPE = 64 * 1024  # bytes of a message beside its tensors
DEFAULT_URL = "127.0.0.1:8001"
RESOLVERS = ("dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds")  # gRPC's own schemes of a URL
LARGEST_MESSAGE = 2**31 - 1  # bytes; gRPC's own limit


@dataclass(frozen=True)
class Prediction:
    """One learner's answer; what was not asked for is None.

    Example:
        answer.probabilities[17]         # 0.42: the chance of answering problem 17
        answer.next_problem_ids[0]       # the problem to give next

    probabilities: FP32 [problems], P(correct) for every problem after the whole history.
    next_problem_ids, next_problem_probabilities: INT32 and FP32 [at most k], nearest to the target success rate first.
    """

    learner: str
    probabilities: np.ndarray | None
    next_problem_ids: np.ndarray | None
    next_problem_probabilities: np.ndarray | None


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


@dataclass(frozen=True)
class Tls:
    """Encrypted transport. Without root_certificates the system's are used; key and chain are for mutual TLS.

    Example:
        Client("triton.example:8001", tls=Tls(root_certificates=Path("ca.pem")))
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


class Wanted(TypedDict, total=False):
    """The options of `predict`, as type checkers see them."""

    probabilities: bool
    next_problems: bool
    deadline_s: float | None


@dataclass(frozen=True)
class Request:
    """A message for so many learners from number `first` on. values: of its inputs, where it does not carry them."""

    first: int
    learners: int
    message: service_pb2.ModelInferRequest
    values: Sequence[np.ndarray] = ()


class Protocol:
    """What both clients know: the spec, the deadline, the retries, and how to speak with the ensemble."""

    def __init__(self, url: str, spec: Spec | None, deadline_s: float, retries: int, tls: Tls | None) -> None:
        self.url = _endpoint(url)
        self.spec = spec or Spec.read()
        self.deadline_s = seconds(deadline_s)
        self.retries = count(retries)
        self._closed = threading.Event()  # set by another thread, perhaps, while a call is under way
        self._credentials = _credentials(tls)
        self._limits = _limits(self.spec)
        self._outputs = self.spec.answered
        self._dims = {tensor.name: self.spec.dims(tensor) for tensor in self._outputs}
        # Every request has a name of its own: the server's log says it where it refuses one, and so does the error here.
        self._name, self._numbers = uuid.uuid4().hex[:12], itertools.count(1)
        self._types = {t.name: triton_to_np_dtype(t.dtype) for t in (*self.spec.requested, *self.spec.answered)}

    @staticmethod
    def histories(given: object) -> list[History]:
        """What a call is given, as the histories that it is about; one alone counts as several of one."""
        if isinstance(given, History):
            return [given]
        if isinstance(given, (str, Mapping, Set)) or not isinstance(given, Iterable):
            raise HistoryError(
                f"a History or a list of them is needed; {reprlib.repr(given)} is of type {type(given).__name__}"
            )
        histories = list(given)
        for position, history in enumerate(histories):
            if not isinstance(history, History):
                raise HistoryError(
                    f"histories at position {position} is {reprlib.repr(history)}; needed is a History, made with "
                    "History(learner, problem_ids, responses)"
                )
        return histories

    def requests(
        self,
        histories: Sequence[History],
        probabilities: bool,
        next_problems: bool,
        carried: bool = True,
    ) -> Iterator[Request]:
        """One request for every max_batch_size learners. carried: whether the messages have the values in them."""
        tensors, size = self.spec.tensors, self.spec.batching.max_batch_size
        wanted = [
            tensor.name
            for tensor in self._outputs
            if (probabilities if tensor is tensors.probabilities else next_problems)
        ]
        if not wanted:
            raise InvalidRequestError("nothing is asked for; set probabilities or next_problems", "INVALID_ARGUMENT")
        for start in range(0, len(histories), size):
            given = {
                tensor.name: value.astype(self._types[tensor.name], copy=False)
                for tensor, value in zip(self.spec.requested, pad(histories[start : start + size]), strict=True)
            }
            message = Message(
                model_name=self.spec.model.name,
                id=f"{self._name}-{next(self._numbers)}",
                inputs=[
                    Message.InferInputTensor(name=tensor.name, datatype=tensor.dtype, shape=given[tensor.name].shape)
                    for tensor in self.spec.requested
                ],
                outputs=[Message.InferRequestedOutputTensor(name=name) for name in wanted],
            )
            values = tuple(given.values())
            learners = len(values[0])
            if carried:
                message.raw_input_contents.extend(value.tobytes() for value in values)
            yield Request(start, learners, message, () if carried else values)

    def arrays(
        self,
        answer: service_pb2.ModelInferResponse,
        request: Request,
        read: Callable[[Tensor, int], np.ndarray] | None = None,
    ) -> list[np.ndarray | None]:
        """A reply's probabilities, next problems and their probabilities, [learners, ...]; None if not asked for.

        read: a tensor of so many learners, where the message does not carry them.
        """
        found = {output.name: (number, output) for number, output in enumerate(answer.outputs)}
        asked = {output.name for output in request.message.outputs}
        arrays: list[np.ndarray | None] = []
        for tensor in self._outputs:
            if tensor.name not in asked:
                arrays.append(None)
                continue
            number, output = found.get(tensor.name, (0, Answer.InferOutputTensor()))
            shape = [request.learners, *self._dims[tensor.name]]
            if output.datatype != tensor.dtype or output.shape != shape:
                raise ServingError(
                    f"{self.url} answered {tensor.name} as {output.datatype or 'nothing'} {list(output.shape)}; by the spec "
                    f"it is {tensor.dtype} {shape}. Give the client the spec that the server was built from",
                    "FAILED_PRECONDITION",
                )
            if read is None:
                content = answer.raw_output_contents[number]
                arrays.append(np.frombuffer(content, self._types[tensor.name]).reshape(shape))
            else:
                arrays.append(read(tensor, request.learners))
        return arrays

    def predictions(self, histories: Sequence[History], answers: Sequence[list[np.ndarray | None]]) -> list[Prediction]:
        """Every learner's share of the answers' arrays, in the histories' order."""
        shares: list[tuple[Any, ...]] = []
        for arrays in answers:
            learners = next(len(array) for array in arrays if array is not None)
            shares += zip(*(array if array is not None else [None] * learners for array in arrays), strict=True)
        return [_prediction(h.learner, *share) for h, share in zip(histories, shares, strict=True)]

    def questions(self, answers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What `status` asks in turn: gRPC's method and its message; each answer is put into `answers` by its method."""
        name = self.spec.model.name
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
        named = (request.message.id, request.first) if request else ("", 0)
        return Retry(self.url, self._closed, self.retries, deadline, named)


def _endpoint(url: object) -> str:
    """The URL, if gRPC takes it for what was meant."""
    example = f"give host:port of the server's gRPC endpoint, e.g. {DEFAULT_URL}"
    if not isinstance(url, str):
        raise InvalidRequestError(f"the URL is {url!r}; {example}", "INVALID_ARGUMENT")
    scheme, named, _ = url.partition("://")
    if named and scheme not in RESOLVERS:
        raise InvalidRequestError(f"the URL is {url!r}; {example}, without {scheme}://", "INVALID_ARGUMENT")
    if url.partition(":")[0] not in RESOLVERS and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", url):
        raise InvalidRequestError(f"the URL is {url!r}; {example}", "INVALID_ARGUMENT")
    return url


def _limits(spec: Spec) -> list[tuple[str, int]]:
    """gRPC's limits on a message, in bytes: the largest request and the largest answer that the spec allows."""
    learners = spec.batching.max_batch_size
    given = [(tensor, spec.batching.longest_history) for tensor in spec.requested]
    taken = [(tensor, spec.dims(tensor)[0]) for tensor in spec.answered]
    sent, received = (
        learners * sum(length * np.dtype(triton_to_np_dtype(tensor.dtype)).itemsize for tensor, length in lengths)
        for lengths in (given, taken)
    )
    return [
        ("grpc.max_send_message_length", min(sent + ENVELOPE, LARGEST_MESSAGE)),
        ("grpc.max_receive_message_length", min(received + ENVELOPE, LARGEST_MESSAGE)),
    ]


def _credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    if tls is None:
        return None
    contents: list[bytes | None] = []
    for name in ("root_certificates", "private_key", "certificate_chain"):
        path = getattr(tls, name)
        try:
            content = None if path is None else Path(path).read_bytes()
        except OSError as e:
            message = f"TLS: cannot read the {name} file {path}: {e.strerror}"
            raise InvalidRequestError(message, "INVALID_ARGUMENT") from e
        if content is not None and b"-----BEGIN " not in content:
            raise InvalidRequestError(f"TLS: the {name} file {path} has nothing in PEM format", "INVALID_ARGUMENT")
        contents.append(content)
    if (contents[1] is None) != (contents[2] is None):  # gRPC ends the process
        raise InvalidRequestError(
            "TLS: private_key and certificate_chain go together; give both, or neither", "INVALID_ARGUMENT"
        )
    return grpc.ssl_channel_credentials(*contents)


def _prediction(
    learner: str, probabilities: np.ndarray | None, ids: np.ndarray | None, chances: np.ndarray | None
) -> Prediction:
    if ids is not None and chances is not None:
        proposed = ids != PADDING  # the server fills up where fewer problems are unanswered
        ids, chances = ids[proposed], chances[proposed]
    return Prediction(learner, probabilities, ids, chances)
