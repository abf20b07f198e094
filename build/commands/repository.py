"""The model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build import ROOT
from build.commands.options import Choice, takes
from build.repository.workspace import Workspace
from ensemble.spec import DEFAULT_SPEC


@takes("spec", "checkpoint", "out", "data", "learners", "network", "factory", "device", "layout")
def repo(choice: Choice) -> None:
    """Build the model repository, and only what changed; train the reference model first if it is not there."""
    build(choice.open())


def build(workspace: Workspace) -> None:
    """Build a workspace's repository; the default one's sweeps, which are tracked beside it, go with it."""
    from build.analyzer import profile
    from build.repository import preparation

    preparation.build(workspace)
    if (workspace.spec_file, workspace.out) == (DEFAULT_SPEC, ROOT / "models"):
        profile.write(workspace.spec)


def inspect(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="An ONNX file, or a factory's state_dict")
    ] = None,
    factory: Annotated[
        str | None, typer.Option("--factory", help="package.module:function that makes the nn.Module")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the spec goes [default: a folder among the artifacts]")
    ] = None,
) -> None:
    """Find out what a model takes and answers, and write a spec of it to read and change."""
    from build.progress import answers, say
    from build.repository import inspection

    made = inspection.inspect(checkpoint, factory, out)
    answers().print(inspection.show(made.found))
    say(
        f"wrote {made.spec}: read it, and then `make repo SPEC={made.spec} CHECKPOINT={checkpoint or 'its state_dict'}`"
    )
