"""How a peer is asked: a question in, its answer out."""

from __future__ import annotations

import http
import http.client
import json
from collections.abc import Mapping, Sequence

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import triton_to_np_dtype

from build.bench import reply
from build.bench.peers.peer import Encoding, PeerError
from build.bench.transport import TIMEOUT_S
from build.server import LOOPBACK
from ensemble.learners.history import History
from ensemble.sequence import Sequence as SequenceSpec


class _Http:
    """A peer over HTTP, in the quick starts' JSON or with numbers as bytes."""

    def __init__(self, port: int, encoding: Encoding, path: str) -> None:
        self._path = path
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
        self._json = encoding == "JSON"

    def close(self) -> None:
        self._connection.close()

    def _post(self, body: bytes, kind: str) -> bytes:
        self._connection.request("POST", self._path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise PeerError(f"HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content


class HttpPeer(_Http):
    """Knowledge tracing's: a learner in, the probabilities out."""

    def __init__(self, port: int, encoding: Encoding, path: str, problems: int) -> None:
        super().__init__(port, encoding, path)
        self._problems = problems

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        (history,) = questions
        if self._json:
            table = {"problem_ids": history.problem_ids.tolist(), "responses": history.responses.tolist()}
            content = self._post(json.dumps(table).encode(), "application/json")
            answer = np.array(json.loads(content)["probabilities"], np.float32)
        else:
            body = np.stack([history.problem_ids, history.responses]).tobytes()
            answer = np.frombuffer(self._post(body, "application/octet-stream"), np.float32)
        if answer.shape != (self._problems,):
            raise PeerError(f"it answered {answer.shape} and not {self._problems} probabilities")
        return [answer]


class SequencePeer(_Http):
    """Any sequence model's: what `servers/sequence.py` reads and writes."""

    def __init__(self, port: int, encoding: Encoding, path: str, spec: SequenceSpec) -> None:
        super().__init__(port, encoding, path)
        self._names = [tensor.name for tensor in spec.requested]
        self._types = {tensor.name: triton_to_np_dtype(tensor.dtype) for tensor in spec.requested}
        self._answers = reply.whole(spec).tensors
        self._shapes = [tuple(spec.dims(tensor)) for tensor in self._answers]

    def ask(self, questions: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        (asked,) = questions
        if self._json:
            body = json.dumps({name: value.tolist() for name, value in asked.items()}).encode()
            found = json.loads(self._post(body, "application/json"))
            tensors = [np.array(found[tensor.name], triton_to_np_dtype(tensor.dtype)) for tensor in self._answers]
        else:
            sizes = [-1 if name not in asked else len(np.atleast_1d(asked[name])) for name in self._names]
            values = [asked[name].astype(self._types[name], copy=False) for name in self._names if name in asked]
            body = b"".join((np.array(sizes, "<i4").tobytes(), *(value.tobytes() for value in values)))
            content, tensors = self._post(body, "application/octet-stream"), []
            for tensor, shape in zip(self._answers, self._shapes, strict=True):
                value = np.frombuffer(content, triton_to_np_dtype(tensor.dtype), int(np.prod(shape)))
                content = content[value.nbytes :]
                tensors.append(value.reshape(shape))
        return reply.joined([tensor[None] for tensor in tensors])


class PytritonPeer:
    """PyTriton's gRPC endpoint."""

    def __init__(self, port: int) -> None:
        self._client = grpcclient.InferenceServerClient(f"{LOOPBACK}:{port}")

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        (history,) = questions
        inputs = []
        for name, values in (("problem_ids", history.problem_ids), ("responses", history.responses)):
            inputs.append(grpcclient.InferInput(name, [1, len(values)], "INT32"))
            inputs[-1].set_data_from_numpy(values[None])
        return list(self._client.infer("knowledge_tracing", inputs).as_numpy("probabilities"))

    def close(self) -> None:
        self._client.close()
