"""A request's stages, of clocks that were looked at elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build.bench import publication
from build.bench.stages import profile, report
from build.bench.stages.timeline import STAGES, Mark, cuts, stamps, traces


def written(folder: Path, request: str = "a-1") -> None:
    """A trace of one request to an ensemble whose core is of a backend of Triton's own, and what its first step noted."""
    told: list[dict[str, Any]] = [
        {"id": 3, "model_name": "core", "model_version": 1, "parent_id": 1},
        {"id": 1, "model_name": "whole", "model_version": 1, "request_id": "a-1"},
        {"id": 2, "model_name": "first", "model_version": 1, "request_id": "a-1", "parent_id": 1},
        {"id": 9, "model_name": "whole", "model_version": 1, "request_id": "another"},
    ]
    times = {
        1: {"GRPC_WAITREAD_END": 130, "REQUEST_START": 131, "GRPC_SEND_START": 400},
        2: {"QUEUE_START": 140, "COMPUTE_START": 150, "COMPUTE_END": 290},
        3: {"QUEUE_START": 260, "COMPUTE_START": 280, "COMPUTE_INPUT_END": 290, "COMPUTE_OUTPUT_START": 370},
    }
    told += [
        {"id": number, "timestamps": [{"name": name, "ns": ns}]}
        for number in times
        for name, ns in times[number].items()
    ]
    (folder / "trace.json").write_text(json.dumps(told))
    parts = [["check", 170, 180], ["check", 181, 186], ["windows", 190, 210]]
    (folder / "first_0.stamps").write_text(json.dumps(["first", [["", 1, 2, []], [request, 165, 230, parts]]]))


MARK = Mark("a-1", 100, 110, 450, 470)


def test_stages_cover_all_that_a_client_waits(tmp_path):
    written(tmp_path)
    (found,) = cuts([MARK], traces(tmp_path / "trace.json"), stamps(tmp_path))
    assert found == {
        ("client", "encode"): 10,
        ("wire", "wire"): 20,
        ("triton", "reading"): 10,
        ("first", "queue"): 10,
        ("first", "hand-over"): 15,
        ("first", "tensors"): 30,
        ("first", "check"): 15,
        ("first", "windows"): 20,
        ("first", "hand-back"): 30,
        ("core", "queue"): 20,
        ("core", "hand-over"): 10,
        ("core", "tensors"): 0,
        ("core", "session"): 80,
        ("core", "hand-back"): 30,
        ("wire", "wire back"): 50,
        ("client", "decode"): 20,
    }
    assert sum(found.values()) == MARK.read - MARK.begun
    found = {place: 1000 * ns for place, ns in found.items()}
    told = profile.summary([found, found, {**found, ("core", "session"): 10**9}, found])
    assert told["remainder_us"] == pytest.approx(0, abs=0.1)
    assert told["where_us"]["core"]["session"] == 80.0  # neither the slowest request's nor the quickest's counts
    assert list(told["stages_us"]) == [stage for stage in STAGES if stage in told["stages_us"]]


def test_a_step_that_did_not_note_a_request_is_no_stage_of_nothing(tmp_path):
    written(tmp_path, request="a-2")
    with pytest.raises(KeyError, match="a-1"):
        cuts([MARK], traces(tmp_path / "trace.json"), stamps(tmp_path))


def test_a_report_has_a_column_a_cell_and_a_row_a_stage(tmp_path):
    cell = {
        "layout": "ensemble",
        "length": 20,
        "p50_us": 2000.0,
        "served_us": 1900.0,
        "requests": 4,
        "remainder_us": 30.0,
    }
    cell |= {"stages_us": {"encode": 70.0, "session": 1900.0}, "where_us": {"core": {"session": 1900.0}}}
    other = {**cell, "layout": "single", "stages_us": {"session": 1970.0}}
    machine = {"processor": "x", "cores": 2, "memory_gib": 4, "gpu": None, "tritonserver": "t"}
    told = {
        "machine": {**machine, "packages": {"torch": "2", "onnxruntime-gpu": "1"}},
        **{"commit": "abc", "dirty": False, "time": "2026-01-01 00:00"},
        **{"model": {"title": "dkt"}, "settings": {"rounds": 2}, "cells": [cell, other]},
    }
    section = report.section(told)
    assert "| stage | ensemble, 20 | single, 20 | what |" in section
    assert "| encode | 70 |  | the client" in section
    assert "within 1.5%" in section
    assert [path.name for path in report.draw(told, tmp_path)] == ["stages.svg", "stages.png"]
    assert "ensemble, 20: core: session 1900" in report.lines(told)
    assert report.table(told).row_count == 5
    assert publication.published(publication.README.read_text(encoding="utf-8"), "stages", section)


def test_the_readme_shows_the_published_stages(tmp_path):
    found = json.loads((publication.FOLDER / "stages.json").read_text(encoding="utf-8"))
    readme = publication.README.read_text(encoding="utf-8")
    assert publication.published(readme, "stages", report.section(found)) == readme
    assert [path.name for path in report.draw(found, tmp_path)] == ["stages.svg", "stages.png"]
    assert (publication.FOLDER / "stages.svg").is_file()
    for cell in found["cells"]:
        assert abs(cell["remainder_us"]) < 0.05 * cell["p50_us"]
        assert sum(cell["stages_us"].values()) + cell["remainder_us"] == pytest.approx(cell["p50_us"])
