"""Where a request's time goes: what is planted in one stage shows there, and nowhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build.bench.stages import profile
from build.bench.stages.timeline import STAGES
from build.model import checkpoint
from build.repository import assembly
from ensemble.spec import Spec
from tests import zoo
from tests.conftest import small_document, untrained

PLANTED_US = 50_000
CHAIN = """
import time
_answer = answer
def answer(*given):
    time.sleep(0.05)
    return _answer(*given)
"""
WINDOWS = """
import time
_feed = Contract.feed
def _slow(*given):
    time.sleep(0.05)
    return _feed(*given)
Contract.feed = _slow
"""


def described(layout: str) -> Spec:
    document = small_document()
    document.update({"serve": {"layout": layout}})
    return Spec.model_validate(document.unwrap())


@pytest.mark.parametrize(
    ("layout", "stage", "place", "file", "planted"),
    [
        pytest.param("ensemble", "chain", "postprocess", "chain.py", CHAIN, id="ensemble"),
        pytest.param("single", "windows", "knowledge_tracing", "contract.py", WINDOWS, id="single"),
    ],
)
def test_a_sleep_in_one_stage_is_seen_in_that_stage_alone(tmp_path: Path, layout, stage, place, file, planted):
    spec = described(layout)
    checkpoint.save(untrained(spec), tmp_path / "model.pt")
    built = assembly.build(spec, tmp_path / "model.pt", tmp_path / "quick").folder
    slow = tmp_path / "slow"
    shutil.copytree(built, slow)
    with (slow / place / "1" / file).open("a") as source:
        source.write(planted)
    cells = profile.profile(spec, {"quick": built, "slow": slow}, tmp_path / "stages", 2, 12, lambda *_: None)
    assert [(cell["layout"], cell["length"]) for cell in cells] == [
        *(("quick", 20), ("quick", 32)),
        *(("slow", 20), ("slow", 32)),
    ]
    for before, after in zip(cells[:2], cells[2:], strict=True):
        grown = {name: after["stages_us"][name] - us for name, us in before["stages_us"].items()}
        assert 0.9 * PLANTED_US < grown.pop(stage) < 1.5 * PLANTED_US
        assert max(grown.values()) < 0.3 * PLANTED_US, grown
        assert after["where_us"][place][stage] > 0.9 * PLANTED_US
        assert abs(after["remainder_us"]) < 0.1 * after["p50_us"]
        assert after["served_us"] > PLANTED_US > before["served_us"]
    assert {"session", "check", "windows", "finite", "chain"} < cells[0]["stages_us"].keys() < STAGES.keys()


def test_any_sequence_model_is_cut(tmp_path: Path):
    spec = zoo.read("deepar")
    zoo.save(spec, tmp_path / "model.pt")
    found = profile.measure(spec, tmp_path / "model.pt", tmp_path / "stages", 1, 5, lambda *_: None)
    assert {cell["layout"] for cell in found["cells"]} == {"ensemble", "single"}
    for cell in found["cells"]:
        assert cell["requests"] == 5
        assert cell["stages_us"]["session"] > 0
        assert min(cell["stages_us"].values()) >= 0, cell["stages_us"]
