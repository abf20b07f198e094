"""What is measured beside something else: the demonstration, the ladder, the peers; and a request's stages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from build import ARTIFACTS
from build.commands import repository
from build.commands.options import Choice, takes
from build.progress import answers, bar, board, say
from build.repository import preparation
from build.repository.workspace import NETWORKS, PRESETS, Workspace
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence
from ensemble.spec import Spec

HELD = 200  # requests held out of the training, of which a demonstration says how well they are answered


@takes("spec", "checkpoint", "out", "data", "learners", "network", "device", "layout")
def demo(choice: Choice) -> None:
    """Build everything, serve it, ask for several learners, compare with PyTorch, and stop."""
    from build.bench.demonstration import demonstrate, pick
    from build.model import checkpoint as checkpoints
    from build.model.training import split

    workspace = choice.open()
    repository.build(workspace)
    spec = workspace.spec
    if isinstance(spec, Sequence):
        _demonstrate(workspace, spec)
        return
    _, test = split(workspace.folds())
    demonstrate(workspace, checkpoints.load_network(workspace.checkpoint, spec), pick(test, spec.model.window))


def _demonstrate(workspace: Workspace, spec: Sequence) -> None:
    """Of any sequence model: a preset's own histories, or random ones."""
    from build.bench.sequence_demonstration import demonstrate, drawn
    from build.core.inference import Inference
    from build.model import checkpoint as checkpoints
    from build.model import preset

    model = None if spec.network.type == "onnx" else checkpoints.load(workspace.checkpoint, spec)
    author = Inference.of(model, workspace.checkpoint, spec)
    if spec.network.type not in preset.KINDS:
        demonstrate(workspace, spec, author, drawn(spec))
        return
    kind = preset.of(spec, workspace.data, workspace.learners)
    # What somebody's own weights were trained on, nobody here knows.
    trial = None if workspace.checkpoint_given and workspace.data is None else kind.trial(HELD)
    demonstrate(workspace, spec, author, kind.requests(), trial)


@takes("spec", "checkpoint", "data", "learners", "network", "factory")
def bench(
    choice: Choice,
    lengths: Annotated[
        Path | None,
        typer.Option(
            "--lengths",
            help="As long as these histories are the mix's: a folder of fold*.csv, the network's own format, or a length "
            "a line [default: --data]",
        ),
    ] = None,
    rungs: Annotated[
        str | None, typer.Option("--rungs", help="Which, e.g. 0,1,4-8,floor [default: all of them]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, only concurrency 1 and 16")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu: without rung 11, even where there is a GPU; gpu: with it")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Write picture and table into the repository")] = False,
) -> None:
    """Climb from the naive deployment to this one on this machine, and show where each millisecond goes."""
    from build.bench import publication
    from build.bench.ladder import ladder, report, rung, waterfall

    if device not in (None, "cpu", "gpu"):
        raise LastrowError(f"there is no device {device!r}; there are cpu and gpu")
    # The served repository stays as it is: every rung is built in a folder of its own.
    workspace = choice.open()
    spec = workspace.spec
    chosen = rung.select(rungs, rung.rungs(spec))
    _check_published(spec, publish)
    preparation.train_if_missing(workspace)
    folder = ARTIFACTS / "bench" / _folder(spec)
    settings = ladder.Settings.quick() if quick else ladder.Settings()
    climb = ladder.Climb(workspace, chosen, settings, folder, lengths, device)
    with ExitStack() as stack:
        with bar("build and start the rungs") as update:
            stack.enter_context(climb.ready(update))
        with board("climb") as (update, show):
            climb.climb(update, lambda: show(report.table(climb.report())))
    found = climb.report()
    publication.save(found, folder / "ladder.json")
    written = [folder / "ladder.json", *waterfall.draw(found, folder)]
    if publish:
        written += report.publish(found)
    _show(report.table(found), report.lines(found), written)


def _show(table: Table, lines: Iterable[str], written: Iterable[Path]) -> None:
    """What was found, and the files that have it."""
    answers().print(table)
    for line in lines:
        answers().print(line, highlight=False)
    for path in written:
        say(f"wrote {path}")


def _folder(spec: Spec) -> str:
    """Where a model's figures go, among those of others."""
    return spec.model.name if isinstance(spec, Sequence) else str(spec.network.type)


def _check_published(spec: Spec, publish: bool) -> None:
    if publish and spec.network.type not in (*NETWORKS, *PRESETS):
        raise LastrowError(
            f"published are the presets' figures, {', '.join((*NETWORKS, *PRESETS))}, and a network of type "
            f"{spec.network.type} is of none: leave out PUBLISH=1"
        )


@takes("spec", "checkpoint", "data", "learners", "network", "factory")
def bench_peers(
    choice: Choice,
    quick: Annotated[bool, typer.Option("--quick", help="One round")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Write the table into the repository")] = False,
) -> None:
    """Serve the same core by LitServe, BentoML, Ray Serve, Mosec and others, and compare under the same load."""
    from build.bench import publication
    from build.bench.peers import comparison, report
    from build.repository import assembly

    workspace = choice.open()
    _check_published(workspace.spec, publish)
    preparation.train_if_missing(workspace)
    folder = ARTIFACTS / "bench" / "peers" / _folder(workspace.spec)
    built = assembly.build(workspace.spec, workspace.checkpoint, folder / "models")
    rounds, turn_s = (1, 1.0) if quick else (5, 2.0)
    with bar("peers") as update:
        found = comparison.compare(workspace.spec, built.folder, rounds, turn_s, folder, update)
    publication.save(found, folder / "peers.json")
    written = [folder / "peers.json"]
    if publish:
        written += report.publish(found)
    summary = [f"{name}: {value:.3f}" for name, value in report.summary(found).items()]
    _show(report.table(found), summary, written)


@takes("spec", "checkpoint", "data", "learners", "network", "factory")
def stages(
    choice: Choice,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Write picture and table into the repository")] = False,
) -> None:
    """Time each stage of a request, from the client's call to its answer, of the ensemble and of all steps in one model."""
    from build.bench import publication
    from build.bench.stages import profile, report

    workspace = choice.open()
    _check_published(workspace.spec, publish)
    preparation.train_if_missing(workspace)
    folder = ARTIFACTS / "bench" / _folder(workspace.spec) / "stages"
    with bar("stages") as update:
        rounds = 2 if quick else profile.ROUNDS
        found = profile.measure(workspace.spec, workspace.checkpoint, folder, rounds, progress=update)
    publication.save(found, folder / "stages.json")
    written = [folder / "stages.json", *report.draw(found, folder)]
    if publish:
        written += report.publish(found)
    _show(report.table(found), report.lines(found), written)
