"""The command `lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemble.lint import found_in
from ensemble.lint.ignores import applied
from ensemble.lint.load.asking import ask
from ensemble.lint.report import FORMATS, explain
from ensemble.lint.repository import LintError, read


def lint(
    repository: Annotated[Path | None, typer.Argument(help="A model repository, anyone's")] = None,
    load: Annotated[
        bool, typer.Option("--load", help="Ask Triton too: load each model in the tritonserver at hand")
    ] = False,
    load_seconds: Annotated[float, typer.Option(min=1, help="Time limit of --load")] = 120.0,
    triton: Annotated[str | None, typer.Option(help="The version that serves, e.g. 24.10 [default: any]")] = None,
    typical: Annotated[
        list[str] | None, typer.Option(help="How long a tensor's free dimensions are, e.g. logits=512; once a tensor")
    ] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Of the machine that serves [default: this one's]")] = None,
    flag: Annotated[
        list[str] | None, typer.Option(help="One of the serving tritonserver's own, e.g. --rate-limit=...")
    ] = None,
    form: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}")] = "text",
    explained: Annotated[str | None, typer.Option("--explain", help="A rule's page; `all` lists the rules")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too")] = False,
) -> None:
    """Find settings that Triton refuses, or takes without a word and that do nothing, or harm.

    Exit code 0: no error; 1: an error (with --strict: or a warning); 2: nothing could be looked at.
    """
    if explained is not None:
        print(explain(explained))
        return
    if repository is None:
        raise LintError("lint what? Pass a model repository, e.g. models, or --explain a rule")
    if form not in FORMATS:
        raise LintError(f"--format {form}: there is {', '.join(FORMATS)}")
    lengths = dict(map(_typical, typical or ()))
    asked = read(repository, cores, lengths, _version(triton), flag or ())
    found = found_in(asked)
    if load:
        found = sorted([*found, *ask(asked, load_seconds)], key=lambda finding: (finding.file, finding.key))
    found = applied(asked, found)
    print(FORMATS[form](repository, found, load))
    if any(finding.severity == "error" or (strict and finding.severity == "warning") for finding in found):
        raise typer.Exit(1)


def _version(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    year, dot, month = text.partition(".")
    if not (dot and year.isdigit() and month.isdigit() and len(month) == 2 and 1 <= int(month) <= 12):
        raise LintError(f"--triton {text}: a version is a container's, YY.MM, e.g. 24.10")
    return int(year), int(month)


def _typical(text: str) -> tuple[str, list[int]]:
    name, equals, sizes = text.partition("=")
    if not (name and equals and all(size.isdigit() and int(size) for size in sizes.split(","))):
        raise LintError(
            f"--typical {text}: write a tensor's name and a size for each -1 of it, e.g. logits=512 or image=3,224"
        )
    return name, [int(size) for size in sizes.split(",")]
