"""Random graphs: whatever the reduction does with them, the answer is that of the full model.

Every block makes [batch, time, width] of tensors of that form, so that any block follows any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.reduce.graphs import BOOL, FLOAT, NEVER, SELECTS, Graph, check

T = TypeVar("T")
Tensor = tuple[str, int]  # name and width
Block = Callable[["Maker", Tensor], Tensor]

POSITIONS = 64  # rows of the tables of positions


class Maker(Graph):
    """A graph that grows by what is drawn."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__(seed=data.draw(st.integers(0, 9), label="seed"))
        self.data = data
        self.pool: list[Tensor] = []
        self.first = ""  # the input, whose sizes everything has

    def choose(self, *options: T, label: str = "") -> T:
        return self.data.draw(st.sampled_from(options), label=label)

    def number(self, low: int, high: int, label: str = "") -> int:
        return self.data.draw(st.integers(low, high), label=label)

    def flag(self, label: str = "") -> bool:
        return self.data.draw(st.booleans(), label=label)

    def earlier(self) -> Tensor:
        """Any tensor that there is."""
        return self.pool[self.number(0, len(self.pool) - 1, "earlier")]

    def as_wide(self, tensor: Tensor, width: int) -> str:
        """A tensor of another width: its own, one column of it, or projected."""
        name, own = tensor
        if own == width:
            return name
        if self.flag("one column"):
            return self.op("Slice", name, [0], [1], [2])
        return self.op("MatMul", name, self.weight(own, width))

    def learners(self) -> str:
        return self.size(self.first, 0)

    def rows(self) -> str:
        return self.size(self.first, 1)

    def shaped(self, value: str, *dims: int | str) -> str:
        """Reshape; "batch" and "time" stand for their sizes."""
        if sum(isinstance(dim, str) for dim in dims) <= 1 and self.flag("inferred"):
            return self.op("Reshape", value, [-1 if isinstance(dim, str) else dim for dim in dims])
        parts: list = [{"batch": self.learners, "time": self.rows}[d]() if isinstance(d, str) else [d] for d in dims]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def numbers(self) -> str:
        return self.op("Range", np.array(0), self.op("Squeeze", self.rows()), np.array(1))

    def causal(self) -> str:
        """BOOL [time, time]: whether a query (row) sees a key (column)."""
        numbers = self.numbers()
        compare = self.choose("LessOrEqual", "Less", label="causal")
        seen = self.op(compare, self.op("Unsqueeze", numbers, [0]), self.op("Unsqueeze", numbers, [1]))
        if compare == "LessOrEqual":
            return seen
        return self.op("Or", seen, self.op("Equal", numbers, np.array(0)))  # the first sees nothing else


def unary(m: Maker, x: Tensor) -> Tensor:
    op = m.choose("Relu", "Tanh", "Sigmoid", "Neg", "Gelu", "Abs", "Softplus", "Erf", "Sin", "Identity", label="unary")
    return m.op(str(op), x[0]), x[1]


def cast(m: Maker, x: Tensor) -> Tensor:
    return m.op("Cast", m.op("Sin", m.op("Cast", x[0], to=11)), to=FLOAT), x[1]


def with_constant(m: Maker, x: Tensor) -> Tensor:
    shape = m.choose((), (1,), (x[1],), (1, x[1]), (1, 1, 1), (1, 1, x[1]), label="shape")
    op = str(m.choose("Add", "Sub", "Mul", "Div", "Min", "Max", label="binary"))
    other = m.op("Exp", m.weight(*shape)) if op == "Div" else m.weight(*shape)
    return m.op(op, x[0], other) if op == "Div" or m.flag("swapped") else m.op(op, other, x[0]), x[1]


def with_earlier(m: Maker, x: Tensor) -> Tensor:
    op = m.choose("Add", "Sub", "Mul", "Max", "Mean", label="binary")
    return m.op(str(op), x[0], m.as_wide(m.earlier(), x[1])), x[1]


