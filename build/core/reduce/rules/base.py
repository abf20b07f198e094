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

        >>> from build.core.reduce.example import model, shapes_of
        >>> from build.core.reduce.rules import MatMul
        >>> full = model("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}")
        >>> needs = MatMul().needs(full.graph[0], Layout(time=1, batch=0), shapes_of(full), "row")
        >>> needs.rows == {0: Layout(time=1, batch=0)}  # of x the row, of w all
        True

        Raises:
            Stop: the rule does not hold here; its message is the reason.
        """
        raise NotImplementedError

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        """The operator for the wanted row; inputs: selected where `needs` says so, else the model's own."""
        return emitter.like(node, inputs)


def broadcast(value: ir.Value, rank: int, layout: Layout, shapes: Shapes) -> Layout | None:
    """An operand's layout where its output of `rank` axes has `layout`; None where it is the same in every row.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = Add(x, w)", weights="float[2] w = {1, 2}")
    >>> x, w = full.graph[0].inputs
    >>> broadcast(x, 3, Layout(time=1, batch=0), shapes_of(full)) == Layout(time=1, batch=0)
    True
    >>> broadcast(w, 3, Layout(time=1, batch=0), shapes_of(full)) is None
    True
    """
    dims = shapes.of(value)
    back = rank - len(dims)
    time = layout.time - back
    if time < 0 or one(dims[time]):
        return None
    return layout.moved(time, time if layout.merged else layout.batch - back)


def check_apart(axes: Sequence[int], layout: Layout) -> None:
    """Neither time nor batch may be among the axes that an operator mixes.

    >>> check_apart([2], Layout(time=1, batch=0))
    >>> check_apart([1, 2], Layout(time=1, batch=0))
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.Stop: it works along time (axis 1)

    Raises:
        Stop: they are.
    """
    if layout.time in axes:
        raise Stop(f"it works along time (axis {layout.time})")
    if layout.batch in axes:
        raise Stop(f"it works along batch (axis {layout.batch})")


def check_known(dims: Sequence[Dim], shapes: Shapes) -> None:
    """Every axis has to follow from batch and time, for the shape to be written down.

    >>> from build.core.reduce.example import model, shapes_of
    >>> shapes = shapes_of(model("y = Tanh(x)"))
    >>> check_known([shapes.batch, shapes.time], shapes)
    >>> check_known([shapes.batch, tuple(time**2 for time in shapes.time)], shapes)
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.Stop: its shape [batch, ?] does not follow from batch and time

    Raises:
        Stop: one does not.
    """
    if any(shapes.coefficients(dim) is None for dim in dims):
        raise Stop(f"its shape {spell(dims, shapes)} does not follow from batch and time")


def constant(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant, flat; None where they are computed.

    >>> from build.core.reduce.example import model
    >>> full = model("y = Add(x, w)", weights="float[2] w = {1, 2}")
    >>> constant(full.graph[0].inputs[1])
    [1, 2]
    >>> constant(full.graph[0].inputs[0]) is None
    True
    """
    if value is None or value.const_value is None:
        return None
    return [int(n) for n in value.const_value.numpy().reshape(-1)]


def row_shape(dims: Sequence[Dim], layout: Layout, shapes: Shapes) -> list[Dim]:
    """A tensor's axes when only the wanted rows are left.

    >>> from build.core.reduce.example import model, shapes_of
    >>> shapes = shapes_of(model("y = Tanh(x)"))
    >>> row = row_shape([shapes.batch, shapes.time], Layout(time=1, batch=0), shapes)
    >>> spell(row, shapes)
    '[batch, 1]'
    """
    row = list(dims)
    row[layout.time] = tuple(n * layout.count for n in (shapes.batch if layout.merged else (1,) * len(shapes.time)))
    return row
