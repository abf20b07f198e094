"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import grpc
import numpy.typing as npt
from tritonclient.grpc import service_pb2_grpc

from ensemble.client.channel import DEFAULT_URL, Tls
from ensemble.client.knowledge_tracing import Asked, Prediction, Wanted
from ensemble.client.protocol import Answers, Chosen, Given, Protocol, Status
from ensemble.client.retry import Retry, check_open
from ensemble.interface import Interface
from ensemble.learners.history import History
from ensemble.spec import Spec

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncClient(Protocol):
    """The asyncio client: as Client, with awaits; the requests for very many learners are under way at once.

    It may be made anywhere and used in several event loops, one after the other or at once: each has a channel of its
    own, made with its first call. When one request fails, or the caller is cancelled, the call's other requests are too.

    Example:
        async with AsyncClient("127.0.0.1:8001") as client:
            answers = await client.predict(histories)
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
    ) -> None:
        super().__init__(url, spec, model, deadline_s, retries, tls)
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels. Calls that other tasks have under way, or are about to try again, end with an error."""
        self._closed.set()
        here = asyncio.get_running_loop()
        for loop in list(self._connections):
            connection = self._connections.pop(loop)
            if loop is here:
                await connection.close()
            else:
                with contextlib.suppress(RuntimeError):  # that loop is closed; so is the channel once it is let go of
                    loop.call_soon_threadsafe(_close, loop, connection)

    @overload
    async def predict(self, history: History, **wanted: Unpack[Wanted]) -> Prediction: ...
    @overload
    async def predict(self, history: Iterable[History], **wanted: Unpack[Wanted]) -> list[Prediction]: ...
    @overload
    async def predict(self, history: Given, **wanted: Unpack[Chosen]) -> Answers: ...
    @overload
    async def predict(self, history: Iterable[Given], **wanted: Unpack[Chosen]) -> list[Answers]: ...
    async def predict(
        self,
        history: History | Given | Iterable[History] | Iterable[Given],
        *,
        answers: str | Sequence[str] | None = None,
        probabilities: bool | None = None,
        next_problems: bool = False,
        candidates: npt.ArrayLike | None = None,
        deadline_s: float | None = None,
    ) -> Prediction | Answers | list[Prediction] | list[Answers]:
        """As Client.predict."""
        given = self.listed(history)
        deadline = self.deadline(deadline_s)
        interface = await self._known(deadline)
        call = self.call(interface, given, Asked(probabilities, next_problems, candidates), answers)
        requests = list(call.requests)
        calls = [asyncio.ensure_future(self._call("ModelInfer", r.message, self.retry(deadline, r))) for r in requests]
        try:
            replies = await asyncio.gather(*calls)
        finally:
            for each in calls:
                each.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        result: Any = call.result([self.arrays(interface, *pair) for pair in zip(replies, requests, strict=True)])
        return result

    async def interface(self) -> Interface:
        """As Client.interface."""
        return await self._known(self.deadline(None))

    async def status(self) -> Status:
        """As Client.status."""
        deadline, answers = self.deadline(None), dict[str, Any]()
        for method, message in self.questions(answers):
            answers[method] = await self._call(method, message, self.retry(deadline))
        return Status.of(answers)

    async def _known(self, deadline: float) -> Interface:
        if self._interface is None:
            self.learn(await self._call("ModelConfig", self.question(), self.retry(deadline)))
        assert self._interface is not None
        return self._interface

    async def _call(self, method: str, message: Any, retry: Retry) -> Any:
        while True:
            retry.begin()
            connection = self._connection()
            try:
                return await getattr(connection.stub, method)(message, timeout=retry.timeout)
            except asyncio.CancelledError as e:
                if not _cancelled():  # the channel's doing: it cancels its calls when it is closed
                    check_open(self.url, self._closed, e)
                raise
            except Exception as e:  # gRPC has no common class for what it raises when its channel is closed
                wait = retry.after(e)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.closed.wait(), wait)

    def _connection(self) -> _Connection:
        """This event loop's: a channel of asyncio belongs to the loop that it was made in."""
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            for other in [other for other in list(self._connections) if other.is_closed()]:
                self._connections.pop(other, None)
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(self.url, self._limits)
            else:
                channel = grpc.aio.secure_channel(self.url, self._credentials, self._limits)
            self._connections[loop] = _Connection(channel)
        return self._connections[loop]


class _Connection:
    """A channel of one event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.closed = asyncio.Event()
        self._channel = channel

    async def close(self) -> None:
        """End its calls, and the waits before the next tries."""
        self.closed.set()
        await self._channel.close()


def _close(loop: asyncio.AbstractEventLoop, connection: _Connection) -> None:
    loop.create_task(connection.close())


def _cancelled() -> bool:
    """Whether somebody cancels the running task. Python 3.10 does not tell."""
    return getattr(asyncio.current_task(), "cancelling", int)() > 0
