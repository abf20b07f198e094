"""The rows of a convolution's window, through operators of every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.reduce.graphs import Graph, back, check, decomposed, flat, heads, joined, layer
from tests.unit.reduce.rules.test_convolution import causal, channels_first, rows_of


def attended(g: Graph, x: str) -> str:
    return decomposed(g, x, 2, 2, "where")


def attended_by_operator(g: Graph, x: str) -> str:
    return g.op("Attention", x, x, x, q_num_heads=2, kv_num_heads=2, is_causal=1)


def recurrent(g: Graph, x: str) -> str:
    return layer(g, "GRU", x, 4, 4)


def linear_over_merged(g: Graph, x: str) -> str:
    return back(g, g.op("Gemm", flat(g, x, 4), g.weight(4, 4)), 4)


def with_table(g: Graph, x: str) -> str:
    return g.op("Add", x, g.table(4))


def with_square(g: Graph, x: str) -> str:
    """A row's mean over itself and the ones before it."""
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("x", 1)), np.array(1))
    seen = g.op("LessOrEqual", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1]))
    ones = g.op("Cast", seen, to=1)
    return g.op("MatMul", g.op("Div", ones, g.op("ReduceSum", ones, [1], keepdims=1)), x)


def in_heads(g: Graph, x: str) -> str:
    return joined(g, g.op("Softmax", heads(g, x, 2, 2), axis=3), 4)


def normalised(g: Graph, x: str) -> str:
    return g.op("LayerNormalization", x, g.weight(4), g.weight(4), axis=-1, epsilon=0.1)


def regrouped(g: Graph, x: str) -> str:
    parts = g.ops("Split", 2, x, axis=2, num_outputs=2)
    wide = g.op("Expand", g.op("Unsqueeze", parts[0], [3]), g.op("Concat", g.op("Shape", x, end=2), [2, 2], axis=0))
    return g.op("Concat", g.op("ReduceMax", wide, [3], keepdims=0), g.op("Slice", x, [2], [4], [2]), axis=2)


def scaled(g: Graph, x: str) -> str:
    """Without a number where there is no row: what no one may see."""
    return g.op("Log", g.op("Exp", x))


def looked_up(g: Graph, x: str) -> str:
    ids = g.op("Cast", g.op("Sigmoid", g.op("Slice", x, [0], [1], [2])), to=7)
    return g.op("Gather", g.weight(2, 4), g.op("Squeeze", ids, [2]))


BETWEEN: dict[Callable[[Graph, str], str], str] = {
    attended: "needs more of it than the row",
    attended_by_operator: "needs more of it than the row",
    recurrent: "more rows than the one that it ends at",
    linear_over_merged: "it is an input",
    with_table: "it is an input",
    with_square: "it is the same for the whole batch",
    in_heads: "it is an input",
    normalised: "it is an input",
    regrouped: "it is an input",
    scaled: "it is an input",
    looked_up: "it is an input",
}


@pytest.mark.parametrize(("between", "rests"), [pytest.param(*pair, id=pair[0].__name__) for pair in BETWEEN.items()])
@pytest.mark.parametrize("select", ["last", "row"])
@pytest.mark.parametrize("dilation", [1, 5])
def test_what_lies_between_two_convolutions_computes_their_rows(between, rests, select, dilation):
    g = Graph(opset=23)
    first = causal(g, channels_first(g, g.sequence(4)), 4, 4, dilation=2, way="Pad")
    inside = between(g, channels_first(g, first))
    made = causal(g, channels_first(g, inside), 4, 3, dilation=dilation, way="pads")
    reduction = check(g.model(channels_first(g, made)), select)
    assert any(rests in rest for rest in reduction.rests), reduction.rests
    assert rows_of(reduction, "Conv")[-1] == 1
