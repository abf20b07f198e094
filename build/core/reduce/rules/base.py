"""What a rule is, and the questions that rules of every family ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.shapes import Dim, Shapes, one, spell

Inputs = Sequence[ir.Value | None]


class Rule:
    """A family of operators. op_types are of the ONNX domain, those of others have it in front: "com.microsoft.Gelu"."""

    op_types: ClassVar[tuple[str, ...]] = ()
    pools: ClassVar[tuple[Kind, ...]] = ()  # which of mean and max it commutes with, as far as `needs` does not object

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        """What the operator needs for `kind` of its first output under `layout`.

        Raises:
            Stop: the rule does not hold here; its message is the reason.
        """
        raise NotImplementedError

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        """The operator for the wanted row; inputs: selected where `needs` says so, else the model's own."""
        return emitter.like(node, inputs)


def broadcast(value: ir.Value, rank: int, layout: Layout, shapes: Shapes) -> Layout | None:
    """An operand's layout where its output of `rank` axes has `layout`; None where it is the same in every row."""
    dims = shapes.of(value)
    back = rank - len(dims)
    time = layout.time - back
    if time < 0 or one(dims[time]):
        return None
    return layout.moved(time, time if layout.merged else layout.batch - back)


def check_apart(axes: Sequence[int], layout: Layout) -> None:
    """Neither time nor batch may be among the axes that an operator mixes.

    Raises:
        Stop: they are.
    """
    if layout.time in axes:
        raise Stop(f"it works along time (axis {layout.time})")
    if layout.batch in axes:
        raise Stop(f"it works along batch (axis {layout.batch})")


def check_known(dims: Sequence[Dim], shapes: Shapes) -> None:
    """Every axis has to follow from batch and time, for the shape to be written down.

    Raises:
        Stop: one does not.
    """
    if any(shapes.coefficients(dim) is None for dim in dims):
        raise Stop(f"its shape {spell(dims, shapes)} does not follow from batch and time")


def constant(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant, flat; None where they are computed."""
    if value is None or value.const_value is None:
        return None
    return [int(n) for n in value.const_value.numpy().reshape(-1)]


def row_shape(dims: Sequence[Dim], layout: Layout, shapes: Shapes) -> list[Dim]:
    """A tensor's axes when only the wanted row is left."""
    row = list(dims)
    row[layout.time] = shapes.batch if layout.merged else (1,) * len(shapes.time)
    return row
