"""Small models, each of whose cut a fault of the pass spoils."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.unit.reduce.graphs import FLOAT, INT32, NEVER, Graph, causal


def embedded(g: Graph, width: int = 4, name: str = "ids", dtype: type = np.int64) -> str:
    return g.op("Gather", g.weight(11, width), g.sequence(name=name, dtype=dtype))


def recurrent(g: Graph, x: str, *more: str | None, width: int = 4, op: str = "LSTM", **attributes: object) -> str:
    """[batch, time, width] of the same."""
    rows = {"LSTM": 4, "GRU": 3}[op] * width
    first = g.op("Transpose", x, perm=[1, 0, 2])
    every = g.op(
        *(op, first, g.weight(1, rows, width), g.weight(1, rows, width), *more), hidden_size=width, **attributes
    )
    return g.op("Transpose", g.op("Squeeze", every, [1]), perm=[1, 0, 2])


def head() -> ir.Model:
    """A table and a linear layer: the row is taken of the ids."""
    g = Graph()
    return g.model(g.op("MatMul", embedded(g), g.weight(4, 3)))


def lstm(initial: bool = False) -> ir.Model:
    g = Graph()
    x = embedded(g)
    more: list[str | None] = [None, None]
    if initial:
        shape = g.op("Concat", [1], g.size("ids", 0), [4], axis=0)
        more.append(g.op("Expand", g.weight(1, 1, 4), shape))
    return g.model(g.op("MatMul", recurrent(g, x, *more), g.weight(4, 3)))


def share() -> ir.Model:
    """States divided by how many rows there are."""
    g = Graph()
    x = embedded(g)
    return g.model(g.op("Div", recurrent(g, x), g.op("Cast", g.size(x, 1), to=FLOAT)))


def own_lengths() -> ir.Model:
    """An LSTM that stops in the middle of its history."""
    g = Graph()
    x = embedded(g)
    given = g.op("Div", g.input("n", "batch", dtype=np.int32), np.array(2, np.int32))
    return g.model(recurrent(g, x, None, g.op("Max", given, np.array(1, np.int32))))


def packed(op: str = "LSTM", layers: int = 1, least: int = 0, first: bool = True) -> ir.Model:
    """pack_padded_sequence and back, as it is exported: the batch sorted by length, and put into its order again.

    Args:
        least: a length below is taken for this, one beyond the rows that there are for their number [default: neither].
        first: whether the batch is put into its order in front of the axes' exchange, or behind it.
    """
    g = Graph()
    x, lengths = embedded(g), g.input("n", "batch", dtype=np.int64)
    if least:  # so many at least, and no more than there are
        lengths = g.op("Min", g.op("Max", lengths, np.array(least)), g.size("ids", 1))
    several, order = g.ops("TopK", 2, lengths, g.op("Shape", lengths), axis=-1, largest=1)
    counted = g.op("Range", np.array(0), g.op("ReduceProd", g.op("Shape", order), keepdims=0), np.array(1))
    inverse = g.op("ScatterElements", g.op("Expand", np.array(0), g.op("Shape", order)), order, counted, axis=0)
    if first:
        made = g.op("Transpose", g.op("Gather", x, order, axis=0), perm=[1, 0, 2])
    else:
        made = g.op("Gather", g.op("Transpose", x, perm=[1, 0, 2]), order, axis=1)
    lens = g.op("Cast", several, to=INT32)
    for _ in range(layers):
        rows = {"LSTM": 4, "GRU": 3}[op] * 4
        zeros = g.op("ConstantOfShape", g.op("Concat", [1], g.size("ids", 0), [4], axis=0))
        every = g.op(op, made, g.weight(1, rows, 4), g.weight(1, rows, 4), None, lens, zeros, hidden_size=4)
        made = g.op("Squeeze", every, [1])
    if first:
        made = g.op("Gather", g.op("Transpose", made, perm=[1, 0, 2]), inverse, axis=0)
    else:
        made = g.op("Transpose", g.op("Gather", made, inverse, axis=1), perm=[1, 0, 2])
    return g.model(g.op("MatMul", made, g.weight(4, 3)))


def shifted() -> ir.Model:
    """What is asked for is a row further on, behind a row that stands in front of all."""
    g = Graph()
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size("ids", 0), [1, 4], axis=0))
    longer = g.op("Concat", first, embedded(g), axis=1)
    states = recurrent(g, longer)
    return g.model(g.op("MatMul", g.op("Slice", states, [1], [1000], [1]), g.weight(4, 3)))


def previous() -> ir.Model:
    """Every row is the one before it, and the first is a constant."""
    g = Graph()
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size("ids", 0), [1, 4], axis=0))
    longer = g.op("Concat", first, embedded(g), axis=1)
    return g.model(g.op("Tanh", g.op("Slice", longer, [0], [-1], [1])))


def stack() -> ir.Model:
    """Dilated convolutions, two layers deep, each padded in front."""
    g = Graph()
    x = g.op("Transpose", embedded(g), perm=[0, 2, 1])
    for dilation in (1, 3):
        made = g.op("Conv", x, g.weight(4, 4, 2), g.weight(4), pads=[dilation, 0], dilations=[dilation])
        x = g.op("Add", x, g.op("Sigmoid", made))
    return g.model(g.op("Transpose", x, perm=[0, 2, 1]))


def rising() -> ir.Model:
    """Rows that grow with their number: the largest is the last valid one."""
    g = Graph()
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    return g.model(g.op("Add", embedded(g), g.op("Unsqueeze", g.op("Cast", numbers, to=FLOAT), [1])))


def sums() -> ir.Model:
    g = Graph()
    return g.model(g.op("CumSum", embedded(g), np.array(1)))


def backwards() -> ir.Model:
    """A layer that reads from the end; the whole window is the history."""
    g = Graph()
    return g.model(recurrent(g, embedded(g), direction="reverse"))


def time_first_rows() -> ir.Model:
    """Learners and time in one axis, time first."""
    g = Graph()
    flat = g.op("Reshape", g.op("Transpose", embedded(g), perm=[1, 0, 2]), [-1, 4])
    made = g.op("Gemm", flat, g.weight(4, 3))
    shape = g.op("Concat", g.size("ids", 1), g.size("ids", 0), [3], axis=0)
    return g.model(g.op("Transpose", g.op("Reshape", made, shape), perm=[1, 0, 2]))


def attention(op: str = "MatMul") -> ir.Model:
    g = Graph(opset=23 if op == "Attention" else 20)
    x = embedded(g)
    q, k, v = (g.op("MatMul", x, g.weight(4, 4)) for _ in range(3))
    if op == "Attention":
        return g.model(g.op("Attention", q, k, v, q_num_heads=2, kv_num_heads=2, is_causal=1))
    seen = causal(g, "ids")
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    scores = g.op("Where", seen, scores, np.array(-np.inf, np.float32))
    return g.model(g.op("MatMul", g.op("Softmax", scores, axis=-1), v))


def fused_projection() -> ir.Model:
    """Queries, keys and values of one matrix: they are projected apart, for the queries' sake."""
    g = Graph()
    x = embedded(g)
    linear = g.op("Add", g.op("MatMul", x, g.weight(4, 12)), g.weight(12))
    q, k, v = g.ops("Split", 3, linear, [4, 4, 4], axis=-1)
    seen = causal(g, "ids")
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    weights = g.op("Softmax", g.op("Where", seen, scores, np.array(-np.inf, np.float32)), axis=-1)
    return g.model(g.op("MatMul", weights, v))


