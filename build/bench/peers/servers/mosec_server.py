"""Mosec: a server in Rust hands batches to a worker process; how a worker reads and writes is two methods of its own.

JSON is the quick start's. As bytes, a batch that is not full waits for 1 ms and not for the 10 that are the default.
"""

import os
from collections.abc import Sequence
from typing import Any

from core import BYTES, LOOPBACK, Core, parser
from mosec import Server, Worker

SHORT_WAIT_MS = 1


class JsonWorker(Worker):
    """The core, from and to JSON. Mosec starts it in a process of its own, with the arguments of this one."""

    def __init__(self) -> None:
        super().__init__()
        given = parser().parse_args()
        self._core = Core(given.about, given.threads)

    def forward(self, data: Any) -> Any:
        """All histories of a batch; where batches are of one, Mosec hands over that one alone."""
        if isinstance(data, Sequence) and not isinstance(data, bytes):
            return self.answered(data)
        return self.answered([data])[0]

    def answered(self, bodies: Sequence[Any]) -> list[Any]:
        """Of each body its answer."""
        return [self._core.to_lists(each) for each in self._core.answer([self._core.from_lists(b) for b in bodies])]


class BytesWorker(JsonWorker):
    """The same, from and to bytes."""

    resp_mime_type = BYTES

    def deserialize(self, data: bytes) -> bytes:
        """As they came."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """As they are."""
        return data

    def answered(self, bodies: Sequence[Any]) -> list[Any]:
        """Of each body its answer."""
        return [self._core.to_bytes(each) for each in self._core.answer([self._core.from_bytes(b) for b in bodies])]


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()  # of these Mosec reads the port
    os.environ["MOSEC_ADDRESS"] = LOOPBACK
    server, size = Server(), given.max_batch_size
    if given.encoding == "bytes":
        server.append_worker(BytesWorker, max_batch_size=size, max_wait_time=SHORT_WAIT_MS, route="/predict")
    else:
        server.append_worker(JsonWorker, max_batch_size=size, route="/predict")
    server.run()


if __name__ == "__main__":
    main()
