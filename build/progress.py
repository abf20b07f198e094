"""Progress of work that takes longer than a person waits in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True)  # stdout is for answers


def answers() -> Console:
    """stdout; as wide as the tables need where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def say(text: str) -> None:
    """A line beside the answers, on stderr; whole, so that a path in it can be copied."""
    console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str) -> Iterator[Callable[[float | None, str], None]]:
    """A bar for one piece of work; it pulses until the first fraction is known and leaves one line behind.

    Yields:
        update(fraction, note): fraction of the work that is done, 0 to 1 or None if unknown, and a few words beside it.
    """
    with _progress(title, refresh_per_second=10) as (_, update):
        yield update


@contextmanager
def board(title: str) -> Iterator[tuple[Callable[[float | None, str], None], Callable[[RenderableType], None]]]:
    """A bar for a measurement, redrawn once a second so that it costs next to nothing, with results below it.

    Yields:
        update as `bar` does, and show(table): what stands below the bar from now on.
    """
    with _progress(title, refresh_per_second=1) as (progress, update):

        def show(table: RenderableType) -> None:
            progress.below = table

        yield update, show


class _Progress(Progress):
    below: RenderableType | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


@contextmanager
def _progress(title: str, refresh_per_second: float) -> Iterator[tuple[_Progress, Callable[[float | None, str], None]]]:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(32),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _Progress(*columns, console=console, refresh_per_second=refresh_per_second) as progress:
        task = progress.add_task(title, total=None, note="")

        def update(fraction: float | None, note: str = "") -> None:
            progress.update(task, total=None if fraction is None else 1.0, completed=fraction or 0.0, note=note)

        yield progress, update
        note = progress.tasks[0].fields["note"]
        progress.update(task, total=1.0, completed=1.0, note=note)
        progress.below = None
