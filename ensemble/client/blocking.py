"""The blocking client."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2_grpc

from ensemble.client.channel import DEFAULT_URL, Tls
from ensemble.client.knowledge_tracing import Asked, Prediction, Wanted
from ensemble.client.protocol import Answers, Chosen, Given, Protocol, Request, Status
from ensemble.client.retry import Retry, failure
from ensemble.client.shared_memory import SharedMemory
from ensemble.interface import Interface
from ensemble.learners.history import History
from ensemble.spec import Spec

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client(Protocol):
    """A blocking client; one channel for its whole life, which threads may share.

    It knows the model by its spec [default: the preset of knowledge tracing], or by its name alone: model="sasrec", of which
    the server says the rest.

    Several servers of one model are asked in turn: Client(["a:8001", "b:8001"]), or by a name that has several addresses.
    What one of them did not answer the next is asked at once: answers are pure, a history's is the same from each and
    leaves nothing behind, so asking twice costs time alone.

    With shared_memory, on the server's host, tensors do not go through the socket; such a client has one call at a time,
    and refuses another thread's meanwhile.

    Example:
        with Client("127.0.0.1:8001") as client:
            answer = client.predict(History("ada", [17, 4, 4], [1, 0, 1]), next_problems=True)
            answer.probabilities[17], answer.next_problem_ids
        with Client("127.0.0.1:8001", model="sasrec") as client:
            client.predict({"item_ids": [5, 9, 3]})["scores"]

    Raises, from predict and status:
        InvalidRequestError: the server refused the request, or the client did; its message says what is allowed.
        DeadlineExceededError: deadline_s, in seconds and for all tries together, is over; math.inf: there is none.
        UnavailableError: the server cannot be reached or sheds load, after `retries` more tries.
        HistoryError: what was given is neither a History nor several of them in order.
        SpecError: the server does not say what the model takes, and the client has no spec.
        ClosedClientError: the client was closed, perhaps meanwhile, by another thread.
        ServingError: anything else the server answers.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        spec: Spec | None = None,
        model: str | None = None,
        deadline_s: float = 10.0,
        retries: int = 3,
        tls: Tls | None = None,
        shared_memory: bool = False,
    ) -> None:
        super().__init__(url, spec, model, deadline_s, retries, tls)
        self._channel = self._connect()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._memory: SharedMemory | None = None
        if shared_memory:
            try:
                retry = self.retry(self.deadline(None))
                self._memory = SharedMemory(self.url, self._known(retry.deadline))
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
    @overload
    def predict(self, history: Given, **wanted: Unpack[Chosen]) -> Answers: ...
    @overload
    def predict(self, history: Iterable[Given], **wanted: Unpack[Chosen]) -> list[Answers]: ...
    def predict(
        self,
        history: History | Given | Iterable[History] | Iterable[Given],
        *,
        answers: str | Sequence[str] | None = None,
        probabilities: bool | None = None,
        next_problems: bool = False,
        candidates: npt.ArrayLike | None = None,
        deadline_s: float | None = None,
    ) -> Prediction | Answers | list[Prediction] | list[Answers]:
        """Ask for one history, or for many of unequal length; only what is asked for is computed and sent.

        A mapping by input name is any model's; answers is for mappings, the other options are for a History.

        Example:
            client.predict(history).probabilities                        # FP32 [problems]
            client.predict([ada, bob], probabilities=False, next_problems=True)[1].next_problem_ids
            client.predict({"item_ids": [5, 9, 3]}, answers="next_items")["next_items_ids"]  # INT32 [at most k]

            client.predict(history, candidates=[17, 99]).candidate_probabilities             # FP32 [2]

        Args:
            answers: their names [default: the first that the model has].
            probabilities: of every problem [default: yes, unless the call names candidates].
            candidates: problem ids [any], which every learner of the call is asked about; only these are computed.

        Returns:
            A Prediction for a History, for a mapping the answers' tensors by name, without padding; lists of them for lists.
        """
        given = self.listed(history)
        deadline = self.deadline(deadline_s)
        interface = self._known(deadline)
        asked = Asked(probabilities, next_problems, candidates)
        call = self.call(interface, given, asked, answers, carried=self._memory is None)
        with contextlib.nullcontext() if self._memory is None else self._memory.call():
            result: Any = call.result([self._ask(request, interface, deadline) for request in call.requests])
        return result

    def interface(self) -> Interface:
        """What the model takes and answers; a client that has no spec asks the server, once.

        Raises:
            SpecError: the server's configuration does not say it.
        """
        return self._known(self.deadline(None))

    def status(self) -> Status:
        """Whether the server lives, and whether it and the model are ready.

        Example:
            client.status().model_ready
        """
        deadline, answers = self.deadline(None), dict[str, Any]()
        for method, message in self.questions(answers):
            answers[method] = self._call(method, message, self.retry(deadline))
        return Status.of(answers)

    def _known(self, deadline: float) -> Interface:
        if self._interface is None:
            self.learn(self._call("ModelConfig", self.question(), self.retry(deadline)))
        assert self._interface is not None
        return self._interface

    def _ask(self, request: Request, interface: Interface, deadline: float) -> dict[str, np.ndarray]:
        memory, retry = self._memory, self.retry(deadline, request)
        if memory is None:
            return self.arrays(interface, self._call("ModelInfer", request.message, retry), request)
        given = (request.message, request.values, request.shapes)
        answer = self._try(functools.partial(memory.infer, self._stub, *given, deadline), retry)
        return self.arrays(interface, answer, request, memory.read)

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
