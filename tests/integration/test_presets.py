"""The demonstration of each preset of the next item: from training to answers, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.bench import variant
from build.bench.sequence_demonstration import demonstrate
from build.core.inference import Inference
from build.model import checkpoint, preset
from build.repository import assembly
from build.repository.workspace import Workspace
from tests.unit.test_trial import small


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_a_preset_is_trained_served_and_worth_what_it_is_by_itself(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec = variant.changed(small(name), model__name=f"small_{name}")
    kind = preset.of(spec, None, 30)
    model, to_json, _ = kind.train(3.0, lambda *_: None)
    weights = tmp_path / "model.pt"
    checkpoint.save(model, weights)
    assert '"data": "simulated"' in to_json("simulated")
    built = assembly.build(spec, weights, tmp_path / "models")
    space = Workspace(spec=spec, spec_file=tmp_path / "spec.toml", checkpoint=weights, out=built.folder)
    author = Inference.of(model, weights, spec)
    rows = demonstrate(space, spec, author, kind.requests(), kind.trial(20))
    shown = capsys.readouterr().out
    assert max(row.difference for row in rows) < 1e-4
    assert len(rows[0].said.split("), ")) == 10  # every unseen item that is proposed, with its score
    assert "20 of 20 have the same ids" in shown
    for said in (f"small_{name}, served", f"small_{name}, PyTorch"):
        assert said in shown
