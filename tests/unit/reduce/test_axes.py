"""Which axes of the inputs are batch, time and others, found by running the model with unequal sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from build.core.reduce.inputs import Declared, Inputs
from tests.unit.reduce.graphs import TIME, Graph


def masked(cut: bool) -> ir.Model:
    """A model of ids and a mask whose axes have other names, as exporters give them; cut: it takes any longer mask."""
    g = Graph()
    ids, mask = g.input("ids", "s1", "s2", dtype=np.int64), g.input("mask", "s1", "s3")
    rows = g.op("Gather", g.weight(50, 4), ids)
    if cut:
        mask = g.op("Slice", mask, [0], g.size(ids, 1), [1])
    return g.model(g.op("Mul", rows, g.op("Unsqueeze", mask, [2])))


@pytest.mark.parametrize("cut", [False, True])
def test_a_mask_under_another_name_is_along_time(cut):
    model = masked(cut)
    inputs = Inputs.find(model, model.graph.outputs[0].name, 1, TIME, Declared(masks=frozenset({"mask"})))
    assert [each.axes for each in inputs.every] == [("batch", "time"), ("batch", "time")]
    assert inputs.others == []


def test_an_axis_of_its_own_stays_one():
    g = Graph()
    ids, other = g.input("ids", "b", "t", dtype=np.int64), g.input("other", "b", "u", 4)
    rows = g.op("Gather", g.weight(50, 4), ids)
    answer = g.op("Add", rows, g.op("ReduceMean", other, [1], keepdims=1))
    model = g.model(answer)
    inputs = Inputs.find(model, answer, 1, TIME)
    assert [each.axes for each in inputs.every] == [("batch", "time"), ("batch", "u", 4)]
    assert inputs.others == ["u"]
