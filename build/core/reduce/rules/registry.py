"""Which rule an operator has."""

from __future__ import annotations

import onnx_ir as ir

from build.core.reduce.layout import Kind, Stop
from build.core.reduce.rules.attention import Attention
from build.core.reduce.rules.axes import AlongAxis, BatchNormalization, Normalization, Reduction, SkipNormalization
from build.core.reduce.rules.base import Rule
from build.core.reduce.rules.convolution import Convolution, Pad, Pooling
from build.core.reduce.rules.elementwise import Dropout, Elementwise
from build.core.reduce.rules.joining import Concat
from build.core.reduce.rules.lookup import Gather
from build.core.reduce.rules.products import Gemm, MatMul
from build.core.reduce.rules.recurrent import Recurrent
from build.core.reduce.rules.shape import Expand, Reshape, Slice, Split, Transpose

RULES: dict[str, Rule] = {
    name: rule
    for rule in (
        *(Elementwise(), Dropout(), MatMul(), Gemm(), AlongAxis(), Normalization(), SkipNormalization(), Reduction()),
        *(BatchNormalization(), Transpose(), Reshape(), Expand(), Concat(), Split(), Slice(), Gather(), Attention()),
        *(Recurrent(), Convolution(), Pooling(), Pad()),
    )
    for name in rule.op_types
}


def rule_for(node: ir.Node, kind: Kind) -> Rule:
    """The rule of an operator.

    >>> type(rule_for(ir.node("LSTM", []), "row")).__name__
    'Recurrent'
    >>> rule_for(ir.node("LSTM", []), "mean")
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.Stop: the mean does not commute with it
    >>> rule_for(ir.node("Scan", []), "row")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.Stop: it runs its body for one row after another, ...
    >>> rule_for(ir.node("TopK", []), "row")
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.Stop: no rule knows how it treats time

    Raises:
        Stop: there is none for this operator, or none for this kind of selection.
    """
    if node.op_type in ("Loop", "Scan"):
        raise Stop(
            "it runs its body for one row after another, and for all of them; a recurrent layer (LSTM, GRU, RNN) would stop "
            "at the wanted row"
        )
    rule = RULES.get(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    if rule is None:
        raise Stop("no rule knows how it treats time")
    if kind in ("mean", "max") and kind not in rule.pools:
        raise Stop(f"the {kind} does not commute with it")
    return rule
