"""One rule an operator family: which row of its inputs an operator needs for the wanted row of its output.

A rule holds exactly or raises Stop. `needs` only looks; `emit` writes the operator once more, for that row alone, and by
default is the same operator on the selected inputs: the time axis stays, with size 1, so that axes keep their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.shapes import Dim, Shapes, one, times

Inputs = Sequence[ir.Value | None]
RECURRENT = ("LSTM", "GRU", "RNN")


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


class Elementwise(Rule):
    """Every entry of the output comes from one entry of each input, which broadcast."""

    op_types: ClassVar[tuple[str, ...]] = (
        *(
            "Abs",
            "Acos",
            "Acosh",
            "Add",
            "And",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "BitShift",
            "Cast",
            "CastLike",
            "Ceil",
        ),
        *("Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
        *(
            "GreaterOrEqual",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
        ),
        *("Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu"),
        *("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum"),
        *("Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
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
    """Dropout as it is when serving: nothing. A mask that somebody reads is left alone."""

    op_types: ClassVar[tuple[str, ...]] = ("Dropout",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if training is not None and constant(training) != [0]:
            raise Stop("it may be in training mode")
        return Needs({0: layout})


class MatMul(Rule):
    """Rows of the left operand are rows of the product, columns of the right one its columns; the rest broadcasts."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        left, right = node.inputs
        assert left is not None
        assert right is not None
        rank, ranks = len(shapes.of(node.outputs[0])), (len(shapes.of(left)), len(shapes.of(right)))
        if min(ranks) < 2:
            raise Stop("it multiplies by a vector")
        row, column = rank - 2, rank - 1
        if layout.time in (row, column):
            number = 0 if layout.time == row else 1
            if layout.batch == (column if number == 0 else row):
                raise Stop("it keeps learners and time in its two operands")
            back = rank - ranks[number]
            return Needs({number: layout.moved(layout.time - back, layout.batch - back)})
        rows = {}
        for number, value in ((0, left), (1, right)):
            operand = broadcast(value, rank, layout, shapes)
            if operand is not None:
                if layout.batch == (column if number == 0 else row):
                    raise Stop("it sums over what would be the learners' axis")
                rows[number] = operand
        if kind == "mean" and len(rows) != 1:
            raise Stop("the mean does not commute with a product of two sequences")
        return Needs(rows)


