"""The core: any ONNX model reduced to a row, and what a lower precision costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build.commands.options import Choice, takes
from build.progress import bar, say
from ensemble.knowledge_tracing import narrowed


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
    sample: Annotated[int, typer.Option("--sample", min=100, help="Predictions, drawn at random")] = 4000,
) -> None:
    """What a lower precision costs: AUC of the core in float32, float16 and int8 on learners that the model has not seen."""
    from build.core.accuracy import cost
    from build.model.training import split
    from build.repository import preparation

    workspace = choice.open()
    preparation.train_if_missing(workspace)
    with bar("precision") as update:
        _, test = split(workspace.folds())
        found = cost(narrowed(workspace.spec), workspace.checkpoint, test, sample, update)
    single = found["float32"]
    print(f"{workspace.spec.network.type}, {single.predictions:,} predictions: AUC {single.auc:.5f} in float32")
    for name in [name for name in found if name != "float32"]:
        lower = found[name]
        print(
            f"  {lower.auc:.5f} in {name} ({lower.auc - single.auc:+.1e}); probabilities differ by "
            f"{lower.largest_difference:.1e} at most"
        )
