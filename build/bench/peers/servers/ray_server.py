"""Ray Serve: a proxy process hands requests to one replica, where @serve.batch makes batches of them.

A batch starts as soon as the last one is done, with what has arrived by then. With --direct, requests go to the replica
without the proxy, which Ray has for its throughput-optimized mode, behind HAProxy; HAProxy itself is left out here since
two of its ports listen on every address.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

# Read when Ray is imported. The first is Ray's name for: one machine, so every port on loopback.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from core import BYTES, LOOPBACK, Array, Core, History, parser
from ray import serve
from ray.serve._private import replica
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@serve.deployment
class Model:
    """POST /predict in both encodings."""

    def __init__(self, given: argparse.Namespace) -> None:
        # A replica has a gRPC server of its own, on every address, though none but the proxy beside it would ask it.
        listen = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _: listen(server, f"{LOOPBACK}:0")
        self._core = Core(given.about, given.threads)
        self.answer.set_max_batch_size(given.max_batch_size)

    @serve.batch(batch_wait_timeout_s=0)
    async def answer(self, histories: list[History]) -> list[list[Array]]:
        """All histories of a batch, on a thread: the event loop goes on taking requests."""
        return await asyncio.to_thread(self._core.answer, histories)

    async def __call__(self, request: Request) -> Response:
        """One history."""
        if request.headers["content-type"] == BYTES:
            answer = await self.answer(self._core.from_bytes(await request.body()))
            return Response(self._core.to_bytes(answer), media_type=BYTES)
        return JSONResponse(self._core.to_lists(await self.answer(self._core.from_lists(await request.json()))))


def main() -> None:
    """Serve until SIGTERM."""
    arguments = parser()
    arguments.add_argument("--direct", action="store_true", help="--port is the replica's own, not the proxy's")
    given = arguments.parse_args()
    given.about = str(Path(given.about).resolve())
    port = given.port
    if given.direct:
        port = _free_port()
        # The processes that Ray starts read these. A replica takes the range's first port, if none had it within a minute.
        os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(given.port)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(given.port + 1)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
    ray.init(include_dashboard=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        serve.start(http_options={"host": LOOPBACK, "port": port})
        # Ray hands a replica 5 requests at a time unless told otherwise, and no batch would be larger.
        app = Model.options(max_ongoing_requests=2 * given.max_batch_size).bind(given)
        serve.run(app, route_prefix="/predict", logging_config=LoggingConfig(enable_access_log=False))
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
