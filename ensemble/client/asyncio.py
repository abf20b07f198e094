"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ensemble.client.protocol import DEFAULT_URL, Prediction, Protocol, Request, Status, Tls
from ensemble.history import History
from ensemble.spec import Spec


class AsyncClient(Protocol):
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
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(url, self._limits)
        else:
            self._channel = grpc.aio.secure_channel(url, self._credentials, self._limits)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
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
        limit, name = self.deadline_s, self.spec.model.name
        try:
            live = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=limit)
            ready = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=limit)
            model = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=limit)
            server = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=limit)
            versions: Sequence[str] = ()
            if model.ready:
                asked = service_pb2.ModelMetadataRequest(name=name)
                versions = (await self._stub.ModelMetadata(asked, timeout=limit)).versions
        except grpc.RpcError as e:
            self.fail(e)
        return Status(live.live, ready.ready, model.ready, server.version, tuple(versions))

    async def _infer(self, request: Request, deadline: float) -> Any:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._stub.ModelInfer(request.message, timeout=max(deadline - time.monotonic(), 1e-3))
            except grpc.RpcError as e:
                await asyncio.sleep(self.retry_after(e, tries, deadline, request))
