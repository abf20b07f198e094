"""What tuning takes for a gain, and what it writes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import tomlkit

from build.analyzer import tuning
from build.analyzer.result import Setting
from build.analyzer.tuning import Gain
from build.bench.contest import Contender
from build.repository.workspace import Workspace
from ensemble.errors import LastrowError
from ensemble.spec import Spec
from tests.conftest import small_document

SETTING = Setting((("preprocess", 1), ("core", 1), ("postprocess", 1), ("propose", 1)), 0, 32)


def gain(speed: tuple[float, float, float], throughput: tuple[float, float, float], spec: Spec) -> Gain:
    return Gain(Contender(spec), speed, throughput)


@pytest.mark.parametrize(
    ("speed", "throughput", "real"),
    [
        ((1.0, 0.9, 1.1), (1.3, 1.2, 1.4), True),
        ((1.5, 1.4, 1.6), (1.0, 0.9, 1.1), True),
        ((1.5, 1.4, 1.6), (0.9, 0.8, 1.1), False),
        ((1.0, 0.9, 1.1), (1.3, 0.9, 1.4), False),
        ((1.01, 1.005, 1.02), (1.02, 1.01, 1.03), False),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), False),
    ],
)
def test_a_gain_has_to_be_beyond_noise_and_nothing_may_lose(spec: Spec, speed, throughput, real):
    assert gain(speed, throughput, spec).real is real


def test_a_budget_is_kept(spec: Spec):
    present, slow, fast = Contender(spec), Contender(spec), Contender(spec)
    for contender, ms in ((present, 20.0), (slow, 30.0), (fast, 5.0)):
        contender.one.latencies_ms = [[ms] * 4] * 3
        contender.one.throughputs = contender.many.throughputs = [1e3 / ms] * 3
        contender.many.latencies_ms = [[ms] * 4] * 3
    (kept,) = tuning.gains(present, [slow, fast], 25.0)
    assert kept.contender is fast
    assert kept.speed == (4.0, 4.0, 4.0)
    assert kept.real


@pytest.fixture
def workspace(small_spec: Spec, small_checkpoint: Path, tmp_path: Path) -> Workspace:
    spec_file = tmp_path / "spec.toml"
    spec_file.write_text(tomlkit.dumps(small_document()), encoding="utf-8")
    return Workspace(Spec.read(spec_file), spec_file, small_checkpoint, tmp_path / "models")


def test_the_choice_is_written_into_spec_and_repository(workspace: Workspace):
    comments = re.findall(r"#.*", workspace.spec_file.read_text())
    setting = dataclasses.replace(SETTING, queue_delay_us=100, max_batch_size=8)
    tuned = setting.applied(workspace.spec)
    tuning.write(workspace, gain((2.0, 1.9, 2.1), (3.0, 2.9, 3.1), tuned))
    read = Spec.read(workspace.spec_file)
    assert Setting.of(read) == setting
    assert read.tuned is not None
    assert (read.tuned.speed, read.tuned.throughput) == (2.0, 3.0)
    assert "cores" in read.tuned.machine
    assert read.model_copy(update={"tuned": None}) == tuned
    assert re.findall(r"#.*", workspace.spec_file.read_text()) == comments
    assert "max_queue_delay_microseconds: 100" in (workspace.out / "core" / "config.pbtxt").read_text()


def test_a_choice_that_cannot_be_built_leaves_the_spec_as_it_was(workspace: Workspace):
    before = workspace.spec_file.read_bytes()
    missing = dataclasses.replace(workspace, checkpoint=workspace.spec_file.with_name("none.pt"))
    with pytest.raises(LastrowError, match=r"none\.pt"):
        tuning.write(missing, gain((2.0, 1.9, 2.1), (3.0, 2.9, 3.1), SETTING.applied(workspace.spec)))
    assert workspace.spec_file.read_bytes() == before
    assert not workspace.out.exists()
    assert {path.name for path in workspace.spec_file.parent.iterdir()} == {"spec.toml"}


def test_a_layout_that_gains_is_written_and_nothing_that_is_as_it_was(workspace: Workspace):
    before = tomlkit.parse(workspace.spec_file.read_text()).unwrap()
    single = dataclasses.replace(Setting.of(workspace.spec), instances=(("core", 1),), layout="single", spinning=False)
    tuning.write(workspace, gain((2.0, 1.9, 2.1), (3.0, 2.9, 3.1), single.applied(workspace.spec)))
    after = tomlkit.parse(workspace.spec_file.read_text()).unwrap()
    assert after.pop("serve") == {"layout": "single"}
    assert after.pop("tuned")["speed"] == 2.0
    assert after["steps"]["core"].pop("spinning") is False
    before["steps"]["core"].pop("spinning", None)
    assert after == before
    assert (workspace.out / "knowledge_tracing" / "1" / "core.onnx").is_file()
    assert not (workspace.out / "core" / "1" / "model.onnx").exists()
