"""What works along an axis: softmax and its like, normalization, reductions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.core.reduce import rules
from tests.unit.reduce.graphs import (
    FLOAT,
    INT64,
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    assert_sank,
    check,
    computed,
)
from tests.unit.reduce.rules.drawn import rows, some, widths

# Along an axis -------------------------------------------------------------------------------------------------------


def along(g: Graph, op: str, x: str, axis: int, **attributes: int) -> str:
    if op == "CumSum":
        return g.op(op, x, np.array(axis), **attributes)
    return g.op(op, x, axis=axis)


@pytest.mark.parametrize("op", rules.AlongAxis.op_types)
@given(widths, st.sampled_from([2, 3, -1, -2]), st.booleans(), st.booleans(), rows)
@settings(max_examples=4, deadline=None)
def test_what_works_along_features_lets_the_row_through(op, width, axis, exclusive, reverse, select):
    g = Graph()
    made = along(g, op, g.sequence(width, 3), axis, exclusive=int(exclusive), reverse=int(reverse))
    assert_sank(check(g.model(made), select), op)


@pytest.mark.parametrize("axis", [1, -2, 0])
@pytest.mark.parametrize("op", rules.AlongAxis.op_types)
def test_what_works_along_time_or_learners_keeps_the_selection_above_it(op, axis):
    g = Graph()
    x = g.sequence(4)
    reason = "it works along time (axis 1)" if axis else "it works along batch (axis 0)"
    assert_rests(check(g.model(along(g, op, x, axis))), op, reason)


@pytest.mark.parametrize("select", ["mean", "max"])
def test_softmax_keeps_mean_and_maximum_above_it(select):
    g = Graph()
    assert_rests(check(g.model(g.op("Softmax", g.sequence(4))), select), "Softmax", f"the {select} does not commute")


def test_cumsum_over_a_computed_axis_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    axis = g.input("axis", dtype=np.int32)
    reduction = check(g.model(g.op("CumSum", x, axis)), below={"axis": 3})
    assert_rests(reduction, "CumSum", "its axis is computed")


# Normalization -------------------------------------------------------------------------------------------------------


def normalized(g: Graph, op: str, x: str, axis: int, *shape: int) -> str:
    bias = [g.weight(*shape)] if op == "LayerNormalization" else []
    return g.op(op, x, g.weight(*shape), *bias, axis=axis, epsilon=1e-2)


# ONNX Runtime keeps the private one in the ONNX domain too.
_NORMALIZATIONS = [op for op in rules.Normalization.op_types if "." not in op]


@pytest.mark.parametrize("op", _NORMALIZATIONS)
@given(widths, st.sampled_from([2, 3, -1, -2]), rows)
@settings(max_examples=4, deadline=None)
def test_normalization_over_features_lets_the_row_through(op, width, axis, select):
    if op == "SimplifiedLayerNormalization":
        axis = -1 if axis in (3, -1) else 3  # the last alone
    g = Graph(opset=23)
    shape = (3,) if axis in (3, -1) else (width, 3)
    assert_sank(check(g.model(normalized(g, op, g.sequence(width, 3), axis, *shape)), select), op)


@pytest.mark.parametrize("op", _NORMALIZATIONS)
def test_normalization_over_time_keeps_the_selection_above_it(op):
    g = Graph(opset=23)
    x = g.op("Transpose", g.sequence(4), perm=[0, 2, 1])
    made = g.op(op, x, g.op("Squeeze", g.table(1), [1]), axis=-1)
    assert_rests(check(g.model(g.op("Transpose", made, perm=[0, 2, 1]))), op, "it works along time")


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("form", ["table", "sequence"])
def test_normalization_whose_scale_has_time_is_exact(op, form):
    g = Graph(opset=23)
    x = g.sequence(4)
    check(g.model(g.op(op, x, g.table(4) if form == "table" else g.sequence(4, name="y"), axis=-1)))


@pytest.mark.parametrize("op", rules.SkipNormalization.op_types)
@given(widths, st.sampled_from(["sequence", "table", "table of 1", "itself"]), rows)
@settings(max_examples=6, deadline=None)
def test_fused_residual_normalization_lets_the_row_through(op, width, form, select):
    g = Graph()
    x = g.sequence(width)
    skip = {
        "sequence": lambda: g.sequence(width, name="y"),
        "table": lambda: g.table(width),
        "table of 1": lambda: g.op("Unsqueeze", g.table(width), [0]),
        "itself": lambda: x,
    }[form]()
    more = [g.weight(width), g.weight(width)] if "Simplified" not in op else [g.weight(width)]
    reduction = check(g.model(g.op(op, x, skip, g.weight(width), *more, epsilon=1e-2)), select)
    assert_row_only(reduction, op.rpartition(".")[2])


def test_fused_residual_normalization_whose_sum_is_read_keeps_the_selection_above_it():
    g = Graph()
    x, y = g.sequence(4), g.sequence(4, name="y")
    made = g.ops("com.microsoft.SkipLayerNormalization", 4, x, y, g.weight(4), g.weight(4), g.weight(4))
    assert_rests(check(g.model(g.op("Add", made[0], made[3]))), "SkipLayerNormalization", "another of its outputs")


@given(widths, rows)
@some
def test_batch_normalization_of_features_lets_the_row_through(width, select):
    g = Graph()
    x = g.op("Transpose", g.sequence(width), perm=[0, 2, 1])
    statistics = [g.weight(width), g.weight(width), g.weight(width), g.op("Exp", g.weight(width))]
    made = g.op("BatchNormalization", x, *statistics)
    assert_sank(check(g.model(g.op("Transpose", made, perm=[0, 2, 1])), select), "BatchNormalization")


def test_batch_normalization_of_time_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    statistics = [g.op("Squeeze", g.op("Exp", g.table(1)), [1]) for _ in range(4)]
    assert_rests(check(g.model(g.op("BatchNormalization", x, *statistics))), "BatchNormalization", "along time")


# Reductions ----------------------------------------------------------------------------------------------------------


def summed(g: Graph, op: str, x: str, axes: list[int], keep: bool) -> str:
    if op.startswith("Arg"):
        return g.op(op, x, axis=axes[0], keepdims=int(keep))
    if g.opset < 18 and op != "ReduceSum":
        return g.op(op, x, axes=axes, keepdims=int(keep))
    return g.op(op, x, axes, keepdims=int(keep))


@pytest.mark.parametrize("op", rules.Reduction.op_types)
@given(
    widths, st.sampled_from([[2], [3], [-1], [-2], [2, 3], [-1, -2]]), st.booleans(), st.sampled_from([13, 18]), rows
)
@settings(max_examples=4, deadline=None)
def test_reductions_over_features_let_the_row_through(op, width, axes, keep, opset, select):
    g = Graph(opset=opset)
    x = g.op("Exp", g.sequence(width, 3))  # logarithms are taken
    made = summed(g, op, x, axes, keep)
    assert_sank(check(g.model(made, dtype=np.int64 if op.startswith("Arg") else np.float32), select), op)


@pytest.mark.parametrize("op", rules.Reduction.op_types)
def test_reductions_over_time_are_done_over_all_of_it(op):
    g = Graph()
    x = g.op("Exp", g.sequence(4))
    made = g.op("Cast", summed(g, op, x, [1], True), to=FLOAT)
    reduction = check(g.model(g.op("Add", x, made)))
    read = [inputs[0] for name, inputs, _ in computed(reduction) if name == op]
    assert read == [(2, TIME, 4)]


def test_a_reduction_over_learners_keeps_the_selection_above_it():
    g = Graph()
    x = g.op("Exp", g.sequence(4))
    wide = g.op("Expand", g.op("ReduceMax", x, [0], keepdims=1), g.op("Shape", "x"))
    assert_rests(check(g.model(wide)), "ReduceMax", "same for the whole batch")


def test_a_reduction_that_drops_axes_before_time_lets_the_row_through():
    g = Graph()
    x = g.op("Transpose", g.sequence(4), perm=[1, 0, 2])
    made = g.op("ReduceSum", g.op("Unsqueeze", x, [0]), [0, 3], keepdims=0)
    assert_sank(check(g.model(g.op("Transpose", made, perm=[1, 0]))), "ReduceSum")


def test_a_reduction_over_computed_axes_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    axes = g.op("Add", g.op("Cast", g.input("axis", 1, dtype=np.int32), to=INT64), [2])
    reduction = check(g.model(g.op("ReduceSum", x, axes, keepdims=1)), below={"axis": 1})
    assert_rests(reduction, "ReduceSum", "axes are computed")


def test_a_reduction_over_no_axes_lets_the_row_through():
    g = Graph()
    made = g.op("ReduceSum", g.sequence(4), [], noop_with_empty_axes=1)
    check(g.model(made))
