"""What reads an input, and what that says of the numbers in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

# Operators whose output holds the numbers of their input, in other places or types.
_KEEPS = frozenset(
    {
        *("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)
# Operators that reckon with integers or pick among them: what they answer may be an index.
_RECKONS = _KEEPS | {"Abs", "Add", "Clip", "CumSum", "Div", "Gather", "Max", "Min", "Mod", "Mul", "Neg", "Sub"}
_RECKONS |= {"ReduceMax", "ReduceMin", "ReduceSum", "TopK"}
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
# Operators that look their operand up: the number of the indices among the inputs, and that of the table.
_LOOKS_UP = {"Gather": (1, 0), "GatherElements": (1, 0), "GatherND": (1, 0), "EmbedLayerNormalization": (0, 2)}


def special(value: ir.Value) -> tuple[float, ...]:
    """Numbers that an input is compared with: a padding id, a mask token.

    >>> from build.core.reduce.example import model
    >>> special(model("y = Equal(x, mask_token)", weights="float mask_token = {7}").graph.inputs[0])
    (7.0,)
    """
    return tuple(sorted({number for _, compared, _ in _comparisons(value, _KEEPS) for number in _few(compared)}))


def asked_whether_zero(value: ir.Value) -> bool:
    """Whether nothing else is asked of an input.

    >>> from build.core.reduce.example import model
    >>> asked_whether_zero(model("y = Cast<to = 9>(x)").graph.inputs[0])  # 9: to BOOL
    True
    """
    moved = _KEEPS - {"Cast"}
    asked = [node for node, _, _ in _readers(value, moved) if node.op_type not in moved]
    return bool(asked) and all(
        node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.BOOL for node in asked
    )


def counted(value: ir.Value, whole: bool) -> str:
    """By what an input [batch] is known to count rows; empty where nothing says so.

    >>> from build.core.reduce.example import model
    >>> counted(model("y = Range(zero, n, one)", "int64 n", "int64 zero = {0}, int64 one = {1}").graph.inputs[0], whole=True)
    'positions are counted up to it'
    """
    for node, number, _ in _readers(value, _RECKONS):
        if node.op_type in ("LSTM", "GRU", "RNN") and number == 4:
            return f"{node.op_type} takes it for lengths"
        if (
            node.op_type in _LOOKS_UP
            and number == 1
            and node.inputs[0] is not None
            and node.inputs[0].const_value is None
        ):
            return f"{node.op_type} picks rows by it"
        if node.op_type == "Range":
            return "positions are counted up to it"
    if any(_positions(other) for _, other, _ in _comparisons(value, _RECKONS)):
        return "it is compared with positions"
    if whole and any(node.op_type == "Div" and number == 1 for node, number, _ in _readers(value, _RECKONS - {"Div"})):
        return "sums are divided by it"
    return ""


def tables(value: ir.Value) -> list[int]:
    """Rows of the constant tables that are looked up by an input, or by what is reckoned from it.

    >>> from build.core.reduce.example import model
    >>> tables(model("y = Gather(table, ids)", "int64[batch, time] ids", "float[3, 1] table = {1, 2, 3}").graph.inputs[0])
    [3]
    """
    found = []
    for node, number, _ in _readers(value, _RECKONS):
        if node.op_type == "OneHot" and number == 0 and node.inputs[1] is not None:
            found += [int(depth) for depth in _few(node.inputs[1])]
        index, table = _LOOKS_UP.get(node.op_type, (-1, 0))
        data = node.inputs[table] if number == index else None
        if data is not None and data.const_value is not None and len(data.const_value.shape):
            axis = node.attributes.get_int("axis", 0) if node.op_type.startswith("Gather") else 0
            found.append(int(data.const_value.shape.numpy()[axis]))
    return found


def _readers(value: ir.Value, through: frozenset[str]) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Nodes that read a value, or what operators of `through` make of it: node, which input, and what it reads there."""
    todo, seen = [value], {value}
    while todo:
        read = todo.pop()
        for node, number in read.uses():
            yield node, number, read
            if node.op_type in through and (node.op_type, number) != ("Gather", 1):
                todo += [made for made in node.outputs if made not in seen]
                seen.update(node.outputs)


def _comparisons(value: ir.Value, through: frozenset[str]) -> Iterator[tuple[ir.Node, ir.Value, int]]:
    """Nodes that compare a value with another, and that one."""
    for node, number, _ in _readers(value, through):
        other = node.inputs[1 - number] if node.op_type in _COMPARES else None
        if other is not None:
            yield node, other, number


def _few(value: ir.Value) -> list[float]:
    tensor = value.const_value
    return tensor.numpy().reshape(-1).tolist() if tensor is not None and 0 < tensor.size <= 4 else []


def _positions(value: ir.Value) -> bool:
    """Whether it is 0, 1, 2, ... made at run time or written down."""
    todo, seen = [value], {value}
    while todo:
        made = todo.pop()
        if made.const_value is not None:
            numbers = made.const_value.numpy().reshape(-1)
            if numbers.size > 1 and (np.diff(numbers.astype(float)) == 1).all():
                return True
            continue
        node = made.producer()
        if node is None:
            continue
        if node.op_type in ("Range", "CumSum", "NonZero"):
            return True
        if node.op_type in _RECKONS:
            todo += [v for v in node.inputs if v is not None and v not in seen]
            seen.update(v for v in node.inputs if v is not None)
    return False
