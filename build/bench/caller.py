"""How a client asks: learners in, each one's probabilities out. A caller belongs to one thread."""

from __future__ import annotations

import http
import http.client
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import triton_to_np_dtype

from build.bench.variant import NAIVE
from build.core.parity import probabilities
from build.core.reduce.file import open_session
from ensemble.client import Client
from ensemble.errors import ServingError
from ensemble.learners.history import History, pad, windows
from ensemble.sample import random_request
from ensemble.spec import Spec
from ensemble.tables import CORE, Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"  # of Triton's HTTP protocol: where JSON ends and tensors begin
TIMEOUT_S = 120.0  # the naive rungs' queues are long


class Caller(Protocol):
    """A connection that answers learners."""

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        """FP32 [problems] for each of `histories`, in one request."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class EnsembleClient:
    """The project's own client, over gRPC or with tensors in shared memory."""

    def __init__(self, url: str, spec: Spec, shared_memory: bool = False) -> None:
        self._client = Client(url, spec=spec, deadline_s=TIMEOUT_S, shared_memory=shared_memory)

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        return [prediction.probabilities for prediction in self._client.predict(histories)]  # type: ignore[misc]

    def close(self) -> None:
        self._client.close()


class _Http:
    """Triton's HTTP protocol with binary tensors: tritonclient writes and reads the bodies.

    Its own transport is gevent's, whose connections belong to the thread that used them first.
    """

    def __init__(self, url: str, spec: Spec) -> None:
        self._connection = http.client.HTTPConnection(url, timeout=TIMEOUT_S)
        self._spec = spec

    def close(self) -> None:
        self._connection.close()

    def _infer(self, model: str, inputs: list[Any], wanted: Tensor) -> np.ndarray:
        outputs = [httpclient.InferRequestedOutput(wanted.name)]
        body, header_length = httpclient.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
        headers = {HEADER_LENGTH: str(header_length)}
        self._connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ServingError(content.decode(errors="replace"), str(response.status))
        length = int(response.headers[HEADER_LENGTH])
        parsed = httpclient.InferenceServerClient.parse_response_body(content, header_length=length)
        return parsed.as_numpy(wanted.name)


class EnsembleHttp(_Http):
    """The ensemble over HTTP."""

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        inputs = _inputs(httpclient, self._spec.requested, pad(histories))
        return list(self._infer(self._spec.model.name, inputs, self._spec.answered[0]))


class NaiveHttp(_Http):
    """The whole model over HTTP: windows are padded here, every row comes back, and the wanted one is taken here."""

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        *values, lengths = windows(histories, [self._spec.model.window])
        answer = self._infer(NAIVE, _inputs(httpclient, self._spec.windows[:-1], values), self._spec.core_output)
        rows = answer[np.arange(len(lengths)), lengths - 1]
        return list(1 / (1 + np.exp(-rows)))


class CoreClient:
    """The core alone over gRPC; its input is ready and its logits stay as they are."""

    def __init__(self, url: str, spec: Spec) -> None:
        self._client = grpcclient.InferenceServerClient(url)
        self._spec = spec

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        *values, lengths = windows(histories, self._spec.model.widths)
        inputs = _inputs(grpcclient, self._spec.windows, (*values, lengths[:, None]))
        output = self._spec.core_output.name
        wanted = [grpcclient.InferRequestedOutput(output)]
        return list(self._client.infer(CORE, inputs, outputs=wanted, client_timeout=TIMEOUT_S).as_numpy(output))

    def close(self) -> None:
        self._client.close()


def answers_of(core: Path, spec: Spec, histories: Sequence[History]) -> list[np.ndarray]:
    """What every rung and every peer has to answer: the core's probabilities in this process, FP32 [problems] each."""
    session = open_session(core)
    *values, lengths = windows(histories, [spec.model.window])
    feeds = {tensor.name: value for tensor, value in zip(spec.windows, (*values, lengths), strict=True)}
    taken = {entry.name for entry in session.get_inputs()}
    logits = session.run(None, {name: value for name, value in feeds.items() if name in taken})[0]
    if spec.reduce.where != "core":
        logits = logits[np.arange(len(lengths)), lengths - 1]
    return list(probabilities(logits))


def full_windows(spec: Spec, learners: int = 8) -> list[History]:
    """Learners with as many interactions as the window holds."""
    request = random_request(spec.contract.inputs, [spec.model.window] * learners)
    return [History(str(n), *pair) for n, pair in enumerate(zip(*request.values(), strict=True))]


def _inputs(client: Any, tensors: Sequence[Tensor], values: Sequence[np.ndarray]) -> list[Any]:
    inputs = []
    for tensor, value in zip(tensors, values, strict=True):
        inputs.append(client.InferInput(tensor.name, list(value.shape), tensor.dtype))
        inputs[-1].set_data_from_numpy(value.astype(triton_to_np_dtype(tensor.dtype), copy=False))
    return inputs
