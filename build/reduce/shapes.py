"""Every tensor's shape as the model runs, at a handful of batch sizes and lengths.

Shape inference gives up at what exporters write (shapes computed at run time, exporter-private operators), and an axis
named in a file may be named wrongly. Running the model tells the truth for any operator that ONNX Runtime knows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from build.reduce.layout import ReductionError

Dim = tuple[int, ...]  # one axis' size in each of the runs

# Distinct primes: a product of sizes tells which axes went into it. The last run checks what the others suggest.
RUNS = ((2, 13), (3, 13), (2, 17), (3, 17), (5, 23))
SHORT_RUNS = ((2, 3), (7, 3), (2, 5), (7, 5), (11, 6))  # for models that take no more rows than that
_FEW = 16  # numbers in a tensor that may be a shape
PROTOBUF_LIMIT = 1 << 30  # bytes of weights from which on they are kept beside the file: protobuf ends at 2 GiB


class Shapes:
    """Shapes of a model's tensors as functions of batch and time.

    Attributes:
        batch, time: the two sizes in each run.
    """

    def __init__(
        self, model: ir.Model, batch_axis: int, time_axis: int, window: int, last: tuple[str, int] | None = None
    ) -> None:
        """Run the model.

        Args:
            batch_axis, time_axis: of its first input, and by the names of these axes of every other.
            window: rows that the model takes at most.
            last: name of an input [batch] that says which row is wanted, and by how much it is off the number of rows
                where that is the last one.

        Raises:
            ReductionError: an input's axis is neither, or the model does not run.
        """
        self._values: dict[ir.Value, tuple[Dim, ...]] = {}
        self._timeless: set[ir.Value] = set()
        inputs = _input_axes(model, batch_axis, time_axis)
        first = next(iter(inputs.values()))
        runs = [
            (first[batch_axis] if isinstance(first[batch_axis], int) else batch,
             first[time_axis] if isinstance(first[time_axis], int) else time)
            for batch, time in (RUNS if window >= RUNS[-1][1] else SHORT_RUNS)
        ]  # fmt: skip
        self.batch: Dim = tuple(int(batch) for batch, _ in runs)
        self.time: Dim = tuple(int(time) for _, time in runs)
        self._basis = _basis(self.batch, self.time)
        found, contents = [], []
        with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
            session, names = _observed(model, Path(folder) / "model.onnx")
            dtypes: dict[str, ir.DataType] = {}
            for batch, time in zip(self.batch, self.time, strict=True):
                feeds = {}
                for name, axes in inputs.items():
                    dtype = next(v.dtype for v in model.graph.inputs if v.name == name)
                    sizes = [batch if a == "batch" else time if a == "time" else int(a) for a in axes]
                    feeds[name] = _feed(dtype, sizes, time + last[1] if last and name == last[0] else None)
                try:
                    outputs = session.run(names, feeds)
                except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
                    raise ReductionError(
                        f"the model does not run at batch {batch} and time {time}: {str(e).splitlines()[0]}. An axis "
                        "that is fixed inside the graph has to be fixed in its inputs, or exported as dynamic"
                    ) from e
                tensors = {n: o for n, o in zip(names, outputs, strict=True) if isinstance(o, np.ndarray)}
                found.append({name: tensor.shape for name, tensor in tensors.items()})
                contents.append({name: tensor.tobytes() for name, tensor in tensors.items() if tensor.size <= _FEW})
                dtypes |= {name: ir.DataType.from_numpy(tensor.dtype) for name, tensor in tensors.items()}
        for value in _values(model):
            if value.dtype is None and value.name in dtypes:
                value.dtype = dtypes[value.name]
            if value.name in found[0]:
                if len({len(run[value.name]) for run in found}) == 1:
                    self._values[value] = tuple(zip(*(run[value.name] for run in found), strict=True))
            elif value.const_value is not None:
                self._values[value] = _constant_shape(value.const_value, len(runs))
            # The runs 0 and 2, and 1 and 3, differ in time alone.
            pairs = ((contents[0], contents[2]), (contents[1], contents[3]))
            if all(value.name in a and a[value.name] == b.get(value.name) for a, b in pairs):
                self._timeless.add(value)
        for value in model.graph.inputs:
            named = {"batch": self.batch, "time": self.time}
            self._values[value] = tuple(
                named[axis] if isinstance(axis, str) else (axis,) * len(runs) for axis in inputs[str(value.name)]
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

    def set(self, value: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Record a new tensor's shape."""
        self._values[value] = dims

    def coefficients(self, dim: Dim) -> tuple[int, int, int, int] | None:
        """(a, b, c, d) with dim = a + b batch + c time + d batch time in every run; None where there are no such."""
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
    """Whether the axis has one size in every run."""
    return len(set(dim)) == 1


