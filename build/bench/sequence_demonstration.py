"""The demonstration of any sequence model: histories go to a running tritonserver, and what comes back is held against the
model as its author asks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from build.bench import quality
from build.bench.demonstration import interleave
from build.bench.quality import apart
from build.core.inference import Inference
from build.core.parity import tolerance
from build.model.trial import Trial
from build.progress import answers, bar
from build.repository.workspace import Workspace
from build.server import Server
from ensemble.chain import answer
from ensemble.client import Client
from ensemble.errors import LastrowError
from ensemble.sample import draw
from ensemble.sequence import Sequence

SHOWN = 3  # numbers of an answer; of ids, all


@dataclass(frozen=True)
class Row:
    """What is shown of one history: its steps, what the first answer says, and times in milliseconds, p50 in turns.

    difference: the largest of all answers from the model's by itself, as a part of the largest number there.
    """

    name: str
    steps: int
    said: str
    difference: float
    served_ms: float
    local_ms: float


def drawn(spec: Sequence) -> dict[str, dict[str, np.ndarray]]:
    """Random histories of the declared values: the shortest, a quarter of the window, the whole, and beyond."""
    window = spec.model.window
    lengths = sorted({max(spec.shortest_history, 1), max(spec.shortest_history, window // 4), window, 2 * window})
    found = {}
    for number, length in enumerate(lengths):
        request = draw(spec.contract, [length], seed=number)
        kept = {name: value[0] for name, value in request.items() if name not in spec.contract.optional}
        found[f"random {number + 1}"] = kept
    return found


def demonstrate(
    workspace: Workspace,
    spec: Sequence,
    author: Inference,
    requests: Mapping[str, Mapping[str, np.ndarray]],
    trial: Trial | None = None,
) -> list[Row]:
    """Serve the workspace's repository, ask for every history, compare, print, stop the server.

    trial: what was held out of the training; where there is something, how well that is answered is printed too.

    Raises:
        LastrowError: the server did not start, or an answer is not the model's.
    """
    with ExitStack() as stack:
        with bar("start tritonserver") as update:
            server = stack.enter_context(Server(workspace.out, waiting=lambda: update(None, "")))
        client = stack.enter_context(Client(server.grpc_url, spec=spec))
        rows = []
        with bar("ask and compare") as update:
            for done, (name, request) in enumerate(requests.items()):
                update(done / len(requests), name)
                rows.append(measure(client, author, name, request))
        show(rows, spec, author)
        if trial is not None:
            with bar("ask for what was held out") as update:
                found = quality.measure(client, author, trial, update)
            quality.show(found)
    worst = max(row.difference for row in rows)
    key, allowed = tolerance(spec)
    if not worst <= allowed:
        raise LastrowError(
            f"a served answer is {worst:.1e} of the largest number off {author.name}; allowed is {allowed:.0e} ({key})"
        )
    return rows


def measure(client: Client, author: Inference, name: str, request: Mapping[str, np.ndarray]) -> Row:
    """One history's answers, their distance from the model's by itself, and both latencies, taken in turns."""
    spec = author.spec
    asked = {key: np.asarray(value)[None] for key, value in request.items()}
    wanted = [each for each in spec.answer if not each.at or each.at in asked]
    got = client.predict(dict(request), answers=[each.name for each in wanted])
    rows = author.rows(asked)
    worst = 0.0
    for each in wanted:
        of = rows[list(spec.outputs).index(each.of) if each.of else 0]
        if each.at:
            of = np.take_along_axis(of, asked[each.at].astype(np.int64), 1)
        made = spec.answers[spec.answer.index(each)]
        expected = answer(made.chain, of, asked)
        for tensor, array in zip(made.tensors, expected, strict=True):
            worst = max(worst, apart(got[tensor.name], array[0], of[0]))
    first = wanted[0]
    served_ms, local_ms = interleave(
        lambda: client.predict(dict(request), answers=[first.name]), lambda: author.rows(asked)
    )
    steps = len(next(iter(request.values())))
    return Row(name, steps, _said([got[tensor] for tensor in first.names]), worst, served_ms, local_ms)


def _said(tensors: Iterable[np.ndarray]) -> str:
    """Every id with its number, or the first numbers of another answer."""
    ids, *values = tensors
    if values:
        return ", ".join(f"{number} ({value:.3g})" for number, value in zip(ids, values[0], strict=True))
    flat = np.asarray(ids).reshape(-1)
    return ", ".join(f"{value:.3g}" for value in flat[:SHOWN]) + (", ..." if flat.size > SHOWN else "")


def show(rows: Iterable[Row], spec: Sequence, author: Inference) -> None:
    """Print the answers as a table on stdout."""
    table = Table(title=f"{spec.model.name}: answered by tritonserver over gRPC")
    table.add_column(spec.words.history)
    for column in (spec.words.steps, spec.answer[0].name, f"off {author.name}", "served", author.name, "ratio"):
        table.add_column(column, justify="left" if column == spec.answer[0].name else "right")
    for row in rows:
        table.add_row(
            row.name,
            str(row.steps),
            row.said,
            f"{row.difference:.1e}",
            f"{row.served_ms:.1f} ms",
            f"{row.local_ms:.1f} ms",
            f"{row.served_ms / row.local_ms:.2f}",
        )
    console = answers()
    console.print(table)
    console.print(
        f"p50 in turns on this machine. {author.name}: the model as it is, every row of its output, asked as its author "
        "asks it.",
        highlight=False,
    )
