"""How a peer is asked: learners in, each one's probabilities out."""

from __future__ import annotations

import http
import http.client
import json
from collections.abc import Sequence

import numpy as np
import tritonclient.grpc as grpcclient

from build.bench.caller import TIMEOUT_S
from build.bench.peers.peer import Encoding, PeerError
from build.server import LOOPBACK
from ensemble.learners.history import History


class HttpPeer:
    """A peer over HTTP, in the quick starts' JSON or with numbers as bytes."""

    def __init__(self, port: int, encoding: Encoding, path: str, problems: int) -> None:
        self._path = path
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
        self._json = encoding == "JSON"
        self._problems = problems

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        (history,) = histories
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

    def close(self) -> None:
        self._connection.close()

    def _post(self, body: bytes, kind: str) -> bytes:
        self._connection.request("POST", self._path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise PeerError(f"HTTP {response.status}: {content[:200].decode(errors='replace')}")
        return content


class PytritonPeer:
    """PyTriton's gRPC endpoint."""

    def __init__(self, port: int) -> None:
        self._client = grpcclient.InferenceServerClient(f"{LOOPBACK}:{port}")

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        (history,) = histories
        inputs = []
        for name, values in (("problem_ids", history.problem_ids), ("responses", history.responses)):
            inputs.append(grpcclient.InferInput(name, [1, len(values)], "INT32"))
            inputs[-1].set_data_from_numpy(values[None])
        return list(self._client.infer("knowledge_tracing", inputs).as_numpy("probabilities"))

    def close(self) -> None:
        self._client.close()
