"""LitServe: an API process hands requests to one inference worker, which takes what is queued as a batch."""

import signal
from argparse import Namespace
from collections.abc import Sequence
from typing import Annotated, Any

import litserve as ls
from core import BYTES, LOOPBACK, Array, Core, History, parser
from fastapi import Body, Response

# LitServe waits this long for every batch that is not full. At 0, its default, it polls without a pause while idle.
BATCH_TIMEOUT_S = 0.001


class Model(ls.LitAPI):
    """POST /predict in both encodings."""

    def __init__(self, given: Namespace) -> None:
        super().__init__(max_batch_size=given.max_batch_size, batch_timeout=BATCH_TIMEOUT_S)
        self._given = given

    def setup(self, device: str) -> None:  # noqa: ARG002
        """In the worker, before it takes requests."""
        self._core = Core(self._given.about, self._given.threads)

    def decode_request(self, request: Annotated[dict[str, Any] | bytes, Body()], context: dict[str, Any]) -> History:
        """One history, and how its sender wants the answer."""
        context["bytes"] = isinstance(request, bytes)
        return self._core.from_bytes(request) if isinstance(request, bytes) else self._core.from_lists(request)

    def batch(self, inputs: list[History]) -> list[History]:
        """As they are: LitServe would stack them, and they are not of one length."""
        return inputs

    def predict(self, histories: Sequence[History]) -> list[list[Array]]:
        """All histories of a batch."""
        return self._core.answer(histories)

    def unbatch(self, output: list[list[Array]]) -> list[list[Array]]:
        """As they are."""
        return output

    def encode_response(self, output: list[Array], context: dict[str, Any]) -> Any:
        """In the encoding of the request; LitServe passes a Response on as it is."""
        if context["bytes"]:
            return Response(self._core.to_bytes(output), media_type=BYTES)
        return self._core.to_lists(output)


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    # On Ctrl-C LitServe ends its processes; SIGTERM would leave them behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = ls.LitServer(Model(given), accelerator="cpu")
    server.run(host=LOOPBACK, port=given.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
