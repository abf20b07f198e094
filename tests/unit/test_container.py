"""The container's recipe, as far as it can be held to its word without building it."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build import ROOT
from build.server import health
from build.server.__main__ import HEALTH_PORT
from build.server.health import Health

FOLDER = ROOT / "build" / "deploy" / "container"


@pytest.fixture(scope="module")
def recipe() -> list[tuple[str, str]]:
    """(INSTRUCTION, its words), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def only(recipe: list[tuple[str, str]], instruction: str) -> str:
    (found,) = [rest for word, rest in recipe if word == instruction]
    return found


def test_the_base_is_the_callers_choice(recipe):
    assert recipe[0] == ("ARG", "BASE")
    assert only(recipe, "FROM") == "${BASE}"


def test_it_runs_as_a_numbered_user_who_is_not_root(recipe):
    user, group = only(recipe, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    last = [word for word, _ in recipe]
    assert "RUN" not in last[last.index("USER") :]


def copies(recipe) -> list[tuple[list[str], str, str]]:
    """Options, source and target of every COPY of this project's files."""
    found = [rest.split() for word, rest in recipe if word == "COPY"]
    return [(options, source, target) for *options, source, target in found if "--from=repository" not in options]


def test_what_is_copied_exists_and_nobody_can_write_it(recipe):
    for word, rest in recipe:
        if word == "COPY":
            (mode,) = [option.removeprefix("--chmod=") for option in rest.split() if option.startswith("--chmod=")]
            assert int(mode, 8) & 0o222 == 0
            assert "--chown=0:0" in rest
    assert len(copies(recipe)) == 5
    assert all((ROOT / source).exists() for _, source, _ in copies(recipe))
    (models,) = [rest for word, rest in recipe if word == "COPY" and "--from=repository" in rest]
    assert models.endswith(" . /models")
    assert "--build-context repository=models" in dry_run("image", "BASE=triton")
    assert "--build-context repository=my/folder" in dry_run("image", "BASE=triton", "OUT=my/folder")


def dry_run(*words: str) -> str:
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout


def test_it_starts_by_what_was_copied_and_with_the_packages_that_it_names(recipe, tmp_path: Path):
    """Where nothing else of the project is, and of all packages only those that it installs, and theirs."""
    command = json.loads(only(recipe, "ENTRYPOINT"))
    assert command[:2] == ["python3", "-I"]
    assert not any(name in argument for argument in command for name in ("restricted", "model-control"))
    assert "--address=0.0.0.0" in command
    for _, source, target in copies(recipe):
        place = tmp_path / target[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, place)
    (install,) = [rest for word, rest in recipe if word == "RUN" and "--target" in rest]
    names = [Requirement(word).name for word in re.findall(r'"([^"]+)"', install)]
    packages = tmp_path / "opt/lastrow/packages"
    packages.mkdir()
    for path in {path for name in needed(names) for path in tops(name)}:
        (packages / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / command[2][1:], tmp_path / "none"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        f"serve: there is no model repository {tmp_path}/none; run `make repo` first\n",
    )


def needed(names: list[str]) -> set[str]:
    """Those distributions and what they need in turn."""
    found, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            wanted = map(Requirement, metadata.requires(name) or ())
            extras = {"grpc"} if name == "tritonclient" else {""}
            todo += [
                each.name
                for each in wanted
                if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)
            ]
    return found


def tops(name: str) -> set[Path]:
    """The files and folders of a distribution that lie at the top of what Python imports from."""
    root = Path(str(metadata.distribution(name).locate_file("")))
    files = metadata.distribution(name).files or ()
    return {root / file.parts[0] for file in files if file.parts[0] != ".." and (root / file.parts[0]).exists()}


def test_its_health_is_the_supervisors(recipe):
    options, _, command = only(recipe, "HEALTHCHECK").partition(" CMD ")
    words = json.loads(command)
    assert words[:3] == ["python3", "-I", "-c"]
    assert f"127.0.0.1:{HEALTH_PORT}/" in words[3]
    timeouts = re.findall(r"timeout=(\d+)", options + words[3])
    assert int(timeouts[0]) > int(timeouts[1])
    with Health("127.0.0.1", 0, lambda: True) as told:
        script = words[3].replace(str(HEALTH_PORT), str(told.port))
        codes = []
        for status in (health.SERVING, health.BROKEN, health.STOPPING):
            told.status = status
            codes.append(
                subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=False).returncode
            )
    assert codes == [0, 1, 1]


def test_nothing_else_of_the_project_goes_to_the_builder(recipe):
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {source for _, source, _ in copies(recipe)}
