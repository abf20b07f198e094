"""Sorting by length undone: what a packed sequence is sorted for, a recurrent layer with lengths does not need.

`pack_padded_sequence` sorts a batch by length, and `pad_packed_sequence` puts it back. Between the two every history is
treated by itself: f(x[order])[inverse] is f(x), whatever the order is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from build.core.reduce.layout import Layout
from build.core.reduce.rules.base import broadcast, constant
from build.core.reduce.rules.elementwise import Elementwise
from build.core.reduce.rules.recurrent import RECURRENT, is_zero
from build.core.reduce.rules.registry import RULES
from build.core.reduce.rules.shape import Regrouping
from build.core.reduce.shapes import Shapes, one


def unsort(graph: ir.Graph, shapes: Shapes) -> bool:
    """Leave out every sorting of the batch that is undone before anybody sees it.

    >>> from build.core.reduce.example import model, shapes_of
    >>> back = "i = ScatterElements(n, o, count)  y = Gather(t, i)"
    >>> full = model(f"v, o = TopK(n, size)  s = Gather(x, o)  t = Tanh(s)  {back}", "float[2, time, 2] x, int64[2] n",
    ...              "int64[1] size = {2}, int64[2] count = {0, 1}")
    >>> unsort(full.graph, shapes_of(full))
    True
    >>> [value.name for value in full.graph.outputs[0].producer().inputs]
    ['x']
    """
    found = False
    for node in list(graph):
        if node.op_type == "TopK" and not node.domain:
            sorting = _Sorting.by(node, graph, shapes)
            if sorting is not None:
                sorting.leave_out()
                found = True
    return found


class _Seen(Exception):
    """Somebody sees the order."""


@dataclass
class _Sorting:
    """A sorted batch, followed through the graph.

    Attributes:
        axes: of every tensor whose histories are in that order, the axis that they lie along.
        orders, inverses: the order as indices, and its inverse.
        begins, ends: the nodes that put histories into the order, and back.
    """

    topk: ir.Node
    shapes: Shapes
    axes: dict[ir.Value, int] = field(default_factory=dict)
    orders: set[ir.Value] = field(default_factory=set)
    inverses: set[ir.Value] = field(default_factory=set)
    begins: list[ir.Node] = field(default_factory=list)
    ends: list[ir.Node] = field(default_factory=list)

    @classmethod
    def by(cls, topk: ir.Node, graph: ir.Graph, shapes: Shapes) -> _Sorting | None:
        """What a TopK sorts, if it sorts the batch and if that is undone."""
        values, order = topk.outputs
        lengths = topk.inputs[0]
        if lengths is None or not all(shapes.known(v) and shapes.of(v) == (shapes.batch,) for v in (lengths, order)):
            return None
        found = cls(topk, shapes, axes={values: 0}, orders={order})
        try:
            for node in graph:
                if node is not topk and any(found._follows(value) for value in node.inputs):
                    found._follow(node)
        except _Seen:
            return None
        if any(value in found.axes or value in found.orders | found.inverses for value in graph.outputs):
            return None
        return found if found.ends else None

    def leave_out(self) -> None:
        """The histories stay as they come."""
        lengths = self.topk.inputs[0]
        assert lengths is not None
        self.topk.outputs[0].replace_all_uses_with(lengths)
        for node in [*self.begins, *self.ends]:
            data = node.inputs[0]
            assert data is not None
            node.outputs[0].replace_all_uses_with(data, replace_graph_outputs=True)

    def _follows(self, value: ir.Value | None) -> bool:
        return value in self.axes or value in self.orders or value in self.inverses

    def _follow(self, node: ir.Node) -> None:
        """What becomes of the order in a node's outputs.

        Raises:
            _Seen: not every history is treated by itself.
        """
        if node.op_type == "Shape":
            return
        data = node.inputs[0]
        if data is None or node.domain or not all(self.shapes.known(v) for v in [*node.inputs, *node.outputs] if v):
            raise _Seen
        if node.op_type == "Cast" and (data in self.orders or data in self.inverses):
            (self.orders if data in self.orders else self.inverses).add(node.outputs[0])
        elif node.op_type == "ScatterElements":
            self._invert(node)
        elif node.op_type == "Gather":
            self._gather(node, data)
        elif any(value in self.orders or value in self.inverses for value in node.inputs):
            raise _Seen
        elif node.op_type in RECURRENT:
            self._recurrent(node, data)
        else:
            self.axes[node.outputs[0]] = self._moved(node, data)

    def _invert(self, node: ir.Node) -> None:
        """0, 1, 2, ... written where the order says: every entry is, so it does not matter into what."""
        data, index, numbers = node.inputs
        assert data is not None
        whole = all(v is not None and self.shapes.of(v) == (self.shapes.batch,) for v in node.inputs)
        plain = node.attributes.get_string("reduction", "none") == "none"
        if not (whole and plain and index in self.orders and numbers is not None and _counts(numbers)):
            raise _Seen
        if self._follows(data) or self._follows(numbers):
            raise _Seen
        self.inverses.add(node.outputs[0])

    def _gather(self, node: ir.Node, data: ir.Value) -> None:
        index = node.inputs[1]
        rank = len(self.shapes.of(data))
        axis = node.attributes.get_int("axis", 0) % rank
        if index in self.orders and not self._follows(data) and self.shapes.of(data)[axis] == self.shapes.batch:
            self.begins.append(node)
            self.axes[node.outputs[0]] = axis
        elif index in self.inverses and self.axes.get(data) == axis:
            self.ends.append(node)
        elif index is not None and not self._follows(index) and data in self.axes and axis != self.axes[data]:
            batch, width = self.axes[data], len(self.shapes.of(index))
            self.axes[node.outputs[0]] = batch if batch < axis else batch + width - 1
        else:
            raise _Seen

    def _recurrent(self, node: ir.Node, data: ir.Value) -> None:
        lengths = node.inputs[4] if len(node.inputs) > 4 else None
        states = [value for value in node.inputs[5:7] if value is not None]
        if node.attributes.get_int("layout", 0) or self.axes.get(data) != 1:
            raise _Seen
        if any(self._follows(value) for value in [*node.inputs[1:4], *node.inputs[7:]]):
            raise _Seen
        if lengths is not None and lengths not in self.axes:
            raise _Seen
        if not all(is_zero(value) or self.axes.get(value) == 1 for value in states):
            raise _Seen
        for number, value in enumerate(node.outputs):
            self.axes[value] = 1 if number else 2

    def _moved(self, node: ir.Node, data: ir.Value) -> int:
        """The axis of histories behind what moves axes about, or treats every entry by itself."""
        out = node.outputs[0]
        inner, outer = self.shapes.of(data), self.shapes.of(out)
        if len(node.outputs) != 1:
            raise _Seen
        if isinstance(RULES.get(node.op_type), Elementwise):
            return self._of_entries(node, len(outer))
        if data not in self.axes or any(self._follows(value) for value in node.inputs[1:]):
            raise _Seen
        batch = self.axes[data]
        if node.op_type == "Transpose":
            return list(node.attributes.get_ints("perm", list(reversed(range(len(outer)))))).index(batch)
        if node.op_type in RULES["Reshape"].op_types:
            groups = Regrouping(inner, outer)
            for axis, dim in enumerate(outer):
                if dim == self.shapes.batch and not one(dim) and groups.of_output(axis) == ([batch], [axis]):
                    return axis
        if node.op_type == "Slice":
            axes = constant([*node.inputs, None, None][3])
            if axes is not None and batch not in [axis % len(inner) for axis in axes]:
                return batch
        raise _Seen

    def _of_entries(self, node: ir.Node, rank: int) -> int:
        found = {rank - len(self.shapes.of(v)) + self.axes[v] for v in node.inputs if v in self.axes}
        batch = found.pop()
        along = Layout(time=batch, batch=batch)
        others = [value for value in node.inputs if value is not None and value not in self.axes]
        if found or any(broadcast(value, rank, along, self.shapes) is not None for value in others):
            raise _Seen
        return batch


def _counts(value: ir.Value) -> bool:
    """Whether it is 0, 1, 2, ..."""
    numbers, node = constant(value), value.producer()
    if numbers is not None:
        return numbers == list(range(len(numbers)))
    return node is not None and node.op_type == "Range" and [constant(node.inputs[n]) for n in (0, 2)] == [[0], [1]]
