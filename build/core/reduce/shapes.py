"""Every tensor's shape as the model runs, at a handful of batch sizes, lengths and values.

Shape inference gives up at what exporters write (shapes computed at run time, exporter-private operators), and an axis
named in a file may be named wrongly. Running the model tells the truth for any operator that ONNX Runtime knows.

A few small runs say how a size follows from batch and time. Others say whether it does: with other values at the same
sizes, for a size may depend on what the inputs hold, and with the whole window, for it may follow time so far only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from build.core.reduce.axes import BATCH, TIME
from build.core.reduce.file import open_session, save
from build.core.reduce.inputs import Inputs
from build.core.reduce.layout import ReductionError

Dim = tuple[int, ...]  # one axis' size in each of the runs

# Distinct primes: a product of sizes tells which axes went into it. The fifth run checks what the others suggest, and the
# last two have the sizes of earlier ones, with other values.
RUNS = ((2, 13), (3, 13), (2, 17), (3, 17), (5, 23), (2, 13), (3, 17))
SHORT_RUNS = ((2, 3), (7, 3), (2, 5), (7, 5), (11, 6), (2, 3), (7, 5))  # for models that take no more rows than that
_OTHERS = (11, 7, 19, 5, 17, 23, 3, 13, 29, 2)  # sizes of further axes: they follow neither batch nor time
_FEW = 16  # numbers in a tensor that may be a shape
_SINGLE = 8  # bytes of one INT64


class Shapes:
    """Shapes of a model's tensors as functions of batch and time.

    Attributes:
        batch, time: the two sizes in each run.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = Concat<axis = 2>(x, x)")
    >>> y, shapes = full.graph.outputs[0], shapes_of(full)
    >>> shapes.of(y)[1] == shapes.time
    True
    >>> shapes.coefficients(shapes.of(y)[2])
    (4, 0, 0, 0)
    >>> shapes.at(y, batch=1, time=512)
    (1, 512, 4)
    """

    def __init__(self, model: ir.Model, inputs: Inputs, full: bool = False) -> None:
        """Run the model.

        Args:
            inputs: what it is fed with.
            full: whether all histories are as long as time: what is a history's length, is then a number of rows.

        Raises:
            ReductionError: the model does not run.
        """
        self._values: dict[ir.Value, tuple[Dim, ...]] = {}
        self._timeless: set[ir.Value] = set()
        self._numbers: dict[ir.Value, Dim] = {}
        near, far = _runs(inputs)
        self.batch: Dim = tuple(batch for batch, _ in near + far)
        self.time: Dim = tuple(time for _, time in near + far)
        self._basis = _basis(self.batch, self.time)
        self._coefficients: dict[Dim, tuple[int, int, int, int] | None] = {}
        rng = np.random.default_rng(0)
        sizes: list[dict[str, int]] = []
        found: list[dict[str, tuple[int, ...]]] = []
        contents: list[dict[str, bytes]] = []
        with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
            session, names = _observed(model, Path(folder) / "model.onnx", None)
            dtypes: dict[str, ir.DataType] = {}
            for number, (batch, time) in enumerate(near + far):
                if number == len(near):  # a whole window of every tensor would be much to keep
                    del session
                    session, names = _observed(model, Path(folder) / "sizes.onnx", found[0])
                axes = inputs.sizes(batch, time, _others(inputs, number))
                lengths = np.full(batch, time) if full else rng.integers(1, time + 1, batch)
                # The largest value of many is the same in nearly every draw, and so is a size that follows from it.
                feeds = (inputs.narrowed() if number == len(near) - 1 else inputs).draw(axes, lengths, rng)
                outputs = run(session, feeds, axes) if number < len(near) else run_far(session, inputs, feeds, axes)
                sizes.append(axes)
                if number >= len(near):
                    found.append({n: tuple(o.tolist()) for n, o in zip(names, outputs, strict=True)})
                    continue
                tensors = {n: o for n, o in zip(names, outputs, strict=True) if isinstance(o, np.ndarray)}
                found.append({name: tensor.shape for name, tensor in tensors.items()})
                contents.append({name: tensor.tobytes() for name, tensor in tensors.items() if tensor.size <= _FEW})
                dtypes |= {name: ir.DataType.from_numpy(tensor.dtype) for name, tensor in tensors.items()}
        for value in _values(model):
            if value.dtype is None and value.name in dtypes:
                value.dtype = dtypes[value.name]
            if value.name in found[0]:
                if len({len(shape[value.name]) for shape in found}) == 1:
                    self._values[value] = tuple(zip(*(shape[value.name] for shape in found), strict=True))
            elif value.const_value is not None:
                self._values[value] = _constant_shape(value.const_value, len(found))
            # The runs 0 and 2, and 1 and 3, differ in time alone.
            pairs = ((contents[0], contents[2]), (contents[1], contents[3]))
            if all(value.name in a and a[value.name] == b.get(value.name) for a, b in pairs):
                self._timeless.add(value)
            single = [c.get(value.name or "", b"") for c in contents]
            if value.dtype == ir.DataType.INT64 and all(len(c) == _SINGLE for c in single):
                self._numbers[value] = tuple(int(np.frombuffer(c, np.int64)[0]) for c in single)
        by_name = {each.name: each for each in inputs.every}
        for value in model.graph.inputs:
            self._values[value] = tuple(
                tuple(axis if isinstance(axis, int) else named[axis] for named in sizes)
                for axis in by_name[str(value.name)].axes
            )

    def of(self, value: ir.Value) -> tuple[Dim, ...]:
        """The tensor's axes.

        Raises:
            ReductionError: its rank is not the same in every run.
        """
        if value not in self._values and value.const_value is not None:
            self._values[value] = _constant_shape(value.const_value, len(self.batch))
        if value not in self._values:
            raise ReductionError(f"the shape of {value.name!r} is not known")
        return self._values[value]

    def known(self, value: ir.Value) -> bool:
        """Whether `of` has an answer."""
        return value in self._values or value.const_value is not None

    def timeless(self, value: ir.Value) -> bool:
        """Whether it is a few numbers that are the same however many rows there are."""
        return value in self._timeless or value.const_value is not None

    def number(self, value: ir.Value) -> Dim | None:
        """What an INT64 of one number holds, as a size that is the same in the small runs; None where it is none of a size.

        >>> from build.core.reduce.example import model, shapes_of
        >>> full = model("n = Shape<start = 1, end = 2>(x)  f = Cast<to = 1>(n)  y = Mul(x, f)")
        >>> shapes = shapes_of(full)
        >>> shapes.number(full.graph[0].outputs[0]) == shapes.time
        True
        """
        held = self._numbers.get(value)
        sizes = (self.batch, self.time)
        return next((size for size in sizes if held is not None and size[: len(held)] == held), None)

    def set(self, value: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Record a new tensor's shape."""
        self._values[value] = dims

    def coefficients(self, dim: Dim) -> tuple[int, int, int, int] | None:
        """(a, b, c, d) with dim = a + b batch + c time + d batch time in every run; None where there are no such."""
        if dim not in self._coefficients:
            self._coefficients[dim] = self._solved(dim)
        return self._coefficients[dim]

    def _solved(self, dim: Dim) -> tuple[int, int, int, int] | None:
        basis, columns = self._basis
        solution = np.rint(np.linalg.lstsq(basis, np.array(dim, float), rcond=None)[0]).astype(int)
        if (basis.astype(int) @ solution != np.array(dim)).any():
            return None
        whole = [0, 0, 0, 0]
        for column, number in zip(columns, solution.tolist(), strict=True):
            whole[column] = number
        return whole[0], whole[1], whole[2], whole[3]

    def at(self, value: ir.Value, batch: int, time: int) -> tuple[int, ...]:
        """The shape at any batch and time; axes that follow no simple rule stay as in the largest run."""
        sizes = []
        for dim in self.of(value):
            c = self.coefficients(dim)
            sizes.append(c[0] + c[1] * batch + c[2] * time + c[3] * batch * time if c else dim[-1])
        return tuple(sizes)