def one(dim: Dim) -> bool:
    """Whether the axis broadcasts."""
    return set(dim) == {1}


def times(a: Dim, b: Dim) -> Dim:
    """The size of two axes merged."""
    return tuple(x * y for x, y in zip(a, b, strict=True))


def weights(model: ir.Model) -> int:
    """Bytes of the model's constants."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def load(path: Path) -> ir.Model:
    """Read a model, with weights that lie beside its file.

    Raises:
        ReductionError: it cannot be read, or says that its weights lie elsewhere than in its own folder.
    """
    try:
        return ir.from_proto(onnx.load(path))  # onnx_ir's own reader would follow any path that the file names
    except Exception as e:  # protobuf, file and external data errors have no common base
        raise ReductionError(f"cannot read {path}: {str(e).splitlines()[0]}") from e


def save(model: ir.Model, path: Path) -> None:
    """Write the model, its weights in a file beside it where protobuf could not hold them."""
    ir.save(model, path, external_data=f"{path.name}.data" if weights(model) > PROTOBUF_LIMIT else None)


def open_session(path: Path, optimised: bool = True) -> ort.InferenceSession:
    """A session on the CPU that prints nothing: what goes wrong is raised, and the caller says it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _input_axes(model: ir.Model, batch_axis: int, time_axis: int) -> dict[str, list[int | str]]:
    inputs = list(model.graph.inputs)
    if not inputs or inputs[0].shape is None or len(inputs[0].shape) <= max(batch_axis, time_axis):
        raise ReductionError(
            f"the first input has to have the axes of batch ({batch_axis}) and time ({time_axis}); it is "
            f"{inputs[0].shape if inputs else 'missing'}"
        )
    names = {_symbol(inputs[0].shape[axis]): meaning for axis, meaning in ((batch_axis, "batch"), (time_axis, "time"))}
    axes: dict[str, list[int | str]] = {}
    for value in inputs:
        if value.shape is None:
            raise ReductionError(f"input {value.name!r} has no shape")
        axes[str(value.name)] = []
        for axis, size in enumerate(value.shape):
            position = {batch_axis: "batch", time_axis: "time"}.get(axis)
            known = size if isinstance(size, int) else names.get(_symbol(size), position)
            if known is None:
                raise ReductionError(
                    f"axis {axis} of input {value.name!r} ({size}) is neither the batch nor the time of the first input; "
                    "fix its size in the file, or give both the same name"
                )
            axes[str(value.name)].append(known)
    return axes


def _constant_shape(tensor: ir.TensorProtocol, runs: int) -> tuple[Dim, ...]:
    return tuple((int(size),) * runs for size in tensor.shape.numpy())


def _symbol(size: object) -> object:
    return size if isinstance(size, int) else getattr(size, "value", None)


def _basis(batch: Dim, time: Dim) -> tuple[np.ndarray, list[int]]:
    columns = {0: np.ones(len(batch)), 1: np.array(batch, float), 2: np.array(time, float)}
    columns[3] = columns[1] * columns[2]
    kept = [0, *([1] if not fixed(batch) else []), *([2] if not fixed(time) else [])]
    if not fixed(batch) and not fixed(time):
        kept.append(3)
    return np.stack([columns[c] for c in kept], axis=1), kept


def _observed(model: ir.Model, path: Path) -> tuple[ort.InferenceSession, list[str]]:
    """A session of the model that answers every intermediate tensor, and their names."""
    copy = model.clone()
    del copy.graph.outputs[:]
    for value in _values(copy):
        if value.producer() is not None:
            value.shape = None  # a note that is wrong would be an error
            copy.graph.outputs.append(value)
    save(copy, path)
    try:
        session = open_session(path, optimised=False)
    except Exception as e:
        raise ReductionError(f"ONNX Runtime does not load the model: {str(e).splitlines()[0]}") from e
    return session, [output.name for output in session.get_outputs()]


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    return [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs if v.name)]


def _feed(dtype: ir.DataType | None, sizes: list[int], number: int | None) -> np.ndarray:
    kind = (dtype or ir.DataType.FLOAT).numpy()
    if number is not None:
        return np.full(sizes, number, kind)
    return np.ones(sizes, kind) if kind == np.bool_ else np.zeros(sizes, kind)
