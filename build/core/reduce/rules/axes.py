"""What mixes the entries of some axes: softmax, normalisations, sums."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Rule, broadcast, check_apart, constant
from build.core.reduce.shapes import Shapes


class AlongAxis(Rule):
    """Rows of one axis are computed together (softmax, normalisation, sums); every other axis is its own.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Tanh(x)  y = Softmax<axis = 2>(z)").tail)
    Squeeze  y [batch, 2]
      Softmax  y_row [batch, 1, 2]
        Tanh  z_row [batch, 1, 2]
          GatherND  x_row [batch, 1, 2]
            <- x [batch, time, 2]: it is an input
    >>> print(cut("z = Tanh(x)  y = Softmax<axis = 1>(z)").tail)
    Squeeze  y [batch, 2]
      GatherND  y_row [batch, 1, 2]
        <- y_every_row [batch, time, 2]: it works along time (axis 1)
    """

    op_types: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        check_apart(self.axes(node, rank), layout)
        return Needs({0: layout})

    def axes(self, node: ir.Node, rank: int) -> list[int]:
        """The axes that the operator mixes."""
        if node.op_type == "CumSum":
            given = constant(node.inputs[1])
            if given is None:
                raise Stop("its axis is computed")
            return [given[0] % rank]
        return [node.attributes.get_int("axis", -1) % rank]


class Normalization(AlongAxis):
    """LayerNormalization and its relatives: from `axis` to the last.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = LayerNormalization(x, w)", weights="float[2] w = {1, 2}").tail)
    Squeeze  y [batch, 2]
      LayerNormalization  y_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = (
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("com.microsoft.SimplifiedLayerNormalization",),
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        needs = super().needs(node, layout, shapes, kind)
        rank = len(shapes.of(node.outputs[0]))
        if any(v is not None and broadcast(v, rank, layout, shapes) is not None for v in node.inputs[1:]):
            raise Stop("its scale or bias differs from row to row")
        return needs

    def axes(self, node: ir.Node, rank: int) -> list[int]:
        return list(range(node.attributes.get_int("axis", -1) % rank, rank))


class SkipNormalization(Rule):
    """A fused residual sum and layer normalisation: both inputs by row, over the last axis.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = com.microsoft.SkipLayerNormalization(x, s, w)", "float[batch, time, 2] x, float[batch, time, 2] s",
    ...           "float[2] w = {1, 2}").tail)
    Squeeze  y [batch, 2]
      SkipLayerNormalization  y_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
        GatherND  s_row [batch, 1, 2]
          <- s [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = (
        "com.microsoft.SkipLayerNormalization",
        "com.microsoft.SkipSimplifiedLayerNormalization",
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        check_apart([rank - 1], layout)
        rows = {}
        for number, value in enumerate(node.inputs[:2]):
            assert value is not None
            operand = broadcast(value, rank, layout, shapes)
            if operand is not None:
                rows[number] = operand
        return Needs(rows)


class Reduction(Rule):
    """Sums, means, extremes over other axes; those axes vanish or stay with size 1.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = ReduceSum<keepdims = 0>(x, axes)", weights="int64[1] axes = {2}").tail)
    Squeeze  y [batch]
      ReduceSum  y_row [batch, 1]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = (
        *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
        *("ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        rank = len(shapes.of(value))
        axes = self._axes(node, rank)
        kept = (
            list(range(rank)) if node.attributes.get_int("keepdims", 1) else [a for a in range(rank) if a not in axes]
        )
        inside = layout.moved(kept[layout.time], kept[layout.batch])
        check_apart(axes, inside)
        return Needs({0: inside})

    def _axes(self, node: ir.Node, rank: int) -> list[int]:
        if node.op_type.startswith("Arg"):
            return [node.attributes.get_int("axis", 0) % rank]
        given = node.attributes.get_ints("axes") if "axes" in node.attributes else None
        if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            given = constant(node.inputs[1])
            if given is None:
                raise Stop("its axes are computed")
        if not given:
            if node.attributes.get_int("noop_with_empty_axes", 0):
                return []
            return list(range(rank))
        return [axis % rank for axis in given]


class BatchNormalization(Rule):
    """Trained statistics a channel, axis 1: anything else is its own.

    >>> from build.core.reduce.example import cut
    >>> transposed = "z = Transpose<perm = [0, 2, 1]>(x)  n = BatchNormalization(z, w, w, w, w)"
    >>> print(cut(f"{transposed}  y = Transpose<perm = [0, 2, 1]>(n)", weights="float[2] w = {1, 2}").tail)
    Squeeze  y [batch, 2]
      Transpose  y_row [batch, 1, 2]
        BatchNormalization  n_row [batch, 2, 1]
          Transpose  z_row [batch, 2, 1]
            GatherND  x_row [batch, 1, 2]
              <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if node.attributes.get_int("training_mode", 0):
            raise Stop("it is in training mode")
        check_apart([1], layout)
        return Needs({0: layout})
