"""Axes that move, merge and widen; parts of them, and parts side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reduce.graphs import (
    SELECTS,
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    assert_sank,
    back,
    check,
    computed,
    flat,
    heads,
    joined,
    square,
)
from tests.unit.reduce.rules.drawn import rows, selects, some, widths

# Axes that move ------------------------------------------------------------------------------------------------------


@given(st.permutations(range(4)), widths, st.booleans(), selects)
@some
def test_transposes_move_the_row(order, width, last, select):
    g = Graph()
    x = g.sequence(width, 3)
    op = "Neg" if select == "mean" else "Tanh"
    made = g.op("Transpose", g.op(op, g.op("Transpose", x, perm=order)), perm=np.argsort(order).tolist())
    if last:
        made = g.op("Transpose", made, perm=[0, 1, 3, 2])  # one more, of features alone
    assert_sank(check(g.model(made), select), op)


def test_a_transpose_without_an_order_reverses():
    g = Graph()
    assert_sank(check(g.model(g.op("Transpose", g.op("Tanh", g.op("Transpose", g.sequence(4)))))), "Tanh")


_RESHAPES: dict[str, Callable[[Graph, str, int, int], str]] = {
    "heads": lambda g, x, a, b: g.op("Reshape", x, [0, 0, a, b]),
    "heads and back": lambda g, x, a, b: g.op("Reshape", g.op("Sin", g.op("Reshape", x, [0, 0, a, b])), [0, 0, a * b]),
    "merged": lambda g, x, a, b: back(g, g.op("Sin", flat(g, x, a * b)), a * b),
    "flattened": lambda g, x, a, b: back(g, g.op("Sin", g.op("Flatten", x, axis=2)), a * b),
    "unsqueezed": lambda g, x, *_: g.op("Squeeze", g.op("Sin", g.op("Unsqueeze", x, [0, 2])), [0, 2]),
    "time first": lambda g, x, a, b: g.op(
        "Transpose",
        g.op(
            "Reshape",
            g.op("Sin", flat(g, g.op("Transpose", x, perm=[1, 0, 2]), a * b)),
            g.op("Concat", g.size(x, 1), g.size(x, 0), [a * b], axis=0),
        ),
        perm=[1, 0, 2],
    ),
    "learners with heads": lambda g, x, a, b: joined(
        g,
        g.op(
            "Reshape",
            g.op(
                "Sin",
                g.op("Reshape", heads(g, x, a, b), g.op("Concat", [-1], g.size(x, 1), [b], axis=0)),
            ),
            g.op("Concat", g.size(x, 0), [a], g.size(x, 1), [b], axis=0),
        ),
        a * b,
    ),
    "merged with more": lambda g, x, a, b: g.op(
        "Reshape",
        g.op("Sin", g.op("Reshape", x, [-1, a, b])),
        g.op("Concat", g.op("Shape", x, end=2), [a * b], axis=0),
    ),
}


@pytest.mark.parametrize("case", _RESHAPES)
@given(widths, widths, rows)
@settings(max_examples=4, deadline=None)
def test_reshapes_that_keep_time_apart_let_the_row_through(case, a, b, select):
    g = Graph()
    made = _RESHAPES[case](g, g.sequence(a * b), a, b)
    assert_sank(check(g.model(made), select), *(["Sin"] if case != "heads" else []))


@pytest.mark.parametrize("select", ["mean", "max"])
@pytest.mark.parametrize("case", ["heads", "unsqueezed"])
def test_reshapes_within_a_row_let_mean_and_maximum_through(case, select):
    g = Graph()
    x = g.sequence(6)
    made = g.op("Reshape", x, [0, 0, 2, 3]) if case == "heads" else g.op("Unsqueeze", x, [2])
    assert_sank(check(g.model(made), select))


@pytest.mark.parametrize("select", SELECTS)
def test_a_row_rests_at_heads_merged_into_learners(select):
    g = Graph()
    x = g.sequence(6)
    shape = g.op("Concat", [-1], g.size(x, 1), [3], axis=0)
    made = g.op("Softmax", g.op("Reshape", heads(g, x, 2, 3), shape), axis=1)  # over time: here it rests
    apart = g.op("Reshape", made, g.op("Concat", g.size(x, 0), [2], g.size(x, 1), [3], axis=0))
    reduction = check(g.model(joined(g, apart, 6)), select)
    assert any("Softmax" in rest or "Reshape" in rest for rest in reduction.rests)


@pytest.mark.parametrize("form", ["of two axes", "of three axes", "of one row"])
def test_masks_broadcast_over_heads_merged_into_learners(form):
    g = Graph()
    x = g.sequence(6)
    shape = g.op("Concat", [-1], g.size(x, 1), [3], axis=0)
    q = g.op("Reshape", heads(g, x, 2, 3), shape)
    scores = g.op("MatMul", q, g.op("Transpose", q, perm=[0, 2, 1]))
    mask = {
        "of two axes": lambda: square(g),
        "of three axes": lambda: square(g, axes=(1, 2)),
        "of one row": lambda: g.op("Unsqueeze", g.op("Squeeze", g.table(1), [1]), [0]),
    }[form]()
    mixed = g.op("MatMul", g.op("Softmax", g.op("Add", scores, mask)), q)
    apart = g.op("Reshape", mixed, g.op("Concat", g.size(x, 0), [2], g.size(x, 1), [3], axis=0))
    check(g.model(joined(g, apart, 6)))


def test_a_reshape_that_merges_time_with_features_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    merged = g.op("Sin", g.op("Reshape", x, [0, -1]))
    reduction = check(g.model(g.op("Reshape", merged, g.op("Shape", x))))
    assert_rests(reduction, "Reshape", "merges time with other axes")


def test_a_reshape_that_reads_the_entries_differently_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    sizes = [g.size(x, 0), g.size(x, 1)]
    # As if learners and time were transposed, without moving anything.
    swapped = g.op("Reshape", x, g.op("Concat", *reversed(sizes), [4], axis=0))
    reduction = check(g.model(g.op("Transpose", swapped, perm=[1, 0, 2])))
    assert_rests(reduction, "Reshape", "merges time with other axes")
    g = Graph()
    x = g.sequence(4)
    swapped = g.op("Reshape", x, g.op("Concat", g.size(x, 0), [4], g.size(x, 1), axis=0))
    reduction = check(g.model(g.op("Transpose", swapped, perm=[0, 2, 1])))
    assert_rests(reduction, "Reshape", "merges")


def test_a_reshape_that_merges_heads_before_learners_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(6)
    first = g.op("Transpose", g.op("Reshape", x, [0, 0, 2, 3]), perm=[2, 0, 1, 3])  # [heads, batch, time, 3]
    merged = g.op("Sin", g.op("Reshape", first, g.op("Concat", [-1], g.size(x, 1), [3], axis=0)))
    apart = g.op("Reshape", merged, g.op("Concat", [2], g.size(x, 0), g.size(x, 1), [3], axis=0))
    made = g.op("Reshape", g.op("Transpose", apart, perm=[1, 2, 0, 3]), [0, 0, 6])
    assert_rests(check(g.model(made)), "Reshape", "merges batch with other axes")


@given(widths, st.sampled_from(["narrow", "learner", "table", "same"]), selects)
@some
def test_expansions_repeat_the_row(width, form, select):
    g = Graph()
    x = g.sequence(width)
    source = {
        "narrow": lambda: g.sequence(1, name="y"),
        "learner": lambda: g.input("y", "batch", 1, width),
        "table": lambda: g.table(width),
        "same": lambda: x,
    }[form]()
    reduction = check(g.model(g.op("Expand", source, g.op("Shape", x))), select)
    if form == "learner":  # nothing to select
        assert not reduction.rests
    else:
        wide = [outputs[0] for name, _, outputs in computed(reduction) if name == "Expand"]
        assert (2, TIME, width) not in wide


def test_sizes_of_a_tensor_that_is_not_computed_in_full_are_no_obstacle():
    g = Graph()
    x = g.op("Tanh", g.sequence(4))
    sized = g.op("Reshape", g.op("Unsqueeze", x, [0]), g.op("Shape", x))
    assert_sank(check(g.model(g.op("Add", sized, g.op("Expand", g.weight(4), g.op("Shape", x))))), "Tanh")


# Side by side, and parts ---------------------------------------------------------------------------------------------


@given(widths, widths, st.sampled_from(["sizes", "equal", "count"]), st.sampled_from([2, -1]), selects)
@some
def test_splits_of_features_let_the_row_through(a, b, form, axis, select):
    g = Graph(opset=18)
    if form == "sizes":
        one, two = g.ops("Split", 2, g.sequence(a + b), [a, b], axis=axis)
        made = g.op("Concat", two, one, axis=2)
    else:
        more = {"num_outputs": 2} if form == "count" else {}
        sizes = [[a, a]] if form == "equal" else []
        one, two = g.ops("Split", 2, g.sequence(2 * a), *sizes, axis=axis, **more)
        made = g.op("Sub", two, one) if select != "max" else g.op("Tanh", two)
    assert_sank(check(g.model(made), select), "Split")


def test_a_split_in_time_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    one, other = g.ops("Split", 2, g.op("Concat", x, g.op("Neg", x), axis=1), axis=1)
    assert_rests(check(g.model(g.op("Sub", one, other))), "Split", "")


@given(st.integers(1, 2), st.integers(3, 6), st.sampled_from([1, 2, -1]), rows)
@some
def test_slices_of_features_let_the_row_through(start, width, step, select):
    g = Graph()
    x = g.sequence(width)
    bounds = ([start], [width]) if step > 0 else ([width - 1], [-1000])
    made = g.op("Slice", x, *bounds, [-1], [step])
    assert_sank(check(g.model(made), select), "Slice")


@given(st.integers(0, 1), st.booleans(), rows)
@some
def test_slices_in_time_move_the_row(start, explicit, select):
    g = Graph()
    x = g.sequence(4)
    # One row is put in front, and one is cut off again: the first or the last.
    longer = g.op("Concat", g.op("Slice", x, [0], [1], [1]), g.op("Neg", x), axis=1)
    made = g.op("Sin", longer)
    steps = [[1]] if explicit else []
    made = g.op("Slice", made, [start], [1000] if start else [-1], [1], *steps)
    reduction = check(g.model(made), select)
    assert_row_only(reduction, "Sin", "Where")


def test_slices_of_every_axis_from_end_to_end_are_no_obstacle():
    g = Graph()
    x = g.sequence(4)
    made = g.op("Slice", g.op("Sin", x), [0, 0, 0], [2**62] * 3, [0, 1, 2])
    assert_sank(check(g.model(made)), "Sin")


_SLICES: dict[str, Callable[[Graph, str], str]] = {
    "backward": lambda g, x: g.op("Slice", x, [-1], [-1000], [1], [-1]),
    "every second": lambda g, x: g.op("Slice", g.op("Concat", x, x, axis=1), [0], [1000], [1], [2]),
    "time and features": lambda g, x: g.op(
        "Slice", g.op("Concat", x, g.op("Slice", x, [0], [1], [1]), axis=1), [1, 1], [1000, 3], [1, 2]
    ),
    "negative start": lambda g, x: g.op(
        "Slice", g.op("Concat", x, g.op("Slice", x, [0], [1], [1]), axis=1), g.op("Neg", g.size(x, 1)), [1000], [1]
    ),
}


@pytest.mark.parametrize("case", _SLICES)
def test_slices_that_count_time_otherwise_keep_the_selection_above_them(case):
    g = Graph()
    x = g.sequence(4)
    reduction = check(g.model(_SLICES[case](g, x)))
    reason = {
        "time and features": "time and another axis at once",
        "negative start": "where it begins in time is computed",
    }.get(case, "counts time from the end, or leaves steps out")
    assert_rests(reduction, "Slice", reason)


def test_a_slice_from_a_constant_behind_the_end_keeps_the_selection_above_it():
    g = Graph()
    x = g.input("x", "batch", 6, 4)
    longer = g.op("Concat", x, g.op("Neg", x), axis=1)
    reduction = check(g.model(g.op("Slice", longer, [-6], [1000], [1])), sizes=((1, 6), (3, 6)))
    assert_rests(reduction, "Slice", "counts time from the end")
