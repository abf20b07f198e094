"""What looks at a window of rows: convolutions, pooling; and the padding in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter, beyond
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Inputs, Rule, check_apart, check_known, constant
from build.core.reduce.shapes import Dim, Shapes, fixed

# Types that ONNX Runtime has a Where for on the CPU.
_FILLED = tuple(ir.DataType[name] for name in ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64"))


@dataclass(frozen=True)
class Window:
    """What an operator looks at along one of its axes; `side` is the number of that axis among the ones with a kernel."""

    side: int
    kernel: int
    dilation: int
    stride: int
    pads: tuple[int, int]

    @classmethod
    def each(cls, node: ir.Node, kernel: list[Dim]) -> list[Window]:
        """A node's windows, one an axis from the third on.

        >>> [pool] = [ir.node("MaxPool", [], {"kernel_shape": [3], "pads": [2, 0]})]
        >>> Window.each(pool, [(3,)])
        [Window(side=0, kernel=3, dilation=1, stride=1, pads=(2, 0))]
        """
        given, rank = node.attributes, len(kernel)
        dilations, strides = (given.get_ints(name, [1] * rank) for name in ("dilations", "strides"))
        pads = given.get_ints("pads", [0] * 2 * rank)
        if given.get_string("auto_pad", "NOTSET") != "NOTSET":
            pads = [0] * 2 * rank
        return [
            cls(n, kernel[n][0] if fixed(kernel[n]) else 0, dilations[n], strides[n], (pads[n], pads[n + rank]))
            for n in range(rank)
        ]

    @property
    def alone(self) -> bool:
        """Whether an entry is made of the one in its place."""
        return self.kernel == 1 and self.stride == 1 and self.pads == (0, 0)


class Filling(Rule):
    """What reads rows that a tensor does not have as numbers of its own: the rows before the first, and behind the last."""

    def within(self, value: ir.Value, rows: Layout, shapes: Shapes, kind: Kind) -> Needs:
        """Needs of these rows, if it is not all of them and if it can be said which of them there are."""
        dims = shapes.of(value)
        if rows.merged:
            raise Stop("it works along the axis that batch and time share")
        if kind == "row" and rows.count > 1 and rows.count >= max(dims[rows.time]):
            raise Stop(f"it looks at {rows.count} rows, and there are no more")
        if value.dtype not in _FILLED:
            raise Stop(f"its padding is of {value.dtype}, among which ONNX Runtime does not choose")
        if beyond(rows, dims, shapes):
            check_known([dims[rows.time]], shapes)
        return Needs({0: rows})

    def fills(self, node: ir.Node, layout: Layout, shapes: Shapes) -> bool:
        """Whether it answers a row whatever there is of what it reads."""
        del node, layout, shapes
        return True

    def filled(self, value: ir.Value, rows: ir.Value, inside: Layout, padding: ir.Value, emitter: Emitter) -> ir.Value:
        """The rows of a tensor, with a number in place of those that there are none of."""
        there = emitter.exist(value, inside)
        return rows if there is None else emitter.node("Where", [there, rows, padding], f"{rows.name}_padded")


class Convolution(Filling):
    """Channels, axis 1, are mixed, and every axis with a window; a row is made of the rows in its window over time.

    Padding is zeros: the rows of the window that there are none of are set to that, at every layer anew.

    >>> from build.core.reduce.example import cut
    >>> turned = "t = Transpose<perm = [0, 2, 1]>(x)  z = Conv<pads = [1, 0]>(t, w)  y = Transpose<perm = [0, 2, 1]>(z)"
    >>> print(cut(turned, weights="float[1, 2, 2] w = {1, 2, 3, 4}").tail)
    Squeeze  y [batch, 1]
      Transpose  y_row [batch, 1, 1]
        Conv  z_row [batch, 1, 1]
          Where  t_row_padded [batch, 2, 2]
            Transpose  t_row [batch, 2, 2]
              GatherND  x_row [batch, 2, 2]
                <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Conv",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean",)
    mixed: ClassVar[tuple[int, ...]] = (1,)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        windows = Window.each(node, self.kernel(node, shapes))
        over = self._over_time(windows, layout)
        mixed = [2 + window.side for window in windows if not window.alone and window is not over]
        check_apart([*self.mixed, *mixed], layout)
        if over is None:
            return Needs({0: layout})
        if kind in ("mean", "max"):
            raise Stop(f"the {kind} does not commute with it")
        if over.stride != 1:
            raise Stop("it leaves rows out")
        if not over.kernel:
            raise Stop("how many rows it looks at is computed")
        if over.kernel > 1 and node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise Stop("its padding is left to it (auto_pad)")
        return self.within(value, layout.seen(over.kernel, over.dilation, over.pads[0]), shapes, kind)

    def kernel(self, node: ir.Node, shapes: Shapes) -> list[Dim]:
        """The window's size, an axis from the third on."""
        assert node.inputs[1] is not None
        return list(shapes.of(node.inputs[1])[2:])

    def padding(self, node: ir.Node, dtype: np.dtype) -> np.ndarray:
        """What rows that there are none of count as."""
        return np.zeros((), dtype)

    def _over_time(self, windows: list[Window], layout: Layout) -> Window | None:
        found = windows[layout.time - 2] if layout.time >= 2 else None
        return None if found is None or found.alone else found

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        windows = Window.each(node, self.kernel(node, emitter.shapes))
        over = self._over_time(windows, layout)
        if over is None:
            return emitter.like(node, inputs)
        value, rows = node.inputs[0], inputs[0]
        assert value is not None
        assert rows is not None
        inside = layout.seen(over.kernel, over.dilation, over.pads[0])
        rows = self.filled(value, rows, inside, emitter.constant(self.padding(node, _dtype(value))), emitter)
        values = emitter.like(node, [rows, *inputs[1:]])
        made = values[0].producer()
        assert made is not None
        # Of the rows there is one in `inside.step`: as many lie between two that the kernel looks at, or that are wanted.
        step = max(inside.step, 1)
        both = {
            "dilations": [w.dilation if w is not over else max(over.dilation // step, 1) for w in windows],
            "strides": [w.stride if w is not over else max(layout.step // step, 1) for w in windows],
            "pads": [w.pads[end] if w is not over else 0 for end in (0, 1) for w in windows],
        }
        for name, numbers in both.items():
            if name in node.attributes or (name != "pads" and numbers != [1] * len(windows)):
                made.attributes[name] = ir.AttrInt64s(name, numbers)
        return values


class Pooling(Convolution):
    """As a convolution, every channel by itself. What is not there is left out of a maximum; of a mean if it counts as zero.

    >>> from build.core.reduce.example import cut
    >>> pool = "z = MaxPool<kernel_shape = [4], pads = [3, 0]>(t)"
    >>> print(cut(f"t = Transpose<perm = [0, 2, 1]>(x)  {pool}  y = Transpose<perm = [0, 2, 1]>(z)").tail)
    Squeeze  y [batch, 2]
      Transpose  y_row [batch, 1, 2]
        MaxPool  z_row [batch, 2, 1]
          Where  t_row_padded [batch, 2, 4]
            Transpose  t_row [batch, 2, 4]
              GatherND  x_row [batch, 4, 2]
                <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("AveragePool", "MaxPool")
    pools: ClassVar[tuple[Kind, ...]] = ()
    mixed: ClassVar[tuple[int, ...]] = ()

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        needs = super().needs(node, layout, shapes, kind)
        over = self._over_time(Window.each(node, self.kernel(node, shapes)), layout)
        counted = node.op_type == "MaxPool" or node.attributes.get_int("count_include_pad", 0) == 1
        if kind == "row" and over is not None and any(over.pads) and not counted:
            raise Stop("its first means are of fewer rows (count_include_pad = 0)")
        return needs

    def kernel(self, node: ir.Node, shapes: Shapes) -> list[Dim]:
        return [(size,) * len(shapes.time) for size in node.attributes.get_ints("kernel_shape")]

    def padding(self, node: ir.Node, dtype: np.dtype) -> np.ndarray:
        if node.op_type == "AveragePool":
            return np.zeros((), dtype)
        return np.array(-np.inf if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min, dtype)


class Pad(Filling):
    """Rows are moved by as many as are added in front; one that there is none of is the number that is added.

    >>> from build.core.reduce.example import cut
    >>> numbers = "int64[6] one_in_front = {0, 1, 0, 0, 0, 0}, int64[1] zero = {0}, int64[1] end = {-1}, int64[1] one = {1}"
    >>> print(cut("z = Pad(x, one_in_front)  y = Slice(z, zero, end, one)", weights=numbers).tail)
    Squeeze  y [batch, 2]
      Where  x_row_padded [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """

    op_types: ClassVar[tuple[str, ...]] = ("Pad",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        rank = len(shapes.of(value))
        pads = self._pads(node, rank)
        if pads[layout.batch] or pads[layout.batch + rank]:
            raise Stop("it adds to the batch")
        if not pads[layout.time] and not pads[layout.time + rank]:
            return Needs({0: layout})
        if node.attributes.get_string("mode", "constant") != "constant":
            raise Stop("the rows that it adds are others of the tensor")
        return self.within(value, layout.seen(1, 1, pads[layout.time]), shapes, kind)

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        value, rows = node.inputs[0], inputs[0]
        assert value is not None
        assert rows is not None
        rank = len(emitter.shapes.of(value))
        pads = self._pads(node, rank)
        inside = layout.seen(1, 1, pads[layout.time])
        number = inputs[2] if len(inputs) > 2 else None
        over_time = [pads[axis] for axis in (layout.time, layout.time + rank)]
        pads[layout.time] = pads[layout.time + rank] = 0
        if any(pads):
            rows = emitter.like(node, [rows, emitter.constant(pads), number])[0]
        if any(over_time):
            number = number or emitter.constant(np.zeros((), _dtype(value)))
            rows = self.filled(value, rows, inside, number, emitter)
        return [rows]

    def _pads(self, node: ir.Node, rank: int) -> list[int]:
        """How many entries are added, in front along every axis and then behind; below 0 where some are cut off."""
        given = constant(node.inputs[1])
        axes = node.inputs[3] if len(node.inputs) > 3 else None
        numbers = list(range(rank)) if axes is None else constant(axes)
        if given is None or numbers is None:
            raise Stop("how many rows it adds is computed")
        pads = [0] * 2 * rank
        for n, axis in enumerate(numbers):
            pads[axis % rank], pads[axis % rank + rank] = given[n], given[n + len(numbers)]
        return pads


def _dtype(value: ir.Value) -> np.dtype:
    return (value.dtype or ir.DataType.FLOAT).numpy()
