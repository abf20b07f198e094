"""Kinds of models that a comparison at few values, lengths or batches took for right: exact, or refused with the reason."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import build.core.reduce
from build.core import battery
from build.core.reduce import Declared, Inputs, ReductionError
from build.core.reduction import reduce_file
from tests.unit.reduce.example import Example, Options
from tests.unit.reduce.graphs import BOOL, FLOAT, FLOAT16, INT64, Graph
from tests.unit.reduce.inputs import BATCH, PADDING, STEPS, TIME, Given
from tests.unit.reduce.test_fuzz import examine

IDS = Given("ids", "ids", (BATCH, TIME), np.int64)
COUNT = Given("n", "length", (BATCH,), np.int64)
STATES = Given("states", "values", (BATCH, STEPS, 4), np.float32)


class Model(Graph):
    """A graph that begins with an embedding of `ids`."""

    def __init__(self, *first: Given, time_first: bool = False) -> None:
        super().__init__()
        for each in first:
            self.input(each.name, *each.axes, dtype=each.dtype)
        ids = self.input("ids", *((TIME, BATCH) if time_first else (BATCH, TIME)), dtype=np.int64)
        self.x = self.op("Gather", self.weight(11, 4), ids)

    def take(self, given: Given) -> str:
        return self.input(given.name, *given.axes, dtype=given.dtype)

    def rows(self) -> str:
        return self.op("Squeeze", self.size(self.x, 1))

    def numbers(self, end: str | None = None) -> str:
        return self.op("Range", np.array(0), end or self.rows(), np.array(1))

    def as_float(self, value: str) -> str:
        return self.op("Cast", value, to=FLOAT)

    def states(self, x: str, lens: str | None = None) -> str:
        """LSTM over time."""
        first = self.op("Transpose", x, perm=[1, 0, 2])
        every = self.op(
            "LSTM", first, self.weight(1, 16, 4), self.weight(1, 16, 4), self.weight(1, 32), lens, hidden_size=4
        )
        return self.op("Transpose", self.op("Squeeze", every, [1]), perm=[1, 0, 2])

    def answer(self, value: str, given: tuple[Given, ...] = (IDS,), half: bool = False, **how: Any) -> str:
        """What becomes of the model that answers this: a refusal, or nothing where its cut was written and is right."""
        options = replace(Options("last", 1, (value,), 64, Declared()), **how)
        model = self.model(value, dtype=np.float16 if half else np.float32)
        return examine(Example(model, given, options, half, frozenset({40, 17})))


def test_a_size_that_depends_on_what_an_input_holds_is_none_of_batch_and_time():
    m = Model()
    others = m.op("Not", m.op("Equal", "ids", np.array(PADDING)))
    refusal = m.answer(m.op("Mul", m.x, m.as_float(m.size(m.op("NonZero", others), 1))))
    assert "changes with" in refusal
    assert "--window" not in refusal


@pytest.mark.parametrize("select", ["row", "max"])
def test_a_size_that_follows_from_the_largest_value_is_not_the_one_of_many_draws(select):
    """A dozen numbers of 0 to 10 hold a 10 nearly always: written down as a size it was wrong for a single number."""
    m = Model()
    zeros = m.op("ConstantOfShape", m.op("Unsqueeze", m.op("ReduceMax", "ids", keepdims=0), [0]))
    refusal = m.answer(m.op("Add", m.x, m.as_float(m.size(zeros, 0))), select=select)
    assert "changes with" in refusal
    assert "report" not in refusal


@pytest.mark.parametrize("select", ["last", "row"])
def test_a_size_that_follows_time_up_to_a_point_alone_is_not_taken_for_time(select):
    """From 41 rows on the sum is of 40; for the last of a padded history that is no answer, for a row of a window it is."""
    m = Model()
    last = m.op("Slice", m.x, [-40], [100000], [1])
    mean = m.op("Div", m.op("ReduceSum", last, [1], keepdims=1), m.as_float(m.size(last, 1)))
    refusal = m.answer(m.op("Add", m.x, mean), select=select, window=128)
    assert ("changes with" in refusal) == (select == "last"), refusal


def test_a_mask_as_long_as_the_longest_length_is_not_of_a_constant_size():
    m = Model()
    n = m.take(COUNT)
    mask = m.as_float(m.op("Less", m.numbers(m.op("ReduceMax", n, keepdims=0)), m.op("Unsqueeze", n, [1])))
    part = m.op("Slice", m.x, [0], m.size(mask, 1), [1])
    total = m.op("ReduceSum", m.op("Mul", part, m.op("Unsqueeze", mask, [2])), [1], keepdims=1)
    refusal = m.answer(m.op("Add", m.x, m.op("Div", total, m.as_float(m.size(mask, 1)))), (IDS, COUNT))
    assert "changes with its neighbours in a batch" in refusal or "changes with whether" in refusal


def test_a_mean_over_a_length_among_the_inputs_is_exact():
    """The denominator is an input: fed with zeros, it made NaN of the right cut."""
    m = Model()
    n = m.take(COUNT)
    mask = m.as_float(m.op("Less", m.numbers(), m.op("Unsqueeze", n, [1])))
    total = m.op("ReduceSum", m.op("Mul", m.x, m.op("Unsqueeze", mask, [2])), [1], keepdims=1)
    assert not m.answer(m.op("Add", m.x, m.op("Div", total, m.op("Unsqueeze", m.as_float(n), [1, 2]))), (IDS, COUNT))


@pytest.mark.parametrize("decided", [True, False])
def test_a_branch_that_answers_through_an_identity_is_exact(decided):
    """Whether the condition is known, and the branch written in its place, or is the number of rows."""
    m = Model()
    value = m.op("Abs", m.x)
    condition = m.constant(np.array(True)) if decided else m.op("Greater", m.rows(), np.array(7))
    then, other = (helper.make_tensor_value_info(name, FLOAT, None) for name in ("kept", "changed"))
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Identity", [value], ["kept"])], "then", [], [then]),
        "else_branch": helper.make_graph([helper.make_node("Relu", [value], ["changed"])], "else", [], [other]),
    }
    assert not m.answer(m.op("Neg", m.op("If", condition, **branches)))


def test_two_branches_may_answer_the_same_tensor_from_outside():
    """Each through an Identity of its own: without those one tensor would be the answer of two graphs."""
    m = Model()
    value = m.op("Abs", m.x)
    made = []
    for number in (3, 7):
        names = f"kept_{number}", f"changed_{number}"
        then, other = (helper.make_tensor_value_info(name, FLOAT, None) for name in names)
        branches = {
            "then_branch": helper.make_graph([helper.make_node("Identity", [value], names[:1])], "then", [], [then]),
            "else_branch": helper.make_graph([helper.make_node("Relu", [value], names[1:])], "else", [], [other]),
        }
        made.append(m.op("If", m.op("Greater", m.rows(), np.array(number)), **branches))
    assert not m.answer(m.op("Add", *made))


@pytest.mark.parametrize("first", [True, False])
def test_the_states_of_an_encoder_have_an_axis_of_their_own(first):
    m = Model(*([STATES] if first else []))
    states = STATES.name if first else m.take(STATES)
    weights = m.op("Softmax", m.op("MatMul", m.x, m.op("Transpose", states, perm=[0, 2, 1])), axis=-1)
    assert not m.answer(m.op("MatMul", weights, states), (IDS, STATES))


@pytest.mark.parametrize("select", ["last", "row"])
def test_a_model_that_cuts_its_own_history_is_asked_for_more_rows_than_that(select):
    m = Model()
    recent = m.op("ReduceMean", m.op("Slice", m.x, [-5], [100000], [1]), [1], keepdims=1)
    refusal = m.answer(m.op("Add", m.states(m.x), recent), select=select)
    assert ("changes with" in refusal) == (select == "last"), refusal


def test_time_padded_to_a_multiple_is_exact():
    m = Model()
    rows = m.size(m.x, 1)
    pads = m.op("Concat", [0, 0, 0, 0], m.op("Mod", m.op("Sub", [0], rows), [8]), [0], axis=0)
    chunks = m.op("Reshape", m.op("Pad", m.x, pads), m.op("Concat", m.size(m.x, 0), [-1, 8, 4], axis=0))
    sums = m.op("Reshape", m.op("CumSum", chunks, np.array(2)), m.op("Concat", m.size(m.x, 0), [-1, 4], axis=0))
    assert not m.answer(m.op("Slice", sums, [0], rows, [1]))


def test_sixteen_bits_are_exact_to_their_own_precision():
    m = Model()
    narrow = m.op("MatMul", m.op("Cast", m.states(m.x), to=FLOAT16), m.rng.normal(size=(4, 3)).astype(np.float16))
    assert not m.answer(m.op("Tanh", narrow), half=True)


def test_static_features_may_be_the_first_input():
    static = Given("static", "values", (BATCH, 3), np.float32)
    m = Model(static)
    wide = m.op("Expand", m.op("Unsqueeze", "static", [1]), m.op("Concat", m.size(m.x, 0), m.size(m.x, 1), [3], axis=0))
    mixed = m.op("MatMul", m.op("Concat", m.x, wide, axis=2), m.weight(7, 4))
    assert not m.answer(m.states(mixed), (static, IDS))


@pytest.mark.parametrize("axis", [0, 2])
def test_time_may_be_another_axis(axis):
    m = Model(time_first=axis == 0)
    x = m.op("Transpose", m.x, perm=[1, 0, 2]) if axis == 0 else m.x
    states = m.op("Transpose", m.states(x), perm=[1, 0, 2] if axis == 0 else [0, 2, 1])
    ids = Given("ids", "ids", (TIME, BATCH) if axis == 0 else (BATCH, TIME), np.int64)
    assert not m.answer(states, (ids,), time_axis=axis)


def test_an_input_may_have_the_name_that_the_index_would_have():
    m = Model()
    given = Given("lengths", "length", (BATCH,), np.int32)
    assert not m.answer(m.states(m.x, m.take(given)), (IDS, given))


def test_a_loop_that_collects_its_rows_in_a_sequence_is_exact():
    m = Model()
    info, several = helper.make_tensor_value_info, helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", [m.x, "i"], ["row"], axis=1),
            helper.make_node("Add", ["row", "state"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
            helper.make_node("Unsqueeze", ["next", "axis"], ["wide"]),
            helper.make_node("SequenceInsert", ["rows", "wide"], ["more"]),
            helper.make_node("Identity", ["on"], ["goes_on"]),
        ],
        "body",
        [info("i", INT64, []), info("on", BOOL, []), info("state", FLOAT, None), several("rows", FLOAT, None)],
        [info("goes_on", BOOL, None), info("next", FLOAT, None), several("more", FLOAT, None)],
        [helper.make_tensor("axis", INT64, [1], [1])],
    )
    zeros = m.op("Expand", np.array(0, np.float32), m.op("Concat", m.size(m.x, 0), [4], axis=0))
    loop = m.ops("Loop", 2, m.rows(), np.array(True), zeros, m.op("SequenceEmpty", dtype=FLOAT), body=body)
    assert not m.answer(m.op("ConcatFromSequence", loop[1], axis=1))


def test_what_a_model_does_from_some_number_of_rows_on_it_does_to_a_short_history_in_a_wide_batch():
    """It is asked about where the histories are padded; at the window there was one, and it filled it."""
    m = Model()
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [m.x], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )
        for name, op in (("then_branch", "Neg"), ("else_branch", "Identity"))
    }
    refusal = m.answer(m.op("If", m.op("Greater", m.rows(), np.array(17)), **branches), window=24)
    assert "changes with whether it is padded" in refusal


def test_a_layer_whose_lengths_count_what_is_behind_the_history_is_refused():
    """One history of a batch was asked by itself, and that one seldom held the number that is not counted."""
    m = Model()
    others = m.op("Cast", m.op("Not", m.op("Equal", "ids", np.array(PADDING))), to=onnx.TensorProto.INT32)
    lens = m.op("ReduceSum", others, [1], keepdims=0)
    assert "changes with" in m.answer(m.states(m.x, lens), window=13)


def test_the_window_is_advised_where_it_is_the_cause():
    m = Model()
    refusal = m.answer(m.op("Add", m.x, m.op("Gather", m.weight(40, 4), m.numbers())), window=64)
    assert "up to 40 rows" in refusal
    assert "--window 40" in refusal
    again = Model()
    assert not again.answer(
        again.op("Add", again.x, again.op("Gather", again.weight(40, 4), again.numbers())), window=40
    )


def ahead(m: Model) -> str:
    return m.op("Add", m.x, m.op("ReduceMean", m.x, [1], keepdims=1))


def across(m: Model) -> str:
    return m.op("Sub", m.x, m.op("ReduceMean", m.x, [0], keepdims=1))


def constant(m: Model) -> str:
    return m.op("Mul", m.x, np.array(0, np.float32))


def undeclared(m: Model) -> str:
    return m.op("Mul", m.x, m.as_float(m.op("Unsqueeze", m.input("n", BATCH, TIME, dtype=np.int64), [2])))


def fewer(m: Model) -> str:
    return m.op("Slice", m.x, [1], [100000], [1])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ahead, "changes with what lies behind its length"),
        (across, "changes with its neighbours"),
        (constant, "the comparison says nothing: .*--range"),
        (undeclared, "cannot be checked: 'n' .*--range NAME=LOW:HIGH, --length NAME .*--mask NAME"),
        (fewer, r"is \[batch, time \+ -1, 4\]; needed are"),
    ],
)
def test_no_other_refusal_advises_a_window(answer: Callable[[Model], str], told, tmp_path):
    m = Model()
    model = m.model(answer(m))
    onnx.save(ir.to_proto(model), tmp_path / "model.onnx")
    with pytest.raises(ReductionError, match=told) as raised:
        reduce_file(tmp_path / "model.onnx", tmp_path / "core.onnx", "last", window=64)
    assert "--window" not in str(raised.value)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 24, 64, 512])
def test_at_every_window_some_histories_are_padded_and_some_are_not(window):
    found = battery.cases(Inputs((), {}, window))
    assert {case.time for case in found} == set(battery.times(window))
    assert len({case.seed for case in found}) == len(found)
    padded = set()
    for case in found:
        lengths = battery._lengths(case, np.random.default_rng(case.seed))
        assert lengths.shape == (case.batch,)
        assert ((lengths >= 1) & (lengths <= case.time)).all()
        if (lengths < case.time).any():
            padded.add(case.time)
    assert {window, window - 1} & padded or window <= 2


MODULES = [
    "build.core.battery",
    *(module.name for module in pkgutil.walk_packages(build.core.reduce.__path__, "build.core.reduce.")),
]


@pytest.mark.parametrize("name", ["build.core.reduce", *MODULES])
def test_what_docstrings_show_is_so(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_docstrings_that_show_something():
    assert doctest.testmod(battery).attempted >= 3
