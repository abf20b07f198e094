"""Attention where an exporter has made one operator of it; written out, it is products and a softmax."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Inputs, Rule, check_known
from build.core.reduce.shapes import Shapes, one


class Attention(Rule):
    """Fused attention: of the queries one row, of keys and values all.

    >>> from build.core.reduce.example import cut
    >>> print(cut("q = Tanh(x)  k = Exp(x)  y = Attention<q_num_heads = 1, kv_num_heads = 1, is_causal = 1>(q, k, k)").tail)
    Squeeze  y [batch, 2]
      Attention  y_row [batch, 1, 2]
        Tanh  q_row [batch, 1, 2]
          GatherND  x_row [batch, 1, 2]
            <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Attention", "com.microsoft.MultiHeadAttention")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        inputs = [*node.inputs, *([None] * 10)]
        query = inputs[0]
        assert query is not None
        rank = len(shapes.of(query))
        rows = {0: layout}
        if layout.merged or layout.inner != 1 or (layout.batch, layout.time) != (0, rank - 2 if rank == 4 else 1):
            raise Stop("its query axis is not the wanted one")
        if node.domain:
            self._packed(node, inputs, rank, shapes)
            mask, masks = 5, inputs[5]
        else:
            if any(value is not None for value in inputs[4:]):
                raise Stop("it carries keys and values from earlier calls")
            mask, masks = 3, inputs[3]
        assert inputs[1] is not None
        check_known(shapes.of(inputs[1]), shapes)
        if masks is not None:
            dims = shapes.of(masks)
            back = 4 - len(dims)
            if not one(dims[-2]):
                rows[mask] = layout.moved(len(dims) - 2, -back)
        return Needs(rows)

    def _packed(self, node: ir.Node, inputs: list[ir.Value | None], rank: int, shapes: Shapes) -> None:
        if rank != 3 or inputs[1] is None or inputs[2] is None:
            raise Stop("queries, keys and values are packed into one tensor")
        if node.attributes.get_int("unidirectional", 0):
            raise Stop("its causal mask depends on the number of queries")
        if inputs[4] is not None and len(shapes.of(inputs[4])) > 2:
            raise Stop("its padding mask differs from query to query")
        if any(value is not None for value in inputs[6:]):
            raise Stop("it carries keys and values from earlier calls")

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        if node.domain or not node.attributes.get_int("is_causal", 0):
            return emitter.like(node, inputs)
        # Causality is relative to the first query: for a single row it has to be said as a mask.
        key = node.inputs[1]
        assert key is not None
        dims = emitter.shapes.of(key)
        count = emitter.size(dims[2 if len(dims) == 4 else 1])
        numbers = emitter.node("Range", [emitter.scalar(0), emitter.node("Squeeze", [count]), emitter.scalar(1)])
        row = emitter.node("Reshape", [emitter.nearest(layout), emitter.constant([-1, 1, layout.count, 1])])
        seen = emitter.node("LessOrEqual", [numbers, row], "causal_mask")
        mask = inputs[3] if len(inputs) > 3 else None
        given = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and given is not None:
            if given.dtype == ir.DataType.BOOL:
                seen = emitter.node("And", [mask, seen])
            else:
                never = emitter.constant(np.array(-np.inf, (given.dtype or ir.DataType.FLOAT).numpy()))
                seen = emitter.node("Where", [seen, mask, never])
        values = emitter.like(node, [*inputs[:3], seen, *inputs[4:]])
        made = values[0].producer()
        assert made is not None
        made.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)
        return values
