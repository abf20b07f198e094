"""Loops over time, as exporters write them: unrolled from Python at the example's time, a Loop from a script, a Scan."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from build.core.reduce import ReductionError, reduce
from build.core.reduction import reduce_file
from tests.unit.reduce.graphs import FLOAT, Graph, check
from tests.unit.reduce.test_battery import Model

WINDOW = 12
BY_ROW = "it runs its body for one row after another"


class Unrolled(nn.Module):
    """A cell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(11, 4), nn.GRUCell(4, 4), nn.Linear(4, 30)

    def states(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(x.shape[0], 4), []
        for row in range(x.shape[1]):
            state = self.cell(x[:, row], state)
            states.append(state)
        return torch.stack(states, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.states(self.embed(ids)))


@torch.jit.script
def steps(x: Tensor, weight: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 4)
    states = []
    for row in range(x.shape[1]):
        state = torch.tanh(x[:, row] + state @ weight)
        states.append(state)
    return torch.stack(states, 1)


class Scripted(Unrolled):
    """The same, as a function that the exporter writes as a Loop."""

    def states(self, x: Tensor) -> Tensor:
        return steps(x, self.cell.weight_hh[:4])


def written(model: nn.Module, path: Path, time: int, axes: dict[int, str]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, time, dtype=torch.int64),),
            path,
            dynamo=False,
            input_names=["ids"],
            output_names=["y"],
            dynamic_axes={"ids": axes, "y": axes},
            opset_version=17,
        )
    return path


def test_time_that_is_the_examples_is_refused_with_how_to_export_it(tmp_path: Path):
    full = written(Unrolled(), tmp_path / "full.onnx", 7, {0: "batch", 1: "time"})
    with pytest.raises(
        ReductionError, match=r"a loop over time in Python .* export it at a fixed window, with the batch alone"
    ):
        reduce_file(full, tmp_path / "cut.onnx", "last", window=WINDOW)


@pytest.mark.parametrize("select", ["last", "row"])
def test_a_fixed_window_is_cut_as_any_other(select: str, tmp_path: Path):
    full = written(Unrolled(), tmp_path / "full.onnx", WINDOW, {0: "batch"})
    found, proof = reduce_file(full, tmp_path / "cut.onnx", select)
    assert found.time == WINDOW
    assert proof.difference < 1e-5
    assert any("works along time" in rest for rest in found.rests), found.rests
    assert found.after.operations < 0.7 * found.before.operations  # the head's, of 30 answers
    assert max(found.worths) > 0


def test_a_loop_is_kept_and_says_what_would_stop_at_the_row(tmp_path: Path):
    full = written(Scripted(), tmp_path / "full.onnx", 7, {0: "batch", 1: "time"})
    assert "Loop" in [node.op_type for node in onnx.load(full).graph.node]
    found, proof = reduce_file(full, tmp_path / "cut.onnx", "last", window=WINDOW)
    assert proof.difference < 1e-5
    assert any(BY_ROW in rest and "LSTM" in rest for rest in found.rests), found.rests


def test_a_scan_says_so_too():
    g = Graph()
    x = g.sequence(4)
    info = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in ("state", "row", "next", "out")]
    nodes = [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Tanh", ["next"], ["out"])]
    body = helper.make_graph(nodes, "body", info[:2], info[2:])
    zeros = g.op("Expand", np.float32([[0]]), g.op("Concat", g.size("x", 0), [4], axis=0))
    made = g.ops("Scan", 2, zeros, x, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])
    found = check(g.model(g.op("Exp", made[1])), "last")
    assert any(rest.startswith("Scan") and BY_ROW in rest for rest in found.rests), found.rests


def test_a_sequence_that_no_loop_has_made_is_no_loops():
    m = Model()
    apart = m.op("SplitToSequence", m.x, axis=1)
    model = m.model(m.op("ConcatFromSequence", apart, axis=1))
    assert not any(BY_ROW in rest for rest in reduce(model, window=WINDOW).rests)
