"""What moves entries about and computes none: axes change places, merge, grow, are joined and cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Inputs, Rule, broadcast, check_apart, check_known, constant, row_shape
from build.core.reduce.shapes import Dim, Shapes, one, spell, times


class Transpose(Rule):
    """Axes change places.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Transpose<perm = [1, 0, 2]>(x)  y = Transpose<perm = [1, 0, 2]>(z)").tail)
    Squeeze  y [batch, 2]
      Transpose  y_row [batch, 1, 2]
        Transpose  z_row [1, batch, 2]
          GatherND  x_row [batch, 1, 2]
            <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        order = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
        return Needs({0: layout.moved(order[layout.time], order[layout.batch])})


class Reshape(Rule):
    """Entries keep their order and get other axes: fine as long as time stays an axis, alone or merged with batch.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = Reshape(x, heads)", weights="int64[4] heads = {0, 0, 2, 1}").tail)
    Squeeze  y [batch, 2, 1]
      Reshape  y_row [batch, 1, 2, 1]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        inner, outer = shapes.of(value), shapes.of(node.outputs[0])
        found = self._inside(layout, shapes, inner, outer)
        if kind in ("mean", "max") and (found.merged or layout.merged):
            raise Stop(f"it merges batch and time, and the {kind} is a history's")
        check_known(row_shape(outer, layout, shapes), shapes)
        return Needs({0: found})

    def _inside(self, layout: Layout, shapes: Shapes, inner: tuple[Dim, ...], outer: tuple[Dim, ...]) -> Layout:
        groups, time = Regrouping(inner, outer), layout.time
        before, after = groups.of_output(time)
        if layout.merged and len(after) == len(before) == 1:
            return layout.moved(before[0], before[0])
        if layout.merged:
            # As if in two steps, the first of which takes the shared axis apart.
            pair = (layout.rows, shapes.batch) if layout.time_first else (shapes.batch, layout.rows)
            axes = (time, time + 1) if layout.time_first else (time + 1, time)
            apart = replace(layout.moved(*axes), time_first=False, rows=())
            return self._inside(apart, shapes, inner, (*outer[:time], *pair, *outer[time + 1 :]))
        if after == [time] and len(before) == 1:
            if one(shapes.batch) and one(outer[layout.batch]):
                return self._batch_of_one(layout, before[0], inner)
            batch, inside = self._batch(layout, groups, shapes, inner, outer)
            return replace(layout.moved(before[0], batch), inner=inside)
        for axis, dim in enumerate(inner):
            for first, pair in ((True, (outer[time], shapes.batch)), (False, (shapes.batch, outer[time]))):
                if dim == times(*pair) and self._joined(layout, axis, first, shapes, inner, outer, pair):
                    return replace(layout.moved(axis, axis), inner=1, time_first=first, rows=outer[time])
        raise Stop(f"it merges time with other axes: {spell(inner, shapes)} becomes {spell(outer, shapes)}")

    def _joined(
        self,
        layout: Layout,
        axis: int,
        first: bool,
        shapes: Shapes,
        inner: tuple[Dim, ...],
        outer: tuple[Dim, ...],
        pair: tuple[Dim, Dim],
    ) -> bool:
        """Whether an axis inside is batch and time: as if in two steps, the first of which takes it apart into `pair`."""
        apart = (*inner[:axis], *pair, *inner[axis + 1 :])
        groups = Regrouping(apart, outer)
        if groups.of_output(layout.time) != ([axis if first else axis + 1], [layout.time]):
            return False
        try:
            batch, inside = self._batch(layout, groups, shapes, apart, outer)
        except Stop:
            return False
        return batch == (axis + 1 if first else axis) and inside == 1

    def _batch(
        self, layout: Layout, groups: Regrouping, shapes: Shapes, inner: tuple[Dim, ...], outer: tuple[Dim, ...]
    ) -> tuple[int, int]:
        """The batch axis inside, and its entries a history: it leads its group on both sides."""
        before, after = groups.of_output(layout.batch)
        if before and after[0] == layout.batch:
            count = inner[before[0]][0] // shapes.batch[0]
            if inner[before[0]] == tuple(n * count for n in shapes.batch):
                return before[0], count
        raise Stop(f"it merges batch with other axes: {spell(inner, shapes)} becomes {spell(outer, shapes)}")

    def _batch_of_one(self, layout: Layout, time: int, inner: tuple[Dim, ...]) -> Layout:
        """A batch that is fixed at 1: any axis of size 1 stands for it, or it is part of time."""
        batch = next((axis for axis, dim in enumerate(inner) if one(dim) and axis != time), time)
        return replace(layout.moved(time, batch), rows=inner[time] if batch == time else ())

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        dims = row_shape(emitter.shapes.of(node.outputs[0]), layout, emitter.shapes)
        return [emitter.node("Reshape", [inputs[0], emitter.shape(dims)], f"{node.outputs[0].name}_{emitter.kind}")]


@dataclass(frozen=True)
class Regrouping:
    """Which axes before a reshape hold the entries of which axes after it: the smallest groups of equal size.

    >>> Regrouping(((2,), (5,), (12,)), ((2,), (5,), (3,), (4,))).of_output(2)  # [2, 5, 12] becomes [2, 5, 3, 4]
    ([2], [2, 3])
    """

    inner: tuple[Dim, ...]
    outer: tuple[Dim, ...]

    def of_output(self, axis: int) -> tuple[list[int], list[int]]:
        """The group of an output axis: input and output axes, those of size 1 left out."""
        for before, after in self._groups():
            if axis in after:
                return (
                    [a for a in before if not one(self.inner[a])],
                    [a for a in after if not one(self.outer[a]) or a == axis],
                )
        return [], [axis]

    def _groups(self) -> list[tuple[list[int], list[int]]]:
        groups: list[tuple[list[int], list[int]]] = []
        i = o = 0
        while i < len(self.inner) or o < len(self.outer):
            before: list[int] = []
            after: list[int] = []
            left = right = (1,) * len((self.inner + self.outer)[0])
            while not before or not after or left != right:
                # Sizes grow with every axis: the side that is behind in the first run where they differ goes on.
                behind = next((a < b for a, b in zip(left, right, strict=True) if a != b), len(before) <= len(after))
                if i < len(self.inner) and (behind or o == len(self.outer)):
                    left = times(left, self.inner[i])
                    before.append(i)
                    i += 1
                elif o < len(self.outer):
                    right = times(right, self.outer[o])
                    after.append(o)
                    o += 1
                else:
                    break
            groups.append((before, after))
        return groups


class Expand(Rule):
    """Axes of size 1 are repeated.

    >>> from build.core.reduce.example import cut
    >>> print(cut("s = Shape(x)  z = Expand(b, s)  y = Add(x, z)", "float[batch, time, 2] x, float[batch, 1, 2] b").tail)
    Squeeze  y [batch, 2]
      Add  y_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Expand",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        check_known(shapes.of(node.outputs[0]), shapes)
        operand = broadcast(value, len(shapes.of(node.outputs[0])), layout, shapes)
        return Needs({} if operand is None else {0: operand})

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        dims = row_shape(emitter.shapes.of(node.outputs[0]), layout, emitter.shapes)
        return [emitter.node("Expand", [inputs[0], emitter.shape(dims, infer=False)])]


