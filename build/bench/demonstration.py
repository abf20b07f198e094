"""The demonstration: learners' histories go to a running tritonserver, and what comes back is held against PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from build.core.parity import probabilities, tolerance
from build.model.network import Network
from build.progress import answers, bar
from build.repository.workspace import Workspace
from build.server import Server
from ensemble.client import Client, Prediction
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.learners.history import History
from ensemble.spec import Spec

ROUNDS = 5  # PyTorch and Triton take turns, so that a slow moment of the machine hits both
CALLS = 8  # calls a turn


@dataclass(frozen=True)
class Row:
    """What the demonstration shows of one learner: times in milliseconds, p50 of ROUNDS x CALLS calls."""

    history: History
    prediction: Prediction
    difference: float
    served_ms: float
    local_ms: float


def pick(histories: list[History], window: int) -> list[History]:
    """A cold start, and learners of short, median, long, window-filling and longer histories."""
    by_length = sorted(histories, key=lambda h: len(h))
    lengths = np.array([len(h) for h in by_length])
    wanted = sorted({5, int(np.median(lengths)), 100, window, int(lengths[-1])})
    longest = by_length[-1]
    picked = [History("cold start", np.zeros(0, np.int32), np.zeros(0, np.int32))]
    for length in wanted:
        nearest = by_length[int(np.abs(lengths - length).argmin())]
        if length == window and len(longest) > window:
            nearest = History(longest.learner, longest.problem_ids[:window], longest.responses[:window])
        if all(len(nearest) != len(p) for p in picked):
            picked.append(nearest)
    return picked


def demonstrate(workspace: Workspace, model: Network, histories: list[History]) -> list[Row]:
    """Serve the workspace's repository, ask for every history, compare with the model, print, stop the server.

    Raises:
        LastrowError: the server did not start, or an answer is not PyTorch's.
    """
    with ExitStack() as stack:
        with bar("start tritonserver") as update:
            server = stack.enter_context(Server(workspace.out, waiting=lambda: update(None, "")))
        client = stack.enter_context(Client(server.grpc_url, spec=workspace.spec))
        rows = []
        with bar("ask and compare") as update:
            for done, history in enumerate(histories):
                update(done / len(histories), f"{len(history)} interactions")
                rows.append(measure(client, model, history, workspace.spec))
    show(rows, narrowed(workspace.spec))
    worst = max(row.difference for row in rows)
    key, allowed = tolerance(workspace.spec)
    if not worst <= allowed:
        raise LastrowError(f"a served answer is {worst:.1e} off PyTorch's; allowed is {allowed:.0e} ({key})")
    return rows


def measure(client: Client, model: Network, history: History, spec: Spec) -> Row:
    """One learner's answer, its distance from PyTorch's, and both latencies, taken in turns."""
    recent = [torch.from_numpy(x[-spec.model.window :])[None] for x in (history.problem_ids, history.responses)]
    prediction = client.predict(history, next_problems=True)
    if not len(history):
        # No row in the full forward: the head on the LSTM's zero state, which the model's own cut knows.
        nothing = torch.zeros(1, 1, dtype=torch.int32)

        def local() -> torch.Tensor:
            return model.last(nothing, nothing, torch.zeros(1, dtype=torch.int32))
    else:

        def local() -> torch.Tensor:
            return model(*recent)[:, -1]

    with torch.inference_mode():
        expected = local()[0]
        served_ms, local_ms = interleave(lambda: client.predict(history), local)
    assert prediction.probabilities is not None
    difference = float(np.abs(prediction.probabilities - probabilities(expected.numpy())).max())
    return Row(history, prediction, difference, served_ms, local_ms)


def interleave(*calls: Callable[[], object]) -> list[float]:
    """The p50 of each call in milliseconds. They take turns, and the first call of a turn, still cold, does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            call()
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                taken.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(taken)) for taken in times]


def show(rows: Iterable[Row], spec: KnowledgeTracing) -> None:
    """Print the answers as a table on stdout."""
    table = Table(title=f"{spec.model.name}: {spec.model.problems:,} problems, answered by tritonserver over gRPC")
    table.add_column("learner")
    table.add_column("history", justify="right")
    table.add_column(f"next problems (P nearest to {spec.next_problems.target_success_rate})")
    table.add_column("off PyTorch", justify="right")
    table.add_column("served", justify="right")
    table.add_column("PyTorch", justify="right")
    table.add_column("ratio", justify="right")
    for row in rows:
        ids, chances = row.prediction.next_problem_ids, row.prediction.next_problem_probabilities
        assert ids is not None
        assert chances is not None
        table.add_row(
            row.history.learner,
            str(len(row.history)),
            ", ".join(f"{i} ({p:.3f})" for i, p in zip(ids[:3], chances[:3], strict=True)),
            f"{row.difference:.1e}",
            f"{row.served_ms:.1f} ms",
            f"{row.local_ms:.1f} ms",
            f"{row.served_ms / row.local_ms:.2f}",
        )
    console = answers()
    console.print(table)
    console.print(
        f"p50 in turns on this machine. PyTorch: the model as it is, every row of its output (of at most the "
        f"{spec.model.window} most recent interactions); for the cold start, its head alone.",
        highlight=False,
    )