def with_learner(m: Maker, x: Tensor) -> Tensor:
    """What is a learner's and no row's: reduced over time, or its first row."""
    name, width = m.earlier()
    form = m.choose("ReduceMean", "ReduceMax", "first", label="learner's")
    one = m.op("Slice", name, [0], [1], [1]) if form == "first" else m.op(str(form), name, [1], keepdims=1)
    return m.op("Add", x[0], m.as_wide((one, width), x[1])), x[1]


def with_table(m: Maker, x: Tensor) -> Tensor:
    """Positions: the same for every learner."""
    table = m.weight(POSITIONS, x[1])
    form = m.choose("slice", "lookup", "wide lookup", "masked", "share", "counted", label="table")
    if form == "slice":
        rows = m.op("Slice", table, [0], m.rows(), [0])
    elif form == "lookup":
        rows = m.op("Gather", table, m.op("Unsqueeze", m.numbers(), [0]))
    elif form == "wide lookup":
        wide = m.op("Expand", m.numbers(), m.op("Concat", m.learners(), m.rows(), axis=0))
        rows = m.op("Gather", table, wide)
    elif form == "counted":
        ones = m.op("Expand", np.array(1, np.float32), m.op("Concat", m.learners(), m.rows(), [1], axis=0))
        reverse = int(m.flag("reverse"))
        counted = m.op("CumSum", ones, np.array(1), reverse=reverse) if m.flag("each") else m.op("ReduceSum", ones, [1])
        rows = m.op("Div", np.array(1, np.float32), counted)
    elif form == "share":
        share = m.op("Div", m.op("Cast", m.numbers(), to=FLOAT), m.op("Cast", m.rows(), to=FLOAT))
        rows = m.op("Unsqueeze", share, [1])
    else:
        even = m.op("Equal", m.op("Mod", m.numbers(), np.array(2)), np.array(0))
        return m.op("Where", m.op("Unsqueeze", even, [1]), x[0], m.weight(x[1])), x[1]
    return m.op("Add", x[0], rows), x[1]


def where(m: Maker, x: Tensor) -> Tensor:
    condition = m.op("Greater", m.as_wide(m.earlier(), x[1]), np.array(0.1, np.float32))
    return m.op("Where", condition, x[0], m.weight(x[1])), x[1]


def linear(m: Maker, x: Tensor) -> Tensor:
    width = m.number(1, 5, "width")
    made = m.op("MatMul", x[0], m.weight(x[1], width))
    return m.op("Add", made, m.weight(width)) if m.flag("bias") else made, width


def gemm(m: Maker, x: Tensor) -> Tensor:
    width = m.number(1, 5, "width")
    flat = m.op("Reshape", x[0], [-1, x[1]]) if m.flag("reshape") else m.op("Flatten", x[0], axis=2)
    made = m.op("Gemm", flat, m.weight(x[1], width), m.weight(width))
    if m.flag("relu"):
        made = m.op("Relu", made)
    return m.shaped(made, "batch", "time", width), width


def time_first(m: Maker, x: Tensor) -> Tensor:
    """Merged the other way round: time before learners."""
    width = m.number(1, 5, "width")
    flat = m.op("Reshape", m.op("Transpose", x[0], perm=[1, 0, 2]), [-1, x[1]])
    made = m.shaped(m.op("Gemm", flat, m.weight(x[1], width)), "time", "batch", width)
    return m.op("Transpose", made, perm=[1, 0, 2]), width


def along_axis(m: Maker, x: Tensor) -> Tensor:
    """Something along any axis, in any order of axes."""
    order = m.data.draw(st.permutations(range(3)), label="order")
    axis = m.number(-3, 2, "axis")
    value = m.op("Transpose", x[0], perm=order)
    op = m.choose("Softmax", "LogSoftmax", "CumSum", "ReduceMean", "ReduceMax", "LpNormalization", label="along")
    if op == "CumSum":
        made = m.op("CumSum", value, np.array(axis), exclusive=int(m.flag()), reverse=int(m.flag()))
    elif str(op).startswith("Reduce"):
        if m.flag("keep"):
            made = m.op("Sub", value, m.op(str(op), value, [axis], keepdims=1))
        else:
            made = m.op("Add", value, m.op("Unsqueeze", m.op(str(op), value, [axis], keepdims=0), [axis]))
    else:
        made = m.op(str(op), value, axis=axis)
    return m.op("Transpose", made, perm=np.argsort(order).tolist()), x[1]


