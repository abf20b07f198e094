"""Every rule: where it lets the selection through, exactly; and where it must not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.core.reduce import Reduction, Select, rules
from tests.unit.reduce.graphs import (
    BOOL,
    FLOAT,
    INT64,
    SELECTS,
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    assert_sank,
    check,
    computed,
)

some = settings(max_examples=12, deadline=None)
widths = st.integers(2, 6)
rows: st.SearchStrategy[Select] = st.sampled_from(["last", "row"])
selects: st.SearchStrategy[Select] = st.sampled_from(SELECTS)
DOUBLE = 11


def square(g: Graph, *, axes: tuple[int, int] = (0, 1)) -> str:
    """A table of every row against every row, the same for every learner."""
    time = g.size("x", 1)
    shape = [TIME + 1 if axis in axes else 1 for axis in range(max(axes) + 1)]
    return g.op("Slice", g.weight(*shape), [0, 0], g.op("Concat", time, time, axis=0), list(axes))


def flat(g: Graph, value: str, width: int) -> str:
    """[batch, time, width] to [batch x time, width]."""
    return g.op("Reshape", value, [-1, width])


def back(g: Graph, value: str, width: int) -> str:
    """[batch x time, width] to [batch, time, width]."""
    return g.op("Reshape", value, g.op("Concat", g.op("Shape", "x", end=2), [width], axis=0))


def heads(g: Graph, value: str, count: int, width: int) -> str:
    """[batch, time, count x width] to [batch, count, time, width]."""
    return g.op("Transpose", g.op("Reshape", value, [0, 0, count, width]), perm=[0, 2, 1, 3])


def joined(g: Graph, value: str, width: int) -> str:
    """And back."""
    return g.op("Reshape", g.op("Transpose", value, perm=[0, 2, 1, 3]), [0, 0, width])


# Elementwise ---------------------------------------------------------------------------------------------------------

_TWO = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu"}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_ANSWERS_BOOL = _COMPARISONS | {"And", "Or", "Xor", "Not", "IsInf", "IsNaN"}
_SINCE = {"Swish": 24}


def elementwise(op: str) -> ir.Model:
    g = Graph(opset=_SINCE.get(op, 20))
    kind: type = {"BitShift": np.uint8}.get(op, np.bool_ if op in ("And", "Or", "Xor", "Not") else np.float32)
    x = g.sequence(3, dtype=kind)
    if op in _TWO | _COMPARISONS or op in ("And", "Or", "Xor"):
        made = g.op(op, x, g.sequence(3, name="y", dtype=kind))
    elif op == "Mod":
        made = g.op(op, x, g.sequence(3, name="y"), fmod=1)
    elif op == "BitShift":
        made = g.op(op, x, g.sequence(3, name="y", dtype=kind), direction="LEFT")
    elif op == "Where":
        made = g.op(op, g.op("Greater", x, np.array(0.1, np.float32)), x, g.sequence(1, name="y"))
    elif op == "Clip":
        made = g.op(op, x, np.array(-0.5, np.float32), np.array(0.5, np.float32))
    elif op == "Cast":
        made = g.op(op, x, to=DOUBLE)
    elif op == "CastLike":
        made = g.op(op, x, np.zeros((2, 5), np.float64))
    elif op == "com.microsoft.BiasGelu":
        made = g.op(op, x, g.weight(3))
    else:
        made = g.op(op, x)
    answer = np.bool_ if op in _ANSWERS_BOOL else np.float64 if op.startswith("Cast") else kind
    return g.model(made, dtype=answer)


@pytest.mark.parametrize("op", rules.Elementwise.op_types)
def test_every_elementwise_operator_lets_the_row_through(op):
    left = {"Identity": [], "CastLike": ["Cast"]}.get(op, [op.rpartition(".")[2]])
    assert_sank(check(elementwise(op)), *left)


@given(
    widths, st.sampled_from(["scalar", "width", "one", "table", "table of 1", "learner", "sequence", "narrow"]), rows
)
@some
def test_elementwise_operands_broadcast(width, shape, select):
    g = Graph()
    x = g.sequence(width)
    y = {
        "scalar": lambda: g.weight(),
        "width": lambda: g.weight(width),
        "one": lambda: g.weight(1, 1, 1),
        "table": lambda: g.table(width),
        "table of 1": lambda: g.op("Unsqueeze", g.table(1), [0]),
        "learner": lambda: g.input("y", "batch", 1, width),
        "sequence": lambda: g.sequence(width, name="y"),
        "narrow": lambda: g.sequence(1, name="y"),
    }[shape]()
    reduction = check(g.model(g.op("Mul", g.op("Sub", y, x), y)), select)
    assert_row_only(reduction, "Mul", "Sub")
    assert "x [batch, time, " in " ".join(reduction.rests)


@pytest.mark.parametrize(
    ("op", "select"),
    [
        *((op, "mean") for op in ("Add", "Sub", "Sum", "Neg", "Identity", "Mul", "Div")),
        *((op, "max") for op in ("Add", "Sub", "Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Softsign", "Erf")),
    ],
)
def test_mean_and_maximum_sink_below_what_they_commute_with(op, select):
    g = Graph()
    x = g.sequence(4)
    made = g.op(op, x, g.weight(4)) if op in ("Add", "Sub", "Sum", "Mul", "Div") else g.op(op, x)
    assert_sank(check(g.model(made), select), *([op] if op != "Identity" else []))


@pytest.mark.parametrize("op", ["Add", "Sub", "Sum"])
def test_the_mean_of_a_sum_is_the_sum_of_means(op):
    g = Graph()
    x = g.sequence(4)
    assert_sank(check(g.model(g.op(op, x, g.sequence(1, name="y"))), "mean"), op)


_REFUSED: dict[str, tuple[Select, Callable[[Graph, str], str]]] = {
    "Relu of a mean": ("mean", lambda g, x: g.op("Relu", x)),
    "Mul of two sequences": ("mean", lambda g, x: g.op("Mul", x, g.sequence(4, name="y"))),
    "Mul of a sequence with itself": ("mean", lambda g, x: g.op("Mul", x, x)),
    "Mul with a table": ("mean", lambda g, x: g.op("Mul", x, g.table(4))),
    "Div by a sequence": ("mean", lambda g, x: g.op("Div", g.weight(4), g.op("Exp", x))),
    "Mul by what may be negative": ("max", lambda g, x: g.op("Mul", x, g.weight(4))),
    "Div by what may be negative": ("max", lambda g, x: g.op("Div", x, g.weight(4))),
    "Add of two sequences": ("max", lambda g, x: g.op("Add", x, g.sequence(4, name="y"))),
    "Add of a sequence to itself": ("max", lambda g, x: g.op("Add", x, x)),
    "Sub from a constant": ("max", lambda g, x: g.op("Sub", g.weight(4), x)),
    "Neg of a maximum": ("max", lambda g, x: g.op("Neg", x)),
    "Where": ("mean", lambda g, x: g.op("Where", g.op("Greater", x, g.weight(4)), x, g.weight(4))),
    "Gelu, which is not monotonic": ("max", lambda g, x: g.op("Gelu", x)),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_mean_and_maximum_rest_above_what_they_do_not_commute_with(case):
    select, build = _REFUSED[case]
    g = Graph()
    reduction = check(g.model(build(g, g.sequence(4))), select)
    assert_rests(reduction, case.split()[0].strip(","), f"the {select} does not commute with it")


def test_the_maximum_of_integers_is_exact():
    g = Graph()
    x = g.sequence(4, dtype=np.int64)
    check(g.model(g.op("Neg", x), dtype=np.int64), "max")


# Dropout -------------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 0.9), st.sampled_from([None, False]), selects)
@some
def test_dropout_is_nothing_when_serving(ratio, training, select):
    g = Graph()
    x = g.sequence(3)
    flag = None if training is None else np.array(training)
    assert_sank(check(g.model(g.op("Dropout", x, np.array(ratio, np.float32), flag)), select))


def untrained_dropout(g: Graph, x: str, training: str | np.ndarray) -> list[str]:
    """Dropout that leaves out nothing, for answers that can be compared; and no folding sees that."""
    ratio = g.input("ratio")
    return g.ops("Dropout", 2, x, g.op("Sub", ratio, ratio), training)


@pytest.mark.parametrize("known", [True, False])
def test_dropout_that_may_train_keeps_the_selection_above_it(known):
    g = Graph()
    x = g.sequence(3)
    made, _ = untrained_dropout(g, x, np.array(True) if known else g.input("training", dtype=np.bool_))
    assert_rests(check(g.model(made)), "Dropout", "training mode")


def test_dropout_whose_mask_is_read_keeps_the_selection_above_it():
    g = Graph()
    kept, mask = untrained_dropout(g, g.sequence(3), g.input("training", dtype=np.bool_))
    assert_rests(check(g.model(g.op("Where", mask, kept, g.weight(3)))), "Dropout", "another of its outputs")


# MatMul and Gemm -----------------------------------------------------------------------------------------------------


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
    assert_rests(check(g.model(g.op("Transpose", made, perm=[2, 0, 1]))), "MatMul", "learners")


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
    assert_rests(check(g.model(made), select), "Reshape", "it merges learners and time")


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
    reason = "it works along time (axis 1)" if axis else "it works along the learners' axis (0)"
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
    assert_rests(check(g.model(wide)), "ReduceMax", "same for every learner")


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
    assert_rests(check(g.model(made)), "Reshape", "merges learners with other axes")


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


@given(widths, widths, st.sampled_from([2, -1, -2]), st.booleans(), selects)
@some
def test_concatenations_of_features_let_the_row_through(a, b, axis, learner, select):
    g = Graph()
    shapes = ((a, 2), (b, 2)) if axis != -1 else ((2, a), (2, b))
    parts = [g.sequence(*shapes[0]), g.sequence(*shapes[1], name="y")]
    if learner:
        parts.append(g.op("Identity" if select == "mean" else "Tanh", parts[0]))
    assert_sank(check(g.model(g.op("Concat", *parts, axis=axis)), select), "Concat")


def test_a_concatenation_in_time_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    first = g.op("Slice", x, [0], [1], [1])
    rest = g.op("Slice", x, [1], [1000], [1])
    for parts in ((rest, first), (first, rest)):
        made = g.op("Concat", *parts, axis=1)
        assert_rests(check(g.model(made)), "Concat", "it works along time")


def test_a_concatenation_of_learners_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    both = g.op("Concat", x, g.op("Neg", x), axis=0)
    made = g.op("Slice", both, [0], g.size(x, 0), [0])
    reduction = check(g.model(made))
    assert_rests(reduction, "Slice", "learners' axis")


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


@pytest.mark.parametrize("biased", ["none", "vector", "single"])
def test_the_query_of_a_fused_projection_is_computed_for_the_row_alone(biased):
    g = Graph()
    made = g.op("MatMul", g.sequence(4), g.weight(4, 14))
    if biased != "none":
        made = g.op("Add", made, g.weight(14 if biased == "vector" else 1))
    q, k, v = g.ops("Split", 3, made, [4, 4, 6], axis=-1)
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])))
    nodes = computed(check(g.model(g.op("MatMul", scores, v))))
    assert [outputs for name, _, outputs in nodes if name == "Softmax"] == [[(2, 1, TIME)]]
    assert ("MatMul", [(2, 1, 4), (4, 4)], [(2, 1, 4)]) in nodes
    assert not any(name == "Split" for name, _, _ in nodes)


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
    assert_rests(reduction, "Concat", "it works along time")
    assert_row_only(reduction, "Sin")


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
    assert_rests(check(g.model(g.op("Gather", x, numbers, axis=1))), "Gather", "learners' own tables")


def test_lookups_of_learners_keep_the_selection_above_them():
    g = Graph()
    x = g.sequence(4)
    numbers = falling(g, x, 0)
    assert_rests(check(g.model(g.op("Gather", x, numbers, axis=0))), "Gather", "looks learners up")


# Attention -----------------------------------------------------------------------------------------------------------


def causal(g: Graph, x: str) -> str:
    """BOOL [time, time]: which keys a query sees."""
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size(x, 1)), np.array(1))
    return g.op("LessOrEqual", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1]))


def decomposed(g: Graph, x: str, count: int, width: int, mask: str) -> str:
    """Self attention from single operators, as exporters write it."""
    q, k, v = (heads(g, g.op("MatMul", x, g.weight(count * width, count * width)), count, width) for _ in range(3))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if mask == "where":
        scores = g.op("Where", causal(g, x), scores, np.array(-np.inf, np.float32))
    elif mask == "add":
        never = g.op("Where", causal(g, x), np.array(0, np.float32), np.array(-np.inf, np.float32))
        scores = g.op("Add", scores, never)
    elif mask == "trilu":
        ones = g.op("Expand", np.array(True), g.op("Concat", g.size(x, 1), g.size(x, 1), axis=0))
        seen = g.op("Unsqueeze", g.op("Trilu", g.op("Cast", ones, to=INT64), upper=0), [0, 1])
        scores = g.op("Where", g.op("Cast", seen, to=BOOL), scores, np.array(-1e9, np.float32))
    return joined(g, g.op("MatMul", g.op("Softmax", scores), v), count * width)


@given(st.integers(1, 3), widths, st.sampled_from(["", "where", "add", "trilu"]), rows)
@some
def test_decomposed_attention_keeps_the_query_of_the_row_alone(count, width, mask, select):
    g = Graph()
    made = decomposed(g, g.sequence(count * width), count, width, mask)
    reduction = check(g.model(made), select)
    shapes = [inputs[0] for name, inputs, _ in computed(reduction) if name == "Softmax"]
    assert shapes == [(2, count, 1, TIME)]


def test_of_stacked_attention_the_last_block_alone_is_computed_for_the_row():
    g = Graph()
    made = decomposed(g, decomposed(g, g.sequence(4), 2, 2, "where"), 2, 2, "where")
    reduction = check(g.model(made))
    shapes = sorted(inputs[0] for name, inputs, _ in computed(reduction) if name == "Softmax")
    assert shapes == [(2, 2, 1, TIME), (2, 2, TIME, TIME)]


def attention_mask(g: Graph, x: str, form: str, kind: str, count: int) -> str | None:
    """A mask under which every query sees itself."""
    if form == "none":
        return None
    axes: tuple[str | int, ...] = {
        "square": (1, 1, "time", "time"),
        "a learner's": ("batch", 1, "time", "time"),
        "a head's": (1, count, "time", "time"),
        "of two axes": ("time", "time"),
        "of three axes": (count, "time", "time"),
    }[form]
    mask = g.input("mask", *axes, dtype=np.bool_ if kind == "bool" else np.float32)
    if kind == "bool":
        numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size(x, 1)), np.array(1))
        return g.op("Or", mask, g.op("Equal", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1])))
    return mask


@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "square", "a learner's", "a head's", "of two axes", "of three axes"]),
    st.sampled_from(["float", "bool"]),
    st.sampled_from([(2, 2), (4, 2), (1, 1)]),
    rows,
)
@settings(max_examples=30, deadline=None)
def test_fused_attention_needs_the_query_of_the_row_alone(four, is_causal, form, kind, counts, select):
    queries, keys = counts
    g = Graph(opset=23)
    x = g.sequence(8)
    q = g.op("MatMul", x, g.weight(8, queries * 4))
    k, v = (g.op("MatMul", x, g.weight(8, keys * 4)) for _ in range(2))
    mask = attention_mask(g, x, form, kind, queries)
    if four:
        q, k, v = heads(g, q, queries, 4), heads(g, k, keys, 4), heads(g, v, keys, 4)
        made = joined(g, g.op("Attention", q, k, v, mask, is_causal=int(is_causal)), queries * 4)
    else:
        made = g.op(
            "Attention", q, k, v, mask, is_causal=int(is_causal), q_num_heads=queries, kv_num_heads=keys, scale=0.3
        )
    assert_row_only(check(g.model(made), select), "Attention")


def test_fused_attention_with_earlier_keys_keeps_the_selection_above_it():
    g = Graph(opset=23)
    x = g.sequence(4)
    past = [g.input(name, "batch", 2, 3, 2) for name in ("past_key", "past_value")]
    made = g.ops("Attention", 3, x, x, x, None, *past, q_num_heads=2, kv_num_heads=2)
    # ONNX Runtime wants the present keys and values as outputs where it is given earlier ones.
    both = made[0]
    for present in made[1:]:
        nothing = g.op("Mul", g.op("ReduceMax", present, [1, 2, 3], keepdims=0), np.array(0, np.float32))
        both = g.op("Add", both, g.op("Unsqueeze", nothing, [1, 2]))
    assert_rests(check(g.model(both)), "Attention", "needs more of it than the row")


@pytest.mark.parametrize("is_causal", [0, 1])
def test_fused_attention_is_exact_over_heads_merged_into_learners(is_causal):
    g = Graph(opset=23)
    x = g.sequence(8)
    merged = g.op("Reshape", heads(g, x, 2, 4), g.op("Concat", [-1], g.size(x, 1), [4], axis=0))
    made = g.op("Attention", merged, merged, merged, q_num_heads=1, kv_num_heads=1, is_causal=is_causal)
    apart = g.op("Reshape", made, g.op("Concat", g.size(x, 0), [2], g.size(x, 1), [4], axis=0))
    check(g.model(joined(g, apart, 8)))


@pytest.mark.parametrize("select", ["mean", "max"])
def test_fused_attention_keeps_mean_and_maximum_above_it(select):
    g = Graph(opset=23)
    x = g.sequence(4)
    made = g.op("Attention", x, x, x, q_num_heads=2, kv_num_heads=2)
    assert_rests(check(g.model(made), select), "Attention", f"the {select} does not commute")


@given(
    st.sampled_from(["none", "square", "a learner's", "a head's"]), st.booleans(), st.booleans(), st.booleans(), rows
)
@some
def test_contributed_attention_needs_the_query_of_the_row_alone(form, biased, padded, cross, select):
    g = Graph()
    x = g.sequence(8)
    q, k, v = (g.op("MatMul", x, g.weight(8, 8)) for _ in range(3))
    if cross:
        k, v = heads(g, k, 2, 4), heads(g, v, 2, 4)
    bias = g.weight(24) if biased and not cross else None
    padding = g.input("padding", "batch", "time", dtype=np.int32) if padded else None
    mask = attention_mask(g, x, form, "float", 2)
    made = g.op("com.microsoft.MultiHeadAttention", q, k, v, bias, padding, mask, num_heads=2)
    assert_row_only(check(g.model(made), select, below={"padding": 2}), "MultiHeadAttention", below={"padding": 2})


def test_contributed_attention_with_a_padding_mask_a_query_is_exact():
    g = Graph()
    x = g.sequence(4)
    padding = g.op("Cast", g.op("Expand", g.op("Unsqueeze", causal(g, x), [0]), _squares(g, x)), to=6)
    made = g.op("com.microsoft.MultiHeadAttention", x, x, x, None, padding, num_heads=2)
    check(g.model(made))


def _squares(g: Graph, x: str) -> str:
    """The shape [batch, time, time]."""
    return g.op("Concat", g.size(x, 0), g.size(x, 1), g.size(x, 1), axis=0)


def test_contributed_attention_that_is_causal_itself_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    made = g.op("com.microsoft.MultiHeadAttention", x, x, x, num_heads=2, unidirectional=1)
    assert_rests(check(g.model(made)), "MultiHeadAttention", "causal mask")


# Recurrent layers ----------------------------------------------------------------------------------------------------

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    g: Graph, op: str, x: str, width: int, hidden: int, *more: str | None, directions: int = 1, **attributes: object
) -> list[str]:
    """[time, batch, width] to every state [time, directions, batch, hidden] and the last."""
    rows = _GATES[op] * hidden
    weights = [g.weight(directions, rows, width), g.weight(directions, rows, hidden)]
    return g.ops(op, 2, x, *weights, *more, hidden_size=hidden, **attributes)


def layer(g: Graph, op: str, x: str, width: int, hidden: int, *more: str | None, **attributes: object) -> str:
    """The same from [batch, time, width] to [batch, time, hidden]."""
    states = recurrent(g, op, g.op("Transpose", x, perm=[1, 0, 2]), width, hidden, *more, **attributes)[0]
    return g.op("Transpose", g.op("Squeeze", states, [1]), perm=[1, 0, 2])


def assert_ends(reduction: Reduction, op: str, count: int = 1) -> None:
    """So many layers end at the wanted row, and answer no other."""
    assert sum("it ends at the wanted row" in rest for rest in reduction.rests) == count, reduction.rests
    ended = [node for node in reduction.model.graph if node.op_type == op and not node.outputs[0].name]
    assert len(ended) == count
    assert all(node.inputs[4] is not None for node in ended)


@given(
    st.sampled_from(list(_GATES)),
    widths,
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["none", "zeros", "learned", "computed"]),
    st.booleans(),
    st.booleans(),
    rows,
)
@settings(max_examples=25, deadline=None)
def test_recurrent_layers_end_at_the_row(op, width, hidden, biased, initial, special, peephole, select):
    g = Graph()
    x = g.sequence(width)
    bias = g.weight(1, 2 * _GATES[op] * hidden) if biased else None

    def state() -> str | None:
        if initial == "none":
            return None
        if initial == "computed":
            mean = g.op("Unsqueeze", g.op("ReduceMean", x, [1], keepdims=0), [0])
            return g.op("MatMul", mean, g.weight(width, hidden))
        value = np.zeros((1, 1, hidden), np.float32) if initial == "zeros" else g.weight(1, 1, hidden)
        return g.op("Expand", value, g.op("Concat", [1], g.size(x, 0), [hidden], axis=0))

    more = [bias, None, state(), *([state()] if op == "LSTM" else [])]
    if op == "LSTM" and peephole:
        more.append(g.weight(1, 3 * hidden))
    attributes = {
        "LSTM": {"input_forget": 1},
        "GRU": {"linear_before_reset": 1},
        "RNN": {"activations": ["Relu"]},
    }[op]
    made = layer(g, op, x, width, hidden, *more, **(attributes if special else {}))
    reduction = check(g.model(g.op("MatMul", made, g.weight(hidden, 3))), select)
    assert_ends(reduction, op)
    assert reduction.trimmed == (initial != "computed")
    if initial != "computed":
        assert_row_only(reduction, "MatMul")


@pytest.mark.parametrize("op", _GATES)
def test_of_stacked_recurrent_layers_the_last_ends_at_the_row(op):
    g = Graph()
    made = layer(g, op, g.op("LayerNormalization", layer(g, op, g.sequence(3), 3, 4), g.weight(4)), 4, 5)
    assert_ends(check(g.model(made)), op)


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


def test_recurrent_layers_side_by_side_both_end_at_the_row():
    g = Graph()
    x = g.sequence(3)
    made = g.op("Concat", layer(g, "LSTM", x, 3, 4), layer(g, "LSTM", x, 3, 4), axis=2)
    assert_ends(check(g.model(made)), "LSTM", 2)


@given(st.sampled_from(list(_GATES)), st.integers(0, 1), rows)
@some
def test_recurrent_layers_end_at_the_row_that_a_slice_moved(op, start, select):
    g = Graph()
    x = g.sequence(3)
    longer = g.op("Concat", g.op("Slice", x, [0], [1], [1]), x, axis=1)
    made = g.op("Slice", layer(g, op, longer, 3, 4), [start], [1000] if start else [-1], [1])
    assert_ends(check(g.model(made), select), op)


@given(st.sampled_from(list(_GATES)), widths, rows)
@some
def test_recurrent_layers_with_time_first_need_no_transpose(op, width, select):
    g = Graph()
    x = g.input("x", "time", "batch", width)
    made = g.op("Squeeze", recurrent(g, op, x, width, 4)[0], [1])
    reduction = check(g.model(made), select, time_axis=0)
    assert_ends(reduction, op)
    assert not any(node.op_type == "Transpose" for node in reduction.model.graph)


@pytest.mark.parametrize("op", _GATES)
@pytest.mark.parametrize("select", ["mean", "max"])
def test_recurrent_layers_keep_mean_and_maximum_above_them(op, select):
    g = Graph()
    made = layer(g, op, g.sequence(3), 3, 4)
    assert_rests(check(g.model(made), select), op, f"the {select} does not commute")


@pytest.mark.parametrize("op", _GATES)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_recurrent_layers_that_read_backward_keep_the_selection_above_them(op, direction):
    g = Graph()
    x = g.op("Transpose", g.sequence(3), perm=[1, 0, 2])
    count = 2 if direction == "bidirectional" else 1
    attributes = {"activations": ["Tanh"] * count} if op == "RNN" else {}
    states = recurrent(g, op, x, 3, 4, directions=count, direction=direction, **attributes)[0]
    made = g.op("Reshape", g.op("Transpose", states, perm=[2, 0, 1, 3]), [0, 0, -1])
    if count == 2:
        made = g.op("Reshape", g.op("Transpose", states, perm=[2, 0, 1, 3]), [0, 0, 8])
    assert_rests(check(g.model(made)), op, "from its end too")


@pytest.mark.parametrize("op", _GATES)
def test_recurrent_layers_with_lengths_of_their_own_keep_the_selection_above_them(op):
    g = Graph()
    x = g.sequence(3)
    lengths = g.op("Cast", g.op("Expand", g.size(x, 1), g.op("Shape", x, end=1)), to=6)
    assert_rests(check(g.model(layer(g, op, x, 3, 4, None, lengths))), op, "lengths (sequence_lens) of its own")


def test_a_recurrent_layer_whose_final_state_is_read_keeps_the_selection_above_it():
    g = Graph()
    x = g.op("Transpose", g.sequence(3), perm=[1, 0, 2])
    states, last = recurrent(g, "GRU", x, 3, 4)
    made = g.op("Transpose", g.op("Add", g.op("Squeeze", states, [1]), last), perm=[1, 0, 2])
    assert_rests(check(g.model(made)), "GRU", "needs more of it than the row")


def test_a_recurrent_layer_over_learners_keeps_the_selection_above_it():
    g = Graph()
    states = recurrent(g, "GRU", g.sequence(3), 3, 4)[0]  # as if learners were steps
    assert_rests(check(g.model(g.op("Squeeze", states, [1]))), "GRU", "time is not its first axis")


# No rule, and the model as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("select", SELECTS)
def test_a_convolution_over_time_keeps_the_selection_above_it(select):
    g = Graph()
    x = g.op("Transpose", g.sequence(4), perm=[0, 2, 1])
    made = g.op("Transpose", g.op("Conv", x, g.weight(3, 4, 3), pads=[1, 1]), perm=[0, 2, 1])
    reduction = check(g.model(made), select)
    assert_rests(reduction, "Conv", "no rule")
    assert not reduction.trimmed


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
