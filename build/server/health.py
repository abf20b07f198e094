"""The supervisor's health port: whether this server is one to send requests to, for balancers and orchestrators.

An orderly stop refuses what comes after it, and until the health says so everybody keeps coming. So it says so first, and
the refusing begins later. Triton's own readiness cannot: it is true until the server is gone.
"""

from __future__ import annotations

import http
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from build.server.ports import family, not_free

SERVING, BROKEN, STOPPING = http.HTTPStatus.OK, http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.NOT_FOUND
SAID = {
    SERVING: "server, model and every step are alive",
    BROKEN: "the server starts, or something of it is broken",
    STOPPING: "the server is stopping: what is sent is still answered for a moment, send it elsewhere",
}
OPTION = "health-port"
SILENT_S = 10.0  # a caller who says nothing for so long is let go of


class Health:
    """An HTTP endpoint of its own while a `with` block runs: 200 serving, 503 starting or broken, 404 stopping, on any path.

    404 is what HAProxy's `http-check disable-on-404` takes for "finish what you have, and get nothing new".

    Args:
        port: 0: whichever is free, then told by `port`.
        answers: asked at every 200, from another thread: whether the server answers for the model just now.

    Example:
        with Health("127.0.0.1", 8003, lambda: True) as health:
            health.status = SERVING

    Raises:
        ServerError: the port is taken.
    """

    def __init__(self, address: str, port: int, answers: Callable[[], bool]) -> None:
        self.status = BROKEN

        class Server(ThreadingHTTPServer):
            address_family = family(address)
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A caller that is gone before it has its answer is no event."""

        class Asked(BaseHTTPRequestHandler):
            timeout = SILENT_S

            def do_GET(asked) -> None:
                status = self.status
                if status == SERVING and not answers():
                    status = self.status if self.status == STOPPING else BROKEN  # a stop came while it was asked
                content = f"{SAID[status]}\n".encode()
                asked.send_response(status)
                asked.send_header("Content-Type", "text/plain; charset=utf-8")
                asked.send_header("Content-Length", str(len(content)))
                asked.end_headers()
                if asked.command != "HEAD":
                    asked.wfile.write(content)

            do_HEAD = do_OPTIONS = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                """A balancer asks every second or so: no line each."""

        try:
            self._server = Server((address, port), Asked)
        except OSError as e:
            raise not_free(e, address, port, OPTION) from e
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Health:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
