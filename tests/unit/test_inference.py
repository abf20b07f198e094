"""Parity with the author's inference refuses a core that answers otherwise; a model of another signature is told why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from build.core import inference, recipe
from build.core.parity import ParityError
from build.core.reduce.file import load, save
from build.core.served import SignatureError, check
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import CORE
from tests import zoo
from tests.zoo.models import GRU4Rec, OwnRow, Tagger

Feed = dict[str, np.ndarray]


def made(name: str, folder: Path, **keys: object) -> tuple[Sequence, Path]:
    spec = zoo.read(name, **keys)
    recipe.make(spec, zoo.save(spec, folder / "weights.pt"), folder / "model.onnx")
    return spec, folder / "model.onnx"


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Sequence, Path]]:
    """By name the spec and its core, each built once."""
    found: dict[str, tuple[Sequence, Path]] = {}

    def of(name: str) -> tuple[Sequence, Path]:
        if name not in found:
            found[name] = made(name, tmp_path_factory.mktemp(name), answer=[{"name": "all"}])
        return found[name]

    return of


def compare(spec: Sequence, core: Path) -> float:
    found = inference.check(zoo.make(spec), core.with_name("none.onnx"), {CORE: core}, spec)
    return max(difference.value for difference in found)


def one_row_before(fed: Feed) -> Feed:
    return {**fed, "lengths": np.maximum(fed["lengths"] - 1, 1)}


def masked_nowhere(fed: Feed) -> Feed:
    return {**fed, "attention_mask": np.ones_like(fed["attention_mask"])}


def padded_behind(fed: Feed) -> Feed:
    return {**fed, "ids": np.stack([np.roll(row, (row > 0).sum()) for row in fed["ids"]])}


def counted_from_behind(fed: Feed) -> Feed:
    return {**fed, "row": fed["row"] * 0}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gru4rec", one_row_before),
        ("bert_every_row", masked_nowhere),
        ("sasrec", padded_behind),
        ("sasrec", counted_from_behind),
    ],
)
def test_a_core_that_is_fed_otherwise_is_refused(cores, name, fault, monkeypatch):
    spec, core = cores(name)
    assert compare(spec, core) < 1e-5
    right = inference.run
    monkeypatch.setattr(inference, "run", lambda session, fed, outputs: right(session, fault(fed), outputs))
    with pytest.raises(
        ParityError, match=r"core core at width 32 parts from PyTorch by .* allowed is 1e-04 \(parity\.max"
    ):
        compare(spec.model_copy(update={"model": spec.model.model_copy(update={"buckets": ()})}), core)


def test_a_core_that_is_cut_at_the_row_before_is_refused(cores, tmp_path):
    spec, core = cores("gru4rec")
    model = load(core)
    (lengths,) = (value for value in model.graph.inputs if value.name == "lengths")
    one = ir.node("Constant", [], {"value": ir.tensor(np.array(1, np.int32))})
    before = ir.node("Sub", [lengths, one.outputs[0]])
    kept = ir.node("Max", [before.outputs[0], one.outputs[0]])
    for reader, number in list(lengths.uses()):
        if reader is not before:
            reader.replace_input_with(number, kept.outputs[0])
    model.graph.insert_before(model.graph[0], [one, before, kept])
    save(model, tmp_path / "model.onnx")
    ort.InferenceSession(tmp_path / "model.onnx")  # it is a model as good as any
    with pytest.raises(ParityError, match="parts from PyTorch"):
        compare(spec, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "keys", "cure"),
    [
        ("tagger", {"model__padding": "right"}, r'or say model\.padding = "none"$'),
        # Its positions count from the window's left edge, so that a narrower window is another model.
        ("sasrec", {"model__buckets": [8, 32]}, r"with one width alone, model\.buckets = \[\]$"),
    ],
)
def test_a_model_that_sees_padding_is_refused_with_what_to_say(tmp_path, name, keys, cure):
    with pytest.raises(ParityError, match=rf"parts from PyTorch .*Nothing was written.*{cure}"):
        made(name, tmp_path, **keys)


class Deaf(GRU4Rec):
    """What it answers depends on nothing that it is asked."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.items(ids) * 0)[..., :1] + self.items.weight[:, 0]


