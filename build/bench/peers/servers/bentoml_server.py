"""BentoML: a service that takes requests, and behind it one whose calls become batches.

A batchable API takes one list and nothing else. For a history's several lists the documentation on adaptive batching puts a
wrapper service before it; the two run in processes of their own. A route has one encoding, so bytes have a second route.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from core import BYTES, LOOPBACK, Core, parser
from pydantic import BaseModel


class Settings(BaseModel):
    """What `bentoml serve --arg` passes on to the processes that import this file."""

    about: str = ""
    threads: int = 0
    max_batch_size: int = 32


SETTINGS = bentoml.use_arguments(Settings)
QUIET = {"access": {"enabled": False}}
# By default the wrapper closes its connections after every 100 requests, under those that are still being answered.
LASTING = {"max_requests": 10**9, "max_age": 1e6}


@bentoml.service(logging=QUIET, runner_connection=LASTING)
class Batches:
    """The core; what arrives while it runs is its next batch."""

    def __init__(self) -> None:
        self._core = Core(SETTINGS.about, SETTINGS.threads)

    @bentoml.api(batchable=True, max_batch_size=SETTINGS.max_batch_size)
    def answer(self, histories: list[bytes]) -> list[bytes]:
        """As bytes in and out, which cost least between the processes."""
        return [self._core.to_bytes(each) for each in self._core.answer([self._core.from_bytes(h) for h in histories])]

    @bentoml.api(batchable=True, max_batch_size=SETTINGS.max_batch_size)
    def answer_lists(self, histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As JSON has them."""
        return [self._core.to_lists(each) for each in self._core.answer([self._core.from_lists(h) for h in histories])]


@bentoml.service(logging=QUIET)
class Model:
    """POST /predict with JSON, POST /predict_bytes with bytes."""

    batches = bentoml.depends(Batches)

    @bentoml.api
    async def predict(self, history: dict[str, Any], /) -> dict[str, Any]:
        """One history as JSON."""
        return (await self.batches.to_async.answer_lists([history]))[0]

    @bentoml.api
    async def predict_bytes(
        self, history: Annotated[bytes, ContentType(BYTES)], /
    ) -> Annotated[bytes, ContentType(BYTES)]:
        """One history as bytes."""
        return (await self.batches.to_async.answer([history]))[0]


def main() -> None:
    """Become `bentoml serve`."""
    given = parser().parse_args()
    options = {
        "about": Path(given.about).resolve(),
        "threads": given.threads,
        "max_batch_size": given.max_batch_size,
    }
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    command = [sys.executable, "-m", "bentoml", "serve", f"{Path(__file__).stem}:Model"]
    command += ["--working-dir", str(Path(__file__).parent), "--host", LOOPBACK, "--port", str(given.port)]
    command += [word for name, value in options.items() for word in ("--arg", f"{name}={value}")]
    os.execv(command[0], command)  # noqa: S606 (so that signals reach it)


if __name__ == "__main__":
    main()
