"""Packed sequences: the sorting of a batch by length is left out where it is undone, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.reduce import Declared, reduce
from tests.unit.reduce.graphs import TIME, Graph, check
from tests.unit.reduce.models import embedded, packed
from tests.unit.reduce.rules.drawn import rows, some


def sorts(model: ir.Model) -> bool:
    return any(node.op_type == "TopK" for node in model.graph)


@given(st.sampled_from(["LSTM", "GRU"]), st.integers(1, 2), st.booleans(), rows)
@some
def test_a_packed_layer_ends_at_the_row_and_nothing_is_sorted(op, layers, first, select):
    reduction = check(packed(op, layers, 1, first), select, below={"ids": 11, "n": 30})
    assert not sorts(reduction.model)
    assert any("it ends at the wanted row" in rest for rest in reduction.rests)


def test_a_packed_sequence_stops_at_the_longest_history():
    model = packed()
    reduction = reduce(model, window=TIME, declared=Declared(lengths=frozenset({"n"})))
    assert reduction.trimmed
    full, cut = (ort.InferenceSession(ir.to_proto(m).SerializeToString()) for m in (model, reduction.model))
    ids, n = np.random.default_rng(0).integers(0, 11, (3, 40)), np.array([2, 5, 3])
    got = cut.run(None, {"ids": ids.astype(np.int32), "n": n.astype(np.int32), "lengths": n.astype(np.int32)})[0]
    np.testing.assert_allclose(got, full.run(None, {"ids": ids, "n": n})[0][np.arange(3), n - 1], atol=1e-6)


@pytest.mark.parametrize("seen", ["order", "sorted", "not undone", "another inverse", "mixed", "other lengths"])
def test_an_order_that_somebody_sees_stays(seen):
    g = Graph()
    x = embedded(g)
    lengths = g.input("n", "batch", dtype=np.int64)
    several, order = g.ops("TopK", 2, lengths, g.op("Shape", lengths), axis=-1, largest=1)
    counted = g.op("Range", np.array(0), g.op("Squeeze", g.op("Shape", lengths)), np.array(1))
    if seen == "another inverse":
        counted = g.op("Mul", counted, np.array(0))
    inverse = g.op("ScatterElements", g.op("Expand", np.array(0), g.op("Shape", lengths)), order, counted, axis=0)
    made = g.op("Gather", x, order, axis=0)
    if seen == "mixed":
        made = g.op("CumSum", made, np.array(0))
    if seen == "other lengths":
        made = g.op("Mul", made, g.op("Unsqueeze", g.op("Cast", lengths, to=1), [1, 2]))
    if seen == "not undone":
        inverse = order
    made = g.op("Gather", g.op("Tanh", made), inverse, axis=0)
    if seen in ("order", "sorted"):
        by = order if seen == "order" else several
        made = g.op("Mul", made, g.op("Unsqueeze", g.op("Cast", by, to=1), [1, 2]))
    reduction = check(g.model(made), "row", below={"ids": 11, "n": 1000})
    assert sorts(reduction.model)
