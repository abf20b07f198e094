"""What running a model tells of its inputs and outputs, and the spec that is written of it, which is then built as it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from build import ROOT
from build.core import inspection as looking
from build.core.inspection import WINDOW, Inspection, look
from build.core.reduce import ReductionError
from build.core.reduce.file import save
from build.core.served import SignatureError
from build.core.subject import InspectionError, of_file, of_module
from build.model.checkpoint.errors import CheckpointError
from build.repository import assembly, inspection
from ensemble.errors import LastrowError, SpecError
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from tests.unit.test_served_models import CASES, exported
from tests.zoo import models

IDS, PADDED, BINARY = ("history", 0, 10), ("history", 1, 10), ("history", 0, 1)
FLOATS, STATIC, MASK, LENGTHS = ("history", 0, None), ("context", 0, None), ("mask", 0, None), ("lengths", 0, None)


def seen(found: Inspection) -> dict[str, tuple[str, int, int | None]]:
    return {given.name: (given.of, given.low, given.high) for given in found.inputs}


def marks(found: Inspection) -> str:
    """What a model is beside its inputs, in words."""
    words = {"time first": found.time_major, "own row": found.own, "looks ahead": found.ahead}
    return ", ".join(word for word, is_so in words.items() if is_so)


@pytest.mark.parametrize(
    ("make", "inputs", "said", "window", "row"),
    [
        (models.SASRec, {"ids": PADDED}, "", 32, (11,)),
        (models.GRU4Rec, {"ids": PADDED}, "", None, (11,)),
        (models.OwnRow, {"ids": PADDED, "n": LENGTHS}, "own row", None, (11,)),
        (models.SAKT, {"q": IDS, "r": BINARY, "query": IDS}, "", 32, ()),
        (models.GPT2, {"ids": IDS, "attention_mask": MASK}, "", 32, (11,)),
        (models.Bert, {"ids": IDS, "attention_mask": MASK, "segment": BINARY}, "own row", 32, (5,)),
        (models.BertEveryRow, {"ids": IDS, "attention_mask": MASK, "segment": BINARY}, "looks ahead", 32, (5,)),
        (models.T5Encoder, {"ids": IDS, "attention_mask": MASK}, "looks ahead", None, (8,)),
        (models.TimeMajor, {"ids": IDS}, "time first", None, (11,)),
        (models.TimeMajorPacked, {"ids": IDS, "n": LENGTHS}, "time first", None, (11,)),
        (models.Tagger, {"ids": IDS}, "looks ahead", None, (5,)),
        (models.Forecast, {"x": FLOATS}, "", None, (24,)),
        (models.ForecastLast, {"x": FLOATS}, "own row", None, (24,)),
        (models.StateSpace, {"ids": IDS}, "", None, (11,)),
        (models.TwoStacks, {"items": IDS, "ratings": FLOATS}, "", None, (11,)),
    ],
)
def test_a_module_is_known_by_running_it(make, inputs, said, window, row):
    torch.manual_seed(0)
    found = look(of_module(make().eval(), make.__name__))
    assert (seen(found), marks(found), dict(found.outputs)) == (inputs, said, {"output": row})
    assert (found.window, found.bounded) == ((window, True) if window else (WINDOW, False))
    assert found.alone == (("query",) if make is models.SAKT else ())


@pytest.mark.parametrize(
    ("case", "inputs", "said", "window"),
    [
        ("gru4rec", {"ids": IDS}, "", None),
        ("gru4rec, its own row", {"ids": IDS, "n": LENGTHS}, "own row", None),
        ("sakt", {"q": IDS, "r": BINARY, "query": IDS}, "", 32),
        ("bert", {"ids": IDS, "attention_mask": MASK, "segment": BINARY}, "own row", 32),
        ("time first, packed", {"ids": IDS, "n": LENGTHS}, "time first", None),
        ("tagger", {"ids": IDS}, "looks ahead", None),
        ("deepar, mean", {"x": FLOATS, "static": STATIC}, "", None),
    ],
)
def test_a_file_is_known_by_running_it(case, inputs, said, window, tmp_path):
    save(exported(CASES[case].make, CASES[case].given), tmp_path / "model.onnx")
    found = look(of_file(tmp_path / "model.onnx"))
    assert (seen(found), marks(found)) == (inputs, said)
    assert (found.window, found.bounded) == ((window, True) if window else (WINDOW, False))


class Ages(nn.Module):
    """A context of integers, of which there are fewer than steps, and one of more."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.sex, self.country = nn.Embedding(9, 4), nn.Embedding(2, 4), nn.Embedding(200, 4)
        self.layer = nn.GRU(4, 4, batch_first=True)

    def forward(self, items: Tensor, sex: Tensor, country: Tensor) -> dict[str, Tensor]:
        rows = self.layer(self.items(items) + self.sex(sex)[:, None] + self.country(country)[:, None])[0]
        return {"rows": rows, "weights": rows @ rows.transpose(1, 2), "last": rows[:, -1]}


