"""The time that the pass predicts of a graph's cost beside the time that the graph takes: measured, fitted, told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from build.bench import origin
from build.core.reduce import Reduction
from build.core.reduce.cost import RATES, milliseconds
from build.core.reduce.shapes import run
from build.core.reduce.work import Work

ROUNDS, CALLS, TURN_S = 7, 15, 0.06  # calls of a turn at most, and seconds that it may go on beginning new ones


@dataclass(frozen=True)
class Subject:
    """A model and its cut.

    Attributes:
        full: with the one output that was reduced.
    """

    name: str
    full: ir.Model
    reduction: Reduction


def measure(subjects: Iterable[Subject], progress: Callable[[float, str], None] = lambda *_: None) -> dict[str, Any]:
    """A report: of every model, full and cut, what it does and the milliseconds that it takes.

    One thread, a history that fills the window. A turn's time is its fastest call by the thread's own clock, so that
    neighbours cost it nothing but cache; a model's the median of its turns, which go round all models.
    """
    found = origin.record()
    asked: list[tuple[ort.InferenceSession, dict[str, np.ndarray]]] = []
    models: list[dict[str, Any]] = []
    for each in subjects:
        reduction = each.reduction
        sizes = reduction.inputs.sizes(1, reduction.time)
        valid = np.full(1, sizes["time"])
        feeds = reduction.inputs.draw(sizes, valid, np.random.default_rng(0))
        index = str(reduction.model.graph.inputs[-1].name)
        feeds[index] = valid - (reduction.select == "row")
        for model, cost in ((each.full, reduction.before), (reduction.model, reduction.after)):
            session = _session(model)
            run(session, feeds, sizes)
            asked.append((session, {i.name: feeds[i.name] for i in session.get_inputs()}))
            models.append(
                {"name": each.name, "cut": model is reduction.model, "time": sizes["time"], **asdict(cost.work)}
            )
    turns: list[list[float]] = [[] for _ in asked]
    for number in range(ROUNDS):
        for turn, (session, feeds) in enumerate(asked):
            progress((number + turn / len(asked)) / ROUNDS, f"round {number + 1} of {ROUNDS}")
            typed = _typed(session, feeds)
            turns[turn].append(_fastest(session, typed))
    for told, times in zip(models, turns, strict=True):
        told["ms"] = round(statistics.median(times), 4)
    return {**found, "models": models}


def predicted(model: Mapping[str, Any]) -> float:
    """Milliseconds of a report's model by the rates of today.

    >>> predicted({"nodes": 2, **dict.fromkeys(("products", "softmaxes", "others", "scalars", "moved"), 0)}) > 0
    True
    """
    return milliseconds(work_of(model))


def work_of(model: Mapping[str, Any]) -> Work:
    """What a report's model does."""
    return Work(**{name: model[name] for name in RATES})


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, of ranks.

    >>> correlation([1, 2, 30], [4, 5, 6]), correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    ranks = [np.argsort(np.argsort(numbers, kind="stable")) for numbers in (one, other)]
    return round(float(np.corrcoef(ranks)[0, 1]), 6)


def fit(models: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rates with the smallest squares of relative errors, none below 0."""
    names = list(RATES)
    done = np.array([[model[name] / (1e6 * model["ms"]) for name in names] for model in models], float)
    scale = done.max(0, initial=1e-30)
    rates = np.ones(len(names))
    matrix, wanted = done / scale, np.ones(len(models))
    for _ in range(20_000):  # multiplicative updates: they stay positive
        rates *= (matrix.T @ wanted) / np.maximum(matrix.T @ (matrix @ rates), 1e-30)
    return dict(zip(names, (rates / scale).tolist(), strict=True))


def section(report: Mapping[str, Any]) -> str:
    """The report in Markdown, for the pass' README."""
    models = report["models"]
    times, foretold = [m["ms"] for m in models], [predicted(m) for m in models]
    off = [max(a / b, b / a) for a, b in zip(times, foretold, strict=True)]
    lines = [
        f"Rank correlation of the {len(models)} predicted times with the measured ones: {correlation(times, foretold):.3f}; "
        f"half of them are within {statistics.median(off) - 1:.0%}, nine of ten within a factor of "
        f"{sorted(off)[int(0.9 * len(off))]:.1f}. One thread, one history that fills the window. "
        f"{origin.sentence(dict(report))}.",
        "",
        "| model | rows | operations, full to cut | bytes moved | predicted ms | measured ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for full, cut in zip(models[::2], models[1::2], strict=True):
        done = work_of(full), work_of(cut)
        cells = (
            [short(w.operations) for w in done],
            [short(w.moved) for w in done],
            [f"{predicted(m):.2f}" for m in (full, cut)],
            [f"{m['ms']:.2f}" for m in (full, cut)],
        )
        lines.append(f"| {full['name']} | {full['time']} | {' | '.join(' to '.join(pair) for pair in cells)} |")
    return "\n".join([*lines, ""])


def short(number: float) -> str:
    """A count for a table.

    >>> short(544_100_000), short(12)
    ('544.10 M', '12')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def _typed(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    types = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    return {i.name: feeds[i.name].astype(types.get(i.type, feeds[i.name].dtype)) for i in session.get_inputs()}


def _fastest(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> float:
    """Milliseconds of the fastest call of a turn."""
    times: list[int] = []
    end = time.monotonic() + TURN_S
    while len(times) < 2 or (len(times) < CALLS and time.monotonic() < end):
        before = time.thread_time_ns()
        session.run(None, dict(feeds))
        times.append(time.thread_time_ns() - before)
    return min(times[1:]) / 1e6