def normalization(m: Maker, x: Tensor) -> Tensor:
    made = m.op("LayerNormalization", x[0], m.weight(x[1]), m.weight(x[1]), axis=-1, epsilon=0.1)
    return made, x[1]


def decomposed_normalization(m: Maker, x: Tensor) -> Tensor:
    centred = m.op("Sub", x[0], m.op("ReduceMean", x[0], [-1], keepdims=1))
    spread = m.op("ReduceMean", m.op("Mul", centred, centred), [-1], keepdims=1)
    deviation = m.op("Sqrt", m.op("Add", spread, np.array(0.1, np.float32)))
    return m.op("Mul", m.op("Div", centred, deviation), m.weight(x[1])), x[1]


def concat(m: Maker, x: Tensor) -> Tensor:
    other, width = m.earlier()
    made = m.op("Concat", *((x[0], other) if m.flag("order") else (other, x[0])), axis=m.choose(2, -1, label="axis"))
    if x[1] + width > 8:
        return m.op("MatMul", made, m.weight(x[1] + width, 4)), 4
    return made, x[1] + width


def parts(m: Maker, x: Tensor) -> Tensor:
    """Features in parts: one of them, two of them mixed, or back in another order."""
    name, width = x
    if width < 2:
        name, width = m.op("MatMul", name, m.weight(width, 4)), 4
    at = m.number(1, width - 1, "at")
    one, other = m.ops("Split", 2, name, [at, width - at], axis=-1)
    form = m.choose("one", "swapped", "attended", label="parts")
    if form == "one":
        return one, at
    if form == "swapped":
        return m.op("Concat", other, one, axis=2), width
    return m.op("Add", one, m.op("ReduceMax", other, [1, 2], keepdims=1)), at


def sliced(m: Maker, x: Tensor) -> Tensor:
    start = m.number(0, x[1] - 1, "start")
    if m.flag("one"):
        return m.op("Unsqueeze", m.op("Gather", x[0], np.array(start), axis=2), [-1]), 1
    return m.op("Slice", x[0], [start], [1000], [2]), x[1] - start


def shifted(m: Maker, x: Tensor) -> Tensor:
    """Rows moved in time, with something done to them before they come back."""
    first = m.op("Slice", x[0], [0], [1], [1])
    form = m.choose("later", "earlier", "reversed", "both", label="shift")
    if form == "earlier":
        return m.op("Concat", m.op("Slice", x[0], [1], [1000], [1]), first, axis=1), x[1]
    if form == "reversed":
        return m.op("Slice", x[0], [-1], [-1000], [1], [-1]), x[1]
    longer = m.op("Concat", m.op("Neg", first), x[0], axis=1)
    inside = m.choose("Tanh", "GRU", "Softmax", label="inside")
    longer = _recurrent(m, longer, x[1], x[1], "GRU", {}) if inside == "GRU" else m.op(str(inside), longer)
    before, after = m.op("Slice", longer, [0], [-1], [1]), m.op("Slice", longer, [1], [1000], [1])
    return (m.op("Sub", before, after) if form == "both" else m.choose(before, after, label="end")), x[1]


