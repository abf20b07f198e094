"""The blocking client."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ensemble.client.protocol import DEFAULT_URL, Prediction, Protocol, Request, Status, Tls, remaining
from ensemble.client.shared_memory import SharedMemory
from ensemble.errors import UnavailableError
from ensemble.history import History
from ensemble.spec import Spec


class Client(Protocol):
    """A blocking client; one channel for its whole life, which threads may share.

    With shared_memory, on the server's host, tensors do not go through the socket; such a client belongs to one thread.

    Example:
        with Client("127.0.0.1:8001") as client:
            answer = client.predict(History("ada", [17, 4, 4], [1, 0, 1]), next_problems=True)
            answer.probabilities[17], answer.next_problem_ids

    Raises, from predict and status:
        InvalidRequestError: the server refused the request, or the client did; its message says what is allowed.
        DeadlineExceededError: deadline_s, in seconds and for all tries together, is over; math.inf: there is none.
        UnavailableError: the server cannot be reached or sheds load, after `retries` more tries.
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
        if self._credentials is None:
            self._channel = grpc.insecure_channel(url, self._limits)
        else:
            self._channel = grpc.secure_channel(url, self._credentials, self._limits)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._memory = None
        if shared_memory:
            try:
                self._memory = SharedMemory(self._stub, self.spec)
            except grpc.RpcError as e:
                self._channel.close()
                if "restricted" in str(e.details()):
                    raise UnavailableError(
                        f"{url} keeps shared memory closed; serve with `make serve OPEN=shared-memory`, or leave "
                        "shared_memory out",
                        e.code().name,
                    ) from e
                self.fail(e)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Calls that other threads have under way, or are about to try again, end with an error."""
        self._closed.set()
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
        name, deadline = self.spec.model.name, self.deadline(None)
        live = self._call("ServerLive", service_pb2.ServerLiveRequest(), deadline)
        ready = self._call("ServerReady", service_pb2.ServerReadyRequest(), deadline)
        model = self._call("ModelReady", service_pb2.ModelReadyRequest(name=name), deadline)
        server = self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), deadline)
        versions: Sequence[str] = ()
        if model.ready:
            versions = self._call("ModelMetadata", service_pb2.ModelMetadataRequest(name=name), deadline).versions
        return Status(live.live, ready.ready, model.ready, server.version, tuple(versions))

    def _ask(self, request: Request, deadline: float) -> list[np.ndarray | None]:
        answer = self._call("ModelInfer", request.message, deadline, request)
        if self._memory is None:
            return self.columns(answer)
        asked = {output.name for output in request.message.outputs}
        return [self._memory.read(t, request.learners) if t.name in asked else None for t in self._outputs]

    def _call(self, method: str, message: Any, deadline: float, request: Request | None = None) -> Any:
        tries = 0
        while True:
            tries += 1
            self.check_open()
            try:
                return getattr(self._stub, method)(message, timeout=remaining(deadline))
            except Exception as e:  # gRPC has no class for what it raises when its channel is closed
                wait = self.retry_after(e, tries, deadline, request)
            self._closed.wait(wait)
