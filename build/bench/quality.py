"""What a served model is worth on what was held out of its training, beside itself unserved and something simpler."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from build.core.inference import Inference
from build.core.parity import tolerance
from build.model.trial import Trial, Worth
from build.progress import answers
from ensemble.client import Client
from ensemble.errors import LastrowError

DEADLINE_S = 120.0  # a call of max_batch_size histories
DIGITS = 4


@dataclass(frozen=True)
class Quality:
    """scores: by who answered.

    same: served answers that are the model's own, id by id; None where an answer has no ids. largest_difference: of what was
    served from the model's, as a part of its largest number.
    """

    model: str
    title: str
    requests: int
    scores: Mapping[str, Worth]
    same: int | None
    largest_difference: float

    def save(self, path: Path) -> Path:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def measure(
    client: Client, author: Inference, trial: Trial, progress: Callable[[float, str], None] = lambda *_: None
) -> Quality:
    """Ask the server and the model by itself for everything that was held out.

    Raises:
        LastrowError: what is served is not what the model answers by itself.
    """
    spec = author.spec
    made = next(each for each in spec.answer if each.name == trial.answer)
    output = list(spec.outputs).index(made.of) if made.of else 0
    served, local = _served(client, trial, made.names[0], progress), []
    worst, same = 0.0, 0
    for number, request in enumerate(trial.requests):
        progress(0.5 + 0.5 * number / len(trial.requests), author.name)
        (row,) = author.rows({name: np.asarray(value)[None] for name, value in request.items()})[output]
        local.append(trial.answered(number, row))
        worst = max(worst, apart(served[number], local[number], row))
        same += np.array_equal(served[number], local[number])
    key, allowed = tolerance(spec)
    if not worst <= allowed:
        raise LastrowError(
            f"what is served of {spec.model.name} is up to {worst:.1e} of the largest number off {author.name}; allowed is "
            f"{allowed:.0e} ({key})"
        )
    scores = {
        f"{spec.model.name}, served": trial.worth(served),
        f"{spec.model.name}, {author.name}": trial.worth(local),
        **trial.baselines,
    }
    ids = local[0].dtype.kind == "i"
    return Quality(spec.model.name, trial.title, len(trial.requests), scores, same if ids else None, worst)


def apart(got: np.ndarray, expected: np.ndarray, row: np.ndarray) -> float:
    """How far two tensors are apart, as a part of the largest number; ids, by the numbers that the row has there.

    Two ids whose numbers are the same to within rounding may so stand in either order.

    >>> row = np.array([0.1, 4.0, 2.0])
    >>> apart(np.array([1, 2]), np.array([1, 2, -1]), row), apart(np.array([2, 1]), np.array([1, 2]), row)
    (0.0, 0.5)
    """
    if expected.dtype.kind == "i":
        kept = expected[expected >= 0]
        if len(got) != len(kept):
            return float("inf")
        got, expected = row[got], row[kept]
    elif got.shape != expected.shape:
        got, expected = got.reshape(-1), expected.reshape(-1)[: got.size]
    return float(np.abs(got - expected).max(initial=0.0) / max(float(np.abs(expected).max(initial=0.0)), 1e-6))


def show(quality: Quality) -> None:
    """Print the scores as a table on stdout."""
    table = Table()
    table.add_column("")
    names = list(next(iter(quality.scores.values())))
    for name in names:
        table.add_column(name, justify="right")
    for who, worth in quality.scores.items():
        table.add_row(who, *(f"{worth[name]:.{DIGITS}f}" for name in names))
    console = answers()
    console.print(f"{quality.model}: {quality.title}", highlight=False)
    console.print(table)
    ids = (
        ""
        if quality.same is None
        else f"{quality.same:,} of {quality.requests:,} have the same ids in the same order; "
    )
    console.print(
        f"served, and by the model itself: {ids}apart by at most {quality.largest_difference:.1e} of the largest number",
        highlight=False,
    )


def _served(client: Client, trial: Trial, tensor: str, progress: Callable[[float, str], None]) -> list[np.ndarray]:
    """The judged tensor of every request; histories of like length are asked together."""
    size = client.interface().max_batch_size
    order = sorted(range(len(trial.requests)), key=lambda n: len(next(iter(trial.requests[n].values()))))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), size):
        progress(0.5 * start / len(order), "tritonserver")
        part = order[start : start + size]
        given = client.predict([trial.requests[n] for n in part], answers=[trial.answer], deadline_s=DEADLINE_S)
        found.update(zip(part, (each[tensor] for each in given), strict=True))
    return [found[number] for number in range(len(order))]
