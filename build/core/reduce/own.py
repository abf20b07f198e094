"""The selection that a model makes itself: where time disappears between its inputs and an output without it.

One row of a tensor [batch, time, ...] is picked by a number, by an index of every history, or rows are summed up with
weights: the cut begins there. What takes all rows alike (a mean without a mask, attention pooling) is no such selection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout
from build.core.reduce.rules.base import constant
from build.core.reduce.shapes import Dim, Shapes, fixed, one, times

# What changes an index' axes or type, not its numbers nor their order.
_RENAMES = ("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Cast", "Identity")


@dataclass(frozen=True)
class Selection:
    """One row of `value`, or a weighted sum of its rows, as `node` takes it.

    Attributes:
        layout: where the value keeps batch and time.
        index: which row: a number, counted from the end where it is negative; or a tensor of one number for the whole
            batch, or of one for every history.
        weights: [batch, time], by which rows are summed up, where it is that.
    """

    node: ir.Node
    value: ir.Value
    layout: Layout
    index: int | ir.Value | None = None
    weights: ir.Value | None = None

    @property
    def kind(self) -> Kind:
        """What becomes of time."""
        return "row" if self.weights is None else "mean"

    def gains(self, plan: Collection[ir.Node]) -> bool:
        """Whether it is worth to sink it below these operators: of a sum only products are dearer than the sum itself."""
        return bool(plan) if self.weights is None else any(node.op_type in ("MatMul", "Gemm") for node in plan)

    def ends_early(self, kept: AbstractSet[ir.Node], shapes: Shapes) -> bool:
        """Whether no row behind the one that is picked is read by the others, and there may be some."""
        if self.weights is not None or (isinstance(self.index, int) and self.index < 0):
            return False
        reads = (value for node in kept if node.op_type != "Shape" for value in read_by(node))
        return not any(has_time(value, shapes) for value in reads)


def find(output: ir.Value, shapes: Shapes) -> tuple[list[Selection], list[ir.Node]]:
    """The selections behind an output, and the nodes that take all rows in another way.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("h = Mul(x, w)  r = Gather<axis = 1>(h, last)  m = ReduceMean<keepdims = 0>(h, one)  y = Add(r, m)",
    ...              weights="float[1, 2] w = {1, 2}, int64 last = {-1}, int64[1] one = {1}")
    >>> picked, others = find(full.graph.outputs[0], shapes_of(full))
    >>> [(each.value.name, each.index) for each in picked], [node.op_type for node in others]
    ([('h', -1)], ['ReduceMean'])
    """
    picked: list[Selection] = []
    others: list[ir.Node] = []
    todo, seen = [output], set()
    while todo:
        node = todo.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Shape":
            continue
        reads = list(read_by(node))
        long = [value for value in reads if has_time(value, shapes)]
        selection = _recognised(node, shapes) if long else None
        if fixed(shapes.time) and selection is None:
            todo += reads  # any axis of that size may be time
            continue
        if selection is not None:
            picked.append(selection)
            continue
        if any(_learned(value) for value in long):
            others.append(node)
        todo += [value for value in reads if value not in long]
    return picked, others


def beside(output: ir.Value, selection: Selection) -> frozenset[ir.Node]:
    """Nodes that are computed whatever becomes of what a selection takes its row from.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("h = Tanh(x)  n = Cast<to = 7>(m)  y = GatherND<batch_dims = 1>(h, n)",
    ...              "float[batch, time, 2] x, int32[batch, 1] m")
    >>> y = full.graph.outputs[0]
    >>> [node.op_type for node in beside(y, find(y, shapes_of(full))[0][0])]
    ['Cast']
    """
    found: set[ir.Node] = set()
    todo = [output]
    while todo:
        node = todo.pop().producer()
        if node is selection.node:
            todo += [v for v in (selection.index, selection.weights) if isinstance(v, ir.Value)]
        elif node is not None and node not in found:
            found.add(node)
            todo += read_by(node)
    return frozenset(found)


def has_time(value: ir.Value, shapes: Shapes) -> bool:
    """Whether one of its axes grows with the rows.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = ReduceMax<keepdims = 0>(x, one)", weights="int64[1] one = {1}")
    >>> has_time(full.graph.inputs[0], shapes_of(full)), has_time(full.graph.outputs[0], shapes_of(full))
    (True, False)
    """
    return shapes.known(value) and any(_grows(dim, shapes) for dim in shapes.of(value))


def _learned(value: ir.Value) -> bool:
    """Whether weights went into it, as they do not into a mask."""
    todo, seen = [value], {value}
    while todo:
        read = todo.pop()
        tensor, node = read.const_value, read.producer()
        if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 1:
            return True
        more = [v for v in read_by(node) if v not in seen] if node is not None else []
        seen.update(more)
        todo += more
    return False


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """All that a node reads, in its branches and bodies too.

    >>> from build.core.reduce.example import model
    >>> [value.name for value in read_by(model("y = Add(x, x)").graph[0])]
    ['x', 'x']
    """
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            bodies = attribute.value if isinstance(attribute.value, (list, tuple)) else [attribute.value]
            inner = [n for body in bodies for n in ir.traversal.RecursiveGraphIterator(body)]
            answers = [value for body in bodies for value in body.outputs]
            for value in [*(v for n in inner for v in n.inputs if v is not None), *answers]:
                if value.producer() not in inner and not any(value in body.inputs for body in bodies):
                    yield value


def _grows(dim: Dim, shapes: Shapes) -> bool:
    if fixed(dim):
        return dim == shapes.time
    numbers = shapes.coefficients(dim)
    return numbers is None or numbers[2:] != (0, 0)


def _recognised(node: ir.Node, shapes: Shapes) -> Selection | None:
    if node.domain or not all(shapes.known(v) for v in [*node.inputs, node.outputs[0]] if v is not None):
        return None
    if any(shapes.coefficients(dim) is None for dim in shapes.of(node.outputs[0])):
        return None
    how = {
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "Slice": _slice,
        "ReduceSum": _weighted_sum,
    }.get(node.op_type)
    return how(node, shapes) if how is not None else None


def _layout(dims: tuple[Dim, ...], time: int, shapes: Shapes) -> Layout | None:
    """Where batch is, if time stands by itself on its axis and on no other."""
    numbers = shapes.coefficients(dims[time])
    if numbers is None or (dims[time] != shapes.time and (numbers[1], *numbers[2:]) != (0, 1, 0)):
        return None
    if any(_grows(dim, shapes) for axis, dim in enumerate(dims) if axis != time):
        return None
    batch = next((axis for axis, dim in enumerate(dims) if dim == shapes.batch and axis != time), None)
    return None if batch is None else Layout(time=time, batch=batch)


def _gather(node: ir.Node, shapes: Shapes) -> Selection | None:
    value, index = node.inputs
    assert value is not None
    assert index is not None
    dims = shapes.of(value)
    axis = node.attributes.get_int("axis", 0) % len(dims)
    if not all(one(dim) for dim in shapes.of(index)):
        return _gather_flat(node, shapes) if axis == 0 else None
    layout = _layout(dims, axis, shapes)
    number = constant(index)
    return Selection(node, value, layout, index if number is None else number[0]) if layout is not None else None


def _gather_flat(node: ir.Node, shapes: Shapes) -> Selection | None:
    """Rows of [batch x time, ...] by history x time + row, as the older exporter writes h[arange(batch), row]."""
    flat, index = node.inputs
    assert flat is not None
    assert index is not None
    source, add = flat.producer(), index.producer()
    if source is None or source.op_type not in ("Reshape", "Flatten") or add is None or add.op_type != "Add":
        return None
    value = source.inputs[0]
    if value is None or not shapes.known(value) or len(shapes.of(value)) < 2 or shapes.of(index) != (shapes.batch,):
        return None
    first, second = shapes.of(value)[:2]
    if shapes.of(flat)[0] != times(first, second):
        return None
    for product, other in (add.inputs, reversed(add.inputs)):
        scaled = product.producer() if product is not None else None
        if scaled is None or scaled.op_type != "Mul" or other is None:
            continue
        for factor, width in (scaled.inputs, reversed(scaled.inputs)):
            if factor is None or width is None or shapes.number(width) != second:
                continue
            # [batch, time]: history x time + row; [time, batch]: row x batch + history
            number, row, time = (factor, other, 1) if first == shapes.batch else (other, factor, 0)
            layout = _layout(shapes.of(value), time, shapes)
            if layout is None or layout.batch != 1 - time or shapes.of(row) != (shapes.batch,):
                continue
            if _counts(number, shapes):
                return Selection(node, value, layout, row)
    return None


def _gather_elements(node: ir.Node, shapes: Shapes) -> Selection | None:
    value, index = node.inputs
    assert value is not None
    assert index is not None
    dims, outer = shapes.of(value), shapes.of(index)
    axis = node.attributes.get_int("axis", 0) % len(dims)
    layout = _layout(dims, axis, shapes)
    if layout is None or not one(outer[axis]) or any(outer[a] != dims[a] for a in range(len(dims)) if a != axis):
        return None
    # One number a history, repeated over the other axes.
    while not _each(index, shapes):
        source = index.producer()
        if source is None or source.op_type not in ("Expand", "Tile", *_RENAMES) or source.inputs[0] is None:
            return None
        index = source.inputs[0]
        if not shapes.known(index):
            return None
        if source.op_type in ("Expand", "Tile"):
            back = len(shapes.of(source.outputs[0])) - len(shapes.of(index))
            inside = layout.batch - back
            if inside < 0 or shapes.of(index)[inside] != shapes.batch:
                return None
        elif shapes.of(index) != shapes.of(source.outputs[0]) and not _each(index, shapes):
            return None
    return Selection(node, value, layout, index)


def _gather_nd(node: ir.Node, shapes: Shapes) -> Selection | None:
    value, index = node.inputs
    assert value is not None
    assert index is not None
    dims, width = shapes.of(value), shapes.of(index)[-1]
    if node.attributes.get_int("batch_dims", 0) == 1:
        layout = _layout(dims, 1, shapes) if len(dims) > 1 and one(width) and _each(index, shapes) else None
        return Selection(node, value, layout, index) if layout is not None and layout.batch == 0 else None
    pair = index.producer()
    if pair is None or pair.op_type != "Concat" or len(pair.inputs) != 2 or width != (2,) * len(width):
        return None
    if pair.attributes.get_int("axis", 0) not in (-1, len(shapes.of(index)) - 1):
        return None
    for time in (0, 1):
        row, number = pair.inputs[time], pair.inputs[1 - time]
        layout = _layout(dims, time, shapes)
        if layout is None or layout.batch != 1 - time or row is None or number is None:
            continue
        if shapes.known(row) and _each(row, shapes) and shapes.known(number) and _counts(number, shapes):
            return Selection(node, value, layout, row)
    return None


def _slice(node: ir.Node, shapes: Shapes) -> Selection | None:
    value, first = node.inputs[0], constant(node.inputs[1])
    assert value is not None
    dims, outer = shapes.of(value), shapes.of(node.outputs[0])
    cut = [axis for axis in range(len(dims)) if dims[axis] != outer[axis]]
    axes, steps = [*node.inputs[3:], None, None][:2]
    numbers = constant(axes) if axes is not None else list(range(len(dims)))
    by = constant(steps) if steps is not None else [1] * len(dims)
    if len(cut) != 1 or not one(outer[cut[0]]) or first is None or numbers is None or by is None:
        return None
    if any(step != 1 for step in by):
        return None
    layout = _layout(dims, cut[0], shapes)
    start = next(first[n] for n, axis in enumerate(numbers) if axis % len(dims) == cut[0])
    # A start in front of the first row is moved there: only of the last one it is certain that it exists.
    return Selection(node, value, layout, start) if layout is not None and start >= -1 else None


def _weighted_sum(node: ir.Node, shapes: Shapes) -> Selection | None:
    """The sum over time of rows times a mask."""
    product = node.inputs[0].producer() if node.inputs[0] is not None else None
    axes = node.attributes.get_ints("axes") if "axes" in node.attributes else constant([*node.inputs, None][1])
    if product is None or product.op_type != "Mul" or axes is None or len(axes) != 1:
        return None
    if not all(v is not None and shapes.known(v) for v in product.inputs):
        return None
    dims = shapes.of(product.outputs[0])
    layout = _layout(dims, axes[0] % len(dims), shapes)
    if layout is None:
        return None
    for value, mask in (product.inputs, reversed(product.inputs)):
        assert value is not None
        weights = _mask(mask, layout, len(dims), shapes)
        floats = value.dtype is not None and value.dtype.is_floating_point()
        if weights is not None and floats and shapes.of(value) == dims:
            return Selection(node, value, layout, weights=weights)
    return None


def _mask(value: ir.Value | None, layout: Layout, rank: int, shapes: Shapes) -> ir.Value | None:
    """[batch, time, 1, ...] of which an operand is repeated over the other axes."""
    if (layout.batch, layout.time) != (0, 1):
        return None
    while value is not None and shapes.known(value):
        dims = shapes.of(value)
        if len(dims) == rank and dims[:2] == (shapes.batch, shapes.time) and all(one(dim) for dim in dims[2:]):
            return value
        source = value.producer()
        if len(dims) != rank or source is None or source.op_type not in ("Expand", "Cast", "Identity"):
            return None
        value = source.inputs[0]
    return None


def _each(index: ir.Value, shapes: Shapes) -> bool:
    """Whether there is one number for every history."""
    dims = [dim for dim in shapes.of(index) if not one(dim)]
    return dims == [shapes.batch] or (not dims and one(shapes.batch))


def _counts(value: ir.Value, shapes: Shapes) -> bool:
    """Whether it is 0, 1, 2, ... over the batch."""
    while value.const_value is None:
        node = value.producer()
        if node is None:
            return False
        if node.op_type == "Range":
            start, _, step = (constant(v) for v in node.inputs)
            return start == [0] and step == [1] and _each(value, shapes)
        if node.op_type not in _RENAMES or node.inputs[0] is None or not _each(value, shapes):
            return False
        value = node.inputs[0]
    numbers = constant(value)
    return _each(value, shapes) and numbers == list(range(len(numbers or ())))
