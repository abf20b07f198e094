"""What mixes the entries of some axes: softmax, normalisations, sums."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Rule, broadcast, check_apart, constant
from build.core.reduce.shapes import Shapes


class AlongAxis(Rule):
    """Rows of one axis are computed together (softmax, normalisation, sums); every other axis is its own."""

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
    """LayerNormalization and its relatives: from `axis` to the last."""

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
    """A fused residual sum and layer normalisation: both inputs by row, over the last axis."""

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
    """Sums, means, extremes over other axes; those axes vanish or stay with size 1."""

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
    """Trained statistics a channel, axis 1: anything else is its own."""

    op_types: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if node.attributes.get_int("training_mode", 0):
            raise Stop("it is in training mode")
        check_apart([1], layout)
        return Needs({0: layout})