def test_a_context_is_no_number_of_steps_and_what_is_no_row_is_left_out():
    found = look(of_module(Ages().eval(), "Ages"))
    assert seen(found) == {"items": ("history", 0, 8), "sex": ("context", 0, 1), "country": ("context", 0, 199)}
    assert dict(found.outputs) == {"rows": (4,)}
    assert found.left_out == {
        "weights": "for 3 histories of 5 steps it is [3, 5, 5]",
        "last": "the others answer every row",
    }


class Optional(models.GPT2):
    """With what may be left out, as the transformers library has it."""

    def forward(self, ids: Tensor, past: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        assert past is None
        assert attention_mask is not None
        return super().forward(ids, attention_mask)


def test_a_mask_that_may_be_left_out_is_fed():
    assert seen(look(of_module(Optional().eval(), "Optional"))) == {"ids": IDS, "attention_mask": MASK}


def read(made: inspection.Inspected) -> Sequence:
    found = Spec.read(made.spec)
    assert isinstance(found, Sequence)
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GRU4Rec", ""),
        ("OwnRow", 'select = "own"'),
        (
            "Tagger",
            'padding = "none" # its first row changes with later steps, and nothing tells it where a history ends',
        ),
        ("TimeMajorPacked", "time_major = true"),
    ],
)
def test_the_spec_of_a_factory_is_built_as_it_is(name, said, tmp_path):
    torch.manual_seed(0)
    torch.save(getattr(models, name)().state_dict(), tmp_path / "weights.pt")
    made = inspection.inspect(tmp_path / "weights.pt", f"tests.zoo.models:{name}", tmp_path / "spec.toml")
    assert said in made.spec.read_text()
    assert assembly.build(read(made), tmp_path / "weights.pt", tmp_path / "models").parity < 1e-4


def test_the_spec_of_a_file_is_built_as_it_is(tmp_path):
    case = CASES["deepar, mean"]
    save(exported(case.make, case.given), tmp_path / "core.onnx")
    made = inspection.inspect(tmp_path / "core.onnx", None, tmp_path / "spec.toml")
    spec = read(made)
    assert spec.model.name == "core_model"  # a step has the other name
    assert [tensor.name for tensor in spec.answered] == ["answer", "second"]
    assert assembly.build(spec, tmp_path / "core.onnx", tmp_path / "models").parity < 1e-4


def test_padding_in_front_is_for_who_knows_it_to_say(tmp_path):
    torch.save(models.SASRec().state_dict(), tmp_path / "weights.pt")
    made = inspection.inspect(tmp_path / "weights.pt", "tests.zoo.models:SASRec", tmp_path / "spec.toml")
    text = made.spec.read_text()
    assert 'padding = "right" # or "left", if its author pads in front' in text
    made.spec.write_text(text.replace('"right"', '"left"'))
    assert assembly.build(read(made), tmp_path / "weights.pt", tmp_path / "models").parity < 1e-4


def test_what_is_asked_about_is_said_to_be_beyond_what_running_tells(tmp_path):
    made = inspection.inspect(None, "tests.zoo.models:SAKT", tmp_path / "spec.toml")
    assert 'write query = { from = "<the history>", shift = "<a context>" }' in made.spec.read_text()
    table = inspection.show(made.found)
    assert table.row_count == 4


