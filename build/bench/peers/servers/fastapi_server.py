"""FastAPI under uvicorn, as its tutorial does it: a plain function, which FastAPI runs in its pool of threads.

It has no batching: concurrent requests run the core side by side, one history each.
"""

from typing import Annotated, Any

import uvicorn
from core import BYTES, LOOPBACK, Core, from_bytes, from_lists, parser, to_bytes
from fastapi import Body, FastAPI, Response
from pydantic import BaseModel, create_model
from sequence import SequenceCore


class Learner(BaseModel):
    """A history as JSON."""

    problem_ids: list[int]
    responses: list[int]


class Answer(BaseModel):
    """The answer as JSON."""

    probabilities: list[float]


def application(core: Core) -> FastAPI:
    """POST /predict in both encodings."""
    app = FastAPI()

    @app.post("/predict", response_model=Answer)
    def predict(learner: Annotated[Learner | bytes, Body(default_factory=bytes)]) -> Any:
        # FastAPI hands over a body as it came unless its Content-Type says JSON; an empty one is missing, to FastAPI.
        if isinstance(learner, bytes):
            return Response(to_bytes(core.answer([from_bytes(learner)])[0]), media_type=BYTES)
        history = from_lists(learner.problem_ids, learner.responses)
        return Answer(probabilities=core.answer([history])[0].tolist())

    return app


def sequence_application(core: SequenceCore) -> FastAPI:
    """The same, of any sequence model."""
    app = FastAPI()
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in core.answers.items()}
    answered = create_model("Answered", **fields)

    @app.post("/predict", response_model=answered)
    def predict(history: Annotated[dict[str, Any] | bytes, Body(default_factory=bytes)]) -> Any:
        if isinstance(history, bytes):
            return Response(core.to_bytes(core.answer(core.from_bytes(history))), media_type=BYTES)
        return answered(**core.to_lists(core.answer(core.from_lists(history))))

    return app


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    if given.sequence:
        app = sequence_application(SequenceCore(given.core, given.threads, given.sequence))
    else:
        app = application(Core(given.core, given.threads, given.window))
    uvicorn.run(app, host=LOOPBACK, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