class Gemm(Rule):
    """A matrix product of two axes: time as a row, learners merged into it or absent."""

    op_types: ClassVar[tuple[str, ...]] = ("Gemm",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if not layout.merged:
            raise Stop("it keeps learners and time in its two operands")
        number, flag = (0, "transA") if layout.time == 0 else (1, "transB")
        axis = layout.time if not node.attributes.get_int(flag, 0) else 1 - layout.time
        rows = {number: layout.moved(axis, axis)}
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (operand := broadcast(bias, 2, layout, shapes)) is not None:
            rows[2] = operand
        return Needs(rows)


class AlongAxis(Rule):
    """Rows of one axis are computed together (softmax, normalisation, sums); every other axis is its own."""

    op_types: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        check_apart(self.axes(node, rank), layout)
        return Needs({0: layout})

    def axes(self, node: ir.Node, rank: int) -> list[int]:
        """The axes that the operator mixes."""
        if node.op_type == "CumSum":
            given = constant(node.inputs[1])
            if given is None:
                raise Stop("its axis is computed")
            return [given[0] % rank]
        return [node.attributes.get_int("axis", -1) % rank]


class Normalization(AlongAxis):
    """LayerNormalization and its relatives: from `axis` to the last."""

    op_types: ClassVar[tuple[str, ...]] = (
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("com.microsoft.SimplifiedLayerNormalization",),
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        needs = super().needs(node, layout, shapes, kind)
        rank = len(shapes.of(node.outputs[0]))
        if any(v is not None and broadcast(v, rank, layout, shapes) is not None for v in node.inputs[1:]):
            raise Stop("its scale or bias differs from row to row")
        return needs

    def axes(self, node: ir.Node, rank: int) -> list[int]:
        return list(range(node.attributes.get_int("axis", -1) % rank, rank))


class SkipNormalization(Rule):
    """A fused residual sum and layer normalisation: both inputs by row, over the last axis."""

    op_types: ClassVar[tuple[str, ...]] = (
        "com.microsoft.SkipLayerNormalization",
        "com.microsoft.SkipSimplifiedLayerNormalization",
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        check_apart([rank - 1], layout)
        rows = {}
        for number, value in enumerate(node.inputs[:2]):
            assert value is not None
            operand = broadcast(value, rank, layout, shapes)
            if operand is not None:
                rows[number] = operand
        return Needs(rows)


class Reduction(Rule):
    """Sums, means, extremes over other axes; those axes vanish or stay with size 1."""

    op_types: ClassVar[tuple[str, ...]] = (
        *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
        *("ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
    )

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        rank = len(shapes.of(value))
        axes = self._axes(node, rank)
        kept = (
            list(range(rank)) if node.attributes.get_int("keepdims", 1) else [a for a in range(rank) if a not in axes]
        )
        inside = layout.moved(kept[layout.time], kept[layout.batch])
        check_apart(axes, inside)
        return Needs({0: inside})

    def _axes(self, node: ir.Node, rank: int) -> list[int]:
        if node.op_type.startswith("Arg"):
            return [node.attributes.get_int("axis", 0) % rank]
        given = node.attributes.get_ints("axes") if "axes" in node.attributes else None
        if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            given = constant(node.inputs[1])
            if given is None:
                raise Stop("its axes are computed")
        if not given:
            if node.attributes.get_int("noop_with_empty_axes", 0):
                return []
            return list(range(rank))
        return [axis % rank for axis in given]


class BatchNormalization(Rule):
    """Trained statistics a channel, axis 1: anything else is its own."""

    op_types: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if node.attributes.get_int("training_mode", 0):
            raise Stop("it is in training mode")
        check_apart([1], layout)
        return Needs({0: layout})


class Transpose(Rule):
    """Axes change places."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        rank = len(shapes.of(node.outputs[0]))
        order = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
        return Needs({0: layout.moved(order[layout.time], order[layout.batch])})


class Reshape(Rule):
    """Entries keep their order and get other axes: fine as long as time stays an axis, alone or merged with learners."""

    op_types: ClassVar[tuple[str, ...]] = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        value = node.inputs[0]
        assert value is not None
        inner, outer = shapes.of(value), shapes.of(node.outputs[0])
        found = self._inside(layout, Regrouping(inner, outer), shapes, inner, outer)
        if kind in ("mean", "max") and (found.merged or layout.merged):
            raise Stop(f"it merges learners and time, and the {kind} is a learner's")
        check_known(row_shape(outer, layout, shapes), shapes)
        return Needs({0: found})

    def _inside(
        self, layout: Layout, groups: Regrouping, shapes: Shapes, inner: tuple[Dim, ...], outer: tuple[Dim, ...]
    ) -> Layout:
        before, after = groups.of_output(layout.time)
        if layout.merged:
            if len(after) == 1 and len(before) == 1:
                return layout.moved(before[0], before[0])
            if len(after) == 1 and len(before) == 2:
                first, second = before
                ordered = (layout.rows, shapes.batch) if layout.time_first else (shapes.batch, layout.rows)
                if (inner[first], inner[second]) == ordered:
                    apart = layout.moved(*((first, second) if layout.time_first else (second, first)))
                    return replace(apart, time_first=False, rows=())
        elif sorted(after) == sorted((layout.time, layout.batch)) and len(before) == 1 and layout.inner == 1:
            if outer[layout.batch] == shapes.batch:
                merged = layout.moved(before[0], before[0])
                return replace(merged, time_first=layout.time < layout.batch, rows=outer[layout.time])
        elif after == [layout.time] and len(before) == 1:
            if one(shapes.batch) and one(outer[layout.batch]):
                return self._single_learner(layout, before[0], inner)
            batch, inside = self._learners(layout, groups, shapes, inner, outer)
            return replace(layout.moved(before[0], batch), inner=inside)
        raise Stop(f"it merges time with other axes: {spell(inner, shapes)} becomes {spell(outer, shapes)}")

    def _learners(
        self, layout: Layout, groups: Regrouping, shapes: Shapes, inner: tuple[Dim, ...], outer: tuple[Dim, ...]
    ) -> tuple[int, int]:
        """The learners' axis inside, and its entries a learner: they lead their group on both sides."""
        before, after = groups.of_output(layout.batch)
        if before and after[0] == layout.batch:
            count = inner[before[0]][0] // shapes.batch[0]
            if inner[before[0]] == tuple(n * count for n in shapes.batch):
                return before[0], count
        raise Stop(f"it merges learners with other axes: {spell(inner, shapes)} becomes {spell(outer, shapes)}")

    def _single_learner(self, layout: Layout, time: int, inner: tuple[Dim, ...]) -> Layout:
        """A batch that is fixed at 1: any axis of size 1 stands for it, or it is part of time."""
        batch = next((axis for axis, dim in enumerate(inner) if one(dim) and axis != time), time)
        return replace(layout.moved(time, batch), rows=inner[time] if batch == time else ())

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        dims = row_shape(emitter.shapes.of(node.outputs[0]), layout, emitter.shapes)
        return [emitter.node("Reshape", [inputs[0], emitter.shape(dims)], f"{node.outputs[0].name}_{emitter.kind}")]


class Expand(Rule):
    """Axes of size 1 are repeated."""

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


class Concat(Rule):
    """Tensors side by side, on another axis than time."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        axis = node.attributes.get_int("axis", 0) % len(shapes.of(node.outputs[0]))
        check_apart([axis], layout)
        return Needs(dict.fromkeys(range(len(node.inputs)), layout))


class Split(Rule):
    """One tensor cut into several, on another axis than time."""

    op_types: ClassVar[tuple[str, ...]] = ("Split",)
    pools: ClassVar[tuple[Kind, ...]] = ("mean", "max")

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        axis = node.attributes.get_int("axis", 0) % len(shapes.of(node.outputs[0]))
        check_apart([axis], layout)
        return Needs({0: layout})


class Slice(Rule):
    """A part of other axes; or a later start in time, which moves the row."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        start = self._start(node, layout, shapes)
        if start is None:
            return Needs({0: layout})
        if layout.merged:
            raise Stop("it cuts an axis that learners and time share")
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
            raise Stop("it cuts the learners' axis")
        if layout.time not in cut:
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


class Gather(Rule):
    """Lookup: each index its entry (an embedding), or one index for a whole axis."""

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
                raise Stop("it looks up time in learners' own tables")
            if kind in ("mean", "max"):
                raise Stop(f"the {kind} of indices is no index")
            return Needs({1: layout.moved(layout.time - axis, layout.batch - axis)})
        if layout.batch in looked_up:
            raise Stop("it looks learners up")
        inside = (a if a < axis else a - width + 1 for a in (layout.time, layout.batch))
        return Needs({0: layout.moved(*inside)})


class Attention(Rule):
    """Fused attention: of the queries one row, of keys and values all."""

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
        row = emitter.node("Reshape", [emitter.index(layout.offset), emitter.constant([-1, 1, 1, 1])])
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


class Recurrent(Rule):
    """LSTM, GRU, RNN: the row is the state in which the layer ends when it is stopped there."""

    op_types: ClassVar[tuple[str, ...]] = RECURRENT

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if node.attributes.get_string("direction", "forward") != "forward":
            raise Stop("it reads the sequence from its end too")
        if node.attributes.get_int("layout", 0):
            raise Stop("it has learners first (layout = 1), which ONNX Runtime does not run")
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            raise Stop("it has lengths (sequence_lens) of its own")
        if kind in ("mean", "max"):
            raise Stop(f"the {kind} does not commute with it")
        # A batch fixed at 1 may have changed places with the direction, which has size 1 as well.
        if layout.merged or layout.time != 0 or (layout.batch != 2 and not one(shapes.batch)):
            raise Stop("time is not its first axis")
        return Needs(prefixes={0: layout.moved(0, 1)})

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        slots = [*inputs, *([None] * (6 - len(inputs)))]
        slots[4] = emitter.steps(layout.offset, layout.inner)
        every, state = emitter.like(node, slots, outputs=2)
        every.name = ""  # left out
        state.name = emitter.name("final_state")
        # Y_h is [1, batch, hidden]; Y has time in front of it.
        return [emitter.node("Unsqueeze", [state, emitter.constant([0])])]


RULES: dict[str, Rule] = {
    name: rule
    for rule in (
        *(Elementwise(), Dropout(), MatMul(), Gemm(), AlongAxis(), Normalization(), SkipNormalization(), Reduction()),
        *(BatchNormalization(), Transpose(), Reshape(), Expand(), Concat(), Split(), Slice(), Gather(), Attention()),
        Recurrent(),
    )
    for name in rule.op_types
}


def rule_for(node: ir.Node, kind: Kind) -> Rule:
    """The rule of an operator.

    Raises:
        Stop: there is none for this operator, or none for this kind of selection.
    """
    rule = RULES.get(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    if rule is None:
        raise Stop("no rule knows how it treats time")
    if kind in ("mean", "max") and kind not in rule.pools:
        raise Stop(f"the {kind} does not commute with it")
    return rule


def broadcast(value: ir.Value, rank: int, layout: Layout, shapes: Shapes) -> Layout | None:
    """An operand's layout where its output of `rank` axes has `layout`; None where it is the same in every row."""
    dims = shapes.of(value)
    back = rank - len(dims)
    time = layout.time - back
    if time < 0 or one(dims[time]):
        return None
    return layout.moved(time, time if layout.merged else layout.batch - back)


def check_apart(axes: Sequence[int], layout: Layout) -> None:
    """Neither time nor learners may be among the axes that an operator mixes.

    Raises:
        Stop: they are.
    """
    if layout.time in axes:
        raise Stop(f"it works along time (axis {layout.time})")
    if layout.batch in axes:
        raise Stop(f"it works along the learners' axis ({layout.batch})")


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


def spell(dims: Sequence[Dim], shapes: Shapes) -> str:
    """A shape for people: [batch, time, 64]."""
    return "[" + ", ".join(_spelled(dim, shapes) for dim in dims) + "]"


def _spelled(dim: Dim, shapes: Shapes) -> str:
    numbers = shapes.coefficients(dim)
    if numbers is None:
        return "?"
    names = ("", "batch", "time", "batch x time")
    parts = [
        (f"{n} x {name}" if n != 1 else name) if name else str(n)
        for n, name in zip(reversed(numbers), reversed(names), strict=True)
        if n
    ]
    return " + ".join(parts) or "0"


@dataclass(frozen=True)
class Regrouping:
    """Which axes before a reshape hold the entries of which axes after it: the smallest groups of equal size."""

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
