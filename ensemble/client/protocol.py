"""What both clients share: how a request is built, an answer read, an error named and a retry timed.

Messages are written here and not by tritonclient's client, whose objects around every tensor cost 0.3 ms a request.
"""

from __future__ import annotations

import itertools
import math
import numbers
import random
import re
import reprlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from ensemble.errors import (
    ClosedClientError,
    DeadlineExceededError,
    HistoryError,
    InvalidRequestError,
    ServingError,
    UnavailableError,
)
from ensemble.learners.history import PADDING, History, pad
from ensemble.spec import Spec, Tensor

Message, Answer = service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
ENVELOPE = 64 * 1024  # bytes of a message beside its tensors
DEFAULT_URL = "127.0.0.1:8001"
LONGEST_DEADLINE_S = 366 * 24 * 3600.0  # longer ones are none: gRPC counts nanoseconds in 64 bits, and would overflow
RESOLVERS = ("dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds")  # gRPC's own schemes of a URL
LARGEST_MESSAGE = 2**31 - 1  # bytes; gRPC's own limit
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 1.0
# How a server that stops refuses what it has not begun with, before its connections close: gRPC cancels what it had not
# handed on (its issue 41785), and Triton does not find a model that it has taken down already.
STOPPING = {"CANCELLED": "", "NOT_FOUND": "has no available versions"}
# Where something takes the connection and closes it at the first words of gRPC.
NO_GRPC = (
    "; what listens there does not speak gRPC without TLS: is it the port of HTTP or of the metrics (Triton's own are 8000 "
    "for HTTP, 8001 for gRPC, 8002 for metrics), or does it ask for TLS?"
)


@dataclass(frozen=True)
class Prediction:
    """One learner's answer; what was not asked for is None.

    probabilities: FP32 [problems], P(correct) for every problem after the whole history.
    next_problem_ids, next_problem_probabilities: INT32 and FP32 [at most k], nearest to the target success rate first.
    """

    learner: str
    probabilities: np.ndarray | None
    next_problem_ids: np.ndarray | None
    next_problem_probabilities: np.ndarray | None


@dataclass(frozen=True)
class Status:
    """What the server says of itself and of the model."""

    live: bool
    ready: bool
    model_ready: bool
    server_version: str
    model_versions: tuple[str, ...]


