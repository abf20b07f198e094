"""Scoring offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ensemble.errors import HistoryError


def score(
    files: Annotated[list[Path], typer.Argument(help="Histories as .parquet, .jsonl or .csv, or folders of them")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the parts; the same again goes on where a run stopped")],
    repository: Annotated[Path, typer.Option("--repository", help="What make repo wrote")] = Path("models"),
    top: Annotated[
        int | None, typer.Option(min=1, help="So many columns a history, those that the model would answer first")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="File of column numbers, a line each: these columns' numbers")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every column of the first answer, as float16")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes [default: one a core]")] = None,
    window: Annotated[int, typer.Option(min=1, help="Rows of a part, sorted by length together")] = 4096,
) -> None:
    """Answer histories by the million, without a server: what the served model would, a part of the rows at a time."""
    from build.progress import bar, say
    from build.score import Scorer, run

    numbers = None if candidates is None else _numbers(candidates)
    scorer = Scorer(repository, top=top, candidates=numbers, everything=everything)
    cores = workers or len(os.sched_getaffinity(0))
    with bar("score") as update:
        count = run.score(files, out, scorer, cores, window, update)
    say(f"{count.scored:,} histories scored, parts in {out}")
    if count.refused:
        say(f"{count.refused:,} refused: rows and reasons in {out}/*.refused.jsonl")


def _numbers(file: Path) -> list[int]:
    """The numbers of a file, a line each."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        return [int(line) for line in lines if line.strip()]
    except (OSError, ValueError) as e:
        raise HistoryError(f"cannot read column numbers from {file}: {e}; needed is one a line") from e
