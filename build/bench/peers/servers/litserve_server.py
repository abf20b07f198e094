"""LitServe: an API process hands requests to one inference worker, which takes what is queued as a batch."""

import signal
from argparse import Namespace
from collections.abc import Sequence
from typing import Annotated, Any

import litserve as ls
import numpy as np
from core import BYTES, LOOPBACK, Core, History, from_bytes, from_lists, parser, to_bytes
from fastapi import Body, Response
from numpy.typing import NDArray
from pydantic import BaseModel

# LitServe waits this long for every batch that is not full. At 0, its default, it polls without a pause while idle.
BATCH_TIMEOUT_S = 0.001


class Answer(BaseModel):
    """The answer as JSON."""

    probabilities: list[float]


class KnowledgeTracing(ls.LitAPI):
    """POST /predict in both encodings."""

    def __init__(self, given: Namespace) -> None:
        super().__init__(max_batch_size=given.max_batch_size, batch_timeout=BATCH_TIMEOUT_S)
        self._given = given

    def setup(self, device: str) -> None:  # noqa: ARG002
        """In the worker, before it takes requests."""
        self._core = Core(self._given.core, self._given.threads, self._given.window)

    def decode_request(
        self, request: Annotated[dict[str, list[int]] | bytes, Body(default_factory=bytes)], context: dict[str, Any]
    ) -> History:
        """One history, and how its learner wants the answer."""
        context["bytes"] = isinstance(request, bytes)
        if isinstance(request, bytes):
            return from_bytes(request)
        return from_lists(request["problem_ids"], request["responses"])

    def batch(self, inputs: list[History]) -> list[History]:
        """As they are: LitServe would stack them, and they are not of one length."""
        return inputs

    def predict(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """All histories of a batch in one run."""
        return self._core.answer(histories)

    def encode_response(self, output: NDArray[np.float32], context: dict[str, Any]) -> Answer:
        """In the encoding of the request; LitServe passes a Response on as it is."""
        if context["bytes"]:
            return Response(to_bytes(output), media_type=BYTES)  # type: ignore[return-value]
        return Answer(probabilities=output.tolist())


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    # On Ctrl-C LitServe ends its processes; SIGTERM would leave them behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = ls.LitServer(KnowledgeTracing(given), accelerator="cpu")
    server.run(host=LOOPBACK, port=given.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