@dataclass(frozen=True)
class Tls:
    """Encrypted transport. Without root_certificates the system's are used; key and chain are for mutual TLS."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


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
        self.deadline_s = _seconds(deadline_s)
        self.retries = _retries(retries)
        self._closed = threading.Event()  # set by another thread, perhaps, while a call is under way
        self._credentials = _credentials(tls)
        self._limits = _limits(self.spec)
        tensors = self.spec.tensors
        self._outputs = (tensors.probabilities, tensors.next_problem_ids, tensors.next_problem_probabilities)
        self._dims = {tensor.name: self.spec.dims(tensor) for tensor in self._outputs}
        # Every request has a name of its own: the server's log says it where it refuses one, and so does the error here.
        self._name, self._numbers = uuid.uuid4().hex[:12], itertools.count(1)
        self._types = {tensor.name: triton_to_np_dtype(tensor.dtype) for _, tensor in tensors}

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
                for tensor, value in zip(
                    (tensors.problem_ids, tensors.responses), pad(histories[start : start + size]), strict=True
                )
            }
            message = Message(
                model_name=self.spec.model.name,
                id=f"{self._name}-{next(self._numbers)}",
                inputs=[
                    Message.InferInputTensor(name=tensor.name, datatype=tensor.dtype, shape=given[tensor.name].shape)
                    for tensor in (tensors.problem_ids, tensors.responses)
                ],
                outputs=[Message.InferRequestedOutputTensor(name=name) for name in wanted],
            )
            learners, values = len(given[tensors.problem_ids.name]), tuple(given.values())
            if carried:
                message.raw_input_contents.extend(value.tobytes() for value in values)
            yield Request(start, learners, message, () if carried else values)

    def columns(
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
        columns: list[np.ndarray | None] = []
        for tensor in self._outputs:
            if tensor.name not in asked:
                columns.append(None)
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
                columns.append(np.frombuffer(content, self._types[tensor.name]).reshape(shape))
            else:
                columns.append(read(tensor, request.learners))
        return columns

    def predictions(self, histories: Sequence[History], answers: Sequence[list[np.ndarray | None]]) -> list[Prediction]:
        """Every learner's share of the answers' columns, in the histories' order."""
        rows: list[tuple[Any, ...]] = []
        for columns in answers:
            learners = next(len(column) for column in columns if column is not None)
            rows += zip(*(column if column is not None else [None] * learners for column in columns), strict=True)
        return [_prediction(h.learner, *row) for h, row in zip(histories, rows, strict=True)]

    def fail(self, error: grpc.RpcError, request: Request | None = None) -> NoReturn:
        """Raise the project's error for gRPC's. The server counts a request's learners from 0; the call's are others."""
        status, text = error.code().name, error.details()
        first = request.first if request else 0
        named = f" (request {request.message.id})" if request else ""
        if _unavailable(error):
            hint = NO_GRPC if "failed to connect" in text and "Socket closed" in text else ""
            raise UnavailableError(f"{self.url} is not available: {text}{hint}{named}", status) from error
        if status == "DEADLINE_EXCEEDED":
            raise DeadlineExceededError(f"{self.url} did not answer in time: {text}{named}", status) from error
        if status == "INVALID_ARGUMENT":
            counted = f" (learner 0 of this request is number {first} of the call)" if first else ""
            raise InvalidRequestError(text + counted + named, status) from error
        raise ServingError(f"{self.url}: {text}{named}", status) from error

    def check_open(self, error: BaseException | None = None) -> None:
        """Raise ClosedClientError where the client is closed; what a call under way ended with then only follows from it."""
        if self._closed.is_set():
            raise ClosedClientError(f"this client of {self.url} is closed; make a new one") from error

    def retry_after(self, error: Exception, tries: int, deadline: float, request: Request | None = None) -> float:
        """Seconds to wait before the next try; raises the error where there is none.

        Only what the server has not begun with is tried again, and not by a client closed meanwhile. The waits double
        and are spread at random, so that clients of a server that returns do not all come at once.
        """
        self.check_open(error)
        if not isinstance(error, grpc.RpcError):
            raise error
        if not _unavailable(error) or tries > self.retries:
            self.fail(error, request)
        doublings = min(tries - 1, 30)  # far beyond the longest wait; the power of a thousand tries is no float
        wait = min(FIRST_BACKOFF_S * 2**doublings, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        if time.monotonic() + wait >= deadline:
            self.fail(error, request)
        return wait

    def deadline(self, deadline_s: float | None) -> float:
        """The moment, on the monotonic clock, at which a call has to be over, every retry included."""
        return time.monotonic() + (self.deadline_s if deadline_s is None else _seconds(deadline_s))


def remaining(deadline: float) -> float | None:
    """Seconds from now to a moment on the monotonic clock, as a timeout for gRPC; over, it is as good as over."""
    return None if math.isinf(deadline) else max(deadline - time.monotonic(), 1e-3)


def _seconds(deadline_s: object) -> float:
    """A deadline, infinite where there is none."""
    if not isinstance(deadline_s, numbers.Real) or isinstance(deadline_s, bool) or not float(deadline_s) > 0:
        raise InvalidRequestError(
            f"deadline_s is {deadline_s!r}; give seconds above 0, or math.inf for no deadline", "INVALID_ARGUMENT"
        )
    seconds = float(deadline_s)
    return seconds if seconds <= LONGEST_DEADLINE_S else math.inf


def _retries(retries: object) -> float:
    if not isinstance(retries, numbers.Real) or isinstance(retries, bool) or not float(retries) >= 0:
        raise InvalidRequestError(f"retries is {retries!r}; give a number from 0 up, or math.inf", "INVALID_ARGUMENT")
    return float(retries)


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


def _unavailable(error: grpc.RpcError) -> bool:
    """Whether the server has not begun with the request, and another try may find it, or another server, ready."""
    status = error.code().name
    return status == "UNAVAILABLE" or (status in STOPPING and STOPPING[status] in error.details())


def _limits(spec: Spec) -> list[tuple[str, int]]:
    """gRPC's limits on a message, in bytes: the largest request and the largest answer that the spec allows."""
    tensors, learners = spec.tensors, spec.batching.max_batch_size
    columns = [(tensor, spec.batching.longest_history) for tensor in (tensors.problem_ids, tensors.responses)]
    answers = (tensors.probabilities, tensors.next_problem_ids, tensors.next_problem_probabilities)
    columns_back = [(tensor, spec.dims(tensor)[0]) for tensor in answers]
    sent, received = (
        learners * sum(length * np.dtype(triton_to_np_dtype(tensor.dtype)).itemsize for tensor, length in lengths)
        for lengths in (columns, columns_back)
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