def fixed(dim: Dim) -> bool:
    """Whether the axis has one size in every run.

    >>> fixed((64, 64, 64)), fixed((13, 17, 23))
    (True, False)
    """
    return len(set(dim)) == 1


def one(dim: Dim) -> bool:
    """Whether the axis broadcasts.

    >>> one((1, 1, 1)), one((1, 2, 3))
    (True, False)
    """
    return set(dim) == {1}


def times(a: Dim, b: Dim) -> Dim:
    """The size of two axes merged.

    >>> times((2, 3, 5), (13, 13, 17))
    (26, 39, 85)
    """
    return tuple(x * y for x, y in zip(a, b, strict=True))


def spell(dims: Sequence[Dim], shapes: Shapes) -> str:
    """A shape for people: [batch, time, 64].

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = Concat<axis = 2>(x, x)")
    >>> shapes = shapes_of(full)
    >>> spell(shapes.of(full.graph.outputs[0]), shapes)
    '[batch, time, 4]'
    """
    return "[" + ", ".join(_spelled(dim, shapes) for dim in dims) + "]"


def _spelled(dim: Dim, shapes: Shapes) -> str:
    numbers = shapes.coefficients(dim)
    if numbers is None:
        return "?"
    names = ("", "batch", "time", "batch x time")
    parts = [
        (f"{n} x {name}" if n != 1 else name) if name else str(n)
        for n, name in zip(reversed(numbers), reversed(names), strict=True)
        if n
    ]
    return " + ".join(parts) or "0"