def packed_projection() -> ir.Model:
    """The same as torch packs it: the three are an axis, which is moved to the front and looked up."""
    g = Graph()
    linear = g.op("Add", g.op("MatMul", embedded(g), g.weight(4, 12)), g.weight(12))
    apart = g.op("Transpose", g.op("Reshape", linear, [0, 0, 3, 4]), perm=[2, 0, 1, 3])
    q, k, v = (g.op("Gather", apart, np.array(number), axis=0) for number in range(3))
    scores = g.op("Where", causal(g, "ids"), g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), NEVER)
    return g.model(g.op("MatMul", g.op("Softmax", scores, axis=-1), v))


def weighed() -> ir.Model:
    """Heads in the batch, time first, and both axes joined behind the attention: as torch answers its weights."""
    g = Graph()
    shape = g.op("Concat", g.size("ids", 1), g.op("Mul", g.size("ids", 0), [2]), [2], axis=0)
    x = g.op("Reshape", g.op("Transpose", embedded(g), perm=[1, 0, 2]), shape)
    q = g.op("Transpose", x, perm=[1, 0, 2])
    scores = g.op("Where", causal(g, "ids"), g.op("MatMul", q, g.op("Transpose", q, perm=[0, 2, 1])), NEVER)
    mixed = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=-1), q), perm=[1, 0, 2])
    made = g.op("Gemm", g.op("Reshape", mixed, [-1, 4]), g.weight(4, 3))
    back = g.op("Reshape", made, g.op("Concat", g.size("ids", 1), g.size("ids", 0), [3], axis=0))
    return g.model(g.op("Transpose", back, perm=[1, 0, 2]))


