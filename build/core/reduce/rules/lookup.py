"""Embeddings, and other lookups."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Rule
from build.core.reduce.shapes import Shapes


class Gather(Rule):
    """Lookup: each index its entry (an embedding), or one index for a whole axis.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = Gather(table, ids)", "int64[batch, time] ids", "float[2, 2] table = {1, 2, 3, 4}").tail)
    Squeeze  y [batch, 2]
      Gather  y_row [batch, 1, 2]
        GatherND  ids_row [batch, 1]
          <- ids [batch, time]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        data, indices = node.inputs
        assert data is not None
        assert indices is not None
        axis = node.attributes.get_int("axis", 0) % len(shapes.of(data))
        width = len(shapes.of(indices))
        looked_up = range(axis, axis + width)
        if layout.time in looked_up:
            if layout.batch not in looked_up:
                raise Stop("it looks up time in a table that has the batch")
            if kind in ("mean", "max"):
                raise Stop(f"the {kind} of indices is no index")
            return Needs({1: layout.moved(layout.time - axis, layout.batch - axis)})
        if layout.batch in looked_up:
            raise Stop("it looks the batch up")
        inside = (a if a < axis else a - width + 1 for a in (layout.time, layout.batch))
        return Needs({0: layout.moved(*inside)})
