"""Gather: rows of a table by their numbers, and entries of the rows by constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reduce.graphs import SELECTS, Graph, assert_rests, assert_row_only, assert_sank, check
from tests.unit.reduce.rules.drawn import rows, selects, some, widths


@given(st.integers(2, 9), widths, st.sampled_from([np.int32, np.int64]), st.sampled_from([0, 1]), rows)
@some
def test_lookups_read_the_row_of_the_indices(entries, width, kind, axis, select):
    g = Graph()
    x = g.sequence(dtype=kind)
    made = g.op("Gather", g.weight(*((entries, width) if axis == 0 else (width, entries))), x, axis=axis)
    if axis == 1:
        made = g.op("Transpose", made, perm=[1, 2, 0])
    below = {"x": entries}
    assert_sank(check(g.model(made), select, below=below), "Gather", below=below)


@given(widths, st.sampled_from(["one", "some"]), selects)
@some
def test_lookups_of_features_let_the_row_through(width, form, select):
    g = Graph()
    x = g.sequence(width, 2)
    index = np.array(-1) if form == "one" else np.array([0, width - 1, 0])
    assert_sank(check(g.model(g.op("Gather", x, index, axis=2)), select), "Gather")


def test_positions_are_looked_up_for_the_row_alone():
    g = Graph()
    x = g.sequence(4)
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size(x, 1)), np.array(1))
    wide = g.op("Expand", g.op("Unsqueeze", numbers, [0]), g.op("Shape", x, end=2))
    made = g.op("Add", x, g.op("Gather", g.weight(200, 4), wide))
    for select in SELECTS:
        reduction = check(g.model(made), select)
        if select in ("last", "row"):
            assert_row_only(reduction, "Add")


@pytest.mark.parametrize("select", ["mean", "max"])
def test_the_mean_of_indices_is_no_index(select):
    g = Graph()
    made = g.op("Gather", g.weight(5, 4), g.sequence(dtype=np.int32))
    assert_rests(check(g.model(made), select), "Gather", f"the {select} of indices")


def falling(g: Graph, x: str, axis: int) -> str:
    """The numbers of an axis' entries, from the last to 0."""
    size = g.op("Squeeze", g.size(x, axis))
    return g.op("Range", g.op("Sub", size, np.array(1)), np.array(-1), np.array(-1))


def test_lookups_in_time_keep_the_selection_above_them():
    g = Graph()
    x = g.sequence(4)
    numbers = falling(g, x, 1)
    assert_rests(check(g.model(g.op("Gather", x, numbers, axis=1))), "Gather", "a table that has the batch")


def test_lookups_of_learners_keep_the_selection_above_them():
    g = Graph()
    x = g.sequence(4)
    numbers = falling(g, x, 0)
    assert_rests(check(g.model(g.op("Gather", x, numbers, axis=0))), "Gather", "looks the batch up")
