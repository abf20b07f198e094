"""Operators on every entry by itself, and dropout, which is one when serving."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.reduce import Select, rules
from tests.unit.reduce.graphs import Graph, assert_rests, assert_row_only, assert_sank, check
from tests.unit.reduce.rules.drawn import rows, selects, some, widths

DOUBLE = 11
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
