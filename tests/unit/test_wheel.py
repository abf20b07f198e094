"""The wheel is a client: `ensemble` and what it imports. `build` stays in the checkout, with its commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from build import ROOT

IMPORT_ALL = """\
import importlib, pkgutil, ensemble
names = [module.name for module in pkgutil.walk_packages(ensemble.__path__, "ensemble.")]
for name in names:
    importlib.import_module(name)
print(ensemble.__file__, *names)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.iterdir()
    return path


def needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Names of the installed packages that pip would bring for these requirements, and for those of theirs."""
    found: set[str] = set()
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            found |= {name} | needed(metadata.requires(name) or (), requirement.extras)
    return found


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, and beside it those packages of this environment that it asks for, no others."""
    folder = tmp_path_factory.mktemp("client")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True)
    (installed,) = metadata.distributions(path=[str(folder)])
    for name in needed(installed.requires or ()):
        package = metadata.distribution(name)
        for first in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / first).exists():
                (folder / first).symlink_to(Path(str(package.locate_file(first))))
    return folder


def run(client: Path, code: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python that has that folder alone."""
    start = f"import sys; sys.path.append({str(client)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", start, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_it_holds_ensemble_as_it_is_tracked_and_no_command(wheel: Path):
    command = [shutil.which("git") or "git", "ls-files", "ensemble"]
    tracked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    info = "lastrow-0.1.0.dist-info"
    expected = {*tracked, *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE"))}
    assert set(zipfile.ZipFile(wheel).namelist()) == expected


def test_it_asks_for_what_a_client_imports_and_leaves_the_rest_to_an_extra(client: Path):
    (installed,) = (d for d in metadata.distributions(path=[str(client)]) if d.name == "lastrow")
    plain = needed(installed.requires or ())
    heavy = {"torch", "onnx", "onnxscript", "onnxruntime-gpu", "nvidia-pytriton", "triton-model-analyzer", "matplotlib"}
    assert plain & heavy == set()
    assert heavy <= needed(["lastrow[build]"])
    assert {*installed.metadata.get_all("Provides-Extra", ())} == {"build", "test", "parquet", "transformers"}


def test_every_module_is_imported_with_that_alone(client: Path, tmp_path: Path):
    done = run(client, IMPORT_ALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path, *names = done.stdout.split()
    assert path == str(client / "ensemble" / "__init__.py")
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "ensemble").rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert set(names) == modules - {"ensemble"}
    for absent in ("torch", "onnx", "build"):
        assert "ModuleNotFoundError" in run(client, f"import {absent}", cwd=tmp_path).stderr


def test_its_command_line_runs_and_says_what_it_could_not_look_at(client: Path, tmp_path: Path):
    start = "import runpy; runpy.run_module('ensemble', run_name='__main__', alter_sys=True)"
    done = run(client, start, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout
    done = run(client, start, "lint", str(ROOT / "models"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").touch()
    (tmp_path / "m" / "config.pbtxt").write_text(
        'backend: "onnxruntime" input [ { name: "ids" data_type: TYPE_INT64 dims: [4] } ] '
        'output [ { name: "y" data_type: TYPE_FP32 dims: [4] } ]'
    )
    done = run(client, start, "lint", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "input.data_type (ids): whether 4 bytes would hold them is in the ONNX file" in done.stdout