def around(m: Maker, x: Tensor) -> Tensor:
    """There and back: the axes are others in between."""
    op = str(m.choose("Tanh", "Neg", "Identity", label="around"))
    form = m.choose("transposed", "heads", "unsqueezed", "merged heads", "rearranged", label="form")
    name, width = x
    if form == "transposed":
        order = m.data.draw(st.permutations(range(3)), label="order")
        there = m.op(op, m.op("Transpose", name, perm=order))
        return m.op("Transpose", there, perm=np.argsort(order).tolist()), width
    if form == "unsqueezed":
        axes = list(m.choose([0], [1], [2], [3], [0, 2], [1, 4], label="axes"))
        return m.op("Squeeze", m.op(op, m.op("Unsqueeze", name, axes)), axes), width
    if form == "rearranged":
        # Entries stay where they are, and rows do not.
        there = m.shaped(m.op(op, m.shaped(name, "batch", width, "time")), "batch", "time", width)
        return there, width
    name = m.op("MatMul", name, m.weight(width, 4))
    apart = m.op("Reshape", name, [0, 0, 2, 2])
    if form == "heads":
        return m.op("Reshape", m.op(op, apart), [0, 0, 4]), 4
    merged = m.op("Reshape", m.op("Transpose", apart, perm=[0, 2, 1, 3]), m.op("Concat", [-1], m.rows(), [2], axis=0))
    merged = m.op("MatMul", m.op(op, merged), m.weight(2, 2))
    if m.flag("with table"):
        merged = m.op("Add", merged, m.op("Slice", m.weight(POSITIONS, 2), [0], m.rows(), [0]))
    if m.flag("over time"):
        merged = m.op("Softmax", merged, axis=1)
    back = m.op("Transpose", m.shaped(merged, "batch", 2, "time", 2), perm=[0, 2, 1, 3])
    return m.op("Reshape", back, [0, 0, 4]), 4


def recurrent(m: Maker, x: Tensor) -> Tensor:
    op = str(m.choose("LSTM", "GRU", "RNN", label="recurrent"))
    hidden = m.number(1, 4, "hidden")
    reverse = {"direction": "reverse"} if m.number(0, 4, "reverse") == 4 else {}
    return _recurrent(m, x[0], x[1], hidden, op, reverse), hidden


def _recurrent(m: Maker, x: str, width: int, hidden: int, op: str, attributes: dict[str, object]) -> str:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    bias = m.weight(1, 2 * rows) if m.flag("bias") else None
    state = None
    if m.flag("state"):
        first = m.op("ReduceMean" if m.flag("computed") else "ReduceSum", x, [1], keepdims=0)
        state = m.op("Unsqueeze", m.op("Tanh", m.op("MatMul", first, m.weight(width, hidden))), [0])
    more = [bias, None, state]
    weights = [m.weight(1, rows, width), m.weight(1, rows, hidden)]
    every = m.op(op, m.op("Transpose", x, perm=[1, 0, 2]), *weights, *more, hidden_size=hidden, **attributes)
    return m.op("Transpose", m.op("Squeeze", every, [1]), perm=[1, 0, 2])


PACKED = ("split", "axis", "axis first", "in heads", "in heads, sliced")


def packed(m: Maker, linear: str, count: int, size: int) -> list[str]:
    """Queries, keys and values of one projection, each [batch, heads, time, size], in the ways that libraries pack them."""
    form = m.choose(*PACKED, label="packed")
    if form == "split":
        parts = m.ops("Split", 3, linear, [count * size] * 3, axis=-1)
        return [m.op("Transpose", m.op("Reshape", t, [0, 0, count, size]), perm=[0, 2, 1, 3]) for t in parts]
    if form.startswith("axis"):
        apart = m.op("Reshape", linear, [0, 0, 3, count, size])
        if form == "axis":
            axis, apart = 3, m.op("Transpose", apart, perm=[0, 3, 1, 2, 4])
        else:
            axis, apart = 0, m.op("Transpose", apart, perm=[2, 0, 3, 1, 4])
        return [m.op("Gather", apart, np.array(number), axis=axis) for number in (0, -2, 2)]
    apart = m.op("Transpose", m.op("Reshape", linear, [0, 0, count, 3 * size]), perm=[0, 2, 1, 3])
    if form == "in heads":
        return m.ops("Split", 3, apart, [size] * 3, axis=3)
    ends = [(0, size), (size, -size), (-size, 1000)]
    return [m.op("Slice", apart, [start], [end], [-1]) for start, end in ends]


