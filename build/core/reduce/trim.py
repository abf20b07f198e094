"""Columns behind the last row that any history of a batch needs: cut off the inputs, where that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from build.core.reduce.analysis import Analysis
from build.core.reduce.emitter import Emitter, typed
from build.core.reduce.rules import RECURRENT
from build.core.reduce.shapes import Dim, Shapes, fixed


def trim(found: Analysis, graph: ir.Graph, answers: Sequence[ir.Value], shapes: Shapes, emitter: Emitter) -> bool:
    """Cut the inputs behind the last row that any history of the batch needs, if no operator looks further.

    At least one column stays: recurrent layers take no sequence of no steps.

    >>> from build.core.reduce.example import cut
    >>> cut("z = Exp(x)  y = Neg(z)", select="mean").trimmed
    True
    >>> cut("s = CumSum<reverse = 1>(x, axis)  y = Neg(s)", weights="int64 axis = {1}", select="mean").trimmed
    False
    """
    sequences = {
        value: [axis for axis, dim in enumerate(shapes.of(value)) if dim == shapes.time]
        for value in graph.inputs
        if value is not emitter.lengths
    }
    demands = {value: found.demands[value] for value in sequences if value in found.demands}
    if fixed(shapes.time) or any(d.amount == "whole" and sequences[value] for value, d in demands.items()):
        return False
    # What needs fewer rows than the answer has is padded to as many: the rows left have to be enough for that as well.
    offset = max([0, *(d.layout.offset for d in demands.values() if d.layout is not None)])
    if all(d.amount == "row" for d in demands.values()) or any(len(axes) > 1 for axes in sequences.values()):
        return False
    # Whatever is needed whole and grows with time may count the rows, even if it is made of ones.
    whole = [value for value, demand in found.demands.items() if demand.amount == "whole"]
    if any(not shapes.known(v) or any(_grows(dim, shapes) for dim in shapes.of(v)) for v in whole):
        return False
    if _counts_rows(graph, answers, shapes, emitter):
        return False
    _bound_lengths(graph, found, emitter)
    longest = emitter.node("ReduceMax", [emitter.steps(offset)], "longest", keepdims=1)
    end = emitter.node("Cast", [emitter.node("Max", [longest, emitter.constant([1], np.int32)])], to=ir.DataType.INT64)
    for value, axes in sequences.items():
        if not axes:
            continue
        parts = [value, emitter.constant([0]), end, emitter.constant(axes)]
        trimmed = emitter.node("Slice", parts, f"{value.name}_trimmed")
        typed(trimmed, value)
        for reader, number in list(value.uses()):
            if reader is not trimmed.producer() and reader not in emitter.private:
                reader.replace_input_with(number, trimmed)
    return True


def _bound_lengths(graph: ir.Graph, found: Analysis, emitter: Emitter) -> None:
    """Lengths that recurrent layers have of their own reach no further than the rows that are left."""
    for node in list(graph):
        if node.op_type not in RECURRENT or node in found.plan or len(node.inputs) < 5 or node.inputs[4] is None:
            continue
        if not any(value in found.demands for value in node.outputs):
            continue  # written for the row: it ends there
        rows = emitter.node("Gather", [emitter.node("Shape", [node.inputs[0]]), emitter.constant([0])])
        rows = emitter.node("Cast", [rows], "rows_left", to=ir.DataType.INT32)
        node.replace_input_with(4, emitter.node("Min", [node.inputs[4], rows], "lengths_left"))


def _counts_rows(graph: ir.Graph, answers: Sequence[ir.Value], shapes: Shapes, emitter: Emitter) -> bool:
    """Whether the number of rows goes into a computation (a position as a share of it), and not into shapes alone."""
    live = set()
    todo = [*answers]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in live:
            live.add(node)
            todo += [value for value in node.inputs if value is not None]
    graph.sort()
    counts: set[ir.Value] = set()
    sizes: set[ir.Value] = set()  # of these, the ones that nothing has been reckoned with yet
    for node in graph:
        if node not in live or emitter.numbers & set(node.outputs):
            continue
        # A shape says how much there is, whatever it holds.
        shape = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        reads = {number for number, value in enumerate(node.inputs) if value in counts and number != shape}
        if node.op_type != "Shape" and not reads:
            continue
        for value in node.outputs:
            # Of a shape a part may be taken that time is not in. The result of a calculation may look so in a few runs only.
            part = node.op_type in ("Shape", "Gather", "Slice", "Squeeze", "Unsqueeze", "Cast") and reads <= {0}
            part = part and all(v in sizes for v in node.inputs[:1] if v in counts)
            if (part and shapes.timeless(value)) or emitter.is_batch(value):
                continue
            if part or (node.op_type == "Concat" and all(v in sizes for v in node.inputs if v in counts)):
                sizes.add(value)
            few = not shapes.known(value) or all(fixed(dim) for dim in shapes.of(value))
            if not few or value.dtype not in (None, ir.DataType.INT64, ir.DataType.INT32):
                return True
            counts.add(value)
    return False


def _grows(dim: Dim, shapes: Shapes) -> bool:
    """Whether an axis depends on the number of rows."""
    numbers = shapes.coefficients(dim)
    return not fixed(dim) and (numbers is None or numbers[2:] != (0, 0))
