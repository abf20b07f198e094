"""What a model's inputs hold, and random feeds of any size.

A file says nothing of values. What an input may hold is found from what the model does with it (the rows of the tables
that it looks up, the positions that it compares a length with), and what cannot be found has to be declared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from build.core.reduce import axes as sized
from build.core.reduce import readers
from build.core.reduce.axes import BATCH, TIME
from build.core.reduce.declared import Declared
from build.core.reduce.file import open_session, save
from build.core.reduce.layout import ReductionError

Array = np.ndarray
Role = Literal["values", "length", "row", "mask"]

_SPECIAL = 0.25  # of drawn numbers: the ends of the range, and what the graph compares with
_PROBED = (2, 3)  # batch, and every other axis, at which it is tried which integers a model takes


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        axes: of each axis the name of its size ("batch", "time", another one), or the size itself where it is fixed.
        role: whether it holds values, how many rows are valid, the number of the wanted row, or a mask of the valid rows.
        low, high: what values lie between, both included; None where nothing bounds them.
        special: numbers that the graph compares it with.
        known: where all this is known from, in words; empty where it is not known.

    >>> ids = Input("ids", np.dtype(np.int64), ("batch", "time"), low=0, high=9, known="it looks up 10 rows")
    >>> print(ids)
    ids [batch, time]: 0 to 9 (it looks up 10 rows)
    >>> ids.draw({"batch": 2, "time": 3}, np.array([3, 1]), np.random.default_rng(0)).shape
    (2, 3)
    """

    name: str
    dtype: np.dtype
    axes: tuple[str | int, ...]
    role: Role = "values"
    low: float | None = None
    high: float | None = None
    special: tuple[float, ...] = ()
    known: str = ""

    def __str__(self) -> str:
        roles = {"length": "the number of valid rows", "row": "the wanted row", "mask": "1 at valid rows, else 0"}
        bounds = "of any size" if self.low is None or self.high is None else f"{self.low:g} to {self.high:g}"
        axes = ", ".join(map(str, self.axes))
        return f"{self.name} [{axes}]: {roles.get(self.role, bounds)} ({self.known or 'not known'})"

    def draw(self, sizes: Mapping[str, int], lengths: Array, rng: np.random.Generator, scale: float = 1.0) -> Array:
        """Random values; see `Inputs.draw`."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        if self.role == "values":
            return self._values(shape, rng, scale)
        if self.role == "mask":
            told, axes = np.arange(sizes[TIME]) < lengths[:, None], [BATCH, TIME]
        else:
            told, axes = lengths - (self.role == "row"), [BATCH]
        # An axis that the input has not, or not as a name, is one of size 1.
        told = told[tuple(slice(None) if axis in self.axes else 0 for axis in axes)]
        order = [axis for axis in axes if axis in self.axes]
        told = told.transpose([order.index(axis) for axis in self.axes if axis in order])
        wide = [size if axis in order else 1 for axis, size in zip(self.axes, shape, strict=True)]
        return np.broadcast_to(told.reshape(wide), shape).astype(self.dtype)

    def _values(self, shape: list[int], rng: np.random.Generator, scale: float) -> Array:
        low, high = (-np.inf, np.inf) if self.low is None or self.high is None else (self.low, self.high)
        if low > -np.inf:
            drawn = (
                rng.uniform(low, high, shape)
                if self.dtype.kind == "f"
                else rng.integers(int(low), int(high) + 1, shape)
            )
        else:
            drawn = scale * rng.standard_normal(shape) if self.dtype.kind == "f" else rng.integers(0, 2, shape)
        marks = [mark + step for mark in self.special for step in (-1, 0, 1) if low <= mark + step <= high]
        marks += [low, high] if low > -np.inf else []
        if marks and (low > -np.inf or self.dtype.kind == "f"):
            drawn = np.where(rng.random(shape) < _SPECIAL, rng.choice(marks, shape), drawn)
        return np.asarray(drawn).astype(self.dtype)


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model.

    Attributes:
        every: axes of one name have one size.
        fixed: sizes of "batch" and "time" where the file fixes them.
        window: rows that the model takes at most.
    """

    every: tuple[Input, ...]
    fixed: Mapping[str, int]
    window: int

    @classmethod
    def find(
        cls,
        model: ir.Model,
        output: str,
        time_axis: int,
        window: int,
        declared: Declared | None = None,
        labels: Sequence[str | None] = (),
        own: bool = False,
    ) -> Inputs:
        """Find out what the inputs are by looking at the graph and running it.

        >>> from build.core.reduce.example import model
        >>> full = model("y = Gather(table, ids)", "int64[batch, time] ids", "float[3, 1] table = {1, 2, 3}")
        >>> print(*Inputs.find(full, "y", time_axis=1, window=512).every)
        ids [batch, time]: 0 to 2 (it looks up 3 rows)

        Args:
            output: the output that is meant, and its axis of time.
            window: rows that the model takes at most.
            labels: what the file calls the axes of the output, as far as it does.
            own: whether the output has batch as axis 0 and no time, whose axis is then the inputs'.

        Raises:
            ReductionError: a declared input is not there, an input has no shape, or the model does not run.
        """
        declared = declared or Declared()
        declared.check(model)
        with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
            save(model, Path(folder) / "model.onnx")
            try:
                session = open_session(Path(folder) / "model.onnx", optimised=False)
            except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
                raise ReductionError(f"ONNX Runtime does not load the model: {str(e).splitlines()[0]}") from e
            lowest = {name: low for name, (low, _) in declared.ranges.items()}
            axes, fixed = sized.find(model, session, output, labels, time_axis, window, lowest, own)
            every = [_read(value, axes[str(value.name)], declared) for value in model.graph.inputs]
            found = _numbered(session, output, cls(tuple(every), fixed, window))
            return replace(found, every=_indices(model, session, output, found))

    @property
    def unknown(self) -> list[Input]:
        """Inputs of which nothing says what they hold."""
        return [each for each in self.every if not each.known]

    @property
    def others(self) -> list[str]:
        """Names of the axes that are neither batch nor time."""
        return sorted({axis for each in self.every for axis in each.axes if isinstance(axis, str)} - {BATCH, TIME})

    def sizes(self, batch: int, time: int, others: Sequence[int] = ()) -> dict[str, int]:
        """By name the size of every axis; batch and time as they are fixed, if they are.

        >>> states = Input("states", np.dtype(np.float32), ("batch", "steps"))
        >>> Inputs((states,), {}, window=512).sizes(batch=2, time=3, others=[7])
        {'steps': 7, 'batch': 2, 'time': 3}
        """
        named = dict(zip(self.others, others, strict=False))
        return {**dict.fromkeys(self.others, time), **named, BATCH: batch, TIME: time, **self.fixed}

    def narrowed(self) -> Inputs:
        """The lower half of every range: what is reckoned of the largest value is another one then.

        >>> Inputs((Input("ids", np.dtype(int), (BATCH, TIME), low=0, high=10),), {}, 64).narrowed().every[0].high
        5
        """
        every = tuple(
            each
            if each.low is None or each.high is None or each.high - each.low < 2
            else replace(each, high=each.low + (each.high - each.low) // 2)
            for each in self.every
        )
        return replace(self, every=every)

    def draw(
        self, sizes: Mapping[str, int], lengths: Array, rng: np.random.Generator, scale: float = 1.0
    ) -> dict[str, Array]:
        """Random feeds, by name.

        >>> n = Input("n", np.dtype(np.int64), ("batch",), role="length")
        >>> Inputs((n,), {}, window=512).draw({"batch": 2, "time": 3}, np.array([3, 1]), np.random.default_rng(0))
        {'n': array([3, 1])}

        Args:
            sizes: as `sizes` gives them.
            lengths: [batch], the valid rows of every history.
            scale: of floating-point values that nothing bounds.
        """
        return {each.name: each.draw(sizes, lengths, rng, scale) for each in self.every}


def _read(value: ir.Value, axes: tuple[str | int, ...], declared: Declared) -> Input:
    """What is known of an input from what is declared and from the graph alone."""
    name, dtype = str(value.name), np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
    read = Input(name, dtype, axes, special=readers.special(value))
    if name in declared.ranges:
        low, high = declared.ranges[name]
        return replace(read, low=low, high=high, known="declared")
    for role, those in (("length", declared.lengths), ("mask", declared.masks)):
        if name in those:
            if BATCH not in axes or (role == "mask" and TIME not in axes):
                raise ReductionError(
                    f"input {name!r} [{', '.join(map(str, axes))}] is no {role}: it lacks an axis for that"
                )
            return replace(read, role=role, known="declared")  # type: ignore[arg-type]
    if dtype == np.bool_:
        return replace(read, low=0, high=1, known="boolean")
    counts = TIME not in axes and BATCH in axes and all(axis in (BATCH, 1) for axis in axes)
    if counts and (how := readers.counted(value, dtype.kind != "f")):
        return replace(read, role="length", known=how)
    if dtype.kind == "f":
        return replace(read, known="floating point")
    if readers.asked_whether_zero(value):
        return replace(read, low=0, high=1, known="it is only asked whether it is 0")
    return read


def _numbered(session: ort.InferenceSession, output: str, inputs: Inputs) -> Inputs:
    """Of what picks rows, and is not declared, the number of a row, from 0, where the number of all rows is none."""
    sizes = inputs.sizes(_PROBED[0], min(_PROBED[1], inputs.window))

    def takes(tried: Inputs) -> bool:
        lengths = np.full(sizes[BATCH], sizes[TIME])
        try:
            session.run([output], tried.draw(sizes, lengths, np.random.default_rng(0)))
        except Exception:  # whatever it is: the number is not taken
            return False
        return True

    for number, each in enumerate(inputs.every):
        if each.role == "length" and each.known != "declared":
            every = (*inputs.every[:number], replace(each, role="row"), *inputs.every[number + 1 :])
            if not takes(inputs) and takes(replace(inputs, every=every)):
                inputs = replace(inputs, every=every)
    return inputs


def _indices(model: ir.Model, session: ort.InferenceSession, output: str, inputs: Inputs) -> tuple[Input, ...]:
    """The inputs, with the range of those that are looked up: the largest numbers that the model takes, all at once."""
    tables = {
        each.name: readers.tables(value)
        for each, value in zip(inputs.every, model.graph.inputs, strict=True)
        if not each.known
    }
    tables = {name: sizes for name, sizes in tables.items() if sizes}
    sizes = inputs.sizes(_PROBED[0], min(_PROBED[1], inputs.window))
    lengths = np.full(sizes[BATCH], sizes[TIME])
    feeds = inputs.draw(sizes, lengths, np.random.default_rng(0))

    def takes(highest: Mapping[str, int]) -> bool:
        tried = {name: np.full_like(feeds[name], highest.get(name, 0)) for name in tables}
        try:
            session.run([output], {**feeds, **tried})
        except Exception:  # whatever it is: the number is not taken
            return False
        return True

    alone = {name: _largest(takes, {}, name, 2 * max(those)) for name, those in tables.items()}
    # Two inputs may share a table (a response moves a problem's number): who takes fewer numbers keeps them.
    highest: dict[str, int] = {}
    together = takes(alone)
    for name, number in sorted(alone.items(), key=lambda item: item[1]):
        highest[name] = number if together else _largest(takes, highest, name, number)
    return tuple(
        replace(each, low=0, high=highest[each.name], known=f"it looks up {min(tables[each.name])} rows")
        if each.name in highest
        else each
        for each in inputs.every
    )


def _largest(takes: Callable[[Mapping[str, int]], bool], others: Mapping[str, int], name: str, high: int) -> int:
    """The largest number up to `high` that an input takes beside the others', if all below are taken; 0 is, as is known."""
    if takes({**others, name: high}):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes({**others, name: middle}) else (low, middle)
    return low
