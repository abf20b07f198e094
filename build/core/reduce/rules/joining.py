"""Tensors side by side: on another axis than time, or a few rows before or behind a sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Inputs, check_known
from build.core.reduce.rules.convolution import Filling
from build.core.reduce.shapes import Dim, Shapes, fixed

_FEW = 8  # rows that may be joined to a sequence: each is a choice more


@dataclass(frozen=True)
class _Joint:
    """Which input is the sequence; where it begins, and where every input does."""

    sequence: int
    starts: list[Dim]

    @property
    def start(self) -> int:
        return self.starts[self.sequence][0]


class Concat(Filling):
    """Of tensors side by side the row of each. Of rows joined in time the one among them: the sequence's, moved by the rows
    in front of it, or where the wanted row is one of those that are joined to it, that.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Tanh(x)  y = Concat<axis = 2>(x, z)").tail)
    Squeeze  y [batch, 4]
      Concat  y_row [batch, 1, 4]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
        Tanh  z_row [batch, 1, 2]
          GatherND  x_row [batch, 1, 2]  (above)
    >>> numbers = "int64[1] zero = {0}, int64[1] end = {-1}, int64[1] one = {1}"
    >>> print(cut("z = Concat<axis = 1>(o, x)  y = Slice(z, zero, end, one)",
    ...           "float[batch, 1, 2] o, float[batch, time, 2] x", numbers).tail)
    Squeeze  y [batch, 2]
      Where  z_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        axis = _axis(node, shapes)
        if axis == layout.batch and not layout.merged:
            raise Stop(f"it works along batch (axis {axis})")
        if axis != layout.time:
            return Needs(dict.fromkeys(range(len(node.inputs)), layout))
        joint = _joint(node, axis, shapes)
        if joint is None or layout.merged or kind in ("mean", "max"):
            raise Stop(f"it works along time (axis {axis})")
        if kind == "prefix" and joint.sequence < len(node.inputs) - 1:
            raise Stop("rows behind its sequence are where that ends")
        sequence = node.inputs[joint.sequence]
        assert sequence is not None
        check_known(joint.starts, shapes)
        rows = self.within(sequence, replace(layout, offset=layout.offset - joint.start), shapes, kind)
        return Needs({joint.sequence: rows.rows[0]})

    def fills(self, node: ir.Node, layout: Layout, shapes: Shapes) -> bool:
        return _axis(node, shapes) == layout.time

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        axis, shapes = _axis(node, emitter.shapes), emitter.shapes
        joint = _joint(node, axis, shapes) if axis == layout.time else None
        if joint is None:
            return emitter.like(node, inputs)
        name = f"{node.outputs[0].name}_{emitter.kind}"
        dims = shapes.of(node.outputs[0])
        last = inputs[-1]
        assert last is not None
        behind = joint.sequence < len(inputs) - 1
        if behind and layout.count == 1 and emitter.ends(dims[axis], layout.offset):
            return [emitter.node("Slice", [last, *(emitter.constant([n]) for n in (-1, 1 << 62, axis))], name)]
        row, number = inputs[joint.sequence], emitter.row_numbers(layout)
        # In front the first row is chosen last, behind the last one: each leaves what lies further in to the others.
        for place in [*range(joint.sequence - 1, -1, -1), *range(joint.sequence + 1, len(inputs))]:
            value, front = inputs[place], place < joint.sequence
            assert value is not None
            count = shapes.of(value)[axis][0]
            for each in reversed(range(count)) if front else range(count):
                at = emitter.size(tuple(n + each for n in joint.starts[place]))
                asked = emitter.node("LessOrEqual" if front else "GreaterOrEqual", [number, at], "joined")
                chosen, one = emitter.across(asked, len(dims), layout), value
                if count > 1:
                    one = emitter.node("Slice", [value, *(emitter.constant([n]) for n in (each, each + 1, axis))])
                row = emitter.node("Where", [chosen, one, row], name)
        assert row is not None
        return [row]


def _axis(node: ir.Node, shapes: Shapes) -> int:
    return node.attributes.get_int("axis", 0) % len(shapes.of(node.outputs[0]))


def _joint(node: ir.Node, axis: int, shapes: Shapes) -> _Joint | None:
    """None where it is not one sequence with a few rows before or behind it."""
    sizes = [shapes.of(value)[axis] for value in node.inputs if value is not None]
    long = [number for number, size in enumerate(sizes) if not fixed(size)]
    sequence = long[0] if long else max(range(len(sizes)), key=lambda number: sizes[number][0])
    joined = [size[0] for number, size in enumerate(sizes) if number != sequence]
    if len(long) > 1 or sum(joined) > _FEW:
        return None
    starts, start = [], (0,) * len(shapes.time)
    for size in sizes:
        starts.append(start)
        start = tuple(a + b for a, b in zip(start, size, strict=True))
    return _Joint(sequence, starts)
