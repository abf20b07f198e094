"""Every command and every program in the README runs."""

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
from build.core.export import export
from build.core.reduce import reduce
from build.repository.workspace import open_workspace
from tests.conftest import Served, small_document, untrained
from tests.integration.test_server import ports, wait_until_ready

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINES = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
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


def test_make_repo_and_tritonserver(served: Served, small: dict[str, Path]):
    (line,) = [line for line in LINES if "tritonserver" in line]
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


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program(served: Served, program: str):
    assert "127.0.0.1:8001" in program
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
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{network}`") and "MB" in line]
    costs = reduction.before, reduction.after
    operations = " to ".join(f"{cost.operations / 1e9:.2f} G" for cost in costs)
    assert operations in row
    assert f"{costs[0].output_bytes / 1e6:.1f} MB to {costs[1].output_bytes / 1e3:.0f} KB" in row
    assert any(("final state" if network != "transformer" else "needs more of it") in rest for rest in reduction.rests)
