"""FastAPI under uvicorn, as its tutorial does it: a plain function, which FastAPI runs in its pool of threads.

It has no batching: concurrent requests run the core side by side, one history each.
"""

from typing import Annotated, Any

import uvicorn
from core import BYTES, LOOPBACK, Core, parser
from fastapi import Body, FastAPI, Response
from pydantic import create_model


def application(core: Core) -> FastAPI:
    """POST /predict in both encodings."""
    app = FastAPI()
    answered = create_model("Answered", **{name: (kind, ...) for name, kind in core.fields.items()})

    @app.post("/predict", response_model=answered)
    def predict(history: Annotated[dict[str, Any] | bytes, Body()]) -> Any:
        # FastAPI hands over a body as it came unless its Content-Type says JSON.
        if isinstance(history, bytes):
            return Response(core.to_bytes(core.answer([core.from_bytes(history)])[0]), media_type=BYTES)
        return answered(**core.to_lists(core.answer([core.from_lists(history)])[0]))

    return app


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    uvicorn.run(application(Core(given.about, given.threads)), host=LOOPBACK, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
