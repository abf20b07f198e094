"""Convolutions, pooling and padding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.reduce import Reduction, Select, reduce
from tests.unit.reduce.graphs import (
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    assert_sank,
    check,
    computed,
    heads,
    joined,
    layer,
)
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


WAYS = ("pads", "Pad", "chomp", "later")


def causal(
    g: Graph, x: str, width: int, out: int, kernel: int = 3, dilation: int = 1, way: str = "pads", group: int = 1
) -> str:
    """[batch, width, time] to [batch, out, time], of a row and the ones before it."""
    reach = (kernel - 1) * dilation
    pads = [reach, reach if way == "chomp" else 0]
    if way in ("Pad", "later"):
        more = [reach + 2, 3] if way == "later" else [reach, 0]
        x = g.op("Pad", x, [0, 0, more[0], 0, 0, more[1]], np.array(0.5, np.float32) if way == "later" else None)
        pads = [0, 0]
    weights = g.weight(out, width // group, kernel), g.weight(out)
    made = g.op("Conv", x, *weights, pads=pads, dilations=[dilation], group=group)
    if way == "chomp":
        return g.op("Slice", made, [0], [-reach if reach else 2**62], [2])
    return g.op("Slice", made, [2], [-3], [2]) if way == "later" else made


def rows_of(reduction: Reduction, op_type: str) -> list[int]:
    """How many rows, as axis 2, each operator of a type makes."""
    return [outputs[0][2] for name, _, outputs in computed(reduction) if name == op_type]


layers = st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from(WAYS), st.sampled_from([1, 2]), st.booleans())


@given(st.lists(layers, min_size=1, max_size=4), rows)
@some
def test_a_causal_stack_computes_the_rows_that_it_looks_at(drawn, select):
    g = Graph()
    x = channels_first(g, g.sequence(4))
    for kernel, dilation, way, group, residual in drawn:
        made = g.op("Tanh", causal(g, x, 4, 4, kernel, dilation, way, group))
        x = g.op("Add", x, made) if residual else made
    assert_sank(check(g.model(channels_first(g, x)), select), "Conv", "Tanh")


def test_of_a_dilated_stack_only_the_rows_that_a_kernel_touches_are_computed():
    g = Graph()
    x = channels_first(g, g.sequence(4))
    for dilation in (1, 2, 4, 8):
        x = g.op("Add", x, causal(g, x, 4, 4, kernel=3, dilation=dilation))
    assert rows_of(check(g.model(channels_first(g, x))), "Conv") == [15, 7, 3, 1]


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(["pads", "Pad"]), rows)
@some
def test_a_convolution_that_looks_ahead_computes_the_rows_that_it_looks_at(front, behind, way, select):
    g = Graph()
    x = channels_first(g, g.sequence(4))
    for _ in range(2):
        pads = [front, behind]
        if way == "Pad":
            x, pads = g.op("Pad", x, [0, 0, front, 0, 0, behind]), [0, 0]
        x = g.op("Cos", g.op("Conv", x, g.weight(4, 4, front + behind + 1), pads=pads))
    assert_sank(check(g.model(channels_first(g, x)), select), "Conv")


@given(st.integers(-3, 3), st.booleans(), rows)
@some
def test_rows_moved_by_padding_are_those_and_the_number_where_there_are_none(by, computed_number, select):
    g = Graph()
    x = g.op("Tanh", g.sequence(4))
    number = g.op("ReduceMax", g.op("Abs", g.weight(3)), keepdims=0) if computed_number else np.array(2, np.float32)
    moved = g.op("Pad", x, [0, by, 0, 0, -by, 1], number)  # a feature more as well
    assert_sank(check(g.model(moved), select), "Tanh")


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_padding_with_other_rows_keeps_the_selection_above_it(mode):
    g = Graph()
    made = g.op("Slice", g.op("Pad", g.sequence(4), [0, 1, 0, 0, 0, 0], mode=mode), [0], [-1], [1])
    assert_rests(check(g.model(made), sizes=[(2, 5), (3, 2)]), "Pad", "are others of the tensor")
    g = Graph()
    made = g.op("Pad", g.op("Tanh", g.sequence(4)), [1, 2], None, [2], mode=mode)  # features alone
    assert_sank(check(g.model(made)), "Pad")


def test_a_computed_padding_keeps_the_selection_above_it():
    g = Graph()
    x = g.sequence(4)
    pads = g.op("Concat", [0], g.size(x, 1), [0, 0, 0, 0], axis=0)
    made = g.op("Slice", g.op("Pad", x, pads), [0], g.size(x, 1), [1])
    assert_rests(check(g.model(made)), "Pad", "is computed")


def test_a_row_in_front_of_all_answers_an_empty_history():
    """What is padded in front and read one row later: the answer before anything has happened."""
    g = Graph()
    one = g.op("Slice", g.op("Pad", g.sequence(2), [0, 1, 0, 0, 0, 0], np.array(7, np.float32)), [1], [2**62], [1])
    reduction = reduce(g.model(g.op("Neg", one)), window=TIME)
    assert reduction.empty
    session = ort.InferenceSession(ir.to_proto(reduction.model).SerializeToString())
    feeds = {"x": np.ones((2, 1, 2), np.float32), "lengths": np.array([0, 1], np.int32)}
    assert session.run(None, feeds)[0].tolist() == [[-7, -7], [-1, -1]]
    g = Graph()
    made = g.op("Slice", g.op("Pad", g.sequence(2), [0, 1, 0, 0, 0, 0]), [0], [-1], [1])
    assert not reduce(g.model(made), window=TIME).empty


def test_a_slice_from_end_to_end_of_time_that_cuts_features_keeps_the_rows_above_it():
    """Its end is a number of rows, and a window may be longer than the history is."""
    g = Graph()
    x = g.sequence(4)
    part = g.op("Slice", x, [0, 1], g.op("Concat", g.size(x, 1), [3], axis=0), [1, 2])
    made = causal(g, channels_first(g, part), 2, 3, dilation=3)
    assert_rests(check(g.model(channels_first(g, made))), "Slice", "from end to end of time")


@given(st.sampled_from(["MaxPool", "AveragePool"]), st.integers(1, 5), st.sampled_from(["pads", "Pad"]), rows)
@some
def test_causal_pooling_computes_the_row(op, kernel, way, select):
    g = Graph()
    x = channels_first(g, g.sequence(4))
    pads = [kernel - 1, 0]
    if way == "Pad":
        x, pads = g.op("Pad", x, [0, 0, kernel - 1, 0, 0, 0], np.array(-1, np.float32)), [0, 0]
    more = {"count_include_pad": 1} if op == "AveragePool" else {"dilations": [1]}
    made = g.op(op, x, kernel_shape=[kernel], pads=pads, **more)
    assert_sank(check(g.model(channels_first(g, g.op("Tanh", made))), select), op)


def test_a_mean_of_the_rows_that_there_are_keeps_the_selection_above_it():
    g = Graph()
    made = g.op("AveragePool", channels_first(g, g.sequence(4)), kernel_shape=[3], pads=[2, 0])
    assert_rests(check(g.model(channels_first(g, made))), "AveragePool", "of fewer rows")


def test_a_convolution_over_time_and_features_computes_the_rows_of_its_window():
    g = Graph()
    x = g.op("Transpose", g.sequence(5, 2), perm=[0, 3, 2, 1])  # [batch, 2, features, time]
    made = g.op("Conv", x, g.weight(4, 2, 2, 3), pads=[1, 4, 0, 0], strides=[2, 1], dilations=[1, 2])
    made = g.op("Conv", made, g.weight(4, 4, 2, 2), pads=[1, 3, 0, 0], dilations=[1, 3])
    assert_sank(check(g.model(g.op("Transpose", made, perm=[0, 3, 1, 2]))), "Conv")


def strided(g: Graph, x: str) -> str:
    twice = g.op("Concat", x, x, axis=2)
    return g.op("Conv", twice, g.weight(4, 4, 2), strides=[2])


def same(g: Graph, x: str) -> str:
    return g.op("Conv", x, g.weight(4, 4, 3), auto_pad="SAME_UPPER")


def as_wide_as_the_window(g: Graph, x: str) -> str:
    return causal(g, x, 4, 4, kernel=TIME)


def of_each_history(g: Graph, x: str) -> str:
    """Time and channels have changed places."""
    turned = g.op("Unsqueeze", g.op("Transpose", x, perm=[2, 0, 1]), [1])  # [time, 1, batch, 4]
    made = g.op("Conv", turned, g.weight(1, 1, 2, 1), pads=[1, 0, 0, 0])  # over the batch
    return g.op("Transpose", g.op("Squeeze", made, [1]), perm=[1, 2, 0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (strided, "it leaves rows out"),
        (same, "auto_pad"),
        (as_wide_as_the_window, "there are no more"),
        (of_each_history, "it works along batch"),
    ],
)
def test_what_a_convolution_does_that_its_rule_does_not_know_keeps_the_selection_above_it(make, reason):
    g = Graph()
    made = make(g, channels_first(g, g.sequence(4)))
    assert_rests(check(g.model(channels_first(g, made))), "Conv", reason)


def test_rows_far_apart_are_computed_without_those_between_them():
    g = Graph()
    x = g.op("Tanh", g.sequence(4))
    before = g.op("Slice", g.op("Pad", x, [0, 30, 0, 0, 0, 0]), [0], [-30], [1])
    reduction = check(g.model(g.op("Add", x, before)))
    assert [outputs for name, _, outputs in computed(reduction) if name == "Tanh"] == [[(2, 2, 4)]]


@pytest.mark.parametrize("select", ["last", "mean", "max"])
def test_columns_behind_what_a_convolution_looks_at_are_cut_off(select):
    g = Graph()
    x = causal(g, channels_first(g, g.sequence(4)), 4, 4)
    x = g.op("Conv", x, g.weight(4, 4, 3), pads=[1, 1])  # one row ahead
    reduction = check(g.model(layer(g, "GRU", channels_first(g, x), 4, 3)), select)
    assert reduction.trimmed


def test_columns_are_left_where_the_rows_before_are_enough_but_not_as_many():
    g = Graph()
    before = g.op("Slice", g.op("Pad", g.sequence(4), [0, 2, 0, 0, 0, 0]), [0], [-2], [1])
    assert check(g.model(layer(g, "GRU", before, 4, 3))).trimmed


def test_a_layer_over_a_convolution_stops_at_the_row():
    g = Graph()
    x = channels_first(g, causal(g, channels_first(g, g.sequence(4)), 4, 4))
    before = g.op("Slice", g.op("Pad", layer(g, "LSTM", x, 4, 3), [0, 2, 0, 0, 0, 0]), [0], [-2], [1])
    reduction = check(g.model(g.op("Tanh", before)))
    assert any("it ends at the wanted row" in rest for rest in reduction.rests)
    assert reduction.trimmed


def test_a_layer_that_would_have_to_go_beyond_its_end_keeps_the_selection_above_it():
    g = Graph()
    after = g.op("Slice", g.op("Pad", layer(g, "LSTM", g.sequence(4), 4, 3), [0, 0, 0, 0, 2, 0]), [2], [2**62], [1])
    assert_rests(check(g.model(after)), "LSTM", "more rows than the one that it ends at")


@pytest.mark.parametrize(("batch", "time"), [(1, 20), ("batch", 20), (1, "time")])
@pytest.mark.parametrize("way", WAYS)
def test_sizes_may_be_fixed(batch, time, way):
    g = Graph()
    x = channels_first(g, g.input("x", batch, time, 4))
    for dilation in (1, 3):
        x = g.op("Add", x, causal(g, x, 4, 4, dilation=dilation, way=way))
    sizes = [(1, 20)] if time == 20 else [(1, 1), (1, 5), (1, 29)]
    reduction = check(g.model(channels_first(g, x)), sizes=sizes)
    assert [rest.split()[0] for rest in reduction.rests] == ["x"]


def test_a_convolution_of_every_head_computes_the_row_of_each():
    """Heads are entries of the batch."""
    g = Graph()
    inner = g.op("Concat", [-1], g.size(g.sequence(4), 1), [2], axis=0)
    x = causal(g, channels_first(g, g.op("Reshape", heads(g, "x", 2, 2), inner)), 2, 2, dilation=2)
    outer = g.op("Concat", [-1, 2], g.size("x", 1), [2], axis=0)
    assert_sank(check(g.model(joined(g, g.op("Reshape", channels_first(g, x), outer), 4))), "Conv")


def test_rows_of_a_type_that_cannot_be_filled_keep_the_selection_above_them():
    g = Graph()
    positive = g.op("Greater", g.sequence(4), np.array(0, np.float32))
    before = g.op("Slice", g.op("Pad", positive, [0, 1, 0, 0, 0, 0], np.array(True)), [0], [-1], [1])
    assert_rests(check(g.model(g.op("Cast", before, to=1))), "Pad", "BOOL")
