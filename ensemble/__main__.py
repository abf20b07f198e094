"""Command line of `ensemble`: ask a running server, check a repository."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemble import requests
from ensemble.client import DEFAULT_URL, Client, Prediction, Tls
from ensemble.command import run
from ensemble.errors import HistoryError, LastrowError
from ensemble.interface import Interface
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.learners.history import History, decode, read, read_text
from ensemble.learners.vocabulary import Vocabulary
from ensemble.lint.command import lint
from ensemble.spec import DEFAULT_SPEC, Spec

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.command()(lint)

SHOWN = 4  # numbers of an answer in a table

Url = Annotated[str, typer.Option(help="The server's gRPC endpoint", envvar="LASTROW_URL")]
SpecFile = Annotated[
    Path | None, typer.Option("--spec", help="The spec the server was built from [default: knowledge tracing's]")
]
Model = Annotated[
    str | None, typer.Option("--model", help="Instead of a spec: the model's name, and the server says more")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines")]
UseTls = Annotated[bool, typer.Option("--tls", help="Encrypt; implied by the files below")]
PemFile = Annotated[Path | None, typer.Option(help="PEM file")]
Deadline = Annotated[float, typer.Option(min=0.001, help="Seconds until the call is given up, retries included")]


@app.command()
def predict(
    file: Annotated[str, typer.Argument(help="Histories as .csv, .json, .jsonl or .parquet; - reads stdin")],
    top: Annotated[
        int | None, typer.Option(min=1, help="Ids of an answer to show [default: all the server gives]")
    ] = None,
    answers: Annotated[
        str | None, typer.Option("--answers", help="Their names, with commas between [default: the model's first]")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="With --json: every problem's too")] = False,
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="keyid2idx.json or {name: number}: problems by your own names")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    spec: SpecFile = None,
    model: Model = None,
    deadline: Deadline = 10.0,
    tls: UseTls = False,
    root_certificates: PemFile = None,
    private_key: PemFile = None,
    certificate_chain: PemFile = None,
) -> None:
    """Predict for every history in a file; of knowledge tracing, also propose each learner's next problems."""
    transport = _tls(tls, root_certificates, private_key, certificate_chain)
    described = _spec(spec, model)
    if probabilities or vocabulary is not None:
        if described is None or answers is not None:
            raise LastrowError(
                "--probabilities and --vocabulary go with a spec of knowledge tracing, without --answers"
            )
        described = narrowed(described)
    with Client(url, spec=described, model=model, deadline_s=deadline, tls=transport) as client:
        if isinstance(described, KnowledgeTracing) and answers is None:
            _predict_learners(client, described, file, top, probabilities, vocabulary, as_json)
        else:
            _predict(client, file, top, answers, as_json)


def _predict_learners(
    client: Client,
    spec: KnowledgeTracing,
    file: str,
    top: int | None,
    probabilities: bool,
    vocabulary: Path | None,
    as_json: bool,
) -> None:
    count = spec.next_problems.count if top is None else top
    if count > spec.next_problems.count:
        raise LastrowError(
            f"--top {count}: the server proposes {spec.next_problems.count}; raise next_problems.count in the spec and run "
            "`make repo` for more"
        )
    words = None if vocabulary is None else Vocabulary.read(vocabulary, spec.model.problems)
    number = int if words is None else words.number
    if file == "-":
        histories = read_text(decode(sys.stdin.buffer.read(), "stdin"), "stdin", number)
    else:
        histories = read(Path(file), number)
    answers = client.predict(histories, probabilities=probabilities, next_problems=True)
    if as_json:
        print(json.dumps([_as_json(h, a, count, words) for h, a in zip(histories, answers, strict=True)]))
    else:
        _show(histories, answers, count, words)


def _predict(client: Client, file: str, top: int | None, named: str | None, as_json: bool) -> None:
    """For any model."""
    try:
        content, name = (sys.stdin.buffer.read(), "stdin") if file == "-" else (Path(file).read_bytes(), file)
    except OSError as e:
        raise HistoryError(f"cannot read {file}: {e.strerror}") from e
    interface = client.interface()
    histories = requests.read(content, name, interface)
    wanted = None if named is None else [each.strip() for each in named.split(",") if each.strip()]
    answers = client.predict([history.inputs for history in histories], answers=wanted)
    picked = {tensor for answer in interface.answers if answer.picks for tensor in answer.tensors}
    for answer in answers:
        answer.update({tensor: values[:top] for tensor, values in answer.items() if tensor in picked})
    if as_json:
        word = interface.contract.words.history
        entries = [
            {word: history.name, "answers": {tensor: values.tolist() for tensor, values in answer.items()}}
            for history, answer in zip(histories, answers, strict=True)
        ]
        print(json.dumps(entries))
    else:
        _show_answers(interface, histories, answers)


@app.command()
def status(
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    spec: SpecFile = None,
    model: Model = None,
    deadline: Deadline = 10.0,
    tls: UseTls = False,
    root_certificates: PemFile = None,
    private_key: PemFile = None,
    certificate_chain: PemFile = None,
) -> None:
    """Say whether server and model are ready; exit code 0 only if the model is."""
    transport = _tls(tls, root_certificates, private_key, certificate_chain)
    with Client(url, spec=_spec(spec, model), model=model, deadline_s=deadline, tls=transport) as client:
        found, name = client.status(), client.model
    if as_json:
        print(json.dumps({"url": url, "model": name, **asdict(found)}))
    else:
        ready = "ready" if found.ready else "not ready"
        versions = f", version {', '.join(found.model_versions)}" if found.model_versions else ""
        print(f"{url}: tritonserver {found.server_version}, {ready}")
        print(f"{name}: {'ready' if found.model_ready else 'not ready'}{versions}")
    raise typer.Exit(0 if found.model_ready else 1)


def _spec(file: Path | None, model: str | None) -> Spec | None:
    """What the client is given, unless it is a model's name."""
    if model is None:
        return Spec.read(file or DEFAULT_SPEC)
    if file is not None:
        raise LastrowError(f"--spec {file} and --model {model} both say what is asked; give one of them")
    return None


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


def _show_answers(
    interface: Interface, histories: list[requests.Request], answers: list[dict[str, np.ndarray]]
) -> None:
    """Ids and values of what picks columns; of all else its shape and the first numbers."""
    words = interface.contract.words
    leading = (
        None if interface.function else next(iter(interface.contract.inputs))
    )  # a function counts the steps itself
    table = Table()
    for column in (words.history, words.steps, "answer", "id", "value"):
        table.add_column(column, justify="left" if column in (words.history, "answer") else "right")
    for history, answer in zip(histories, answers, strict=True):
        first = (escape(history.name), "" if leading is None else str(len(history.inputs[leading])))
        for wanted in interface.answers:
            own = [answer[tensor] for tensor in wanted.tensors if tensor in answer]
            if wanted.picks and own:
                cells = [(str(number), f"{value:.4g}") for number, value in zip(*own, strict=True)] or [("none", "")]
            else:
                cells = [(escape(str(list(values.shape))), _few(values)) for values in own]
            for place, cell in enumerate(cells):
                table.add_row(*first, "" if place else wanted.name, *cell)
                first = ("", "")
        table.add_section()
    Console().print(table)


def _few(values: np.ndarray) -> str:
    numbers = [f"{value:.4g}" for value in values.ravel()[: SHOWN + 1]]
    return ", ".join(numbers if len(numbers) <= SHOWN else [*numbers[:SHOWN], "..."])


if __name__ == "__main__":
    run(app)
