"""Convolutions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.reduce import Select
from tests.unit.reduce.graphs import Graph, assert_rests, assert_row_only, assert_sank, check
from tests.unit.reduce.rules.drawn import rows, some, widths

pooled: st.SearchStrategy[Select] = st.sampled_from(["last", "row", "mean"])


def channels_first(g: Graph, value: str) -> str:
    return g.op("Transpose", value, perm=[0, 2, 1])


@given(widths, st.sampled_from([1, 2]), st.booleans(), st.sampled_from(["NOTSET", "VALID", "SAME_UPPER"]), pooled)
@some
def test_a_convolution_of_width_1_computes_the_row(width, groups, bias, auto_pad, select):
    g = Graph()
    x = channels_first(g, g.sequence(width * groups))
    more = [g.weight(4)] if bias else []
    made = g.op("Conv", x, g.weight(4, width, 1), *more, group=groups, auto_pad=auto_pad)
    assert_sank(check(g.model(channels_first(g, made)), select), "Conv")


@given(widths, widths, st.sampled_from([1, 2]), pooled)
@some
def test_a_convolution_along_another_axis_computes_the_row(width, features, stride, select):
    g = Graph()
    x = g.op("Transpose", g.sequence(features, width), perm=[0, 3, 1, 2])  # [batch, width, time, features]
    made = g.op("Conv", x, g.weight(4, width, 1, 2), pads=[0, 1, 0, 0], strides=[1, stride])
    assert_sank(check(g.model(g.op("Transpose", made, perm=[0, 2, 3, 1])), select), "Conv")


@given(widths, widths, rows)
@some
def test_a_convolution_within_every_row_computes_the_row(letters, width, select):
    g = Graph()
    flat = g.op("Reshape", g.sequence(width, letters), [-1, width, letters])  # batch and time are its batch
    made = g.op("Conv", flat, g.weight(4, width, 3), pads=[1, 1])
    back = g.op("Reshape", made, g.op("Concat", g.op("Shape", "x", end=2), [4, letters], axis=0))
    assert_sank(check(g.model(back), select), "Conv")


def test_time_as_channels_keeps_the_selection_above_the_convolution():
    g = Graph()
    x = g.op("Transpose", g.op("Slice", g.sequence(4), [0], [1], [2]), perm=[2, 0, 1])  # [1, batch, time]
    made = g.op("Conv", g.op("Unsqueeze", channels_first(g, x), [1]), g.weight(1, 1, 1, 1))
    assert_row_only(check(g.model(g.op("Transpose", made, perm=[3, 2, 0, 1]))), "Conv")
    g = Graph()
    x = g.op("Slice", g.input("x", "batch", 7, 4), [0], [1], [2])  # seven channels are the rows
    reduction = check(g.model(g.op("Conv", x, g.weight(7, 7, 1))), sizes=[(2, 7), (1, 7)])
    assert_rests(reduction, "Conv", "it works along time (axis 1)")


@pytest.mark.parametrize("given", [{"strides": [2], "pads": [3, 3]}, {"pads": [1, 0]}])
def test_a_width_of_1_that_moves_rows_is_none(given):
    g = Graph()
    made = channels_first(g, g.op("Conv", channels_first(g, g.sequence(4)), g.weight(4, 4, 1), **given))
    kept = g.op("Slice", g.op("Concat", made, g.sequence(4, name="y"), axis=1), [0], g.size("x", 1), [1])
    check(g.model(kept))


def test_the_maximum_does_not_commute_with_a_convolution():
    g = Graph()
    made = g.op("Conv", channels_first(g, g.sequence(4)), g.weight(4, 4, 1))
    assert_rests(check(g.model(channels_first(g, made)), "max"), "Conv", "the max does not commute")
