"""LSTM, GRU and RNN: they end at the wanted row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.core.reduce import Declared, Reduction, reduce
from tests.unit.reduce.graphs import GATES, INT32, TIME, Graph, assert_rests, assert_row_only, check, layer, recurrent
from tests.unit.reduce.rules.drawn import rows, some, widths


def assert_ends(reduction: Reduction, op: str, count: int = 1) -> None:
    """So many layers end at the wanted row, and answer no other."""
    assert sum("it ends at the wanted row" in rest for rest in reduction.rests) == count, reduction.rests
    ended = [node for node in reduction.model.graph if node.op_type == op and not node.outputs[0].name]
    assert len(ended) == count
    assert all(node.inputs[4] is not None for node in ended)


@given(
    st.sampled_from(list(GATES)),
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
    bias = g.weight(1, 2 * GATES[op] * hidden) if biased else None

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


@pytest.mark.parametrize("op", GATES)
def test_of_stacked_recurrent_layers_the_last_ends_at_the_row(op):
    g = Graph()
    made = layer(g, op, g.op("LayerNormalization", layer(g, op, g.sequence(3), 3, 4), g.weight(4)), 4, 5)
    assert_ends(check(g.model(made)), op)


def test_recurrent_layers_side_by_side_both_end_at_the_row():
    g = Graph()
    x = g.sequence(3)
    made = g.op("Concat", layer(g, "LSTM", x, 3, 4), layer(g, "LSTM", x, 3, 4), axis=2)
    assert_ends(check(g.model(made)), "LSTM", 2)


@given(st.sampled_from(list(GATES)), st.integers(0, 1), rows)
@some
def test_recurrent_layers_end_at_the_row_that_a_slice_moved(op, start, select):
    g = Graph()
    x = g.sequence(3)
    longer = g.op("Concat", g.op("Slice", x, [0], [1], [1]), x, axis=1)
    made = g.op("Slice", layer(g, op, longer, 3, 4), [start], [1000] if start else [-1], [1])
    assert_ends(check(g.model(made), select), op)


@given(st.sampled_from(list(GATES)), widths, rows)
@some
def test_recurrent_layers_with_time_first_need_no_transpose(op, width, select):
    g = Graph()
    x = g.input("x", "time", "batch", width)
    made = g.op("Squeeze", recurrent(g, op, x, width, 4)[0], [1])
    reduction = check(g.model(made), select, time_axis=0)
    assert_ends(reduction, op)
    assert not any(node.op_type == "Transpose" for node in reduction.model.graph)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("select", ["mean", "max"])
def test_recurrent_layers_keep_mean_and_maximum_above_them(op, select):
    g = Graph()
    made = layer(g, op, g.sequence(3), 3, 4)
    assert_rests(check(g.model(made), select), op, f"the {select} does not commute")


@pytest.mark.parametrize("op", GATES)
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


@given(st.sampled_from(list(GATES)), st.integers(1, 2), st.booleans(), rows)
@some
def test_recurrent_layers_with_lengths_of_their_own_end_at_the_nearer(op, layers, learned, select):
    """Rows behind their lengths are zeros, whether the wanted row is one of them or not."""
    g = Graph()
    made = g.sequence(4)
    lengths = g.op("Min", g.op("Max", g.input("n", "batch", dtype=np.int64), np.array(1)), g.size(made, 1))
    lengths = g.op("Cast", lengths, to=INT32)
    state = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", [1], g.size(made, 0), [4], axis=0)) if learned else None
    for _ in range(layers):
        made = layer(g, op, made, 4, 4, None, lengths, state)
    reduction = check(g.model(g.op("Add", made, g.weight(4))), select, below={"n": 30})
    assert_ends(reduction, op)


@pytest.mark.parametrize("op", GATES)
def test_the_rows_that_are_left_bound_the_lengths_of_a_layer_that_is_read_by_another(op):
    g = Graph()
    x = g.sequence(3)
    lengths = g.op("Cast", g.input("n", "batch", dtype=np.int64), to=INT32)
    below = layer(g, op, x, 3, 4, None, lengths)
    model = g.model(layer(g, op, below, 4, 4))
    reduction = reduce(model, window=TIME, declared=Declared(lengths=frozenset({"n"})))
    assert reduction.trimmed
    full, cut = (ort.InferenceSession(ir.to_proto(m).SerializeToString()) for m in (model, reduction.model))
    x_, n, lengths_ = (
        np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32),
        np.array([9, 2]),
        np.array([3, 2]),
    )
    every = full.run(None, {"x": x_, "n": n})[0]
    got = cut.run(None, {"x": x_, "n": n.astype(np.int32), "lengths": lengths_.astype(np.int32)})[0]
    np.testing.assert_allclose(got, every[[0, 1], lengths_ - 1], atol=1e-6)


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