def attention(m: Maker, x: Tensor) -> Tensor:
    other, width = m.earlier() if m.flag("other keys") else x
    count, size = m.number(1, 2, "heads"), m.number(1, 3, "size")
    if m.flag("packed projection") and other == x[0]:
        linear = m.op("MatMul", x[0], m.weight(x[1], 3 * count * size))
        if m.flag("bias"):
            linear = m.op("Add", linear, m.weight(3 * count * size))
        q, k, v = packed(m, linear, count, size)
    else:
        q = m.op("MatMul", x[0], m.weight(x[1], count * size))
        k, v = (m.op("MatMul", other, m.weight(width, count * size)) for _ in range(2))
        q, k, v = (m.op("Transpose", m.op("Reshape", t, [0, 0, count, size]), perm=[0, 2, 1, 3]) for t in (q, k, v))
    scores = m.op("MatMul", q, m.op("Transpose", k, perm=[0, 1, 3, 2]))
    mask = m.choose("none", "where", "add", "keys", "relative", label="mask")
    if mask == "where":
        scores = m.op("Where", m.causal(), scores, NEVER)
    elif mask == "add":
        added = m.op("Where", m.causal(), np.array(0, np.float32), NEVER)
        scores = m.op("Add", scores, m.op("Unsqueeze", added, [0, 1]) if m.flag("wide") else added)
    elif mask == "keys":
        column = m.op("Transpose", m.as_wide(m.earlier(), 1), perm=[0, 2, 1])
        scores = m.op("Add", scores, m.op("Unsqueeze", column, [1]))
    elif mask == "relative":
        numbers = m.op("Cast", m.numbers(), to=FLOAT)
        apart = m.op("Sub", m.op("Unsqueeze", numbers, [0]), m.op("Unsqueeze", numbers, [1]))
        scores = m.op("Sub", scores, m.op("Abs", apart))
    mixed = m.op("MatMul", m.op("Softmax", scores, axis=-1), v)
    return m.op("Reshape", m.op("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, count * size]), count * size


def convolution(m: Maker, x: Tensor) -> Tensor:
    width = m.number(1, 4, "width")
    pads = m.choose([1, 1], [2, 0], label="pads")
    made = m.op("Conv", m.op("Transpose", x[0], perm=[0, 2, 1]), m.weight(width, x[1], 3), pads=pads)
    return m.op("Transpose", made, perm=[0, 2, 1]), width


def gated(m: Maker, x: Tensor) -> Tensor:
    """What is true of a row, and cast to numbers."""
    condition = m.op("Less", x[0], m.as_wide(m.earlier(), x[1]))
    return m.op("Mul", m.op("Cast", m.op("Not", m.op("Cast", condition, to=BOOL)), to=FLOAT), x[0]), x[1]


BLOCKS: tuple[Block, ...] = (
    *(unary, cast, with_constant, with_earlier, with_learner, with_table, where, linear, gemm, time_first, along_axis),
    *(normalization, decomposed_normalization, concat, parts, sliced, shifted, around, recurrent, recurrent, attention),
    *(attention, convolution, gated),
)


@pytest.mark.parametrize("select", SELECTS)
@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reduced_random_graph_answers_what_the_full_one_does(select, data):
    m = Maker(data)
    time_axis = m.number(0, 1, "time axis")
    batch = m.choose("batch", "batch", "batch", 1, 3, label="batch")
    axes = (batch, "time") if time_axis else ("time", batch)
    form = m.choose("numbers", "indices", label="input")
    if form == "numbers":
        width = m.number(1, 4, "width")
        start = m.input("x", *axes, width)
    else:
        width = 4
        start = m.op("Gather", m.weight(6, 4), m.input("x", *axes, dtype=np.int32))
    if not time_axis:
        start = m.op("Transpose", start, perm=[1, 0, 2])
    m.first = start
    m.pool.append((start, width))
    for _ in range(m.number(2, 7, "depth")):
        block = data.draw(st.sampled_from(BLOCKS), label="block")
        source = m.pool[-1] if m.number(0, 3, "continue") else m.earlier()
        m.pool.append(block(m, source))
    name, width = m.pool[-1]
    if m.flag("residual"):
        name = m.op("Add", name, m.as_wide(m.earlier(), width))
    if m.flag("head"):
        name = m.op("MatMul", name, m.weight(width, 3))
    if not time_axis:
        name = m.op("Transpose", name, perm=[1, 0, 2])
    sizes = [(batch if isinstance(batch, int) else b, t) for b, t in ((1, 1), (2, 13), (3, 5), (1, 23), (4, 2))]
    check(m.model(m.op("Identity", name)), select, time_axis, sizes=sizes, window=POSITIONS)
