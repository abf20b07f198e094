"""Convolutions."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.layout import Kind, Layout, Needs
from build.core.reduce.rules.base import Rule, check_apart
from build.core.reduce.shapes import Shapes, one


class Convolution(Rule):
    """Channels, axis 1, are mixed, and every axis that the kernel spans; along any other it is a product for every entry.

    >>> from build.core.reduce.example import cut
    >>> turned = "t = Transpose<perm = [0, 2, 1]>(x)  z = Conv(t, w)  y = Transpose<perm = [0, 2, 1]>(z)"
    >>> print(cut(turned, weights="float[1, 2, 1] w = {1, 2}").tail)
    Squeeze  y [batch, 1]
      Transpose  y_row [batch, 1, 1]
        Conv  z_row [batch, 1, 1]
          Transpose  t_row [batch, 2, 1]
            GatherND  x_row [batch, 1, 2]
              <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Conv",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        assert node.inputs[1] is not None
        kernel = shapes.of(node.inputs[1])[2:]
        rank = len(kernel)
        strides = node.attributes.get_ints("strides", [1] * rank)
        pads = node.attributes.get_ints(
            "pads", [0] * 2 * rank
        )  # where it is auto_pad that says, a width of 1 gets none
        own = [one(kernel[n]) and strides[n] == 1 and pads[n] == pads[n + rank] == 0 for n in range(rank)]
        check_apart([1, *(2 + n for n in range(rank) if not own[n])], layout)
        return Needs({0: layout})
