"""The reference models: their training, and how well they predict."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from build.commands import repository
from build.commands.options import Choice, takes
from build.model.next_item.histories import History
from build.progress import bar, say
from build.repository import preparation
from build.repository.workspace import PRESETS, Workspace
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import narrowed

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

    names = networks.split(",")
    if all(name in PRESETS for name in names):
        for name in names:
            _evaluate_ranking(replace(choice, data=data, network=name).open(), budget)
        return
    done, curves = [], {}
    for name in names:
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
                model, client, training, test, narrowed(workspace.spec), sample or None, update
            )
        done.append(found)
        curves[name] = labels, probabilities
    evaluation.show(done)
    for path in evaluation.save(done, curves, folder.parent.parent):
        say(f"wrote {path}")


def _evaluate_ranking(workspace: Workspace, budget: float) -> None:
    """Train a next-item preset, and score the last item of every user: served, by PyTorch, and by popularity."""
    from build.model import checkpoint as checkpoints
    from build.model.next_item import evaluation, network
    from build.model.next_item.preset import NextItem
    from build.server import Server
    from ensemble.client import Client
    from ensemble.sequence import Sequence

    folder = workspace.checkpoint.parent / "evaluation"
    workspace = replace(workspace, checkpoint=folder / workspace.checkpoint.name, out=folder / workspace.out.name)
    preparation.train(workspace, budget)
    repository.build(workspace)
    spec = workspace.spec
    assert isinstance(spec, Sequence)
    if "next_items" not in [each.name for each in spec.answer]:
        raise LastrowError(f"{workspace.spec_file} has no answer next_items, whose ranking is scored")
    training, _, held = NextItem(spec, workspace.data, workspace.learners).split()
    model = checkpoints.load(workspace.checkpoint, spec)
    assert isinstance(model, network.Network)
    (ids,) = spec.history
    with ExitStack() as stack:
        stack.enter_context(bar(f"evaluate {spec.model.name}"))
        server = stack.enter_context(Server(workspace.out))
        client = stack.enter_context(Client(server.grpc_url, spec=spec))
        tensor = next(each for each in spec.answer if each.name == "next_items").names[0]

        def served(histories: SequenceOf[History]) -> np.ndarray:
            asked = [{ids: history.item_ids} for history in histories]
            return np.stack([each[tensor] for each in client.predict(asked, answers=["next_items"])])

        local = evaluation.local(model, spec.model.window)
        scores = {
            "served": evaluation.score(served, held),
            "PyTorch": evaluation.score(local, held),
            "popularity": evaluation.score(evaluation.popularity(training, spec.sizes["items"]), held),
        }
        histories = [each.history for each in held]
        same = float((served(histories) == local(histories)).all(1).mean())
    evaluation.show(scores)
    say(f"{same:.2%} of the users have the same ten items in the same order, served and by PyTorch")