class Split(Rule):
    """One tensor cut into several, on another axis than time.

    >>> from build.core.reduce.example import cut
    >>> print(cut("a, b = Split<axis = 2, num_outputs = 2>(x)  y = Tanh(b)").tail)
    Squeeze  y [batch, 1]
      Tanh  y_row [batch, 1, 1]
        Split  b_row [batch, 1, 1]
          GatherND  x_row [batch, 1, 2]
            <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Split",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        axis = node.attributes.get_int("axis", 0) % len(shapes.of(node.outputs[0]))
        check_apart([axis], layout)
        return Needs({0: layout})


class Slice(Rule):
    """A part of other axes; or a later start in time, which moves the row.

    >>> from build.core.reduce.example import cut
    >>> print(cut("y = Slice(x, one, two, two)", weights="int64[1] one = {1}, int64[1] two = {2}").tail)
    Squeeze  y [batch, 1]
      Slice  y_row [batch, 1, 1]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    >>> numbers = "int64[1] one = {1}, int64[1] end = {9999}"
    >>> print(cut("z = Concat<axis = 1>(o, x)  y = Slice(z, one, end, one)",
    ...           "float[batch, 1, 2] o, float[batch, time, 2] x", numbers).tail)
    Squeeze  y [batch, 2]
      Where  z_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        start = self._start(node, layout, shapes)
        if start is None:
            return Needs({0: layout})
        if layout.merged:
            raise Stop("it cuts an axis that batch and time share")
        return Needs({0: replace(layout, offset=layout.offset + start)})

    def _start(self, node: ir.Node, layout: Layout, shapes: Shapes) -> int | None:
        """Where the slice begins in time; None where it leaves time alone."""
        value = node.inputs[0]
        assert value is not None
        inner, outer = shapes.of(value), shapes.of(node.outputs[0])
        starts, _, axes, steps = [*node.inputs[1:], None, None][:4]
        numbers = constant(axes) if axes is not None else list(range(len(inner)))
        first = constant(starts)
        by = constant(steps) if steps is not None else [1] * len(inner)
        if numbers is None or by is None:
            raise Stop("its axes or steps are computed")
        # Exporters slice axes from end to end; with steps of 1 nothing is cut where nothing is missing.
        cut = {axis % len(inner): n for n, axis in enumerate(numbers) if inner[axis] != outer[axis] or by[n] != 1}
        if layout.batch in cut and not layout.merged:
            raise Stop("it cuts the batch axis")
        if layout.time not in cut:
            if cut and layout.before and layout.time in (axis % len(inner) for axis in numbers):
                raise Stop("it cuts another axis, and goes from end to end of time as well")
            return None
        if first is None:
            raise Stop("where it begins in time is computed")
        if first[cut[layout.time]] < 0 or by[cut[layout.time]] != 1:
            raise Stop("it counts time from the end, or leaves steps out")
        if len(cut) > 1:
            raise Stop("it cuts time and another axis at once")
        return first[cut[layout.time]]

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        value = node.inputs[0]
        assert value is not None
        assert inputs[0] is not None
        # Of time one row is left, and it is the right one; without a cut elsewhere there is nothing to do.
        inner, outer = (list(emitter.shapes.of(v)) for v in (value, node.outputs[0]))
        del inner[layout.time], outer[layout.time]
        return [inputs[0]] if inner == outer and not self._backward(node) else emitter.like(node, inputs)

    def _backward(self, node: ir.Node) -> bool:
        return len(node.inputs) > 4 and any(step < 0 for step in constant(node.inputs[4]) or [])
