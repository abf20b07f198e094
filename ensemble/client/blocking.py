"""The blocking client."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from ensemble.client.protocol import DEFAULT_URL, Prediction, Protocol, Request, Status, Tls, Wanted
from ensemble.client.retry import Retry, failure
from ensemble.client.shared_memory import SharedMemory
from ensemble.learners.history import History
from ensemble.spec import Spec

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client(Protocol):
    """A blocking client; one channel for its whole life, which threads may share.

    With shared_memory, on the server's host, tensors do not go through the socket; such a client has one call at a time,
    and refuses another thread's meanwhile.

    Example:
        with Client("127.0.0.1:8001") as client:
            answer = client.predict(History("ada", [17, 4, 4], [1, 0, 1]), next_problems=True)
            answer.probabilities[17], answer.next_problem_ids

    Raises, from predict and status:
        InvalidRequestError: the server refused the request, or the client did; its message says what is allowed.
        DeadlineExceededError: deadline_s, in seconds and for all tries together, is over; math.inf: there is none.
        UnavailableError: the server cannot be reached or sheds load, after `retries` more tries.
        HistoryError: what was given is neither a History nor several of them in order.
        ClosedClientError: the client was closed, perhaps meanwhile, by another thread.
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
        self._channel = self._connect()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._memory = SharedMemory(url, self.spec) if shared_memory else None
        if self._memory is not None:
            try:
                retry = self.retry(self.deadline(None))
                self._try(functools.partial(self._memory.open, self._stub, retry.deadline), retry)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Calls that other threads have under way, or are about to try again, end with an error."""
        self._closed.set()
        self._channel.close()
        if self._memory is not None:
            with self._connect() as channel:  # that of the calls is closed first: only that ends those under way
                try:
                    self._memory.close(service_pb2_grpc.GRPCInferenceServiceStub(channel))
                except grpc.RpcError as e:
                    raise failure(self.url, e) from e

    @overload
    def predict(self, history: History, **wanted: Unpack[Wanted]) -> Prediction: ...
    @overload
    def predict(self, history: Iterable[History], **wanted: Unpack[Wanted]) -> list[Prediction]: ...
    def predict(
        self,
        history: History | Iterable[History],
        *,
        probabilities: bool = True,
        next_problems: bool = False,
        deadline_s: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Ask for one learner, or for many of unequal history; only what is asked for is computed and sent.

        Example:
            client.predict(history).probabilities                        # FP32 [problems]
            client.predict([ada, bob], probabilities=False, next_problems=True)[1].next_problem_ids
        """
        histories = self.histories(history)
        deadline = self.deadline(deadline_s)
        requests = self.requests(histories, probabilities, next_problems, carried=self._memory is None)
        with contextlib.nullcontext() if self._memory is None else self._memory.call():
            predictions = self.predictions(histories, [self._ask(request, deadline) for request in requests])
        return predictions[0] if isinstance(history, History) else predictions

    def status(self) -> Status:
        """Whether the server lives, and whether it and the model are ready.

        Example:
            client.status().model_ready
        """
        deadline, answers = self.deadline(None), dict[str, Any]()
        for method, message in self.questions(answers):
            answers[method] = self._call(method, message, self.retry(deadline))
        return Status.of(answers)

    def _ask(self, request: Request, deadline: float) -> list[np.ndarray | None]:
        memory, retry = self._memory, self.retry(deadline, request)
        if memory is None:
            return self.arrays(self._call("ModelInfer", request.message, retry), request)
        given = (request.message, request.values, request.learners)
        return self.arrays(
            self._try(functools.partial(memory.infer, self._stub, *given, deadline), retry), request, memory.read
        )

    def _call(self, method: str, message: Any, retry: Retry) -> Any:
        call = getattr(self._stub, method)
        return self._try(lambda: call(message, timeout=retry.timeout), retry)

    def _try(self, call: Callable[[], Any], retry: Retry) -> Any:
        while True:
            retry.begin()
            try:
                return call()
            except Exception as e:  # gRPC has no class for what it raises when its channel is closed
                wait = retry.after(e)
            self._closed.wait(wait)

    def _connect(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.url, self._limits)
        return grpc.secure_channel(self.url, self._credentials, self._limits)
