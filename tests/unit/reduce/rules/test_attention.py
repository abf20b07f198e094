"""Attention, from single operators and fused: the wanted row's query is the only one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reduce.graphs import (
    TIME,
    Graph,
    assert_rests,
    assert_row_only,
    causal,
    check,
    computed,
    decomposed,
    heads,
    joined,
)
from tests.unit.reduce.rules.drawn import rows, some, widths


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