def test_a_spec_that_somebody_changed_is_not_written_over(tmp_path):
    path = tmp_path / "spec.toml"
    inspection.inspect(None, "tests.zoo.models:Tagger", path)
    inspection.inspect(None, "tests.zoo.models:Tagger", path)
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(SpecError, match=r"spec\.toml is there already, and says something else; .* OUT="):
        inspection.inspect(None, "tests.zoo.models:Tagger", path)
    assert path.read_text().endswith("# mine\n")


def test_what_was_found_is_confirmed_before_it_is_written(tmp_path, monkeypatch):
    right = looking.look
    monkeypatch.setattr(looking, "look", lambda subject: replace(right(subject), outputs={"output": (7,)}))
    with pytest.raises(SignatureError, match=r"answers \[2, 7, 5\]; by the spec it is \[2, 7, 7\]"):
        inspection.inspect(None, "tests.zoo.models:Tagger", tmp_path / "spec.toml")
    assert list(tmp_path.iterdir()) == []


class Refuses(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        raise ValueError(f"not {len(ids)} today")


class Anything(nn.Module):
    def forward(self, *given: Tensor) -> Tensor:
        return given[0]


class Total(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids.float().sum()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Refuses, r"Refuses does not run on ids int64 \[batch, time\] .*: not 3 today; .* write its spec by hand"),
        (Anything, r"Anything: its forward takes any inputs \(given\), and so names none"),
        (Total, r"Total does not run on .*: it answers nothing a history or a step"),
        (models.DeepAR, "DeepAR does not run on .* export it to ONNX, where shapes are written down"),
    ],
)
def test_a_module_that_cannot_be_known_is_refused_with_why(make, said):
    with pytest.raises(InspectionError, match=said):
        look(of_module(make().eval(), make.__name__))


def file(path: Path, kind: int, shape: list[str | int]) -> Path:
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (
            TensorProto.STRING,
            ["b", "t"],
            r"input x is tensor\(string\) \[b, t\]; served are INT32, INT64, FP32 and BOOL",
        ),
        (TensorProto.FLOAT, [1, "t", 3], r"input x \[1, t, 3\] has a fixed batch; export it with that axis dynamic"),
        (
            TensorProto.FLOAT,
            ["b", "t", "f"],
            r"input x \[b, t, f\] is no \[batch, time, \.\.\.\] with the sizes behind",
        ),
        (TensorProto.FLOAT, [], r"input x is tensor\(float\) \[\]; served are"),
    ],
)
def test_a_file_of_another_form_is_refused_with_why(kind, shape, said, tmp_path):
    with pytest.raises(InspectionError, match=said):
        of_file(file(tmp_path / "model.onnx", kind, shape))


def test_what_is_looked_at_is_one_thing_that_is_there(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    for checkpoint, factory, kind, said in (
        (None, None, LastrowError, "or as FACTORY=.*; given are neither"),
        (Path("w.pt"), None, LastrowError, "given are neither"),
        (Path("m.onnx"), "a:b", LastrowError, "given are both"),
        (tmp_path / "missing.onnx", None, ReductionError, "cannot read .*missing.onnx"),
        (tmp_path / "model.onnx", None, ReductionError, "cannot read .*model.onnx"),
        (None, "tests.zoo.models:Nothing", CheckpointError, "there is no factory 'tests.zoo.models:Nothing'"),
        (tmp_path / "w.pt", "tests.zoo.models:Tagger", CheckpointError, "cannot read the checkpoint .*w.pt"),
    ):
        with pytest.raises(kind, match=said):
            inspection.inspect(checkpoint, factory, tmp_path / "spec.toml")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "build", "inspect", *words]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_shows_what_was_found_and_where_its_spec_is(tmp_path):
    path = file(tmp_path / "model.onnx", TensorProto.FLOAT, ["batch", "time", 3])
    done = command("--checkpoint", str(path), "--out", str(tmp_path / "spec.toml"))
    assert done.returncode == 0, done.stderr
    assert "float [batch, time, 3]" in done.stdout
    assert f"wrote {tmp_path / 'spec.toml'}: read it, and then `make repo SPEC=" in done.stderr
    assert Spec.read(tmp_path / "spec.toml").model.name == "model"
    done = command()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: a model is looked at in an ONNX file, CHECKPOINT=model.onnx, or as FACTORY=")
