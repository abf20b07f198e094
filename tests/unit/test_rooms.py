"""The rooms of the house: who may import whom, no circle anywhere, and what stands alone."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from build import ROOT

# The house, highest floor first: a room may import what lies on the floors below it. A room within a room is one of its own.
HOUSE = (
    "build.__main__",
    "build.commands",
    "build.analyzer build.score",
    "build.bench.ladder build.bench.peers build.bench.stages",
    "build.bench",
    "build.repository",
    "build.core",
    "build.core.reduce",
    "build.model build.server",
    "build.server.backends",
    "build",  # the ground: where things are, progress, files made aside
    "ensemble.__main__",
    "ensemble.client ensemble.lint",
    "ensemble.learners",
    "ensemble",  # the contract, the spec, the errors
)
# What stands alone, and all that it may import. Nothing imports what is not in the house.
ALONE = {
    "build.core.reduce": "build ensemble",  # a pass over graphs, whatever they are of
    "build.server.backends": "",  # copied beside a server, and run by it
    "build.make": "build ensemble",
    "build.deploy": "",  # copied into an image
}
FLOORS = {name: floor for floor, names in enumerate(HOUSE) for name in names.split()}
ROOMS = {*FLOORS, *ALONE}
STEP = {
    "numpy",
    "triton_python_backend_utils",
    ".contract",
    ".function",
    ".values",
    ".window",
    ".chain",
}  # what a step may import beside the standard library

FILE, PAGE = 400, 160  # lines


def modules(root: Path) -> dict[str, Path]:
    """Every module of the two packages, by its name."""
    files = [file for top in ("build", "ensemble") for file in (root / top).rglob("*.py")]
    own = [file for file in files if (root / "build" / "artifacts") not in file.parents]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in own}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Each name that a file imports anywhere in it, and the line: in functions and for the type checker too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            dot = "" if base.endswith(".") else "."
            yield from ((f"{base}{dot}{alias.name}", node.lineno) for alias in node.names)


def graph(root: Path) -> dict[str, dict[str, int]]:
    """The modules of the two packages that each one imports, and in which line."""
    known = modules(root)
    found: dict[str, dict[str, int]] = {name: {} for name in known}
    for module, file in known.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for name, line in imports(file):
            named = importlib.util.resolve_name(name, package) if name.startswith(".") else name
            while named and named not in known:  # a name in a module, or in a module of somebody else's
                named = named.rpartition(".")[0]
            if named and named != module:
                found[module][named] = line
    return found


def room(module: str) -> str:
    """The innermost room that a module is in."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def may_import(own: str, other: str) -> bool:
    if own in ALONE:
        return other in (own, *ALONE[own].split())
    return own == other or FLOORS[own] < FLOORS.get(other, -1)


def uphill(root: Path) -> list[str]:
    """Imports from one room into another that it may not import."""
    return [
        f"{module}:{line} imports {named}: {room(module)} may not import {room(named)}"
        for module, taken in graph(root).items()
        for named, line in taken.items()
        if not may_import(room(module), room(named))
    ]


def homeless(root: Path) -> list[str]:
    """Folders of the two packages that are no room and in none."""
    tops = {".".join(module.split(".")[:2]) for module, file in modules(root).items() if module.count(".") > 1}
    return sorted(top for top in tops if room(top) != top)


def circle(root: Path) -> list[str]:
    """Modules that import each other in a ring, the first one twice; none where there is no ring."""
    try:
        tuple(graphlib.TopologicalSorter(graph(root)).static_order())
    except graphlib.CycleError as e:
        return list(e.args[1])
    return []


def strangers(folder: Path, files: str = "*/1/*.py", *more: str) -> list[str]:
    """What the steps of a repository import that is not in every Triton container. more: what they have beside them."""
    return [
        f"{file.relative_to(folder)}:{line} imports {name}"
        for file in sorted(folder.glob(files))
        for name, line in imports(file)
        if not any(name == own or name.startswith(f"{own}.") for own in (*STEP, *more))
        and name.partition(".")[0] not in sys.stdlib_module_names
    ]


def too_long(root: Path) -> list[str]:
    """Tracked Python files that nobody reads in one sitting, and a front page of more than a screen and a bit."""
    command = [shutil.which("git") or "git", "ls-files", "*.py", "README.md"]
    tracked = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout.splitlines()
    lines = {name: len((root / name).read_text(encoding="utf-8").splitlines()) for name in tracked}
    return [f"{name}: {count}" for name, count in lines.items() if count > (PAGE if name == "README.md" else FILE)]


def plant(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_imports_point_one_way():
    assert uphill(ROOT) == []


def test_no_module_imports_itself_by_way_of_another():
    assert circle(ROOT) == []


def test_every_folder_is_a_room():
    assert homeless(ROOT) == []


def test_a_step_runs_in_a_stock_container():
    assert strangers(ROOT / "models") == []
    beside = (".preprocess", ".lastrow_onnxruntime")
    assert strangers(ROOT / "build" / "repository", "steps/single.py", *beside) == []


def test_no_file_is_too_long():
    assert too_long(ROOT) == []


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("build__core__parity", "from build.bench import caller\n"),
        ("build__core__parity", "def f():\n    import build.bench.caller\n"),
        (
            "build__core__parity",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..bench.caller import Caller\n",
        ),
        ("build__server__server", "from build.bench.caller import Caller\n"),
        ("build__make__lock", "from build.bench import caller as calling\n"),
        ("build__deploy__container__health", "import build.bench.caller\n"),
        ("ensemble__client__blocking", "from build.bench.caller import Caller\n"),
    ],
)
def test_an_import_uphill_is_found(tmp_path, importer, text):
    plant(tmp_path, build__bench__caller="from build.bench import load\n", build__bench__load="", **{importer: text})
    (found,) = uphill(tmp_path)
    assert importer.replace("__", ".") in found
    assert "build.bench.caller" in found


def test_a_circle_is_found(tmp_path):
    plant(tmp_path, build__a="from build import b", build__b="def f():\n    from . import c", build__c="import build.a")
    assert set(circle(tmp_path)) == {"build.a", "build.b", "build.c"}


def test_a_folder_without_a_room_is_found(tmp_path):
    assert homeless(plant(tmp_path, build__utils__text="", build__core__parity="")) == ["build.utils"]


@pytest.mark.parametrize("name", ["build", "onnxruntime", ".other", "ensemble.contract"])
def test_a_step_that_needs_more_is_found(tmp_path, name):
    step = f"import json\nimport numpy.linalg\nfrom .contract import check\nfrom {name} import x\n"
    plant(tmp_path, preprocess__1__model=step)
    assert strangers(tmp_path) == [f"preprocess/1/model.py:4 imports {name}.x"]


def test_a_file_that_is_too_long_is_found(tmp_path):
    plant(tmp_path, build__whole="x = 1\n" * FILE, build__more="x = 1\n" * (FILE + 1), build__untracked="\n" * 999)
    (tmp_path / "README.md").write_text("\n" * (PAGE + 1))
    for words in (["init", "--quiet"], ["add", "build/whole.py", "build/more.py", "README.md"]):
        subprocess.run([shutil.which("git") or "git", *words], cwd=tmp_path, check=True)
    assert too_long(tmp_path) == [f"README.md: {PAGE + 1}", f"build/more.py: {FILE + 1}"]