def _constant_shape(tensor: ir.TensorProtocol, runs: int) -> tuple[Dim, ...]:
    return tuple((int(size),) * runs for size in tensor.shape.numpy())


def _basis(batch: Dim, time: Dim) -> tuple[np.ndarray, list[int]]:
    columns = {0: np.ones(len(batch)), 1: np.array(batch, float), 2: np.array(time, float)}
    columns[3] = columns[1] * columns[2]
    kept = [0, *([1] if not fixed(batch) else []), *([2] if not fixed(time) else [])]
    if not fixed(batch) and not fixed(time):
        kept.append(3)
    return np.stack([columns[c] for c in kept], axis=1), kept


def _runs(inputs: Inputs) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Batch and time of the small runs, and of the ones that they are held against."""
    window = inputs.window
    near = RUNS if window >= max(time for _, time in RUNS) else SHORT_RUNS
    far = ((3, window // 2 | 1), (2, window - 1), (1, window))
    given = [
        [(inputs.fixed.get(BATCH, b), inputs.fixed.get(TIME, min(t, window))) for b, t in runs] for runs in (near, far)
    ]
    return given[0], [(batch, time) for batch, time in given[1] if 0 < time <= window]


def run(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """What the session answers to those of the feeds that it takes, as the types that it takes.

    >>> from build.core.reduce.example import model
    >>> session = ort.InferenceSession(ir.to_proto(model("y = Neg(x)")).SerializeToString())
    >>> run(session, {"x": np.ones((1, 1, 2)), "lengths": np.ones(1)}, {"batch": 1, "time": 1})
    [array([[[-1., -1.]]], dtype=float32)]

    Raises:
        ReductionError: it does not run, at what sizes and why.
    """
    types = {value.name: _numpy(value.type) for value in session.get_inputs()}
    try:
        return session.run(None, {name: value.astype(types[name]) for name, value in feeds.items() if name in types})
    except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ReductionError(f"the model does not run at {told}: {str(e).splitlines()[0]}") from e


def run_far(
    session: ort.InferenceSession, inputs: Inputs, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> list[np.ndarray]:
    """As `run`, where fewer rows are known to be taken: the refusal says how many are.

    >>> from build.core.reduce.example import model
    >>> from build.core.reduce.inputs import Input
    >>> positions = "float[3, 1] positions = {1, 2, 3}, int64[1] zero = {0}"
    >>> full = model("t = Shape<start = 1, end = 2>(x)  p = Slice(positions, zero, t)  y = Add(x, p)", weights=positions)
    >>> session = ort.InferenceSession(ir.to_proto(full).SerializeToString())
    >>> inputs = Inputs((Input("x", np.dtype(np.float32), ("batch", "time", 2)),), {}, window=8)
    >>> run_far(session, inputs, {"x": np.ones((1, 8, 2))}, inputs.sizes(batch=1, time=8))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.ReductionError: the model does not run at ... It takes histories of up to 3 rows: give ...

    Raises:
        ReductionError: it does not run.
    """
    try:
        return run(session, feeds, sizes)
    except ReductionError as e:
        rng, failing = np.random.default_rng(0), sizes[TIME]
        taken = 1
        while TIME not in inputs.fixed and failing - taken > 1:
            time = (taken + failing) // 2
            try:
                run(session, inputs.draw({**sizes, TIME: time}, np.full(sizes[BATCH], time), rng), sizes)
                taken = time
            except ReductionError:
                failing = time
        if taken == 1:
            raise
        raise ReductionError(
            f"{e}. It takes histories of up to {taken} rows: give that as the window (--window {taken})"
        ) from e


def _numpy(kind: str) -> np.dtype:
    """The numpy type of ONNX Runtime's "tensor(int64)"."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _others(inputs: Inputs, number: int) -> list[int]:
    """Sizes of the further axes in a run."""
    return [min(_OTHERS[(number + n) % len(_OTHERS)], inputs.window) for n in range(len(inputs.others))]


def _observed(
    model: ir.Model, path: Path, known: dict[str, tuple[int, ...]] | None
) -> tuple[ort.InferenceSession, list[str]]:
    """A session of the model that answers every intermediate tensor, and their names; of `known` ones the shapes alone."""
    copy = model.clone()
    del copy.graph.outputs[:]
    names = []
    for value in _values(copy):
        if value.producer() is None or (known is not None and value.name not in known):
            continue
        value.shape = None  # a note that is wrong would be an error
        names.append(str(value.name))
        if known is not None:
            node = ir.node("Shape", [value])
            copy.graph.append(node)
            node.outputs[0].name = f"{value.name}_shape_of_run"
            node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            value = node.outputs[0]
        copy.graph.outputs.append(value)
    save(copy, path)
    try:
        return open_session(path, optimised=False), names
    except Exception as e:
        raise ReductionError(f"ONNX Runtime does not load the model: {str(e).splitlines()[0]}") from e


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    return [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs if v.name)]
