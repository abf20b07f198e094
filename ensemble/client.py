"""gRPC clients of the ensemble, blocking and asyncio, over tritonclient.

Both share how a request is built, an answer read, an error named and a retry timed; they differ in how they wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypedDict, overload

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcclient_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ensemble.errors import DeadlineExceededError, InvalidRequestError, ServingError, UnavailableError
from ensemble.history import PADDING, History, pad
from ensemble.shared_memory import SharedMemory
from ensemble.spec import Spec

DEFAULT_URL = "127.0.0.1:8001"
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 1.0


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
class _Request:
    """Keyword arguments of tritonclient's infer, for so many learners from number `first` on."""

    first: int
    learners: int
    arguments: dict[str, Any]


class _Connection(TypedDict, total=False):
    ssl: bool
    root_certificates: str | None
    private_key: str | None
    certificate_chain: str | None


class _Protocol:
    """What both clients know: the spec, the deadline, the retries, and how to speak with the ensemble."""

    def __init__(self, url: str, spec: Spec | None, deadline_s: float, retries: int, tls: Tls | None) -> None:
        self.url = url
        self.spec = spec or Spec.read()
        self.deadline_s = deadline_s
        self.retries = retries
        self._connection = _connection(tls)
        tensors = self.spec.tensors
        self._outputs = (tensors.probabilities, tensors.next_problem_ids, tensors.next_problem_probabilities)

    def requests(
        self,
        histories: Sequence[History],
        probabilities: bool,
        next_problems: bool,
        memory: SharedMemory | None = None,
    ) -> Iterator[_Request]:
        """One request for every max_batch_size learners; with memory, each is to be answered before the next is made."""
        tensors, size = self.spec.tensors, self.spec.batching.max_batch_size
        wanted = [tensors.probabilities] if probabilities else []
        wanted += [tensors.next_problem_ids, tensors.next_problem_probabilities] if next_problems else []
        if not wanted:
            raise InvalidRequestError("nothing is asked for; set probabilities or next_problems", "INVALID_ARGUMENT")
        for start in range(0, len(histories), size):
            padded = pad(histories[start : start + size])
            inputs, values = [], []
            for tensor, value in zip((tensors.problem_ids, tensors.responses), padded, strict=True):
                inputs.append(grpcclient.InferInput(tensor.name, list(value.shape), tensor.dtype))
                values.append(value.astype(triton_to_np_dtype(tensor.dtype), copy=False))
            learners = len(values[0])
            if memory is None or not memory.place(inputs, values):
                for given, value in zip(inputs, values, strict=True):
                    given.set_data_from_numpy(value)
            outputs = [
                grpcclient.InferRequestedOutput(tensor.name) if memory is None else memory.wanted(tensor, learners)
                for tensor in wanted
            ]
            arguments = {"model_name": self.spec.model.name, "inputs": inputs, "outputs": outputs}
            yield _Request(start, learners, arguments)

    def columns(self, answer: Any) -> list[np.ndarray | None]:
        """A reply's probabilities, next problems and their probabilities, [learners, ...]; None if not asked for."""
        return [answer.as_numpy(tensor.name) for tensor in self._outputs]

    def predictions(self, histories: Sequence[History], answers: Sequence[list[np.ndarray | None]]) -> list[Prediction]:
        """Every learner's share of the answers' columns, in the histories' order."""
        rows: list[tuple[Any, ...]] = []
        for columns in answers:
            learners = next(len(column) for column in columns if column is not None)
            rows += zip(*(column if column is not None else [None] * learners for column in columns), strict=True)
        return [_prediction(h.learner, *row) for h, row in zip(histories, rows, strict=True)]

    def fail(self, error: InferenceServerException, first: int = 0) -> NoReturn:
        """Raise the project's error for tritonclient's. The server counts a request's learners; its first is `first`."""
        status, text = _status(error), error.message()
        if status == "UNAVAILABLE":
            raise UnavailableError(f"{self.url} is not available: {text}", status) from error
        if status == "DEADLINE_EXCEEDED":
            raise DeadlineExceededError(f"{self.url} did not answer in time: {text}", status) from error
        if status == "INVALID_ARGUMENT":
            counted = f" (learner 0 of this request is number {first} of the call)" if first else ""
            raise InvalidRequestError(text + counted, status) from error
        raise ServingError(f"{self.url}: {text}", status) from error

    def retry_after(self, error: InferenceServerException, tries: int, deadline: float, first: int = 0) -> float:
        """Seconds to wait before the next try; raises the error where there is none.

        Only UNAVAILABLE is tried again: the server has not begun with such a request. The waits double and are
        spread at random, so that clients of a server that returns do not all come at once.
        """
        if _status(error) != "UNAVAILABLE" or tries > self.retries:
            self.fail(error, first)
        wait = min(FIRST_BACKOFF_S * 2 ** (tries - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        if time.monotonic() + wait >= deadline:
            self.fail(error)
        return wait

    def deadline(self, deadline_s: float | None) -> float:
        """The moment, on the monotonic clock, at which a call has to be over, every retry included."""
        return time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)


class Client(_Protocol):
    """A blocking client; one channel for its whole life, which threads may share.

    With shared_memory, on the server's host, tensors do not go through the socket; such a client belongs to one thread.

    Example:
        with Client("127.0.0.1:8001") as client:
            answer = client.predict(History("ada", [17, 4, 4], [1, 0, 1]), next_problems=True)
            answer.probabilities[17], answer.next_problem_ids

    Raises, from predict and status:
        InvalidRequestError: the server refused the request; its message says what is allowed.
        DeadlineExceededError: deadline_s, in seconds and for all tries together, is over.
        UnavailableError: the server cannot be reached or sheds load, after `retries` more tries.
        ServingError: anything else the server answers.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        spec: Spec | None = None,
        deadline_s: float = 10.0,
        retries: int = 3,
        tls: Tls | None = None,
        shared_memory: bool = False,
    ) -> None:
        super().__init__(url, spec, deadline_s, retries, tls)
        self._channel = grpcclient.InferenceServerClient(url, **self._connection)
        self._memory = None
        if shared_memory:
            try:
                self._memory = SharedMemory(self._channel, self.spec)
            except InferenceServerException as e:
                self._channel.close()
                self.fail(e)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        try:
            if self._memory is not None:
                self._memory.close()
        finally:
            self._channel.close()

    @overload
    def predict(
        self, history: History, *, probabilities: bool = ..., next_problems: bool = ..., deadline_s: float | None = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        history: Sequence[History],
        *,
        probabilities: bool = ...,
        next_problems: bool = ...,
        deadline_s: float | None = ...,
    ) -> list[Prediction]: ...
    def predict(
        self,
        history: History | Sequence[History],
        *,
        probabilities: bool = True,
        next_problems: bool = False,
        deadline_s: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Ask for one learner, or for many of unequal history; only what is asked for is computed and sent."""
        histories = [history] if isinstance(history, History) else history
        deadline = self.deadline(deadline_s)
        requests = self.requests(histories, probabilities, next_problems, self._memory)
        predictions = self.predictions(histories, [self._ask(request, deadline) for request in requests])
        return predictions[0] if isinstance(history, History) else predictions

    def status(self) -> Status:
        """Whether the server lives, and whether it and the model are ready."""
        limit, model = self.deadline_s, self.spec.model.name
        try:
            live = self._channel.is_server_live(client_timeout=limit)
            ready = self._channel.is_server_ready(client_timeout=limit)
            model_ready = self._channel.is_model_ready(model, client_timeout=limit)
            server = self._channel.get_server_metadata(client_timeout=limit)
            metadata = self._channel.get_model_metadata(model, client_timeout=limit) if model_ready else None
        except InferenceServerException as e:
            self.fail(e)
        return _summary(live, ready, model_ready, server, metadata)

    def _ask(self, request: _Request, deadline: float) -> list[np.ndarray | None]:
        answer = self._infer(request, deadline)
        if self._memory is None:
            return self.columns(answer)
        asked = {output.name() for output in request.arguments["outputs"]}
        return [self._memory.read(t, request.learners) if t.name in asked else None for t in self._outputs]

    def _infer(self, request: _Request, deadline: float) -> Any:
        tries = 0
        while True:
            tries += 1
            try:
                return self._channel.infer(**request.arguments, client_timeout=max(deadline - time.monotonic(), 1e-3))
            except InferenceServerException as e:
                time.sleep(self.retry_after(e, tries, deadline, request.first))


class AsyncClient(_Protocol):
    """The asyncio client: as Client, with awaits; the requests for very many learners are under way at once.

    Example:
        async with AsyncClient("127.0.0.1:8001") as client:
            answers = await client.predict(histories)
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        spec: Spec | None = None,
        deadline_s: float = 10.0,
        retries: int = 3,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(url, spec, deadline_s, retries, tls)
        self._channel = grpcclient_aio.InferenceServerClient(url, **self._connection)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    @overload
    async def predict(
        self, history: History, *, probabilities: bool = ..., next_problems: bool = ..., deadline_s: float | None = ...
    ) -> Prediction: ...
    @overload
    async def predict(
        self,
        history: Sequence[History],
        *,
        probabilities: bool = ...,
        next_problems: bool = ...,
        deadline_s: float | None = ...,
    ) -> list[Prediction]: ...
    async def predict(
        self,
        history: History | Sequence[History],
        *,
        probabilities: bool = True,
        next_problems: bool = False,
        deadline_s: float | None = None,
    ) -> Prediction | list[Prediction]:
        """As Client.predict."""
        histories = [history] if isinstance(history, History) else history
        deadline = self.deadline(deadline_s)
        requests = self.requests(histories, probabilities, next_problems)
        answers = await asyncio.gather(*(self._infer(request, deadline) for request in requests))
        predictions = self.predictions(histories, [self.columns(answer) for answer in answers])
        return predictions[0] if isinstance(history, History) else predictions

    async def status(self) -> Status:
        """As Client.status."""
        limit, model = self.deadline_s, self.spec.model.name
        try:
            live = await self._channel.is_server_live(client_timeout=limit)
            ready = await self._channel.is_server_ready(client_timeout=limit)
            model_ready = await self._channel.is_model_ready(model, client_timeout=limit)
            server = await self._channel.get_server_metadata(client_timeout=limit)
            metadata = await self._channel.get_model_metadata(model, client_timeout=limit) if model_ready else None
        except InferenceServerException as e:
            self.fail(e)
        return _summary(live, ready, model_ready, server, metadata)

    async def _infer(self, request: _Request, deadline: float) -> Any:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._channel.infer(
                    **request.arguments, client_timeout=max(deadline - time.monotonic(), 1e-3)
                )
            except InferenceServerException as e:
                await asyncio.sleep(self.retry_after(e, tries, deadline, request.first))


def _summary(live: Any, ready: Any, model_ready: Any, server: Any, model: Any) -> Status:
    versions = tuple(model.versions) if model is not None else ()
    return Status(bool(live), bool(ready), bool(model_ready), server.version, versions)


def _connection(tls: Tls | None) -> _Connection:
    if tls is None:
        return {}
    files: dict[str, str | None] = {}
    for name in ("root_certificates", "private_key", "certificate_chain"):
        path = getattr(tls, name)
        if path is not None and not path.is_file():
            raise ServingError(f"TLS: there is no {name} file {path}", "INVALID_ARGUMENT")
        files[name] = None if path is None else str(path)
    return _Connection(ssl=True, **files)  # type: ignore[typeddict-item]


def _prediction(
    learner: str, probabilities: np.ndarray | None, ids: np.ndarray | None, chances: np.ndarray | None
) -> Prediction:
    if ids is not None and chances is not None:
        proposed = ids != PADDING  # the server fills up where fewer problems are unanswered
        ids, chances = ids[proposed], chances[proposed]
    return Prediction(learner, probabilities, ids, chances)


def _status(error: InferenceServerException) -> str:
    """gRPC's name of the status, e.g. "UNAVAILABLE"; tritonclient has it as "StatusCode.UNAVAILABLE"."""
    status = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
    # tritonclient raises its own exception, without a status of gRPC's, for a deadline that passed.
    return "DEADLINE_EXCEEDED" if "Deadline Exceeded" in error.message() else status
