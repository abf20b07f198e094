"""What treats every entry by itself."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Rule, broadcast, constant
from build.core.reduce.shapes import Shapes


class Elementwise(Rule):
    """Every entry of the output comes from one entry of each input, which broadcast.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Tanh(x)  y = Mul(z, w)", weights="float[2] w = {1, 2}").tail)
    Squeeze  y [batch, 2]
      Mul  y_row [batch, 1, 2]
        Tanh  z_row [batch, 1, 2]
          GatherND  x_row [batch, 1, 2]
            <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = (
        *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "Cast", "CastLike"),
        *("Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
        *("GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less"),
        *("LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow"),
        *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
        *("com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.BiasGelu", "com.microsoft.QuickGelu"),
    )
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")
    _LINEAR = frozenset({"Add", "Sub", "Sum", "Neg", "Identity"})
    # Rising over all numbers: a row that Log or Sqrt makes NaN would be lost if the maximum were taken before.
    _RISING = frozenset({"Identity", "Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Softsign", "Erf"})

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        rows = {}
        for number, value in enumerate(node.inputs):
            if value is not None and (operand := broadcast(value, rank, layout, shapes)) is not None:
                rows[number] = operand
        if kind in ("mean", "max"):
            self._commutes(node, rows, kind)
        return Needs(rows)

    def _commutes(self, node: ir.Node, rows: dict[int, Layout], kind: Kind) -> None:
        op = node.op_type
        if op in self._LINEAR and kind == "mean":
            return
        if op in ("Mul", "Div") and kind == "mean" and len(rows) == 1 and (op == "Mul" or 0 in rows):
            return
        if op in self._RISING and kind == "max":
            return
        if kind == "max" and ((op == "Add" and len(rows) == 1) or (op == "Sub" and list(rows) == [0])):
            return
        raise Stop(f"the {kind} does not commute with it")


class Dropout(Rule):
    """Dropout as it is when serving: nothing. A mask that somebody reads is left alone.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Dropout(x)  y = Tanh(z)").tail)
    Squeeze  y [batch, 2]
      Tanh  y_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Dropout",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if training is not None and constant(training) != [0]:
            raise Stop("it may be in training mode")
        return Needs({0: layout})
