"""How both exporters write the selection of a row: each form is found, and cut exactly."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from build.core.reduce import Declared
from build.core.reduction import reduce_file


class Rows(nn.Module):
    """States of a GRU, of which each model takes a row its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru, self.head = nn.Embedding(11, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def states(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.gru(self.table(ids))[0])


class Last(Rows):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.states(ids)[:, -1])


class LastKept(Rows):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.states(ids)[:, -1:]).squeeze(1)


class Indexed(Rows):
    def forward(self, ids: Tensor, n: Tensor) -> Tensor:
        states = self.states(ids)
        return self.head(states[torch.arange(states.shape[0]), n - 1])


class Gathered(Rows):
    def forward(self, ids: Tensor, n: Tensor) -> Tensor:
        states = self.states(ids)
        return self.head(states.gather(1, (n - 1).view(-1, 1, 1).expand(-1, 1, 5)).squeeze(1))


class Counted(Rows):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.states(ids)
        return self.head(states[torch.arange(states.shape[0]), mask.sum(1) - 1])


class Mean(Rows):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows, valid = self.head(self.states(ids)), mask.unsqueeze(-1)
        valid = valid.expand(rows.size()).float()
        return (rows * valid).sum(1) / valid.sum(1).clamp(min=1e-9)


def export(make: type[Rows], names: list[str], dynamo: bool, file: Path) -> None:
    torch.ops.aten.gru.input._dispatch_cache.clear()  # else a second export in the process finds the first one's layer
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    given = {
        "ids": torch.randint(0, 11, (2, 7)),
        "n": torch.tensor([7, 3]),
        "mask": torch.ones(2, 7, dtype=torch.int64),
    }
    axes = {name: {0: "batch"} if name == "n" else {0: "batch", 1: "time"} for name in names}
    examples = tuple(given[name] for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = {"input_names": names, "output_names": ["answer"]}
        if dynamo:
            program = torch.onnx.export(
                *(make().eval(), examples), dynamo=True, dynamic_shapes=tuple(axes.values()), verbose=False, **named
            )
            assert program is not None
            ir.save(program.model, file)
        else:
            torch.onnx.export(
                *(make().eval(), examples, str(file)), dynamo=False, dynamic_axes=axes, opset_version=17, **named
            )


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize(
    ("make", "names", "told"),
    [
        (Last, ["ids"], "its final state is that row"),
        (LastKept, ["ids"], "its final state is that row"),
        (Indexed, ["ids", "n"], "its final state is that row"),
        (Gathered, ["ids", "n"], "its final state is that row"),
        (Counted, ["ids", "mask"], "its final state is that row"),
        (Mean, ["ids", "mask"], "Tanh .* the mean does not commute with it"),
    ],
)
def test_a_row_that_pytorch_takes_is_found_and_cut_exactly(make, names, told, dynamo, tmp_path):
    export(make, names, dynamo, tmp_path / "full.onnx")
    declared = Declared(lengths=frozenset({"n"} & set(names)), masks=frozenset({"mask"} & set(names)))
    reduction, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", window=32, declared=declared)
    assert len(reduction.rests) == 1
    assert re.search(told, reduction.rests[0]), reduction.rests
