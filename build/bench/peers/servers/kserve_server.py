"""KServe's Python server: JSON over its V1 protocol, as its quick start does it, or raw tensors over gRPC (V2).

It has no batching: that is an agent's beside it, in Kubernetes. The quick start's `predict` is a plain function, which holds
up the event loop; for gRPC the core runs on a thread.
"""

import asyncio
from typing import Any

import grpc.aio._server
import uvicorn
from core import LOOPBACK, Core, parser
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Served(Model):
    """The core under the model's name."""

    def __init__(self, core: Core) -> None:
        super().__init__(core.name)
        self._core = core
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
        """POST /v1/models/NAME:predict takes any JSON object; ModelInfer takes tensors."""
        core = self._core
        if not isinstance(payload, InferRequest):
            return core.to_lists(core.answer([core.from_lists(payload)])[0])
        histories = core.from_batch({tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = []
        for name, values in core.to_batch(await asyncio.to_thread(core.answer, histories)).items():
            kind = {"float32": "FP32", "int32": "INT32"}[values.dtype.name]
            outputs.append(InferOutput(name, list(values.shape), kind))
            outputs[-1].set_data_from_numpy(values)
        return InferResponse(payload.id, core.name, outputs)


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    _listen_here_alone()
    over_grpc = given.encoding == "gRPC"
    ModelServer(
        http_port=0 if over_grpc else given.port,
        grpc_port=given.port,
        enable_grpc=over_grpc,
        enable_latency_logging=False,
    ).start([Served(Core(given.about, given.threads))])


def _listen_here_alone() -> None:
    """KServe has no setting for the addresses that it listens on, which are all of them."""
    configured, listen = uvicorn.Config, grpc.aio._server.Server.add_insecure_port
    uvicorn.Config = lambda *given, **options: configured(*given, **{**options, "host": LOOPBACK})
    grpc.aio._server.Server.add_insecure_port = lambda server, address: listen(
        server, f"{LOOPBACK}:{address.rpartition(':')[2]}"
    )


if __name__ == "__main__":
    main()
