"""What operators are counted for, and what a rest is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from build.core.reduce import Inputs, reduce
from build.core.reduce.cost import RATES, cost
from build.core.reduce.shapes import Shapes
from build.core.reduce.work import EXP, Work, work
from tests.unit.reduce.graphs import TIME, Graph, decomposed, layer, recurrent

ROW = TIME * 6  # entries of [1, TIME, 6]
Made = Callable[[Graph, str], str]


def last(make: Made) -> Work:
    """The work of the operator that is made last of an input x [batch, time, 6]."""
    g = Graph()
    model = g.model(make(g, g.sequence(6)))
    shapes = Shapes(model, Inputs.find(model, str(model.graph.outputs[0].name), 1, TIME))
    return work(model.graph[-1], shapes, TIME)


@pytest.mark.parametrize(
    ("make", "operations"),
    [
        (lambda g, x: g.op("Add", x, x), ROW),
        (lambda g, x: g.op("CumSum", x, np.array(1)), ROW),
        (lambda g, x: g.op("Exp", x), EXP * ROW),
        (lambda g, x: g.op("Tanh", x), EXP * ROW),
        (lambda g, x: g.op("Sigmoid", x), EXP * ROW),
        (lambda g, x: g.op("Erf", x), 2 * EXP * ROW),
        (lambda g, x: g.op("Log", x), EXP * ROW),
        (lambda g, x: g.op("Pow", x, np.array(2, np.float32)), ROW),
        (lambda g, x: g.op("Pow", x, np.array(0.3, np.float32)), 2 * EXP * ROW),
        (lambda g, x: g.op("Softmax", x, axis=2), (EXP + 4) * ROW),
        (lambda g, x: g.op("LayerNormalization", x, g.weight(6)), 8 * ROW),
        (lambda g, x: g.op("ReduceSum", x, [1]), ROW),
        (lambda g, x: g.op("Transpose", x, perm=[0, 2, 1]), 0),
        (lambda g, x: g.op("MatMul", x, g.weight(6, 5)), 2 * 5 * ROW),
        (lambda g, x: g.op("Einsum", x, g.weight(6, 5), equation="btd,de->bte"), 2 * 5 * ROW),
        (
            lambda g, x: g.op("Conv", g.op("Transpose", x, perm=[0, 2, 1]), g.weight(5, 6, 3), pads=[2, 0]),
            2 * 5 * 3 * ROW,
        ),
        (lambda g, x: g.op("DFT", g.op("Unsqueeze", x, [3]), None, np.array(1)), math.ceil(5 * ROW * math.log2(TIME))),
    ],
)
def test_every_kind_of_operation_is_counted(make: Made, operations: int):
    assert last(make).operations == operations


@pytest.mark.parametrize(
    ("make", "moved"),
    [
        (lambda g, x: g.op("Add", x, x), 3 * 4 * ROW),
        (lambda g, x: g.op("MatMul", x, g.weight(6, 5)), 4 * (ROW + 30 + TIME * 5)),
        (lambda g, x: g.op("Transpose", x, perm=[0, 2, 1]), 2 * 4 * ROW),
        (lambda g, x: g.op("Reshape", x, [0, 0, 2, 3]), 0),
        (lambda g, x: g.op("Gather", x, [2], axis=2), 2 * 4 * TIME + 8),
        (lambda g, x: g.op("Cast", g.op("Cast", x, to=11), to=1), (8 + 4) * ROW),
    ],
)
def test_every_operator_moves_what_it_reads_and_writes(make: Made, moved: int):
    assert last(make).moved == moved


def test_a_recurrent_layer_reads_its_weights_in_every_step():
    def states(g: Graph, x: str) -> str:
        return recurrent(g, "LSTM", g.op("Transpose", x, perm=[1, 0, 2]), 6, 5)[0]

    done = last(states)
    assert done.products == 2 * TIME * 20 * (6 + 5)
    assert done.others == TIME * 5 * (5 * EXP + 7)
    assert done.moved > 4 * TIME * 20 * 5


def test_a_cost_is_the_sum_of_its_operators_at_the_rates():
    g = Graph()
    x = g.sequence(6)
    model = g.model(g.op("Exp", g.op("MatMul", x, g.weight(6, 6))))
    shapes = Shapes(model, Inputs.find(model, str(model.graph.outputs[0].name), 1, TIME))
    found = cost(model.graph, shapes, TIME)
    done = [work(node, shapes, TIME) for node in model.graph]
    assert found.operations == sum(each.operations for each in done)
    assert found.nodes == 2
    each = [sum(rate * getattr(one, name) for name, rate in RATES.items()) / 1e6 for one in done]
    assert found.milliseconds == pytest.approx(sum(each))
    assert repr(found) == (
        f"Cost(operations={found.operations}, output_bytes={4 * ROW}, nodes=2, moved_bytes={found.moved_bytes})"
    )


def worths(make: Made) -> dict[str, float]:
    """By rest what it is worth, of all that the cut takes."""
    g = Graph()
    found = reduce(g.model(make(g, g.sequence(6))), window=TIME)
    return {
        rest.split()[0]: worth / found.after.milliseconds for rest, worth in zip(found.rests, found.worths, strict=True)
    }


def test_a_rest_is_worth_what_is_computed_for_other_rows_below_it():
    def made(g: Graph, x: str, wide: int) -> str:
        below = g.op("MatMul", g.op("Exp", g.op("MatMul", x, g.weight(6, wide))), g.weight(wide, 6))
        return g.op("Neg", g.op("CumSum", below, np.array(1)))

    narrow, wide = (worths(lambda g, x, w=w: made(g, x, w))["CumSum"] for w in (6, 600))
    assert 0 < narrow < wide
    assert 0.8 < wide < 1


def test_what_others_make_of_all_rows_counts_too():
    """Keys and values: as much as what lies below, and more."""

    def wide(g: Graph, x: str) -> str:
        return g.op("Tanh", g.op("MatMul", x, g.weight(6, 64)))

    def saved(make: Made, op: str) -> float:
        g = Graph()
        found = reduce(g.model(make(g, g.sequence(6))), window=TIME)
        return next(w for rest, w in zip(found.rests, found.worths, strict=True) if rest.startswith(op))

    below = saved(lambda g, x: g.op("Neg", g.op("CumSum", wide(g, x), np.array(1))), "CumSum")
    assert saved(lambda g, x: decomposed(g, wide(g, x), 2, 32, "where"), "Tanh") > 1.5 * below


def test_nothing_is_to_be_saved_at_an_input_or_at_a_recurrent_layer():
    assert set(worths(lambda g, x: g.op("Exp", x)).values()) == {0.0}
    assert set(worths(lambda g, x: layer(g, "GRU", x, 6, 6)).values()) == {0.0}


def test_a_fixed_window_has_other_rows_as_well():
    g = Graph()
    x = g.input("x", "batch", 24, 6)
    found = reduce(g.model(g.op("Neg", g.op("CumSum", g.op("MatMul", x, g.weight(6, 6)), np.array(1)))))
    assert 0 < max(found.worths) < found.after.milliseconds
