"""The options that most commands share. Each stands here alone: a command names those that it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from build.repository.workspace import Workspace, open_workspace


@dataclass(frozen=True)
class Choice:
    """Which model a command is about, as far as it was said."""

    spec: Annotated[
        Path | None, typer.Option("--spec", help="The spec [default: ensemble/presets/knowledge_tracing.toml]")
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="A state_dict [default: the reference model, trained if it is not there]"),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The repository [default: models for the default spec, else an artifact]"),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of fold*.csv with real learners [default: simulated learners]"),
    ] = None
    learners: Annotated[int | None, typer.Option("--learners", min=10, help="Use so many learners only")] = None
    network: Annotated[
        str | None,
        typer.Option("--network", help="A reference architecture: dkt, gru or transformer [default: the spec's]"),
    ] = None
    factory: Annotated[
        str | None,
        typer.Option(
            "--factory", help="package.module:function that makes the nn.Module whose state_dict the checkpoint is"
        ),
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", help="What the core runs on: cpu or gpu [default: the spec's]")
    ] = None
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="A model a step, or all in one: ensemble or single [default: the spec's]"),
    ] = None

    def open(self) -> Workspace:
        """The files of that model; raises as open_workspace does."""
        return open_workspace(**vars(self))


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options of Choice, in front of its own; it gets them as its first argument.

    Example:
        @takes("spec", "network")
        def precision(choice: Choice, sample: int = 4000) -> None: ...
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Choice, include_extras=True)
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name])
            for name in names
        ]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(Choice(**{name: given.pop(name) for name in names}), **given)

        parameters = [*shared, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
