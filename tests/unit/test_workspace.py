"""Which files a run reads and writes, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomlkit

from build import ROOT
from build.analyzer import analysis, tuning
from build.analyzer.result import Setting
from build.analyzer.tuning import Gain
from build.bench.contest import Contender
from build.model import checkpoint
from build.model.training import train
from build.repository import workspace
from build.repository.workspace import open_workspace
from ensemble.errors import SpecError
from ensemble.learners.history import History
from ensemble.spec import DEFAULT_SPEC, Spec
from tests.conftest import resized, untrained

SETTING = Setting((("preprocess", 1), ("core", 1), ("postprocess", 2), ("propose", 1)), 700, 8)


@pytest.fixture(autouse=True)
def artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(workspace, "ARTIFACTS", tmp_path / "artifacts")
    return tmp_path / "artifacts"


def weights(path: Path, problems: int = 40, network: str = "dkt") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(untrained(resized(Spec.read(), network, problems=problems, window=32)), path)
    return path


@pytest.mark.parametrize("choice", ["network", "checkpoint", "device"])
def test_a_tuned_spec_is_used_again(choice: str, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    given = {"network": "gru", "checkpoint": small_checkpoint, "device": "cpu"}[choice]
    space = open_workspace(**{choice: given})  # type: ignore[arg-type]
    tuned = Gain(Contender(SETTING.applied(space.spec)), (2.0, 1.9, 2.1), (3.0, 2.9, 3.1))
    document = tomlkit.parse(space.spec_file.read_text())
    for key, value in tuning.record(tuned).items():
        tuning._set(document, ("tuned", key), value)
    tuning._set(document, ("steps", "core", "queue_delay_us"), 700)
    space.spec_file.write_text(tomlkit.dumps(document))
    capsys.readouterr()
    again = open_workspace(**{choice: given})  # type: ignore[arg-type]
    assert again.spec.steps.core.queue_delay_us == 700
    assert again.spec.tuned is not None
    assert space.spec_file.read_text() == tomlkit.dumps(document)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{space.spec_file} was changed since it was derived: used as it is" in said


def test_what_tuning_wrote_is_what_the_next_build_serves(small_checkpoint: Path, tmp_path: Path):
    space = open_workspace(checkpoint=small_checkpoint, out=tmp_path / "models")
    tuning.write(space, Gain(Contender(SETTING.applied(space.spec)), (2.0, 1.9, 2.1), (3.0, 2.9, 3.1)))
    again = open_workspace(checkpoint=small_checkpoint, out=tmp_path / "models")
    assert Setting.of(again.spec) == SETTING


def test_a_spec_that_nobody_changed_follows_what_it_is_derived_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before = open_workspace(network="gru")
    assert open_workspace(network="gru").spec == before.spec
    other = tmp_path / "default.toml"
    other.write_text(DEFAULT_SPEC.read_text().replace("max_batch_size = 32 ", "max_batch_size = 16 "))
    monkeypatch.setattr(workspace, "DEFAULT_SPEC", other)
    assert open_workspace(network="gru").spec.batching.max_batch_size == 16


def test_a_file_without_a_stamp_is_somebodys():
    own = open_workspace(network="gru").spec_file
    own.write_text(own.read_text().split("\n", 2)[2].replace("queue_delay_us = 0", "queue_delay_us = 5"))
    text = own.read_text()
    assert open_workspace(network="gru").spec.steps.core.queue_delay_us == 5
    assert own.read_text() == text


def test_a_change_that_no_longer_fits_is_refused_and_kept(tmp_path: Path):
    brought = weights(tmp_path / "model.pt", problems=40)
    own = open_workspace(checkpoint=brought).spec_file
    own.write_text(own.read_text().replace("max_batch_size = 32 ", "max_batch_size = 16 "))
    text = own.read_text()
    assert open_workspace(checkpoint=brought).spec.batching.max_batch_size == 16
    weights(brought, problems=41)
    with pytest.raises(SpecError, match=r"model\.problems is 40 in it and 41 now\. Move it away .* SPEC=") as raised:
        open_workspace(checkpoint=brought)
    assert str(own) in str(raised.value)
    weights(brought, problems=40, network="gru")
    with pytest.raises(SpecError, match=r"network\.type is dkt in it and gru now"):
        open_workspace(checkpoint=brought)
    assert own.read_text() == text
    own.unlink()
    assert open_workspace(checkpoint=brought).spec.network.type == "gru"


def test_what_somebody_chose_otherwise_is_no_contradiction():
    own = open_workspace(network="gru").spec_file
    own.write_text(own.read_text().replace("hidden = 256", "hidden = 64"))
    assert open_workspace(network="gru").spec.network.hidden == 64  # type: ignore[union-attr]


@pytest.mark.parametrize("text", [b"[model\n", b"", b"\n# lastrow: []\n", b"\xff\xfe", b"model = 3\n"])
def test_a_changed_spec_that_is_none_is_refused(text: bytes):
    own = open_workspace(network="gru").spec_file
    own.write_bytes(text)
    with pytest.raises(SpecError, match=rf"{own} was changed since it was derived, and is no (whole spec|text) now"):
        open_workspace(network="gru")
    assert own.read_bytes() == text


def test_what_is_called_the_same_elsewhere_shares_nothing(tmp_path: Path):
    one, other = weights(tmp_path / "a" / "run" / "model.pt"), weights(tmp_path / "b" / "run" / "model.pt")
    first, second = open_workspace(checkpoint=one), open_workspace(checkpoint=other)
    assert first.spec_file != second.spec_file
    assert first.out != second.out
    assert analysis._folder(first) != analysis._folder(second)
    folders = []
    for name in "ab":
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        for fold in range(2):
            (folder / f"fold{fold}.csv").write_text("0,1\n3,17\n1,1\n1,0\n")
        folders.append(folder)
    assert len({open_workspace(data=folder).checkpoint for folder in folders}) == 2


def test_weights_of_other_learners_are_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "data"
    data.mkdir()
    (data / "fold0.csv").write_text("0,1\n3,17\n1,1\n1,0\n")
    space = open_workspace(data=data, network="gru")
    training = [History("ada", [1, 2], [1, 0]), History("ben", [2, 1], [0, 1])]
    model, report = train(training, training, resized(space.spec, "gru"), budget_s=0.1)
    checkpoint.save(model, space.checkpoint)
    space.report.write_text(report.to_json(space.data_digest()))
    open_workspace(data=data, network="gru")
    assert "other learners" not in capsys.readouterr().err
    (data / "fold1.csv").write_text("1,1\n17,3\n1,1\n1,1\n")
    open_workspace(data=data, network="gru")
    said = " ".join(capsys.readouterr().err.split())
    assert f"{space.checkpoint} was trained on other learners than {data} has now: `make train` trains it anew" in said


def test_only_the_default_goes_into_models(tmp_path: Path, artifacts: Path):
    assert (
        open_workspace().out
        == open_workspace(spec=Path("ensemble/presets/knowledge_tracing.toml")).out
        == ROOT / "models"
    )
    own = tmp_path / "own.toml"
    own.write_text(DEFAULT_SPEC.read_text())
    brought = weights(tmp_path / "model.pt")
    others = [
        open_workspace(network="gru"),
        open_workspace(network="gru", learners=500),
        open_workspace(network="gru", device="gpu"),
        open_workspace(device="gpu"),
        open_workspace(checkpoint=brought),
        open_workspace(checkpoint=brought, spec=DEFAULT_SPEC),
        open_workspace(spec=own),
        open_workspace(spec=own, checkpoint=brought),
        open_workspace(learners=500),
    ]
    assert all(space.out.is_relative_to(artifacts) for space in others)
    assert len({space.out for space in others}) == len(others)
    assert open_workspace(network="gru", out=ROOT / "models").out == ROOT / "models"
