"""The model as a whole: what no rule knows, what several read, how many rows there are, and which axis they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.reduce.graphs import (
    FLOAT,
    SELECTS,
    TIME,
    Graph,
    assert_rests,
    assert_sank,
    check,
    computed,
    decomposed,
    layer,
)


@pytest.mark.parametrize("select", SELECTS)
def test_what_no_rule_knows_keeps_the_selection_above_it(select):
    g = Graph()
    x = g.op("Transpose", g.sequence(4), perm=[0, 2, 1])
    made = g.op("Transpose", g.op("LpPool", x, kernel_shape=[3], pads=[1, 1]), perm=[0, 2, 1])
    reduction = check(g.model(made), select)
    assert_rests(reduction, "LpPool", "no rule")
    assert not reduction.trimmed


def test_what_is_needed_up_to_the_row_anyway_is_not_computed_for_the_row_again():
    g = Graph()
    x = g.op("Tanh", g.sequence(3))
    for residual in (g.op("Add", x, layer(g, "GRU", x, 3, 3)), g.op("Add", layer(g, "GRU", x, 3, 3), x)):
        reduction = check(g.model(residual))
        assert_rests(reduction, "Tanh", "needs more of it than the row")
        assert [outputs for name, _, outputs in computed(reduction) if name == "Tanh"] == [[(2, TIME, 3)]]


def test_what_is_needed_along_two_axes_is_computed_whole_and_once():
    g = Graph()
    x = g.sequence(3)
    scores = g.op("Tanh", g.op("MatMul", x, g.op("Transpose", g.op("Neg", x), perm=[0, 2, 1])))
    both = g.op("Add", g.op("MatMul", scores, x), g.op("MatMul", g.op("Transpose", scores, perm=[0, 2, 1]), x))
    reduction = check(g.model(both))
    assert_rests(reduction, "Tanh", "needs more of it than the row")
    assert [outputs for name, _, outputs in computed(reduction) if name == "Tanh"] == [[(2, TIME, TIME)]]


def test_what_is_behind_the_wanted_row_is_cut_off_only_where_nobody_looks():
    g = Graph()
    x = g.sequence(3)
    assert check(g.model(layer(g, "LSTM", x, 3, 4))).trimmed
    states = layer(g, "LSTM", x, 3, 3)
    assert not check(g.model(g.op("Sub", states, g.op("ReduceMax", x, [1], keepdims=1)))).trimmed


def ones(g: Graph, x: str) -> str:
    """[batch, time, 1] of ones, as many as there are rows."""
    return g.op("Expand", np.array(1, np.float32), g.op("Concat", g.op("Shape", x, end=2), [1], axis=0))


_NUMBERS: dict[str, Callable[[Graph, str], str]] = {
    "divided by": lambda g, x: g.op("Div", x, g.op("Cast", g.size(x, 1), to=FLOAT)),
    "counted from the end": lambda g, x: g.op(
        "Add",
        x,
        g.op(
            "Gather",
            g.weight(200, 4),
            g.op("Range", g.op("Squeeze", g.size(x, 1)), np.array(0), np.array(-1)),
        ),
    ),
    "compared": lambda g, x: g.op("Where", g.op("Greater", g.size(x, 1), [8]), x, g.op("Neg", x)),
    "halved": lambda g, x: g.op("Add", x, g.op("Cast", g.op("Mod", g.size(x, 1), [2]), to=FLOAT)),
    "at most": lambda g, x: g.op("Div", x, g.op("Cast", g.op("Min", g.size(x, 1), [10]), to=FLOAT)),
    "summed up": lambda g, x: g.op("Div", x, g.op("ReduceSum", ones(g, x), [1], keepdims=1)),
    "numbered from the end": lambda g, x: g.op("Add", x, g.op("CumSum", ones(g, x), np.array(1), reverse=1)),
    "normalized": lambda g, x: g.op("Mul", x, g.op("Softmax", ones(g, x), axis=1)),
    "the end of a table": lambda g, x: g.op(
        "Add", x, g.op("Slice", g.weight(200, 4), g.op("Neg", g.size(x, 1)), [1000], [0])
    ),
}


@pytest.mark.parametrize("case", _NUMBERS)
@pytest.mark.parametrize("select", SELECTS)
def test_a_model_that_reckons_with_the_number_of_rows_gets_all_of_them(case, select):
    g = Graph()
    check(g.model(layer(g, "GRU", _NUMBERS[case](g, g.sequence(4)), 4, 3)), select)


@pytest.mark.parametrize("select", SELECTS)
def test_time_may_be_the_first_axis(select):
    g = Graph()
    x = g.input("x", "time", "batch", 4)
    made = g.op("MatMul", g.op("LayerNormalization", x, g.weight(4)), g.weight(4, 3))
    reduction = check(g.model(made), select, time_axis=0)
    if select in ("last", "row"):
        assert_sank(reduction, "MatMul", "LayerNormalization")


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("axes", [(1, "time"), ("batch", 6), (3, 6), (1, 6), (1, 1), (6, 6)])
def test_sizes_may_be_fixed(axes, select):
    g = Graph()
    x = g.input("x", *axes, 6)
    made = decomposed(g, g.op("LayerNormalization", x, g.weight(6)), 2, 3, "where")
    made = layer(g, "GRU", g.op("Add", made, g.table(6)), 6, 6)
    sizes = [(axes[0] if isinstance(axes[0], int) else b, axes[1] if isinstance(axes[1], int) else t) for b, t in
             ((1, 1), (2, 5), (4, 19))]  # fmt: skip
    check(g.model(made), select, sizes=sizes)
