"""The core: any ONNX model reduced to a row, and what a lower precision costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build.commands.options import Choice, takes
from build.progress import bar, say
from ensemble.knowledge_tracing import narrowed
from ensemble.sequence import Sequence


def reduce(
    model: Annotated[Path, typer.Argument(help="An ONNX file whose output has a time axis")],
    out: Annotated[Path, typer.Option("--out", help="Where the reduced model goes")],
    select: Annotated[
        str,
        typer.Option(
            "--select",
            help="last or mean or max of the valid rows (input lengths), row (input row), or own (what the model selects)",
        ),
    ] = "last",
    time_axis: Annotated[
        int, typer.Option("--time-axis", min=0, help="The output's axis of time; batch is 0, or 1 where time is 0")
    ] = 1,
    output: Annotated[
        list[str] | None, typer.Option("--output", help="Which output [default: the first; repeatable]")
    ] = None,
    window: Annotated[
        int, typer.Option("--window", min=1, help="Rows that the model takes at most; costs are counted for them")
    ] = 512,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", help="NAME=LOW:HIGH: what an input's values lie between [repeatable]")
    ] = None,
    lengths: Annotated[
        list[str] | None, typer.Option("--length", help="An input that holds how many rows are valid [repeatable]")
    ] = None,
    masks: Annotated[
        list[str] | None, typer.Option("--mask", help="An input that is 1 at valid rows and 0 behind them [repeatable]")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the graph from its output to the selection")] = False,
) -> None:
    """Take the wanted row of any ONNX model as early as its graph allows, and check that it is the same row."""
    from build.core.reduce import Declared
    from build.core.reduction import reduce_file, show

    declared = Declared.parse(ranges or (), lengths or (), masks or ())
    with bar("reduce") as update:
        reduction, proof = reduce_file(model, out, select, time_axis, output, window, declared, update)
    show(reduction, proof, explain)
    say(f"wrote {out}")


@takes("spec", "checkpoint", "data", "learners", "network")
def precision(
    choice: Choice,
    sample: Annotated[int, typer.Option("--sample", min=100, help="Requests that were held out, at random")] = 4000,
) -> None:
    """What a lower precision costs, on what was held out of the training: in AUC, or as the preset is measured."""
    from build.core.accuracy import cost
    from build.model import evaluation, preset
    from build.model.training import split
    from build.repository import preparation

    workspace = choice.open()
    spec = workspace.spec
    kind = preset.of(spec, workspace.data, workspace.learners) if isinstance(spec, Sequence) else None
    preparation.train_if_missing(workspace)
    with bar("precision") as update:
        if kind is not None:
            trial = kind.trial(sample)
        else:
            _, test = split(workspace.folds())
            trial = evaluation.trial(test, sample, narrowed(spec))
        found = cost(spec, workspace.checkpoint, trial, update)
    single = found["float32"].worth
    print(f"{spec.network.type}: {trial.title}, {len(trial.requests):,} requests")
    for name, each in found.items():
        if not each.worth:
            print(f"  {name}: {each.refused}")
            continue
        told = [f"{what} {value:.5f} ({value - single[what]:+.1e})" for what, value in each.worth.items()]
        if name == "float32":
            print(f"  {name}: {', '.join(f'{what} {value:.5f}' for what, value in single.items())}")
            continue
        print(f"  {name}: {', '.join(told)}; off float32 by {each.largest_difference:.1e} at most")
        if each.refused is not None:
            print(f"    too far off for this spec: {each.refused}, so that `make repo` builds no such core")
