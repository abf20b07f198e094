"""The reference models: their training, and how well they predict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import typer

from build.commands import repository
from build.commands.options import Choice, takes
from build.progress import bar, say
from build.repository import preparation
from build.repository.workspace import NETWORKS, PRESETS, Workspace
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import narrowed

EVALUATION_TRAINING_S, EVALUATION_SAMPLE = 300.0, 4000


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


@takes("data", "learners")
def evaluate(
    choice: Choice,
    networks: Annotated[
        str, typer.Option("--networks", help="Which reference architectures, comma-separated")
    ] = "dkt,transformer",
    budget: Annotated[
        float, typer.Option("--budget", min=1.0, help="Seconds of training, each")
    ] = EVALUATION_TRAINING_S,
    sample: Annotated[
        int | None, typer.Option("--sample", min=0, help="Requests to the server, at random; 0: all [default: 4000]")
    ] = None,
) -> None:
    """Train, and score what was held out, by PyTorch and through the server; of knowledge tracing, the last fold."""
    names = [name.strip() for name in networks.split(",") if name.strip()]
    kinds = {name in PRESETS for name in names}
    if len(kinds) != 1:
        raise LastrowError(
            f"--networks {networks}: give either some of {', '.join(NETWORKS)} or some of {', '.join(PRESETS)}; they learn "
            "from data of different kinds"
        )
    if choice.data is None and kinds == {False}:
        raise LastrowError("give DATA=folder of fold*.csv with real learners (--data); the last fold is the test")
    asked = EVALUATION_SAMPLE if sample is None else sample or None
    if True in kinds:
        for name in names:
            _evaluate_preset(_apart(replace(choice, network=name)), budget, asked)
    else:
        _evaluate_learners([_apart(replace(choice, network=name)) for name in names], budget, asked)


def _apart(choice: Choice) -> Workspace:
    """Its workspace, beside what `make train` took its time for."""
    workspace = choice.open()
    folder = workspace.checkpoint.parent / "evaluation"
    return replace(workspace, checkpoint=folder / workspace.checkpoint.name, out=folder / workspace.out.name)


def _evaluate_preset(workspace: Workspace, budget: float, sample: int | None) -> None:
    """Whatever a preset holds out: through the server, by PyTorch, and by something simpler."""
    from build.bench import quality
    from build.core.inference import Inference
    from build.model import checkpoint as checkpoints
    from build.model import preset
    from build.server import Server
    from ensemble.client import Client
    from ensemble.sequence import Sequence as SequenceSpec

    spec = workspace.spec
    assert isinstance(spec, SequenceSpec)
    trial = preset.of(spec, workspace.data, workspace.learners).trial(sample)  # before what takes minutes
    preparation.train(workspace, budget)
    repository.build(workspace)
    author = Inference.of(checkpoints.load(workspace.checkpoint, spec), workspace.checkpoint, spec)
    with ExitStack() as stack:
        update = stack.enter_context(bar(f"evaluate {spec.model.name}"))
        server = stack.enter_context(Server(workspace.out))
        client = stack.enter_context(Client(server.grpc_url, spec=spec))
        found = quality.measure(client, author, trial, update)
    quality.show(found)
    say(f"wrote {found.save(workspace.checkpoint.with_name('evaluation.json'))}")


def _evaluate_learners(workspaces: Sequence[Workspace], budget: float, sample: int | None) -> None:
    """Knowledge tracing: every response of learners whom the model has not seen."""
    from build.model import checkpoint as checkpoints
    from build.model import evaluation
    from build.model.training import split
    from build.server import Server
    from ensemble.client import Client

    done, curves = [], {}
    for workspace in workspaces:
        name = workspace.spec.network.type
        preparation.train(workspace, budget)
        repository.build(workspace)
        training, test = split(workspace.folds())
        model = checkpoints.load_network(workspace.checkpoint, workspace.spec)
        with ExitStack() as stack:
            update = stack.enter_context(bar(f"evaluate {name}"))
            server = stack.enter_context(Server(workspace.out))
            client = stack.enter_context(Client(server.grpc_url, spec=workspace.spec))
            found, labels, probabilities = evaluation.evaluate(
                model, client, training, test, narrowed(workspace.spec), sample, update
            )
        done.append(found)
        curves[name] = labels, probabilities
    evaluation.show(done)
    for path in evaluation.save(done, curves, workspaces[0].checkpoint.parents[2]):
        say(f"wrote {path}")
