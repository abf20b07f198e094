"""Matrix products."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Rule, broadcast
from build.core.reduce.shapes import Shapes


class MatMul(Rule):
    """Rows of the left operand are rows of the product, columns of the right one its columns; the rest broadcasts.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}").tail)
    Squeeze  y [batch, 1]
      MatMul  y_row [batch, 1, 1]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        left, right = node.inputs
        assert left is not None
        assert right is not None
        rank, ranks = len(shapes.of(node.outputs[0])), (len(shapes.of(left)), len(shapes.of(right)))
        if min(ranks) < 2:
            raise Stop("it multiplies by a vector")
        row, column = rank - 2, rank - 1
        if layout.time in (row, column):
            number = 0 if layout.time == row else 1
            if layout.batch == (column if number == 0 else row):
                raise Stop("it keeps batch and time in its two operands")
            back = rank - ranks[number]
            return Needs({number: layout.moved(layout.time - back, layout.batch - back)})
        rows = {}
        for number, value in ((0, left), (1, right)):
            operand = broadcast(value, rank, layout, shapes)
            if operand is not None:
                if layout.batch == (column if number == 0 else row):
                    raise Stop("it sums over what would be the batch axis")
                rows[number] = operand
        if kind == "mean" and len(rows) != 1:
            raise Stop("the mean does not commute with a product of two sequences")
        return Needs(rows)


class Gemm(Rule):
    """A matrix product of two axes: time as a row, batch merged into it or absent.

    >>> from build.core.reduce.example import cut
    >>> rows = "int64[2] rows = {-1, 2}, int64[3] back = {-1, 5, 1}, float[2, 1] w = {1, 2}"
    >>> print(cut("r = Reshape(x, rows)  z = Gemm(r, w)  y = Reshape(z, back)", "float[batch, 5, 2] x", rows).tail)
    Squeeze  y [batch, 1]
      Reshape  y_row [batch, 1, 1]
        Gemm  z_row [batch, 1]
          Reshape  r_row [batch, 2]
            GatherND  x_row [batch, 1, 2]
              <- x [batch, 5, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Gemm",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if not layout.merged:
            raise Stop("it keeps batch and time in its two operands")
        number, flag = (0, "transA") if layout.time == 0 else (1, "transB")
        axis = layout.time if not node.attributes.get_int(flag, 0) else 1 - layout.time
        rows = {number: layout.moved(axis, axis)}
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (operand := broadcast(bias, 2, layout, shapes)) is not None:
            rows[2] = operand
        return Needs(rows)
