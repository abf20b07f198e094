"""Command line of `ensemble`: ask a running server, check a repository."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemble.client import DEFAULT_URL, Client, Prediction, Tls
from ensemble.command import run
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import narrowed
from ensemble.learners.history import History, decode, read, read_text
from ensemble.learners.vocabulary import Vocabulary
from ensemble.lint import lint as lint_repository
from ensemble.spec import DEFAULT_SPEC, Spec

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Url = Annotated[str, typer.Option(help="The server's gRPC endpoint", envvar="LASTROW_URL")]
SpecFile = Annotated[Path, typer.Option("--spec", help="The spec the server was built from")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines")]
UseTls = Annotated[bool, typer.Option("--tls", help="Encrypt; implied by the files below")]
PemFile = Annotated[Path | None, typer.Option(help="PEM file")]
Deadline = Annotated[float, typer.Option(min=0.001, help="Seconds until the call is given up, retries included")]


@app.command()
def predict(
    file: Annotated[str, typer.Argument(help="Histories as .csv or .json; - reads either from stdin")],
    top: Annotated[
        int | None, typer.Option(min=1, help="Next problems to show [default: all the server gives]")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="With --json: every problem's too")] = False,
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="keyid2idx.json or {name: number}: problems by your own names")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    spec: SpecFile = DEFAULT_SPEC,
    deadline: Deadline = 10.0,
    tls: UseTls = False,
    root_certificates: PemFile = None,
    private_key: PemFile = None,
    certificate_chain: PemFile = None,
) -> None:
    """Predict for every learner in a file, and propose the next problems."""
    described = narrowed(Spec.read(spec))
    count = described.next_problems.count if top is None else top
    if count > described.next_problems.count:
        raise LastrowError(
            f"--top {count}: the server proposes {described.next_problems.count}; raise next_problems.count in "
            f"{spec} and run `make repo` for more"
        )
    words = None if vocabulary is None else Vocabulary.read(vocabulary, described.model.problems)
    number = int if words is None else words.number
    if file == "-":
        histories = read_text(decode(sys.stdin.buffer.read(), "stdin"), "stdin", number)
    else:
        histories = read(Path(file), number)
    transport = _tls(tls, root_certificates, private_key, certificate_chain)
    with Client(url, spec=described, deadline_s=deadline, tls=transport) as client:
        answers = client.predict(histories, probabilities=probabilities, next_problems=True)
    if as_json:
        print(json.dumps([_as_json(h, a, count, words) for h, a in zip(histories, answers, strict=True)]))
    else:
        _show(histories, answers, count, words)


@app.command()
def status(
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    spec: SpecFile = DEFAULT_SPEC,
    deadline: Deadline = 10.0,
    tls: UseTls = False,
    root_certificates: PemFile = None,
    private_key: PemFile = None,
    certificate_chain: PemFile = None,
) -> None:
    """Say whether server and model are ready; exit code 0 only if the model is."""
    transport = _tls(tls, root_certificates, private_key, certificate_chain)
    with Client(url, spec=Spec.read(spec), deadline_s=deadline, tls=transport) as client:
        found, model = client.status(), client.spec.model.name
    if as_json:
        print(json.dumps({"url": url, "model": model, **asdict(found)}))
    else:
        ready = "ready" if found.ready else "not ready"
        versions = f", version {', '.join(found.model_versions)}" if found.model_versions else ""
        print(f"{url}: tritonserver {found.server_version}, {ready}")
        print(f"{model}: {'ready' if found.model_ready else 'not ready'}{versions}")
    raise typer.Exit(0 if found.model_ready else 1)


def _tls(wanted: bool, root: Path | None, key: Path | None, chain: Path | None) -> Tls | None:
    return Tls(root, key, chain) if wanted or root or key or chain else None


def _as_json(history: History, answer: Prediction, count: int, words: Vocabulary | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "learner": history.learner,
        "history": len(history),
        "next_problems": [{"problem_id": i, "probability": p} for i, p in _proposals(answer, count, words)],
    }
    if answer.probabilities is not None:
        entry["probabilities"] = [float(p) for p in answer.probabilities]
    return entry


def _proposals(answer: Prediction, count: int, words: Vocabulary | None) -> list[tuple[int | str, float]]:
    ids, chances = answer.next_problem_ids, answer.next_problem_probabilities
    assert ids is not None
    assert chances is not None
    names: list[Any] = ids[:count].tolist() if words is None else words.names(ids[:count])
    return [(name, float(p)) for name, p in zip(names, chances[:count], strict=True)]


def _show(histories: list[History], answers: list[Prediction], count: int, words: Vocabulary | None) -> None:
    table = Table()
    for column in ("learner", "history", "next problem", "P(correct)"):
        table.add_column(column, justify="left" if column == "learner" else "right")
    for history, answer in zip(histories, answers, strict=True):
        for rank, (problem, chance) in enumerate(_proposals(answer, count, words)):
            first = (escape(history.learner), str(len(history))) if rank == 0 else ("", "")
            table.add_row(*first, escape(str(problem)), f"{chance:.3f}")
        table.add_section()
    Console().print(table)


@app.command()
def lint(
    repository: Annotated[Path, typer.Argument(help="A model repository, anyone's")],
    length: Annotated[int, typer.Option(min=1, help="Assumed for each dimension of -1")] = 512,
    cores: Annotated[int | None, typer.Option(min=1, help="Of the machine that serves [default: this one's]")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too")] = False,
) -> None:
    """Find settings that Triton takes without a word and that do nothing, or harm. Exit code 1 where one is an error."""
    found = lint_repository(repository, length, cores)
    for finding in found:
        print(finding)
    if not found:
        print(f"{repository}: nothing to change")
    if any(strict or finding.severity == "error" for finding in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
