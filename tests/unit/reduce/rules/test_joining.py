"""Tensors side by side, and rows before and behind a sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reduce.graphs import Graph, assert_rests, assert_sank, check, layer
from tests.unit.reduce.rules.drawn import rows, selects, some, widths

PIECES = st.lists(st.sampled_from(["zeros", "learned", "of each"]), max_size=2)


def piece(g: Graph, kind: str, number: int) -> str:
    """[batch, 1 or 2, 4]: rows that are no sequence."""
    if kind == "of each":
        return g.op("Unsqueeze", g.input(f"own_{number}", "batch", 4), [1])
    value = np.zeros((1, 1, 4), np.float32) if kind == "zeros" else g.weight(1, 2, 4)
    return g.op("Expand", value, g.op("Concat", g.size("x", 0), [1, 1], axis=0))


def joined(g: Graph, before: list[str], x: str, behind: list[str]) -> str:
    front = [piece(g, kind, number) for number, kind in enumerate(before)]
    back = [piece(g, kind, number + 5) for number, kind in enumerate(behind)]
    return g.op("Concat", *front, x, *back, axis=1)


def count(kinds: list[str]) -> int:
    return sum(2 if kind == "learned" else 1 for kind in kinds)


@given(widths, widths, st.sampled_from([2, -1, -2]), st.booleans(), selects)
@some
def test_concatenations_of_features_let_the_row_through(a, b, axis, learner, select):
    g = Graph()
    shapes = ((a, 2), (b, 2)) if axis != -1 else ((2, a), (2, b))
    parts = [g.sequence(*shapes[0]), g.sequence(*shapes[1], name="y")]
    if learner:
        parts.append(g.op("Identity" if select == "mean" else "Tanh", parts[0]))
    assert_sank(check(g.model(g.op("Concat", *parts, axis=axis)), select), "Concat")


@given(PIECES, PIECES, st.integers(0, 4), rows)
@some
def test_the_row_of_a_sequence_between_others_is_one_of_it_or_one_of_those(before, behind, start, select):
    g = Graph()
    made = joined(g, before, g.op("Sin", g.sequence(4)), behind)
    start = min(start, count(before) + count(behind))
    made = g.op("Slice", g.op("Tanh", made), [start], g.op("Add", g.size("x", 1), [start]), [1])
    assert_sank(check(g.model(made), select), "Sin", "Tanh")


@given(PIECES, st.booleans(), st.sampled_from(["LSTM", "GRU"]), st.integers(0, 2), rows)
@some
def test_a_recurrent_layer_reads_on_from_the_rows_in_front_and_stops_at_the_row(before, states, op, start, select):
    """Start tokens in front of it; or a row in front of its states, so that each row sees the state before."""
    g = Graph()
    x = g.sequence(4)
    longer = joined(g, before, layer(g, op, x, 4, 4) if states else x, [])
    made = longer if states else layer(g, op, longer, 4, 4)
    start = min(start, count(before))
    made = g.op("Slice", made, [start], g.op("Add", g.size("x", 1), [start]), [1])
    reduction = check(g.model(g.op("MatMul", made, g.weight(4, 3))), select)
    assert any("it ends at the wanted row" in rest for rest in reduction.rests), reduction.rests
    assert reduction.trimmed


@given(PIECES, st.integers(1, 3), rows)
@some
def test_a_window_looks_at_rows_of_both(before, kernel, select):
    g = Graph()
    longer = g.op("Transpose", joined(g, before, g.sequence(4), []), perm=[0, 2, 1])
    made = g.op("Conv", longer, g.weight(4, 4, kernel), pads=[kernel - 1, 0])
    check(g.model(g.op("Slice", g.op("Transpose", made, perm=[0, 2, 1]), [0], g.size("x", 1), [1])), select)


@given(st.integers(1, 2), rows)
@some
def test_time_may_be_the_first_axis(number, select):
    g = Graph()
    x = g.input("x", "time", "batch", 4)
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", [number], g.size(x, 1), [1], axis=0))
    made = g.op("Slice", g.op("Concat", first, x, axis=0), [0], g.size(x, 0), [0])
    assert_sank(check(g.model(g.op("Tanh", made)), select, time_axis=0), "Tanh")


def test_integers_are_joined_too():
    g = Graph()
    ids = g.sequence(name="ids", dtype=np.int64)
    first = g.op("Expand", np.array([[5]]), g.op("Concat", g.size(ids, 0), [1], axis=0))
    longer = g.op("Slice", g.op("Concat", first, ids, axis=1), [0], [-1], [1])
    assert_sank(check(g.model(g.op("Gather", g.weight(6, 4), longer)), below={"ids": 5}), "Gather")


@pytest.mark.parametrize("form", ["two sequences", "many rows", "computed rows"])
def test_two_sequences_and_many_rows_keep_the_selection_above_them(form):
    g = Graph()
    x = g.sequence(4)
    other = {
        "two sequences": lambda: g.op("Neg", x),
        "many rows": lambda: g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size(x, 0), [20, 1], axis=0)),
        "computed rows": lambda: g.op("Slice", x, [0], g.op("Div", g.size(x, 1), [2]), [1]),
    }[form]()
    made = g.op("Slice", g.op("Concat", other, x, axis=1), [0], g.size(x, 1), [1])
    assert_rests(check(g.model(g.op("Tanh", made))), "Concat", "it works along time")


def test_a_concatenation_of_learners_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    both = g.op("Concat", x, g.op("Neg", x), axis=0)
    made = g.op("Slice", both, [0], g.size(x, 0), [0])
    assert_rests(check(g.model(made)), "Slice", "the batch axis")
