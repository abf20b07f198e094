"""What Triton itself says of the repositories that show the rules, and that nothing is left of having asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.lint import found_in
from ensemble.lint.finding import Finding
from ensemble.lint.load.asking import NOT_ASKED, REFUSED, ask
from ensemble.lint.repository import LintError, read
from tests.configurations import model, write
from tests.rules_shown import SHOWN, identity, maps, one_step

ALONE = ("model-file", "onnx-opset", "openvino-lengths")  # of which a server elsewhere can tell, or what a file lacks


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What Triton says of every repository that shows a rule, all in one, by the model's name."""
    folder = tmp_path_factory.mktemp("shown")
    for rule, shown in SHOWN.items():
        if rule not in ALONE:
            shown.write(folder)
    found: dict[str, list[Finding]] = {}
    for finding in ask(read(folder), 240):
        path = finding.file if finding.file.is_dir() else finding.file.parent
        found.setdefault(path.name, []).append(finding)
    return found


@pytest.mark.parametrize("rule", [rule for rule, shown in SHOWN.items() if shown.refused])
def test_triton_refuses_what_a_rule_calls_an_error(said: dict[str, list[Finding]], rule: str):
    names = [*SHOWN[rule].models, *SHOWN[rule].broken]
    refused = [finding for name in names for finding in said.get(name, ()) if finding.rule == REFUSED]
    assert refused, [str(finding) for name in names for finding in said.get(name, ())]


@pytest.mark.parametrize("rule", [rule for rule, shown in SHOWN.items() if shown.refused is False])
def test_triton_loads_what_a_rule_only_warns_of(said: dict[str, list[Finding]], rule: str):
    names = [*SHOWN[rule].models, *SHOWN[rule].broken]
    refused = [str(finding) for name in names for finding in said.get(name, ()) if finding.rule == REFUSED]
    assert refused == []


def test_a_backend_that_is_not_installed_is_said_and_its_configuration_asked(tmp_path: Path):
    write(
        tmp_path,
        engine=model("tensorrt"),
        wrong=model("tensorrt", more="dynamic_batching { preferred_batch_size: [ 16 ] }"),
        whole=one_step(maps("engine")),
        net=model("onnxruntime").replace("dims: [4]", "dims: [5]", 1),
        unknown=model("nobodys"),
        placed=model(more="instance_group [ { kind: KIND_GPU gpus: [ 42 ] } ]"),
    )
    (tmp_path / "engine" / "1" / "model.plan").write_bytes(b"not looked at")
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(identity())
    (tmp_path / "completed" / "1").mkdir(parents=True)
    (tmp_path / "completed" / "1" / "model.plan").write_bytes(b"not looked at")
    said = ask(read(tmp_path))
    assert [each.rule for each in said if each.file == tmp_path / "completed"] == [NOT_ASKED]  # it has no configuration
    found = {finding.file.parent.name: finding for finding in said}
    assert found["engine"].rule == NOT_ASKED
    assert "backend tensorrt is not installed here" in found["engine"].why
    assert "preferred size must be <= max batch size" in found["wrong"].why or found["wrong"].rule == NOT_ASKED
    assert "whole" not in found
    assert found["net"].severity == "error"  # asked of the backend itself: the file has 4
    assert "backend nobodys is not installed here" in found["unknown"].why


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a staged repository nor a stub's shared memory, whatever the test does."""
    own = tmp_path_factory.mktemp("staged")
    monkeypatch.setattr("tempfile.tempdir", str(own))
    yield
    regions = Path("/dev/shm").glob(f"lint-{os.getpid()}-*")  # noqa: S108 where Triton's stubs have theirs
    assert [*own.iterdir(), *regions] == []


def test_a_model_that_loads_too_long_is_not_waited_for(tmp_path: Path):
    write(tmp_path, slow=model())
    (tmp_path / "slow" / "1" / "model.py").write_text(
        "import time\nclass TritonPythonModel:\n"
        "    def initialize(self, args): time.sleep(600)\n    def execute(self, requests): return []\n"
    )
    begun = time.monotonic()
    (found,) = ask(read(tmp_path), 15)
    assert time.monotonic() - begun < 60
    assert (found.rule, found.severity) == (NOT_ASKED, "note")
    assert "time limit" in found.why


def test_a_model_that_ends_the_server_is_named_and_the_others_are_asked(tmp_path: Path):
    write(tmp_path, kills=model(), well=model(size=0))
    (tmp_path / "kills" / "1" / "model.py").write_text(
        "import os, signal\nclass TritonPythonModel:\n"
        "    def initialize(self, args):\n"
        "        server = int(open(f'/proc/{os.getppid()}/stat').read().rsplit(')')[-1].split()[2]) \n"
        "        os.kill(server, signal.SIGKILL)\n    def execute(self, requests): return []\n"
    )
    found = {finding.file.parent.name: finding for finding in ask(read(tmp_path)) if finding.rule == REFUSED}
    assert "ended while it loaded it" in found["kills"].why
    assert "dimension must be integer" in found["well"].why


def test_our_own_repository_loads_and_without_a_server_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, m=model())
    (tmp_path / "m" / "1" / "model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    )
    repository = read(tmp_path)
    assert found_in(repository) == []
    assert ask(repository) == []
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LintError, match="there is none on the PATH"):
        ask(repository)
