"""The reference models: their training, and how well they predict."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from build.commands import repository
from build.commands.options import Choice, takes
from build.progress import bar, say
from build.repository import preparation
from ensemble.errors import LastrowError

EVALUATION_TRAINING_S = 300.0


@takes("spec", "checkpoint", "data", "learners", "network")
def train(
    choice: Choice,
    budget: Annotated[float, typer.Option("--budget", min=1.0, help="Seconds of training")] = preparation.TRAINING_S,
) -> None:
    """Train the reference model and say how well it predicts, beside the per-problem mean."""
    workspace = replace(choice, checkpoint=None).open()
    if choice.checkpoint is not None:
        if choice.checkpoint.exists():
            raise LastrowError(
                f"{choice.checkpoint} is there already, and training would write over it; give a new name as CHECKPOINT="
            )
        workspace = replace(workspace, checkpoint=choice.checkpoint)
    preparation.train(workspace, budget)
    print(f"checkpoint {workspace.checkpoint}")
    print(f"spec       {workspace.spec_file}")


@takes("learners")
def evaluate(
    choice: Choice,
    data: Annotated[
        Path, typer.Option("--data", help="Folder of fold*.csv with real learners; the last fold is the test")
    ],
    networks: Annotated[
        str, typer.Option("--networks", help="Which reference architectures, comma-separated")
    ] = "dkt,transformer",
    budget: Annotated[
        float, typer.Option("--budget", min=1.0, help="Seconds of training, each")
    ] = EVALUATION_TRAINING_S,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Predictions asked of the server, at random; 0: all")
    ] = 4000,
) -> None:
    """Train on all folds but the last, predict the last one offline and through the server, and compare."""
    from build.model import checkpoint as checkpoints
    from build.model import evaluation
    from build.model.training import split
    from build.server import Server
    from ensemble.client import Client

    done, curves = [], {}
    for name in networks.split(","):
        workspace = replace(choice, data=data, network=name).open()
        # Beside what `make train` took its time for.
        folder = workspace.checkpoint.parent / "evaluation"
        workspace = replace(workspace, checkpoint=folder / workspace.checkpoint.name, out=folder / workspace.out.name)
        preparation.train(workspace, budget)
        repository.build(workspace)
        training, test = split(workspace.folds())
        model = checkpoints.load_network(workspace.checkpoint, workspace.spec)
        with ExitStack() as stack:
            update = stack.enter_context(bar(f"evaluate {name}"))
            server = stack.enter_context(Server(workspace.out))
            client = stack.enter_context(Client(server.grpc_url, spec=workspace.spec))
            found, labels, probabilities = evaluation.evaluate(
                model, client, training, test, workspace.spec, sample or None, update
            )
        done.append(found)
        curves[name] = labels, probabilities
    evaluation.show(done)
    for path in evaluation.save(done, curves, folder.parent.parent):
        say(f"wrote {path}")
