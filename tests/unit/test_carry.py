"""What is carried to a machine without network arrives whole, installs without one, and is refused where it is damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build import ROOT
from build.make import carry

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PART = 100_000


def wheel(folder: Path, name: str, content: bytes) -> None:
    """A wheel of one module, as small as one may be."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": b"SIZE = %d\n" % len(content),
        f"{name}.bin": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: torch\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, data)


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "parcel", b"\x07" * 3 * PART)
    wheel(wheels, "letter", b"x")
    carry.pack(tmp_path / "carried", ROOT, HERE, wheels=wheels, part_bytes=PART)
    return tmp_path / "carried"


def there(carried: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As on the other machine: this Python, none of the project on its path."""
    command = [sys.executable, "-I", str(carried / "carry.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=carried.parent, check=False)


def test_what_is_packed_is_unpacked_and_runs(carried: Path, tmp_path: Path):
    parts = sorted(carried.glob("part.*"))
    assert len(parts) > 3
    assert all(part.stat().st_size <= PART for part in parts)
    assert {file.name for file in carried.iterdir()} == {"carry.py", "manifest.json", *(part.name for part in parts)}
    done = there(carried, "--no-run", str(tmp_path / "bare"))
    assert done.returncode == 0, done.stderr
    python = tmp_path / "bare" / "venv" / "bin" / "python"
    code = (
        "import parcel, letter, torch, ensemble.spec, build; "
        "print(parcel.SIZE, letter.SIZE, build.__file__, ensemble.spec.Spec.read().model.problems)"
    )
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    project = tmp_path / "bare" / "project"
    assert answer.stdout.split() == [str(3 * PART), "1", str(project / "build" / "__init__.py"), "14041"]
    tracked = git("ls-files") - git("diff", "--name-only", "HEAD")  # what is committed is carried
    assert {str(p.relative_to(project)) for p in project.rglob("*") if p.is_file()} >= tracked
    again = there(carried, "--no-run", str(tmp_path / "bare"))
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)


def git(*words: str) -> set[str]:
    """The lines that git answers."""
    command = [shutil.which("git") or "git", *words]
    return set(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines())


def test_the_words_behind_the_target_are_run_there(carried: Path, tmp_path: Path):
    # What the two toys lack comes from this Python's own packages, which stand behind the new environment's.
    done = there(carried, str(tmp_path / "bare"), "bench", "--device", "tpu")
    assert done.returncode == 1
    assert "there is no device 'tpu'; there are cpu and gpu" in " ".join(done.stderr.split())


def test_a_damaged_part_is_named(carried: Path, tmp_path: Path):
    part = carried / "part.001"
    content = bytearray(part.read_bytes())
    content[77] ^= 1
    part.write_bytes(content)
    done = there(carried, str(tmp_path / "bare"))
    assert done.returncode == 1
    assert f"{part} is damaged: its checksum is not the manifest's; carry it again" in done.stderr
    part.unlink()
    assert f"{part} is missing; carry it again" in there(carried, str(tmp_path / "bare")).stderr
    assert not (tmp_path / "bare").exists()


def test_another_python_is_refused(carried: Path, tmp_path: Path):
    manifest = json.loads((carried / "manifest.json").read_text())
    (carried / "manifest.json").write_text(json.dumps({**manifest, "python": "3.99"}))
    assert f"the wheels are for Python 3.99, and this is {HERE}" in there(carried, str(tmp_path / "bare")).stderr


def test_a_folder_in_use_is_left_alone(tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(carry.CarryError, match="is not empty"):
        carry.pack(tmp_path, ROOT, wheels=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_everything_but_pytorch_is_wanted():
    wanted = carry.requirements(ROOT)
    assert not any(name.startswith("torch") for name in wanted)
    asked = {
        "numpy>=1.26,<2",
        "nvidia-pytriton==0.7.0",
        "onnxruntime-gpu>=1.20",
        "tritonclient[grpc]>=2.51",
        "typer>=0.12",
    }
    assert asked <= set(wanted)
    assert "onnxruntime-gpu==1.22.0" in carry.requirements(ROOT, "1.22.0")