def test_a_model_that_answers_all_histories_the_same_proves_nothing(tmp_path):
    spec = zoo.read("gru4rec", network__factory="tests.unit.test_inference:Deaf")
    torch.save(Deaf().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ParityError, match=r"answers every history the same, .* It says ids from item_ids"):
        recipe.make(spec, tmp_path / "weights.pt", tmp_path / "model.onnx")


class Fewer(GRU4Rec):
    """Knows 5 items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(6, self.items.embedding_dim)


class OneAnswer(nn.Module):
    def forward(self, x: Tensor, static: Tensor) -> Tensor:
        return x[..., 0] + static[:, None, 0]


class Whole(Tagger):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).argmax(-1)


@pytest.mark.parametrize(
    ("name", "keys", "model", "said"),
    [
        (
            "gru4rec",
            {},
            Fewer,
            r"Fewer fails on the values of its input 'ids', \d to \d+, which come from 'item_ids': .*more of them than",
        ),
        (
            "gru4rec",
            {"outputs__logits__shape": [12]},
            GRU4Rec,
            r"outputs\.logits: for 2 histories of 7 steps GRU4Rec answers \[2, 7, 11\]; by the spec it is \[2, 7, 12\]",
        ),
        (
            "gru4rec_own_row",
            {"row__select": "last"},
            OwnRow,
            r'OwnRow answers \[2, 11\]; by the spec it is \[2, 7, 11\] .*"own" for a model that answers one row by itself',
        ),
        (
            "gru4rec",
            {"inputs": {"item_seq": "item_ids"}},
            GRU4Rec,
            r"GRU4Rec has no input 'item_seq'; its forward takes ids: name these in the spec, \[inputs\]",
        ),
        (
            "gru4rec_own_row",
            {"inputs": {"ids": "item_ids"}},
            OwnRow,
            r"OwnRow fails on .* \(ids int32 \[2, 7\]\): .*'n'",
        ),
        (
            "deepar",
            {},
            OneAnswer,
            r"OneAnswer answers Tensor; by the spec it is mu, sigma, a tensor each \(\[outputs\]\)",
        ),
        (
            "tagger",
            {"outputs__tags__shape": []},
            Whole,
            r"outputs\.tags is torch\.int64; served are floating-point numbers",
        ),
    ],
)
def test_a_model_of_another_signature_is_told_by_what_differs(name, keys, model, said):
    with pytest.raises(SignatureError, match=said):
        check(model(), zoo.read(name, **keys))


def test_a_model_of_the_specs_signature_passes():
    for name in zoo.NAMES:
        check(zoo.make(zoo.read(name)), zoo.read(name))


class Logarithm(nn.Module):
    """What is NaN below 0, and has as many positions as it was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(16, 4), nn.Linear(4, 3)

    def forward(self, gaps: Tensor) -> Tensor:
        return self.head(torch.log(gaps)[..., None] + self.positions(torch.arange(gaps.shape[1])))


@pytest.mark.parametrize(
    ("values", "window", "error", "said"),
    [
        (None, 16, ParityError, r"PyTorch itself answers NaN or infinity .* gaps finite numbers.*\[history\.\*\]"),
        (
            [1.0, 99.0],
            17,
            SignatureError,
            r"Logarithm answers 7 steps and fails on 17, the model\.window: index out of",
        ),
    ],
)
def test_what_a_model_itself_cannot_answer_is_not_the_cores_fault(values, window, error, said, tmp_path):
    document = {
        "model": {"name": "gaps", "window": window},
        "network": {"type": "module", "factory": f"{__name__}:Logarithm"},
        "history": {"gaps": {"dtype": "FP32", "padding": 1, **({"values": values} if values else {})}},
        "outputs": {"out": {"shape": [3]}},
        "answer": [{"name": "all"}],
        "batching": {"max_batch_size": 4},
    }
    torch.save(Logarithm().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(error, match=said):
        recipe.make(Spec.model_validate(document), tmp_path / "weights.pt", tmp_path / "core.onnx")
    document["model"]["window"], document["history"]["gaps"]["values"] = 16, [1.0, 99.0]
    assert recipe.make(Spec.model_validate(document), tmp_path / "weights.pt", tmp_path / "core.onnx").difference < 1e-5
