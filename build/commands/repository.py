"""The model repository."""

from __future__ import annotations

from build import ROOT
from build.commands.options import Choice, takes
from build.repository.workspace import Workspace
from ensemble.spec import DEFAULT_SPEC


@takes("spec", "checkpoint", "out", "data", "learners", "network", "factory", "device")
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
