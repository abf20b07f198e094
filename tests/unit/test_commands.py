"""The command lines of `build`, without a server: what they share, and what they do not wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from build import ROOT
from build.commands.options import Choice, takes


def test_a_command_takes_the_options_that_it_names_and_no_others():
    seen: list[tuple[Choice, int]] = []

    @takes("spec", "learners")
    def command(choice: Choice, rounds: int = 3) -> None:
        """Something."""
        seen.append((choice, rounds))

    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    assert runner.invoke(app, ["--spec", "a.toml", "--learners", "20"]).exit_code == 0
    assert runner.invoke(app, ["--rounds", "5"]).exit_code == 0
    assert seen == [(Choice(spec=Path("a.toml"), learners=20), 3), (Choice(), 5)]
    assert runner.invoke(app, ["--learners", "9"]).exit_code == 2
    assert runner.invoke(app, ["--network", "gru"]).exit_code == 2


def test_an_option_that_nobody_has_is_refused_when_the_command_is_written():
    with pytest.raises(KeyError, match="colour"):
        takes("colour")(print)


def test_help_waits_for_no_pytorch():
    program = "import sys, build.__main__; sys.exit(bool({'torch', 'onnx', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
