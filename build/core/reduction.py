"""The reduction of an ONNX file on disk: read, reduced, held against the full model, written, and told about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

import onnx_ir as ir
from rich.table import Table

from build import aside
from build.core.battery import HALF_TOLERANCE, TOLERANCE, Proof, prove
from build.core.reduce import Declared, Reduction, ReductionError, Select, reduce
from build.core.reduce.file import load, save
from build.progress import answers
from ensemble.errors import LastrowError

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class PassError(ReductionError):
    """The pass broke off at a model: a fault of this project's, not of the model."""


def reduce_file(
    path: Path,
    out: Path,
    select: str,
    time_axis: int = 1,
    output: str | Sequence[str] | None = None,
    window: int = 512,
    declared: Declared | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> tuple[Reduction, Proof]:
    """Write the reduced model to `out`, if it answers as the full one does.

    >>> from tempfile import TemporaryDirectory
    >>> from build.core.reduce.example import model
    >>> with TemporaryDirectory() as folder:
    ...     save(model("y = Tanh(x)"), Path(folder) / "full.onnx")
    ...     reduction, proof = reduce_file(Path(folder) / "full.onnx", Path(folder) / "row.onnx", "last")
    ...     sorted(file.name for file in Path(folder).iterdir())
    ['full.onnx', 'row.onnx']
    >>> reduction.rests, proof.difference
    (('x [batch, time, 2]: it is an input',), 0.0)

    Args:
        output: the name of the output that is reduced, or of several [default: the first].
        declared: what the inputs hold, where the model does not say.

    Returns:
        The reduction, and what was checked.

    Raises:
        ReductionError: the file cannot be read, reduced or written, an input has to be declared, or the models part.
    """
    if select not in get_args(Select):
        raise ReductionError(f"--select {select}: allowed are {', '.join(get_args(Select))}")
    full = load(path)
    names = [str(value.name) for value in full.graph.outputs]
    kind = cast(Select, select)
    try:
        reduction = reduce(full, select=kind, time_axis=time_axis, output=output, window=window, declared=declared)
    except LastrowError:
        raise
    except Exception as e:
        # Passes over graphs of every origin meet what nobody thought of; a user needs no traceback to report it.
        raise PassError(
            f"the reduction fails on {path} by a fault of its own ({type(e).__name__}: {str(e).partition(chr(10))[0]}). "
            "Nothing was written; please report it with the model"
        ) from e
    progress(0.5, "compare")
    try:
        with aside.beside(out) as folder:
            made = folder / out.name
            save(reduction.model, made)
            allowed = HALF_TOLERANCE if _half(full) else TOLERANCE
            proof = prove(path, made, reduction.inputs, output or names[:1], kind, time_axis, allowed, _part(progress))
            for file in folder.iterdir():
                file.replace(out.parent / file.name)
    except OSError as e:
        raise ReductionError(f"cannot write {out}: {e.strerror}") from e
    progress(1.0, f"largest difference {proof.difference:.1e}")
    return reduction, proof


def show(reduction: Reduction, proof: Proof, explain: bool) -> None:
    """Print what was gained, where the selection rests and why, and with `explain` the graph down to there."""
    console = answers()
    before, after = reduction.before, reduction.after
    table = Table(title=f"one history of {reduction.time} rows, select {reduction.select}")
    for column in ("", "full", "reduced", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    micros = [round(1000 * each.milliseconds) for each in (before, after)]
    for what, was, now in (
        ("floating-point operations", before.operations, after.operations),
        ("bytes read and written", before.moved_bytes, after.moved_bytes),
        ("bytes that leave the model", before.output_bytes, after.output_bytes),
        ("nodes", before.nodes, after.nodes),
        ("microseconds of one core, predicted", micros[0], micros[1]),
    ):
        table.add_row(what, f"{was:,}", f"{now:,}", f"{now / was:.4f}" if was else "")
    console.print(table)
    console.print("the selection rests at", highlight=False)
    for rest, worth in zip(reduction.rests, reduction.worths, strict=True):
        console.print(f"  {rest}", highlight=False, soft_wrap=True, markup=False)
        if explain and worth:
            console.print(f"    {_saving(worth, after.milliseconds)}", highlight=False, soft_wrap=True, markup=False)
    if reduction.trimmed:
        console.print("and columns that no history of a batch has are cut off the inputs", highlight=False)
    if explain:
        console.print(f"\n{reduction.tail}\n", highlight=False, soft_wrap=True, markup=False)
    for line in proof.lines():
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _saving(worth: float, whole: float) -> str:
    """What a rest is worth, of what the reduced model takes.

    >>> _saving(0.3, 0.6)
    'were its row enough: about 0.30 of 0.60 ms less (50%)'
    """
    return f"were its row enough: about {worth:.2f} of {whole:.2f} ms less ({min(1.0, worth / whole):.0%})"


def _half(model: ir.Model) -> bool:
    """Whether it computes in 16 bits anywhere."""
    made = [*model.graph.initializers.values(), *model.graph.inputs]
    casts = [node.attributes.get_int("to", 0) for node in model.graph.all_nodes() if node.op_type == "Cast"]
    return any(value.dtype in _HALVES for value in made) or any(to in _HALVES for to in casts)


def _part(progress: Callable[[float, str], None]) -> Callable[[float, str], None]:
    """The second half of a progress bar."""
    return lambda share, what: progress(0.5 + share / 2, what)
