"""The lock has all that is asked for, by checksum, for every Python; which PyTorch a machine gets follows from its pip."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from build import ROOT
from build.make import lock
from build.make.lock import Pin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (lock.COMMON, lock.CUDA, lock.CPU)}
ASKED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(word for name in ("build", "test") for word in PROJECT["project"]["optional-dependencies"][name]),
]


def pins(*names: str) -> list[Pin]:
    return [pin for name in names for pin in lock.read(TEXTS[name])]


def versions(python: str, found: Iterable[Pin]) -> dict[str, str]:
    here = [(pin.name, pin.version) for pin in found if python in pin.pythons]
    assert len(dict(here)) == len(here), "a package has two versions for one Python, which pip refuses"
    return dict(here)


def test_an_extra_outside_of_the_lock_names_its_versions_and_nobody_else_asks_for_it():
    extras = PROJECT["project"]["optional-dependencies"]
    (outside,) = extras.keys() - {"build", "test", "parquet"}
    (requirement,) = map(Requirement, extras[outside])
    assert [each.operator for each in requirement.specifier] == ["=="]
    assert requirement.name not in {Requirement(word).name for word in ASKED} | {pin.name for pin in pins(*TEXTS)}


def test_the_pythons_are_those_that_the_project_takes():
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed] == list(lock.PYTHONS)


@pytest.mark.parametrize("torch", [lock.CUDA, lock.CPU])
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_what_is_asked_for_is_in_the_lock_at_a_version_that_is_allowed(python: str, torch: str):
    locked = versions(python, pins(lock.COMMON, torch))
    environment = {**default_environment(), "python_version": python, "extra": ""}
    for requirement in map(Requirement, ASKED):
        if requirement.name == "lastrow" or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        assert requirement.specifier.contains(locked[requirement.name], prereleases=True), str(requirement)


@pytest.mark.parametrize("name", TEXTS)
def test_a_lock_is_pins_with_checksums_and_names_no_place_to_get_them_from(name: str):
    lines = [line for line in TEXTS[name].splitlines() if not line.startswith("#")]
    assert lines.pop(0) == ("--only-binary=:all:" if name == lock.COMMON else f"-r {lock.COMMON}")
    pin = r'[a-z\d-]+==[\w.+]+( ; python_version == "3\.\d+"( or python_version == "3\.\d+")?)? \\'
    assert [line for line in lines if not re.fullmatch(rf"{pin}|    --hash=sha256:[\da-f]{{64}}( \\)?", line)] == []
    assert all(pin.hashes for pin in lock.read(TEXTS[name]))
    assert [str(pin) for pin in lock.read(TEXTS[name])] == re.split(r"\n(?=[a-z])", "\n".join(lines))


def test_cuda_comes_with_the_pytorch_that_needs_it_alone():
    common, cuda, cpu = ({pin.name for pin in pins(name)} for name in TEXTS)
    assert cpu == {"torch"}
    assert {"torch", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit"} <= cuda
    assert common & cuda == set()
    assert {name for name in common if name.startswith("nvidia-")} == {"nvidia-pytriton"}


def test_versions_that_differ_between_pythons_are_named_each():
    old, new = Pin("a", "1.0", ("0",)), Pin("a", "2.0", ("1", "2"))
    merged = lock.merge({"3.10": [old], "3.11": [new], "3.12": [new, Pin("b", "3", ("4",))]})
    assert [str(pin) for pin in merged] == [
        'a==1.0 ; python_version == "3.10" \\\n    --hash=sha256:0',
        'a==2.0 ; python_version == "3.11" or python_version == "3.12" \\\n    --hash=sha256:1 \\\n    --hash=sha256:2',
        'b==3 ; python_version == "3.12" \\\n    --hash=sha256:4',
    ]


def test_a_library_of_cudas_that_others_want_too_is_not_pytorchs_alone():
    text = """torch==2 \\
    --hash=sha256:00
    # via lastrow (pyproject.toml)
filelock==1
    # via torch
cuda-toolkit==13
    # via torch
nvidia-cublas==13
    # via
    #   cuda-toolkit
    #   nvidia-cudnn-cu13
nvidia-cudnn-cu13==9
    # via torch
cuda-bindings==13
    # via
    #   cuda-python
    #   torch
cuda-python==13
    # via tritonclient
"""
    assert lock.cuda_libraries(lock.read(text)) == {"cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu13"}


def test_differences_are_named():
    locked = versions(".".join(map(str, sys.version_info[:2])), pins(lock.COMMON, lock.CPU))
    assert lock.differences({**locked, "lastrow": "0.1.0"}) == []
    changed = {**{name: version for name, version in locked.items() if name != "rich"}, "numpy": "9.9", "surplus": "1"}
    assert lock.differences(changed) == [
        f"numpy {locked['numpy']} in the lock, 9.9 here",
        f"rich {locked['rich']} in the lock, not installed here",
        "surplus is not in the lock, 1 here",
    ]
    cuda = versions("3.11", pins(lock.CUDA))
    assert f"nvidia-nccl-cu13 {cuda['nvidia-nccl-cu13']} in the lock, not installed here" in lock.differences(
        {**locked, "torch": cuda["torch"]}
    )


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks, and the locks beside it."""
    for name in TEXTS:
        shutil.copy(ROOT / name, tmp_path)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(shelf), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return shelf


def pytorch(shelf: Path, version: str) -> str:
    """A wheel by PyTorch's name; its SHA-256."""
    path, info = shelf / f"torch-{version}-py3-none-any.whl", f"torch-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_build_without_cuda_is_taken_where_pip_finds_one_that_the_lock_knows(shelf: Path):
    (locked,) = pins(lock.CPU)
    plain = locked.version.removesuffix("+cpu")
    pytorch(shelf, plain)
    assert lock.torch_lock(shelf.parent) == lock.CUDA
    sha = pytorch(shelf, locked.version)
    assert lock.torch_lock(shelf.parent) == lock.CUDA, "nobody knows what is in that file"
    path = shelf.parent / lock.CPU
    path.write_text(path.read_text().replace(locked.hashes[0], sha))
    assert lock.torch_lock(shelf.parent) == lock.CPU
    path.unlink()
    assert lock.torch_lock(shelf.parent) == lock.CUDA


def test_what_is_missing_is_named(shelf: Path):
    with pytest.raises(lock.LockError, match=r"pip finds no torch [\d.]+: .*No matching distribution"):
        lock.torch_lock(shelf.parent)
    (shelf.parent / lock.CUDA).unlink()
    with pytest.raises(lock.LockError, match=f"{lock.CUDA} names no torch: .*run `make lock`"):
        lock.torch_lock(shelf.parent)


def test_the_choice_needs_no_package(shelf: Path):
    """`make setup` asks in a .venv that has nothing but pip."""
    (locked,) = (pin for pin in pins(lock.CUDA) if pin.name == "torch")
    pytorch(shelf, locked.version)
    command = [sys.executable, "-S", "-m", "build.make.lock", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, f"{lock.CUDA}\n"), done.stderr