def encoder(counted: bool = False) -> ir.Model:
    """Rows that ask the states of an encoder, of another length."""
    g = Graph()
    states = g.input("states", "batch", "steps", 4)
    x = embedded(g)
    if counted:
        return g.model(g.op("Div", x, g.op("Cast", g.size(states, 1), to=FLOAT)))
    scores = g.op("MatMul", x, g.op("Transpose", states, perm=[0, 2, 1]))
    return g.model(g.op("MatMul", g.op("Softmax", scores, axis=-1), states))


def positions() -> ir.Model:
    g = Graph()
    x = embedded(g)
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    return g.model(g.op("Add", x, g.op("Gather", g.weight(64, 4), numbers)))


def square() -> ir.Model:
    """[batch, time, 4, 4]: a transposed answer has the same shape."""
    g = Graph()
    x = embedded(g)
    product = g.op("Mul", g.op("Unsqueeze", x, [3]), g.op("Unsqueeze", g.op("MatMul", x, g.weight(4, 4)), [2]))
    return g.model(product)


def vocabulary() -> ir.Model:
    """A table of more rows than a byte counts."""
    g = Graph()
    return g.model(g.op("Gather", g.weight(1000, 4), g.sequence(name="ids", dtype=np.int64)))


def masked() -> ir.Model:
    """A mask among the inputs keeps a row out of the sum so far."""
    g = Graph()
    mask = g.sequence(name="mask", dtype=np.bool_)
    x = g.op("Mul", embedded(g), g.op("Unsqueeze", g.op("Cast", mask, to=FLOAT), [2]))
    return g.model(g.op("CumSum", x, np.array(1)))


def columns() -> ir.Model:
    """One column of a table that has learners and time, picked on the last axis."""
    g = Graph()
    x = g.op("Reshape", embedded(g), [0, 0, 2, 2])
    return g.model(g.op("Gather", x, np.array([[0, 1], [1, 0]]), axis=2))


def own_row(of: str = "LSTM") -> ir.Model:
    """The last valid row, by a length among the inputs, is gathered inside."""
    g = Graph()
    x = embedded(g)
    column = g.op("Reshape", g.op("Sub", g.input("n", "batch", dtype=np.int64), np.array(1)), [-1, 1, 1])
    wide = g.op("Expand", column, g.op("Concat", g.size("ids", 0), [1, 4], axis=0))
    row = g.op("GatherElements", recurrent(g, x) if of == "LSTM" else g.op("Tanh", x), wide, axis=1)
    return g.model(g.op("MatMul", g.op("Squeeze", row, [1]), g.weight(4, 3)))


def own_share() -> ir.Model:
    """A row that is gathered inside and divided by how many rows there are."""
    g = Graph()
    row = g.op("GatherND", recurrent(g, embedded(g)), g.input("n", "batch", 1, dtype=np.int64), batch_dims=1)
    return g.model(g.op("Div", row, g.op("Cast", g.size("ids", 1), to=FLOAT)))


def own_last() -> ir.Model:
    g = Graph()
    return g.model(g.op("Gather", g.op("Tanh", embedded(g)), np.array(-1), axis=1))


def own_mean() -> ir.Model:
    """A mean by a mask, of a linear layer."""
    g = Graph()
    mask = g.op("Cast", g.op("Unsqueeze", g.sequence(name="mask", dtype=np.bool_), [2]), to=FLOAT)
    rows = g.op("Add", g.op("MatMul", g.op("Tanh", embedded(g)), g.weight(4, 4)), g.weight(4))
    total = g.op("ReduceSum", g.op("Mul", rows, mask), [1], keepdims=0)
    return g.model(
        g.op("Div", total, g.op("Clip", g.op("ReduceSum", mask, [1], keepdims=0), np.array(1e-9, np.float32)))
    )
