"""Projections to several parts at once: of what is needed for the row alone, the row alone is projected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.reduce import Reduction
from tests.unit.reduce.graphs import NEVER, Graph, causal, check, computed, flat, has_time, joined
from tests.unit.reduce.rules.drawn import rows, some

HEADS, SIZE = 2, 3
WIDTH = HEADS * SIZE
Parts = list[str]


def in_heads(g: Graph, *parts: str) -> Parts:
    """[batch, time, width] to [batch, heads, time, size]."""
    return [g.op("Transpose", g.op("Reshape", part, [0, 0, HEADS, SIZE]), perm=[0, 2, 1, 3]) for part in parts]


def of_axis(g: Graph, packed: str, axis: int, *perm: int) -> Parts:
    """The three are an axis, which is moved and looked up."""
    apart = g.op("Transpose", g.op("Reshape", packed, [0, 0, 3, HEADS, SIZE]), perm=perm)
    return [g.op("Gather", apart, np.array(number), axis=axis) for number in (0, -2, 2)]


def of_each_head(g: Graph, packed: str, sliced: bool) -> Parts:
    """Each head has its three next to each other."""
    apart = g.op("Transpose", g.op("Reshape", packed, [0, 0, HEADS, 3 * SIZE]), perm=[0, 2, 1, 3])
    if not sliced:
        return g.ops("Split", 3, apart, [SIZE] * 3, axis=-1)
    ends = ((0, SIZE), (SIZE, -SIZE), (-SIZE, 9999))
    return [g.op("Slice", apart, [start], [end], [-1], [1]) for start, end in ends]


def as_torch(g: Graph, packed: str) -> Parts:
    """nn.MultiheadAttention, which has the three in front."""
    wide = g.op("Unsqueeze", g.op("Reshape", packed, [0, 0, 3, WIDTH]), [0])
    three = g.op("Squeeze", g.op("Transpose", wide, perm=[3, 1, 2, 0, 4]), [3])
    return in_heads(g, *(g.op("Gather", three, np.array(number), axis=0) for number in range(3)))


# From [batch, time, 3 x width] to queries, keys and values [batch, heads, time, size].
FORMS: dict[str, Callable[[Graph, str], Parts]] = {
    "split": lambda g, p: in_heads(g, *g.ops("Split", 3, p, [WIDTH] * 3, axis=-1)),
    "an axis in front": lambda g, p: of_axis(g, p, 0, 2, 0, 3, 1, 4),
    "an axis in between": lambda g, p: of_axis(g, p, 2, 0, 3, 2, 1, 4),
    "as torch has it": as_torch,
    "each head's, split": lambda g, p: of_each_head(g, p, sliced=False),
    "each head's, sliced": lambda g, p: of_each_head(g, p, sliced=True),
    "every third column": lambda g, p: in_heads(
        g, *(g.op("Slice", p, [start], [9999], [2], [3]) for start in range(3))
    ),
    "lookups of several columns": lambda g, p: in_heads(
        g, *(g.op("Gather", p, np.arange(n, n + WIDTH), axis=-1) for n in (0, WIDTH, 2 * WIDTH))
    ),
}


def attended(g: Graph, q: str, k: str, v: str) -> str:
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.op("Where", causal(g, "x"), scores, NEVER)
    return joined(g, g.op("MatMul", g.op("Softmax", scores), v), WIDTH)


def projections(reduction: Reduction) -> list[tuple[bool, int]]:
    """Of every product with a matrix of weights whether it is computed for all rows, and its columns."""
    return sorted(
        (has_time(outputs[0]), outputs[0][-1])
        for name, inputs, outputs in computed(reduction)
        if name in ("MatMul", "Gemm") and inputs[1] in ((4, outputs[0][-1]), (outputs[0][-1], 4))
    )


@pytest.mark.parametrize("form", FORMS)
@given(st.sampled_from(["none", "vector", "single", "in front", "scaled"]), rows)
@some
def test_queries_of_a_packed_projection_are_projected_for_the_row_alone(form, bias, select):
    g = Graph()
    packed = g.op("MatMul", g.sequence(4), g.weight(4, 3 * WIDTH))
    if bias != "none":
        shift = g.weight(1 if bias == "single" else 3 * WIDTH)
        packed = g.op("Add", *((shift, packed) if bias == "in front" else (packed, shift)))
    if bias == "scaled":
        packed = g.op("Cast", g.op("Mul", packed, g.weight(1, 3 * WIDTH)), to=1)
    made = attended(g, *FORMS[form](g, packed))
    assert projections(check(g.model(made), select)) == [(False, WIDTH), (True, WIDTH), (True, WIDTH)]


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [(), (1,), (3 * WIDTH,), (1, 3 * WIDTH), None])
@pytest.mark.parametrize("form", ["split", "as torch has it"])
def test_a_packed_projection_of_batch_and_time_merged_is_taken_apart(form, bias, turned):
    g = Graph()
    x = g.sequence(4)
    shift = [] if bias is None else [g.weight(*bias)]
    weight = g.weight(3 * WIDTH, 4) if turned else g.weight(4, 3 * WIDTH)
    made = g.op("Gemm", flat(g, x, 4), weight, *shift, transB=turned, alpha=0.5, beta=0.25)
    packed = g.op("Reshape", made, g.op("Concat", g.op("Shape", x, end=2), [3 * WIDTH], axis=0))
    reduction = check(g.model(attended(g, *FORMS[form](g, packed))))
    assert projections(reduction) == [(False, WIDTH), (True, WIDTH), (True, WIDTH)]


def test_keys_and_values_of_fewer_heads_are_parts_of_their_own_size():
    g = Graph()
    packed = g.op("MatMul", g.sequence(4), g.weight(4, WIDTH + 2 * SIZE))
    split = g.op("Transpose", g.op("Reshape", packed, [0, 0, HEADS + 2, SIZE]), perm=[0, 2, 1, 3])
    q, k, v = (g.op("Slice", split, [a], [b], [1]) for a, b in ((0, -2), (-2, -1), (-1, 9999)))
    reduction = check(g.model(attended(g, q, k, v)))
    assert projections(reduction) == [(False, WIDTH), (True, SIZE), (True, SIZE)]


def whole(g: Graph, x: str) -> str:
    """All rows of a tensor, in a row."""
    return g.op("ReduceMax", x, [1], keepdims=1)


KEPT: dict[str, Callable[[Graph, str], str]] = {
    # The whole of it is read as well, so that a part apart from it would be computed twice.
    "read as a whole": lambda g, p: g.op("Add", g.ops("Split", 2, p, [4, 4], axis=2)[0], g.op("ReduceMax", p, [1, 2])),
    "with parts in common": lambda g, p: g.op(
        "Add", g.op("Slice", p, [0], [6], [2]), whole(g, g.op("Slice", p, [2], [8], [2]))
    ),
    "of two axes": lambda g, p: g.op(
        "Add", g.op("Slice", p, [0], [4], [2]), whole(g, g.op("Slice", p, [0, 0], [1, 4], [1, 2]))
    ),
    "backwards": lambda g, p: g.op(
        "Add", g.op("Slice", p, [-1], [-5], [2], [-1]), whole(g, g.op("Slice", p, [0], [4], [2]))
    ),
    "by a table of numbers": lambda g, p: g.op(
        "Add",
        g.op("Reshape", g.op("Gather", p, np.array([[0, 1], [2, 3]]), axis=2), [0, 0, 4]),
        whole(g, g.op("Slice", p, [4], [9], [2])),
    ),
    "in time": lambda g, p: g.op("Add", g.op("Slice", p, [0], [1], [1]), p),
}


@pytest.mark.parametrize("case", KEPT)
@given(rows)
@some
def test_what_is_no_part_of_a_projection_leaves_it_as_it_is(case, select):
    g = Graph()
    reduction = check(g.model(KEPT[case](g, g.op("MatMul", g.sequence(4), g.weight(4, 8)))), select)
    assert projections(reduction) == [(True, 8)]


SOURCES: dict[str, Callable[[Graph, str], str]] = {
    "features": lambda g, x: g.op("Tanh", x),
    "a softmax over all": lambda g, x: g.op("Softmax", g.op("MatMul", x, g.weight(8, 8))),
    "a matrix that is an input": lambda g, x: g.op("MatMul", x, g.input("matrix", 8, 8)),
    "what is mixed with features": lambda g, x: g.op("Mul", g.op("MatMul", x, g.weight(8, 8)), x),
}


@pytest.mark.parametrize("case", SOURCES)
def test_parts_of_anything_else_than_a_projection_are_exact(case):
    g = Graph()
    one, other = g.ops("Split", 2, SOURCES[case](g, g.sequence(8)), [4, 4], axis=2)
    check(g.model(g.op("Add", one, whole(g, other))))


def test_a_projection_that_is_read_before_its_bias_too_stays_as_it_is():
    g = Graph()
    made = g.op("MatMul", g.sequence(4), g.weight(4, 8))
    one, other = g.ops("Split", 2, g.op("Add", made, g.weight(8)), [4, 4], axis=2)
    total = g.op("ReduceSum", made, [1, 2], keepdims=1)
    reduction = check(g.model(g.op("Add", g.op("Add", one, whole(g, other)), total)))
    assert projections(reduction) == [(True, 8)]
