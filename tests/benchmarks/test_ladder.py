"""The ladder itself, climbed for real on a small model: every rung answers, and its report is whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import onnx_ir as ir
import pytest
import tomlkit
import torch

from build.bench import publication, variant
from build.bench.ladder import figures, ladder, report, rung, waterfall
from build.core.export import export
from build.repository.workspace import Workspace, open_workspace
from ensemble.spec import Spec
from tests.conftest import SMALL_INT8_TOLERANCE, resized, untrained

SHORT = ladder.Settings(rounds=2, turn_s=0.05, concurrencies=(1, 4), tuning_s=0.05)


@pytest.fixture(scope="module")
def climbed(small_spec: Spec, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("ladder")
    small_spec = variant.changed(small_spec, parity__int8_max_abs_difference=SMALL_INT8_TOLERANCE)
    spec_file = folder / "spec.toml"
    text = ladder_spec(small_spec)
    spec_file.write_text(text, encoding="utf-8")
    assert Spec.read(spec_file) == small_spec
    workspace = Workspace(small_spec, spec_file, small_checkpoint, folder / "models", learners=40)
    climb = ladder.Climb(workspace, rung.select(None), SHORT, folder)
    with climb.ready(lambda *_: None):
        climb.climb(lambda *_: None)
    publication.save(climb.report(), folder / "ladder.json")
    return json.loads((folder / "ladder.json").read_text())


def test_a_precision_that_a_model_does_not_bear_is_a_rung_skipped_by_name(small_spec, small_checkpoint, tmp_path):
    strict = variant.changed(small_spec, parity__int8_max_abs_difference=1e-7)
    (tmp_path / "spec.toml").write_text(ladder_spec(strict), encoding="utf-8")
    workspace = Workspace(strict, tmp_path / "spec.toml", small_checkpoint, tmp_path / "models", learners=40)
    climb = ladder.Climb(workspace, rung.select("12"), SHORT, tmp_path)
    with climb.ready(lambda *_: None):
        climb.climb(lambda *_: None)
    (found,) = climb.report()["rungs"]
    assert "allowed is 1e-07 (parity.int8_max_abs_difference)" in found["skipped"]
    assert found["loads"] == {}


def test_a_file_of_a_fixed_time_axis_has_one_width_on_every_rung(spec: Spec, tmp_path: Path):
    small = resized(spec, problems=40, window=96)  # longer than the shortest width that rungs of whole widths add
    model = export(untrained(small), small).model
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = ir.Shape(["batch", 96, *value.shape.dims[2:]])
    ir.save(model, tmp_path / "model.onnx")
    workspace = open_workspace(checkpoint=tmp_path / "model.onnx", out=tmp_path / "models")
    tolerant = variant.changed(workspace.spec, parity__int8_max_abs_difference=SMALL_INT8_TOLERANCE)
    workspace = dataclasses.replace(workspace, spec=tolerant)
    climb = ladder.Climb(workspace, rung.select("7,12"), SHORT, tmp_path)
    with climb.ready(lambda *_: None):
        climb.climb(lambda *_: None)
    for found in climb.report()["rungs"]:
        assert set(found["loads"]) == {"96", "mix"}, found["skipped"]


def ladder_spec(spec: Spec) -> str:
    return tomlkit.dumps(spec.model_dump(mode="json", exclude_none=True))


def test_every_rung_is_climbed_or_skipped_by_name(climbed):
    assert {r["name"] for r in climbed["rungs"]} == {r.name for r in rung.RUNGS}
    for found in climbed["rungs"]:
        if found["number"].startswith("11") and not torch.cuda.is_available():
            assert found["skipped"] == "no GPU on this machine"
        elif found["skipped"] is None:
            wanted = {"1", "4"} if found["transport"] else {"1"}
            assert set(found["loads"]) == {"32", "mix"}
            assert all(set(cells) == wanted for cells in found["loads"].values())
        else:
            assert found["name"] == "PyTorch compiled"  # needs a C++ compiler


def test_the_parts_of_each_cell_add_up(climbed, small_spec: Spec):
    for found in climbed["rungs"]:
        for cells in found["loads"].values():
            for cell in cells.values():
                assert cell["interval_ms"][0] <= cell["interval_ms"][1]
                assert len(cell["rounds_ms"]) == SHORT.rounds
                if found["transport"]:
                    assert sum(cell["parts_ms"].values()) == pytest.approx(cell["p50_ms"])
                    computes = {"1": "naive", "2": "naive", "13": small_spec.model.name}.get(found["number"], "core")
                    assert cell["parts_ms"][computes] > 0


def test_the_delay_of_the_naive_rung_is_seen_in_its_queue(climbed):
    naive, delay = (next(r for r in climbed["rungs"] if r["number"] == n)["loads"]["32"]["1"] for n in ("1", "2"))
    assert naive["parts_ms"]["queue"] > 90
    assert delay["parts_ms"]["queue"] < 50
    assert naive["p50_ms"] > delay["p50_ms"] + 50


def test_all_that_is_shown_is_drawn_from_the_file(climbed, tmp_path: Path):
    reasons = [reason for reason, _ in itertools.groupby(r["skipped"] for r in climbed["rungs"]) if reason]
    assert report.table(climbed).row_count == len([r for r in climbed["rungs"] if r["loads"]]) + len(reasons)
    assert report.lines(climbed)
    assert "| 8 tuned |" in report.section(climbed)
    for path in waterfall.draw(climbed, tmp_path):
        assert path.stat().st_size > 10_000
    of = figures.Figures(climbed)
    summary, naive, eager = of.summary(), of.cell("naive Triton"), of.cell("PyTorch eager")
    # Which of them is slower, for a model of a dozen numbers, says how busy this machine was.
    assert summary["naive over local PyTorch"] == naive["p50_ms"] / eager["p50_ms"]


def test_one_setting_is_chosen(climbed):
    assert sum(tried["chosen"] for tried in climbed["tuning"]) == 1
