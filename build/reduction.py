"""The reduction of an ONNX file on disk: read, reduced, held against the full model, written, and told about."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnxruntime as ort
from rich.table import Table

from build.progress import answers
from build.reduce import Reduction, ReductionError, Select, reduce
from build.reduce.shapes import load, open_session, save

SIZES = ((1, 1), (2, 5), (3, 16), (4, 33))  # batch and time that the two models are compared at, where they are dynamic
TOLERANCE = 1e-4  # of the largest value in the answer: sums of other shape round in other places


def reduce_file(
    path: Path,
    out: Path,
    select: str,
    time_axis: int = 1,
    output: str | None = None,
    window: int = 512,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> tuple[Reduction, float]:
    """Write the reduced model to `out`, if it answers as the full one does.

    Returns:
        The reduction, and the largest difference from selecting in the full model's answer.

    Raises:
        ReductionError: the file cannot be read, reduced or written, or the reduced model answers differently.
    """
    if select not in get_args(Select):
        raise ReductionError(f"--select {select}: allowed are {', '.join(get_args(Select))}")
    full = load(path)
    names = [str(value.name) for value in full.graph.outputs]
    reduction = reduce(full, select=cast(Select, select), time_axis=time_axis, output=output, window=window)
    progress(0.5, "compare")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".lastrow-") as folder:
            aside = Path(folder) / out.name
            save(reduction.model, aside)
            difference = compare(path, aside, output or names[0], select, time_axis, window)
            for file in Path(folder).iterdir():
                file.replace(out.parent / file.name)
    except OSError as e:
        raise ReductionError(f"cannot write {out}: {e.strerror}") from e
    progress(1.0, f"largest difference {difference:.1e}")
    return reduction, difference


def compare(full: Path, reduced: Path, output: str, select: str, time_axis: int, window: int = 512) -> float:
    """The largest difference of the reduced model from selecting in the full model's answer, relative to the largest value.

    Raises:
        ReductionError: it is more than rounding.
    """
    whole, row = open_session(full), open_session(reduced)
    rng = np.random.default_rng(0)
    index = next(i for i in row.get_inputs() if i.name not in {i.name for i in whole.get_inputs()}).name
    worst = 0.0
    for batch, time in ((batch, min(time, window)) for batch, time in SIZES):
        feeds = {i.name: _random(i, batch, time, time_axis, rng) for i in whole.get_inputs()}
        try:
            answer = np.moveaxis(whole.run([output], feeds)[0], time_axis, 1)
        except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
            raise ReductionError(
                f"the model does not run at batch {batch} and time {time}: {str(e).splitlines()[0]}. If it takes no more "
                "rows than some number, give that as --window"
            ) from e
        lengths = rng.integers(1, answer.shape[1] + 1, answer.shape[0], dtype=np.int32)
        wanted = np.stack([_selected(rows, length, select) for rows, length in zip(answer, lengths, strict=True)])
        types = {i.name: np.int32 for i in row.get_inputs() if i.type == "tensor(int32)"}
        narrowed = {name: value.astype(types.get(name, value.dtype)) for name, value in feeds.items()}
        used = {i.name for i in row.get_inputs()}
        narrowed = {name: value for name, value in narrowed.items() if name in used}
        got = row.run(None, {**narrowed, index: lengths - 1 if select == "row" else lengths})[0]
        difference = float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6))
        worst = max(worst, difference)
        if got.shape != wanted.shape or not difference <= TOLERANCE:  # a NaN fails too
            raise ReductionError(
                f"the reduced model parts from the full one by {difference:.1e} of the largest value (batch {batch}, time "
                f"{time}); allowed is {TOLERANCE:.0e}. Nothing was written; please report the model"
            )
    return worst


def show(reduction: Reduction, difference: float, explain: bool) -> None:
    """Print what was gained, where the selection rests and why, and with `explain` the graph down to there."""
    console = answers()
    before, after = reduction.before, reduction.after
    table = Table(title=f"one learner of {reduction.time} rows, select {reduction.select}")
    for column in ("", "full", "reduced", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for what, was, now in (
        ("floating-point operations", before.operations, after.operations),
        ("bytes that leave the model", before.output_bytes, after.output_bytes),
        ("nodes", before.nodes, after.nodes),
    ):
        table.add_row(what, f"{was:,}", f"{now:,}", f"{now / was:.4f}" if was else "")
    console.print(table)
    console.print("the selection rests at", highlight=False)
    for rest in reduction.rests:
        console.print(f"  {rest}", highlight=False, soft_wrap=True, markup=False)
    if reduction.trimmed:
        console.print("and columns that no learner of a batch has are cut off the inputs", highlight=False)
    if explain:
        console.print(f"\n{reduction.tail}\n", highlight=False, soft_wrap=True, markup=False)
    console.print(f"largest difference from the full model: {difference:.1e} of the largest value", highlight=False)


def _selected(rows: np.ndarray, length: int, select: str) -> np.ndarray:
    valid = rows[:length]
    return valid.mean(0) if select == "mean" else valid.max(0) if select == "max" else valid[-1]


def _random(tensor: ort.NodeArg, batch: int, time: int, time_axis: int, rng: np.random.Generator) -> np.ndarray:
    """A random input. Of integers 0 and 1: they are indices as a rule, and every table has these."""
    named = {1 - time_axis: batch, time_axis: time}
    sizes = [axis if isinstance(axis, int) else named.get(number, 1) for number, axis in enumerate(tensor.shape)]
    if tensor.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
        kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
        return rng.standard_normal(sizes).astype(kinds[tensor.type])
    values = rng.integers(0, 2, sizes)
    return values.astype(bool if tensor.type == "tensor(bool)" else tensor.type.removeprefix("tensor(").rstrip(")"))
