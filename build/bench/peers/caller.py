"""How a peer is asked: a question in, its answer out."""

from __future__ import annotations

import http
import http.client
import json
from collections.abc import Sequence

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from build.bench import question, reply
from build.bench.peers.peer import Encoding, PeerError
from build.bench.question import Question
from build.bench.transport import TIMEOUT_S, Grpc
from build.server import LOOPBACK
from ensemble.spec import Spec


class HttpPeer:
    """A peer over HTTP, in the quick starts' JSON or with numbers as bytes: what `servers/core.py` reads and writes."""

    def __init__(self, port: int, encoding: Encoding, path: str, spec: Spec) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
        self._path, self._json, self._spec = path, encoding == "JSON", spec
        self._types = {tensor.name: triton_to_np_dtype(tensor.dtype) for tensor in spec.requested}
        self._answers = reply.whole(spec).tensors

    def ask(self, questions: Sequence[Question]) -> list[np.ndarray]:
        (one,) = questions
        asked = {name: value[0] for name, value in question.together(self._spec, [one]).items()}
        tensors = self._as_json(asked) if self._json else self._as_bytes(asked)
        for tensor, value in zip(self._answers, tensors, strict=True):
            if value.shape != (wanted := tuple(self._spec.dims(tensor))):
                raise PeerError(f"it answered {tensor.name} of shape {value.shape} and not {wanted}")
        return reply.joined([tensor[None] for tensor in tensors])

    def close(self) -> None:
        self._connection.close()

    def _as_json(self, asked: dict[str, np.ndarray]) -> list[np.ndarray]:
        body = json.dumps({name: value.tolist() for name, value in asked.items()}).encode()
        found = json.loads(self._post(body, "application/json"))
        return [np.array(found[tensor.name], triton_to_np_dtype(tensor.dtype)) for tensor in self._answers]

    def _as_bytes(self, asked: dict[str, np.ndarray]) -> list[np.ndarray]:
        sizes = [-1 if name not in asked else len(np.atleast_1d(asked[name])) for name in self._types]
        values = [asked[name].astype(kind, copy=False) for name, kind in self._types.items() if name in asked]
        body = b"".join((np.array(sizes, "<i4").tobytes(), *(value.tobytes() for value in values)))
        content, tensors = self._post(body, "application/octet-stream"), []
        for tensor in self._answers:
            shape, kind = tuple(self._spec.dims(tensor)), triton_to_np_dtype(tensor.dtype)
            part = content[: int(np.prod(shape)) * np.dtype(kind).itemsize]
            content = content[len(part) :]
            tensors.append(_read(part, kind, shape))
        if content:
            raise PeerError(f"it answered {len(content)} bytes more than {len(self._answers)} tensors have")
        return tensors

    def _post(self, body: bytes, kind: str) -> bytes:
        self._connection.request("POST", self._path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise PeerError(f"HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content


def _read(content: bytes, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.frombuffer(content, kind).reshape(shape)
    except ValueError as e:
        raise PeerError(f"it answered {len(content)} bytes where a tensor of shape {shape} was expected") from e


class GrpcPeer:
    """A peer with Triton's own gRPC protocol."""

    def __init__(self, port: int, spec: Spec) -> None:
        self._transport, self._spec = Grpc(f"{LOOPBACK}:{port}"), spec
        self._answers = reply.whole(spec).tensors

    def ask(self, questions: Sequence[Question]) -> list[np.ndarray]:
        inputs = question.on_the_wire(self._spec.requested, question.together(self._spec, questions))
        return reply.joined(self._transport.infer(self._spec.model.name, inputs, self._answers))

    def close(self) -> None:
        self._transport.close()
