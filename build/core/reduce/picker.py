"""New nodes for a selection that the graph makes itself: its index, or its weights, in place of an input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter, beyond
from build.core.reduce.layout import Layout
from build.core.reduce.own import Selection
from build.core.reduce.shapes import Dim, Shapes


class Picker(Emitter):
    """An Emitter whose row is where a selection of the graph's own says.

    >>> from build.core.reduce.example import model, shapes_of
    >>> from build.core.reduce.own import find
    >>> full = model("h = Tanh(x)  y = Gather<axis = 1>(h, last)", weights="int64 last = {-1}")
    >>> shapes = shapes_of(full)
    >>> picker = Picker(full, shapes, find(full.graph.outputs[0], shapes)[0][0])
    >>> row = picker.select(full.graph.inputs[0], Layout(time=1, batch=0))
    >>> row.producer().op_type
    'Gather'
    """

    def __init__(self, model: ir.Model, shapes: Shapes, selection: Selection) -> None:
        nothing = ir.Value(name="no_lengths")
        super().__init__(model, shapes, selection.kind, nothing, counted=False)
        self._selection = selection
        self._long = shapes.of(selection.value)[selection.layout.time]
        first = len(self.graph)
        if selection.weights is None:
            self.lengths = self._index()
        self.private = {node for number, node in enumerate(self.graph) if number >= first}
        self._cache = {key: value for key, value in self._cache.items() if value.const_value is not None}

    def ends(self, rows: Dim, offset: int) -> bool:
        return self._selection.index == -1 and rows == tuple(n + offset for n in self._long)

    def answer(self, row: ir.Value) -> ir.Value:
        """What the selecting node answers, of the wanted row of what it takes it from."""
        if self._selection.weights is not None:
            # The mean, times the sum of the weights; no weights are a sum of nothing.
            zero = self.constant(np.zeros((), row.dtype.numpy() if row.dtype is not None else np.float32))
            total = self._total(self._selection.value, self._selection.layout)
            some = self.node("Equal", [total, zero])
            row = self.node("Mul", [self.node("Where", [some, zero, row]), total], f"{self._selection.value.name}_sum")
        outer = self.shapes.of(self._selection.node.outputs[0])
        return self.node("Reshape", [row, self.shape(outer)], f"{self._selection.node.outputs[0].name}_picked")

    def _index(self) -> ir.Value:
        """INT32 [batch]: the row's number, counted from the front."""
        index, batch = self._selection.index, self.size(self.shapes.batch)
        if isinstance(index, int):
            number = self.constant([index])
            if index < 0:
                number = self.node("Add", [self.size(self._long), number], "row_number")
            number = self.node("Expand", [number, batch], "row_numbers")
        else:
            assert index is not None
            number = self.node("Cast", [index], to=ir.DataType.INT64)
            number = self.node("Reshape", [number, self.constant([-1])], "row_number")
            number = self._from_front(number)
            if not any(dim == self.shapes.batch for dim in self.shapes.of(index)):
                number = self.node("Expand", [number, batch], "row_numbers")
        return self.node("Cast", [number], "own_row", to=ir.DataType.INT32)

    def _from_front(self, number: ir.Value) -> ir.Value:
        """As Gather does: what is negative counts from the end."""
        behind = self.node("Add", [number, self.size(self._long)], "row_from_the_end")
        self.numbers.add(behind)
        return self.node("Where", [self.node("Less", [number, self.constant([0])]), behind, number])

    def _row(self, value: ir.Value, layout: Layout, dims: Sequence[Dim]) -> ir.Value:
        index = self._selection.index
        if isinstance(index, int) and layout.count == 1:
            first = index + layout.offset
            if index >= 0 and first >= 0 and not beyond(layout, dims, self.shapes):
                return self._gathered(value, layout, first)
            if self.ends(dims[layout.time], layout.offset):
                return self._gathered(value, layout, -1)
        return super()._row(value, layout, dims)

    def _gathered(self, value: ir.Value, layout: Layout, number: int) -> ir.Value:
        return self.node("Gather", [value, self.constant([number])], f"{value.name}_row", axis=layout.time)

    def _pool(self, value: ir.Value, layout: Layout, dims: list[Dim]) -> ir.Value:
        """The mean of the rows, by the weights."""
        rank = len(dims) + max(-layout.batch, 0)
        time, batch = layout.time + rank - len(dims), layout.batch + rank - len(dims)
        weights = self._weights(value, layout, rank, time, batch)
        if (batch, time, rank) == (0, 1, 3):  # a product is the fastest sum
            total = self.node("MatMul", [self.node("Transpose", [weights], perm=[0, 2, 1]), value])
        else:
            total = self._reduce("ReduceSum", self.node("Mul", [value, weights]), time)
        return self.node("Div", [total, self._total(value, layout, rank, time, batch)], f"{value.name}_mean")

    def _total(self, value: ir.Value, layout: Layout, *axes: int) -> ir.Value:
        """The sum of the weights of every history, with as many axes as the value has."""
        rank, time, batch = axes or (len(self.shapes.of(value)), layout.time, layout.batch)
        return self.node(
            "ReduceSum", [self._weights(value, layout, rank, time, batch), self.constant([time])], keepdims=1
        )

    def _weights(self, value: ir.Value, layout: Layout, rank: int, time: int, batch: int) -> ir.Value:
        """[batch, time] to the axes that the two have in a tensor."""
        weights = self._selection.weights
        assert weights is not None
        dtype = value.dtype or ir.DataType.FLOAT
        weights = self.node("Cast", [weights], "weights", to=ir.DataType(dtype))
        weights = self.node("Reshape", [weights, self.shape([self.shapes.batch, self._long])])
        if layout.inner > 1:  # a history's entries next to each other
            wide = self.node("Unsqueeze", [weights, self.constant([1])])
            wide = self.node("Expand", [wide, self.constant([1, layout.inner, 1])])
            many = tuple(n * layout.inner for n in self.shapes.batch)
            weights = self.node("Reshape", [wide, self.shape([many, self._long])])
        if batch > time:
            weights = self.node("Transpose", [weights], perm=[1, 0])
        others = [axis for axis in range(rank) if axis not in (time, batch)]
        return self.node("Unsqueeze", [weights, self.constant(others)])
