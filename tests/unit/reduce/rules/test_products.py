"""MatMul and Gemm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reduce.graphs import (
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    assert_sank,
    back,
    check,
    computed,
    flat,
    square,
)
from tests.unit.reduce.rules.drawn import rows, some, widths


@given(widths, widths, st.sampled_from(["weight", "batched weight", "bias"]), st.sampled_from(["last", "row", "mean"]))
@some
def test_linear_layers_compute_the_row(width, out, form, select):
    g = Graph()
    made = g.op("MatMul", g.sequence(width), g.weight(*([1] if form == "batched weight" else []), width, out))
    assert_sank(check(g.model(g.op("Add", made, g.weight(out)) if form == "bias" else made), select), "MatMul")


@given(widths, widths)
@some
def test_matmul_with_time_as_its_columns_computes_the_column(width, out):
    g = Graph()
    made = g.op("MatMul", g.weight(out, width), g.op("Transpose", g.sequence(width), perm=[0, 2, 1]))
    assert_sank(check(g.model(g.op("Transpose", made, perm=[0, 2, 1]))), "MatMul")


@given(widths, widths, rows)
@some
def test_matmul_within_every_row_needs_the_row_of_both(width, inner, select):
    g = Graph()
    x, y = g.sequence(width, inner), g.sequence(inner, width, name="y")
    assert_sank(check(g.model(g.op("MatMul", x, y)), select), "MatMul")


def test_matmul_that_mixes_time_needs_all_of_what_it_mixes():
    g = Graph()
    x = g.sequence(4)
    reduction = check(g.model(g.op("MatMul", square(g), x)))
    assert not any(rest.startswith("x ") for rest in reduction.rests)
    assert_row_only(reduction, "MatMul")


def test_matmul_of_all_rows_with_all_rows_computes_one_row_of_scores():
    g = Graph()
    x = g.sequence(4)
    scores = g.op("MatMul", x, g.op("Transpose", x, perm=[0, 2, 1]))
    made = [outputs for name, _, outputs in computed(check(g.model(g.op("MatMul", scores, x)))) if name == "MatMul"]
    assert made == [[(2, 1, TIME)], [(2, 1, 4)]]


def test_matmul_by_a_vector_keeps_the_selection_above_it():
    g = Graph()
    assert_rests(check(g.model(g.op("MatMul", g.sequence(4), g.weight(4)))), "MatMul", "vector")


def test_matmul_with_learners_and_time_in_two_operands_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    learner = g.op("ReduceMean", x, [1], keepdims=0)
    table = g.op("Transpose", g.table(4), perm=[1, 0])
    assert_rests(check(g.model(g.op("MatMul", learner, table))), "MatMul", "in its two operands")


def test_matmul_with_learners_as_its_columns_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    learner = g.op("Transpose", g.op("ReduceMean", x, [1], keepdims=0), perm=[1, 0])
    made = g.op("MatMul", g.table(3, 4), learner)  # [time, 3, batch]
    assert_rests(check(g.model(g.op("Transpose", made, perm=[2, 0, 1]))), "MatMul", "the batch axis")


def test_the_mean_of_a_product_of_sequences_is_no_product_of_means():
    g = Graph()
    made = g.op("MatMul", g.sequence(3, 4), g.sequence(4, 2, name="y"))
    assert_rests(check(g.model(made), "mean"), "MatMul", "two sequences")


def test_the_maximum_sinks_below_relu_and_rests_above_a_linear_head():
    g = Graph()
    reduction = check(g.model(g.op("Relu", g.op("MatMul", g.sequence(4), g.weight(4, 3)))), "max")
    assert_rests(reduction, "MatMul", "the max does not commute")
    assert_row_only(reduction, "Relu")


@given(
    widths,
    widths,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, (), (1, 1), "out", "rows", "sequence"]),
    rows,
)
@some
def test_gemm_over_learners_and_time_merged_computes_the_row(width, out, across, down, bias, select):
    g = Graph()
    x = flat(g, g.sequence(width), width)
    if down:
        x = g.op("Transpose", x, perm=[1, 0])
    weight = g.weight(*((out, width) if across else (width, out)))
    third = {
        None: lambda: None,
        (): lambda: g.weight(),
        (1, 1): lambda: g.weight(1, 1),
        "out": lambda: g.weight(out),
        "rows": lambda: flat(g, g.sequence(1, name="y"), 1),
        "sequence": lambda: flat(g, g.sequence(out, name="y"), out),
    }[bias]()
    made = g.op("Gemm", x, weight, third, transA=int(down), transB=int(across), alpha=0.5, beta=2.0)
    assert_sank(check(g.model(back(g, made, out)), select), "Gemm")


@given(widths, widths, st.booleans())
@some
def test_gemm_with_time_in_its_right_operand_computes_the_column(width, out, across):
    g = Graph()
    x = flat(g, g.sequence(width), width)
    right = x if across else g.op("Transpose", x, perm=[1, 0])
    made = g.op("Gemm", g.weight(out, width), right, g.weight(out, 1), transB=int(across))
    assert_sank(check(g.model(back(g, g.op("Transpose", made, perm=[1, 0]), out))), "Gemm")


def test_gemm_of_learners_with_a_table_of_rows_keeps_the_selection_above_it():
    g = Graph()
    learner = g.op("ReduceMean", g.sequence(4), [1], keepdims=0)
    assert_rests(check(g.model(g.op("Gemm", learner, g.table(4), transB=1))), "Gemm", "in its two operands")


@pytest.mark.parametrize("select", ["mean", "max"])
def test_gemm_over_merged_rows_keeps_mean_and_maximum_above_it(select):
    g = Graph()
    made = back(g, g.op("Gemm", flat(g, g.sequence(4), 4), g.weight(4, 3)), 3)
    assert_rests(check(g.model(made), select), "Reshape", "it merges batch and time")
