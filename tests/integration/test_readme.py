"""Every command and every program in a README runs, the front page's and every room's.

What stands in a block of `bash` or `python` runs here. A block of `console` is for a person, whose files or hours it takes:
of its `make` lines, and of those within sentences, the Makefile has to know target and variables.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit

from build import ROOT
from build.bench import publication
from build.bench.costs import short
from build.core.export import export
from build.core.reduce import reduce
from build.repository.workspace import open_workspace
from tests.conftest import Served, small_document, untrained
from tests.integration.test_server import ports, wait_until_ready

LISTED = subprocess.run(["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in LISTED.stdout.split()}
BLOCKS = [
    (name, language, block)
    for name, text in READMES.items()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]
LINES = [line for _, language, block in BLOCKS if language == "bash" for line in block.splitlines()]
PROGRAMS = [pytest.param(block, id=name) for name, language, block in BLOCKS if language == "python"]
MADE = {
    " ".join(line.split())
    for text in READMES.values()
    for lines in re.findall(r"`(make [^`]+)`|^(make [^#\n&]+)", text, re.MULTILINE)
    for line in lines
    if line
}
TRAINED = str(open_workspace().checkpoint.relative_to(ROOT))  # by `make demo`, which a clean clone has not run


def environment(served: Served) -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "LASTROW_URL": served.server.grpc_url}


@pytest.fixture(scope="module")
def small(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands in for the files that the commands name: a small model, so that no demonstration has to be run before."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "spec.toml").write_text(tomlkit.dumps(small_document()), encoding="utf-8")
    return {
        "ensemble/presets/knowledge_tracing.toml": folder / "spec.toml",
        TRAINED: small_checkpoint,
        "build/artifacts/mine": folder / "models",
    }


@pytest.mark.parametrize("line", [line for line in LINES if "tritonserver" not in line])
def test_command(served: Served, small: dict[str, Path], line: str):
    if line in ("make demo", "make test"):
        # These two run this very test, or take minutes: here their recipes, in .ci/run the real thing.
        line = line.replace("make", "make --dry-run")
        assert line.split()[-1] in (ROOT / ".ci" / "run").read_text()
    for named, stands in small.items():
        line = line.replace(named, str(stands))
    done = subprocess.run(
        ["bash", "-euc", line.replace(".venv", sys.prefix)],  # noqa: S607
        env=environment(served),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_checkpoint_that_is_named_is_the_demonstrations():
    assert any(f" CHECKPOINT={TRAINED} " in line for line in LINES)


def test_there_are_rooms_with_something_to_say():
    assert "README.md" in READMES
    assert len(READMES) > 1
    assert LINES


@pytest.mark.parametrize("line", sorted(MADE))
def test_the_makefile_has_what_is_named(line: str):
    done = subprocess.run(
        [*shlex.split(line), "--dry-run"],
        env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if "tritonserver" in line])
def test_make_repo_and_tritonserver(served: Served, small: dict[str, Path], line: str):
    spec, checkpoint, out = small.values()
    assert line.count("=models") == 1
    line = line.replace("&& ", "&& exec ").replace("=models", f"={out}")
    arguments, port = ports()
    process = subprocess.Popen(
        ["bash", "-euc", f"{line} {shlex.join(arguments)}"],  # noqa: S607
        env={**environment(served), "SPEC": str(spec), "CHECKPOINT": str(checkpoint), "OUT": str(out)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(port, timeout_s=240)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(served: Served, program: str):
    done = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:8001", served.server.grpc_url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_target_is_in_the_help():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("network", ["dkt", "gru", "transformer"])
def test_the_table_of_costs_is_what_the_pass_counts(network: str):
    spec = open_workspace(network=network).spec
    reduction = reduce(export(untrained(spec), spec).model, window=spec.model.window)
    table = publication.REDUCE.read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {network} |")]
    costs = reduction.before, reduction.after
    assert " to ".join(short(cost.operations) for cost in costs) in row
    assert " to ".join(short(cost.moved_bytes) for cost in costs) in row
    assert any(("final state" if network != "transformer" else "needs more of it") in rest for rest in reduction.rests)
