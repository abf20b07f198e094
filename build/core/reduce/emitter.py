"""New nodes of a graph: constants, sizes computed from the inputs, and the selection of a row itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout
from build.core.reduce.shapes import Dim, Shapes, fixed, one
from build.core.reduce.writer import Writer


class Emitter(Writer):
    """Adds nodes to a model's graph. Nodes are in no order: sort the graph when all are there.

    Attributes:
        lengths: INT32 [batch], the input that says which row is wanted: valid rows, or with `row` its number.
        taken: by a tensor's wanted row, the tensor.
        numbers: rows counted from 0: they grow with time, and the first ones stay what they are.
        private: nodes that read the inputs as they come, however many columns are cut off them.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = Tanh(x)")
    >>> emitter = Emitter(full, shapes_of(full), "row", ir.Value(name="lengths"), counted=True)
    >>> emitter.name("y")
    'y_2'
    >>> row = emitter.select(full.graph.inputs[0], Layout(time=1, batch=0))
    >>> [node.op_type for node in full.graph]
    ['Tanh', 'Cast', 'Add', 'Reshape', 'Max', 'GatherND']
    """

    def __init__(self, model: ir.Model, shapes: Shapes, kind: Kind, lengths: ir.Value, counted: bool) -> None:
        """kind: what becomes of time; counted: whether `lengths` counts valid rows, or is the row's number."""
        super().__init__(model.graph)
        self.shapes = shapes
        self.kind = kind
        self.lengths = lengths
        self.taken: dict[ir.Value, ir.Value] = {}
        self.numbers: set[ir.Value] = set()
        self.private: set[ir.Node] = set()
        self._first = -1 if counted else 0  # the wanted row is lengths + this
        self._axes = {"batch": _axis(model, shapes, shapes.batch), "time": _axis(model, shapes, shapes.time)}
        self._cache: dict[object, ir.Value] = {}

    def like(self, node: ir.Node, inputs: Sequence[ir.Value | None], outputs: int | None = None) -> list[ir.Value]:
        """The same operator on other inputs; outputs: how many of its outputs it keeps."""
        new = ir.node(
            node.op_type, inputs, dict(node.attributes), domain=node.domain, num_outputs=outputs or len(node.outputs)
        )
        self.graph.append(new)
        for value, old in zip(new.outputs, node.outputs, strict=False):
            value.name = self.name(f"{old.name}_{self.kind}")
            typed(value, old)
        return list(new.outputs)

    def size(self, dim: Dim) -> ir.Value:
        """INT64 [1]: an axis' size at run time, from the inputs' shapes; the rules' `check_known` has been there."""
        key = ("size", dim)
        if key in self._cache:
            return self._cache[key]
        numbers = self.shapes.coefficients(dim)
        assert numbers is not None
        fixed_part, *factors = numbers
        total: ir.Value | None = None
        for factor, names in zip(factors, (["batch"], ["time"], ["batch", "time"]), strict=True):
            if factor == 0:
                continue
            part: ir.Value | None = self.constant([factor]) if factor != 1 else None
            for name in names:
                size = self._axis_size(name)
                part = size if part is None else self._vector(self.node("Mul", [part, size]), 1)
            total = part if total is None else self._vector(self.node("Add", [total, part]), 1)
        if total is None:
            return self.constant([fixed_part])
        if fixed_part:
            total = self._vector(self.node("Add", [total, self.constant([fixed_part])]), 1)
        self._cache[key] = total
        return total

    def shape(self, dims: Sequence[Dim], infer: bool = True) -> ir.Value:
        """INT64 [rank]: a whole shape at run time; infer allows -1 for one axis, as Reshape does."""
        free = [axis for axis, dim in enumerate(dims) if not fixed(dim)]
        if len(free) <= (1 if infer else 0):
            return self.constant([-1 if axis in free else dim[0] for axis, dim in enumerate(dims)])
        parts = [self.constant([dim[0]]) if fixed(dim) else self.size(dim) for dim in dims]
        return self._vector(self.node("Concat", parts, "shape", axis=0), len(dims))

    def index(self, offset: int) -> ir.Value:
        """INT64 [batch]: the wanted row's number, `offset` rows further on; below 0 where there is none."""
        key = ("index", offset)
        if key not in self._cache:
            row = self.node("Cast", [self.lengths], "row_number", to=ir.DataType.INT64)
            if self._first + offset:
                row = self.node("Add", [row, self.constant([self._first + offset])], "row_number")
            self._cache[key] = row
        return self._cache[key]

    def row_numbers(self, layout: Layout) -> ir.Value:
        """INT64 [batch x inner, rows, 1]: the wanted rows' numbers, of which a tensor may not have all."""
        row = self._repeated(self.index(layout.offset), layout.inner)
        row = self.node("Reshape", [row, self.constant([-1, 1, 1])], "row_number")
        if not layout.before:
            return row
        back = np.arange(-layout.before, 1, layout.step).reshape(-1, 1)
        return self.node("Add", [row, self.constant(back)], "row_numbers")

    def nearest(self, layout: Layout) -> ir.Value:
        """The same, the first row's number in place of those in front of it."""
        return self.node("Max", [self.row_numbers(layout), self.constant([0])], "row_number")

    def exist(self, value: ir.Value, layout: Layout) -> ir.Value | None:
        """BOOL, broadcasting to the wanted rows of a tensor: which of them it has; None where that is all."""
        dims = self.shapes.of(value)
        found = []
        if not self.answers_nothing(layout.first):
            found.append(self.node("GreaterOrEqual", [self.row_numbers(layout), self.constant([0])], "exist"))
        if beyond(layout, dims, self.shapes):
            found.append(self.node("Less", [self.row_numbers(layout), self.size(dims[layout.time])], "exist"))
        if not found:
            return None
        return self.across(found[0] if len(found) == 1 else self.node("And", found, "exist"), len(dims), layout)

    def across(self, asked: ir.Value, rank: int, layout: Layout) -> ir.Value:
        """BOOL: what is asked of `row_numbers`, broadcasting to the wanted rows of a tensor of `rank` axes."""
        if layout.batch > layout.time:
            asked = self.node("Transpose", [asked], perm=[1, 0, 2])
        shape = [1] * rank
        shape[layout.batch], shape[layout.time] = -1, layout.count
        asked = self.node("Reshape", [asked, self.constant(shape)], asked.name or "asked")
        asked.dtype = ir.DataType.BOOL
        return asked

    def part(self, rows: ir.Value, of: Layout, layout: Layout) -> ir.Value:
        """Of the rows `of` a tensor those of `layout`."""
        start, end = ((at - of.first) // of.step for at in (layout.first, layout.offset))
        numbers = [[start], [end + 1], [layout.time], [max(layout.step // of.step, 1)]]
        return self.node("Slice", [rows, *map(self.constant, numbers)], f"{rows.name}_part")

    def steps(self, offset: int, inner: int = 1) -> ir.Value:
        """INT32 [batch x inner]: how many rows there are up to the wanted one, itself included."""
        more = self._first + offset + 1
        steps = self.lengths
        if more:
            steps = self.node("Add", [steps, self.constant([more], np.int32)], "steps")
        if more < 0:
            steps = self.node("Max", [steps, self.constant([0], np.int32)], "steps")
        return self._repeated(steps, inner)

    def answers_nothing(self, offset: int) -> bool:
        """Whether the row `offset` further on exists even for a history without any valid row."""
        return self._first + offset >= 0

    def ends(self, rows: Dim, offset: int) -> bool:
        """Whether the row `offset` further on is known to be the last of so many, for the whole batch."""
        del rows, offset
        return False

    def precedes(self, layout: Layout) -> bool:
        """Whether a history without any valid row asks for the one right before the first."""
        return self.kind == "row" and not layout.merged and self._first + layout.offset == -1

    def or_zero(self, row: ir.Value, value: ir.Value, layout: Layout) -> ir.Value:
        """`row`, taken from `value`, with zeros for histories without any valid row."""
        shape = [1] * len(self.shapes.of(value))
        shape[layout.batch] = -1
        lengths = self._repeated(self.lengths, layout.inner)
        valid = self.node("Greater", [lengths, self.constant([0], np.int32)], "valid")
        zero = self.constant(np.zeros((), (value.dtype or ir.DataType.FLOAT).numpy()))
        return self.node(
            "Where", [self.node("Reshape", [valid, self.constant(shape)]), row, zero], f"{row.name}_or_zero"
        )

    def select(self, value: ir.Value, layout: Layout) -> ir.Value:
        """The wanted rows of a tensor along its time axis (where merged with batch: along both)."""
        dims = list(self.shapes.of(value))
        if layout.merged:
            row = self._row_of_merged(value, layout, dims)
        elif self.kind in ("mean", "max"):
            row = self._pool(value, layout, dims)
        elif without_batch(layout, dims, self.shapes):
            row = self._row_of_all(value, layout, dims)
        else:
            row = self._row(value, layout, dims)
        self.taken[row] = value
        return row

    def _within(self, value: ir.Value, layout: Layout, dims: Sequence[Dim]) -> ir.Value:
        """INT64 [batch x inner, rows, 1]: the wanted rows' numbers, or the nearest ones that the tensor has."""
        index = self.nearest(layout)
        if not beyond(layout, dims, self.shapes):
            return index
        size = self.node("Gather", [self.node("Shape", [value]), self.constant([layout.time])])
        return self.node("Min", [index, self.node("Sub", [size, self.constant([1])])], "row_number")

    def _row(self, value: ir.Value, layout: Layout, dims: Sequence[Dim]) -> ir.Value:
        index, rank = self._within(value, layout, dims), len(dims)
        order = [layout.batch, layout.time, *(a for a in range(rank) if a not in (layout.batch, layout.time))]
        in_front = order == list(range(rank))
        front = value if in_front else self.node("Transpose", [value], perm=order)
        row = self.node("GatherND", [front, index], f"{value.name}_row", batch_dims=1)
        return row if in_front else self.node("Transpose", [row], perm=[order.index(axis) for axis in range(rank)])

    def _repeated(self, value: ir.Value, inner: int) -> ir.Value:
        """[batch] to [batch x inner], a history's entries next to each other."""
        if inner == 1:
            return value
        column = self.node("Reshape", [value, self.constant([-1, 1])])
        wide = self.node("Expand", [column, self.constant([1, inner])])
        return self.node("Reshape", [wide, self.constant([-1])])

    def _row_of_merged(self, value: ir.Value, layout: Layout, dims: list[Dim]) -> ir.Value:
        before, after = dims[: layout.time], dims[layout.time + 1 :]
        apart = [layout.rows, self.shapes.batch] if layout.time_first else [self.shapes.batch, layout.rows]
        split = self.node("Reshape", [value, self.shape([*before, *apart, *after])])
        self.shapes.set(split, (*before, *apart, *after))
        axes = (layout.time, layout.time + 1)
        row = self._row(split, layout.moved(*(axes if layout.time_first else reversed(axes))), self.shapes.of(split))
        return self.node(
            "Reshape", [row, self.shape([*before, tuple(n * layout.count for n in self.shapes.batch), *after])]
        )

    def _row_of_all(self, value: ir.Value, layout: Layout, dims: list[Dim]) -> ir.Value:
        """A table without batch gets one: each history its own row of it."""
        missing = max(-layout.batch, 0)
        time, batch = layout.time + missing, layout.batch + missing
        if missing:
            value = self.node("Unsqueeze", [value, self.constant(list(range(missing)))])
        index = self._within(value, layout.moved(time, batch), [(1,)] * missing + dims)
        index = self.node("Reshape", [index, self.constant([-1, layout.count])])
        row = self.node("Gather", [value, index], f"{value.name}_row", axis=time)
        # In place of time there are batch and rows now; the axis of size 1 that batch takes the place of goes behind.
        order = [axis + (axis > time) for axis in range(len(dims) + missing)]
        empty, order[time], order[batch] = order[batch], time + 1, time
        row = self.node("Transpose", [row], perm=[*order, empty])
        return self.node("Squeeze", [row, self.constant([len(order)])])

    def _pool(self, value: ir.Value, layout: Layout, dims: list[Dim]) -> ir.Value:
        """Mean or maximum over the valid rows."""
        rank = len(dims) + max(-layout.batch, 0)
        time, batch = layout.time + rank - len(dims), layout.batch + rank - len(dims)
        numbers = self.node(
            "Range", [self.scalar(0), self.node("Squeeze", [self.size(dims[layout.time])]), self.scalar(1)]
        )
        self.numbers.add(numbers)
        lengths = self._repeated(self.lengths, layout.inner)
        column = self.node("Reshape", [lengths, self.constant([-1, 1])])
        valid = self.node("Less", [self.node("Cast", [numbers], to=ir.DataType.INT32), column], "valid")
        # [batch, time] to the axes that the two have in the tensor
        if batch > time:
            valid = self.node("Transpose", [valid], perm=[1, 0])
        valid = self.node("Unsqueeze", [valid, self.constant([a for a in range(rank) if a not in (time, batch)])])
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        lowest = -np.inf if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min
        nothing = self.constant(np.array(0 if self.kind == "mean" else lowest, dtype))
        kept = self.node("Where", [valid, value, nothing])
        if self.kind == "max":
            return self._reduce("ReduceMax", kept, time)
        total = self._reduce("ReduceSum", kept, time)
        count = self.node("Cast", [lengths], to=ir.DataType(value.dtype or ir.DataType.FLOAT))
        shape = [1] * rank
        shape[batch] = -1
        return self.node("Div", [total, self.node("Reshape", [count, self.constant(shape)])], f"{value.name}_mean")

    def _reduce(self, op_type: str, value: ir.Value, axis: int) -> ir.Value:
        name = f"{value.name}_{self.kind}"
        if op_type == "ReduceMax" and self.graph.opset_imports[""] < 18:  # until then the axes are an attribute
            return self.node(op_type, [value], name, axes=[axis], keepdims=1)
        return self.node(op_type, [value, self.constant([axis])], name, keepdims=1)

    def _axis_size(self, name: str) -> ir.Value:
        if name not in self._cache:
            tensor, axis = self._axes[name]
            every = self._vector(self.node("Shape", [tensor]), len(self.shapes.of(tensor)))
            self._cache[name] = self._vector(self.node("Gather", [every, self.constant([axis])], name), 1)
        return self._cache[name]

    def is_batch(self, value: ir.Value) -> bool:
        """Whether it is the size of the batch, computed here."""
        return self._cache.get("batch") is value

    def _vector(self, value: ir.Value, count: int) -> ir.Value:
        """Note that the value is of so many numbers."""
        self.shapes.set(value, ((count,) * len(self.shapes.batch),))
        return value

    def scalar(self, number: int) -> ir.Value:
        """INT64, without axes."""
        return self.constant(np.array(number))


def typed(value: ir.Value, like: ir.Value) -> ir.Value:
    """The value, with the type of another.

    >>> typed(ir.Value(name="row"), ir.Value(name="all", type=ir.TensorType(ir.DataType.INT32))).dtype
    INT32
    """
    if like.dtype is not None:
        value.dtype = like.dtype
    return value


def without_batch(layout: Layout, dims: Sequence[Dim], shapes: Shapes) -> bool:
    """Whether the tensor is the same for the whole batch: a mask, a table of positions.

    >>> from build.core.reduce.example import model, shapes_of
    >>> shapes = shapes_of(model("y = Tanh(x)"))
    >>> without_batch(Layout(time=0, batch=-1), [shapes.time], shapes)  # a table [time]
    True
    >>> without_batch(Layout(time=1, batch=0), [shapes.batch, shapes.time], shapes)
    False
    """
    if layout.merged:
        return False
    return layout.batch < 0 or (one(dims[layout.batch]) and not one(shapes.batch))


def beyond(layout: Layout, dims: Sequence[Dim], shapes: Shapes) -> bool:
    """Whether the wanted row of a tensor may lie behind its last one.

    >>> from build.core.reduce.example import model, shapes_of
    >>> shapes = shapes_of(model("y = Tanh(x)"))
    >>> beyond(Layout(time=1, batch=0, offset=1), [shapes.batch, shapes.time], shapes)
    True
    """
    size = layout.rows if layout.merged else dims[layout.time]
    return any(layout.offset > rows - time for rows, time in zip(size, shapes.time, strict=True))


def _axis(model: ir.Model, shapes: Shapes, dim: Dim) -> tuple[ir.Value, int]:
    for value in model.graph.inputs:
        for axis, size in enumerate(shapes.of(value)):
            if size == dim:
                return value, axis
    raise AssertionError("the first input has both axes")
