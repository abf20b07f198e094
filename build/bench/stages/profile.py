"""Requests to a repository as an ensemble and as a single model, one at a time, with every stage of each timed."""

from __future__ import annotations

import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build.bench import origin, question, reply, variant
from build.bench.cell import AWAKE
from build.bench.question import Question
from build.bench.stages.client import Timed
from build.bench.stages.timeline import STAGES, Mark, cuts, stamps, traces
from build.repository import assembly
from build.server import Server, find
from ensemble.spec import Spec

LAYOUTS = ("ensemble", "single")
SHORT = 20  # steps of the shorter history
ROUNDS, CALLS = 8, 50  # in turns, and calls of a turn
BACKENDS = "--backend-directory"
SOURCE = Path(__file__).with_name("stamp.py")
NOTES = "LASTROW_STAMPS"  # as stamp.py has it
Progress = Callable[[float | None, str], None]


@dataclass
class Contestant:
    """A served repository, and what its client saw: of each length a turn's requests after the other."""

    layout: str
    server: Server
    client: Timed
    noted: Path | None
    marks: dict[int, list[Mark]] = field(default_factory=lambda: defaultdict(list))

    def turn(self, asked: Mapping[int, Question], calls: int) -> None:
        """Ask for every length, while all others rest."""
        self.server.wake()
        for length, one in asked.items():
            for _ in range(AWAKE):
                self.client.ask(one)
            self.marks[length] += [self.client.ask(one) for _ in range(calls)]
        self.server.rest()


def measure(
    spec: Spec, checkpoint: Path, folder: Path, rounds: int = ROUNDS, calls: int = CALLS, progress: Progress = print
) -> dict[str, Any]:
    """A report: of each layout and length what a client waits, and how long a request is in each stage.

    Every repository is served twice, as it is and as a copy whose steps note their times, in turns: what the notes cost
    is in the report.
    """
    found = origin.record()
    layouts = [layout for layout in LAYOUTS if layout == "ensemble" or spec.reduce.where == "core"]
    repositories = {}
    for number, layout in enumerate(layouts):
        progress(number / len(layouts), f"build {layout}")
        repositories[layout] = assembly.build(
            variant.changed(spec, serve__layout=layout), checkpoint, folder / layout
        ).folder
    cells = profile(spec, repositories, folder, rounds, calls, progress)
    model = {"title": reply.title(spec), "window": spec.model.window, "answer": spec.answers[0].name}
    return {**found, "model": model, "settings": {"rounds": rounds, "calls": calls}, "cells": cells}


def profile(
    spec: Spec, repositories: Mapping[str, Path], folder: Path, rounds: int, calls: int, progress: Progress
) -> list[dict[str, Any]]:
    """Of each layout's repository and each length what was measured; `summary` says what."""
    lengths = sorted({min(SHORT, spec.model.window), spec.model.window})
    asked = dict(zip(lengths, question.drawn(spec, lengths, spec.answers[:1]), strict=True))
    with ExitStack() as stack:
        contestants: list[Contestant] = []
        for layout, repository in repositories.items():
            for noted in (None, folder / f"{layout}-noted"):
                progress(None, f"start {layout}")
                contestants.append(_served(stack, spec, layout, repository, noted))
        for number in range(rounds):
            for place in range(len(contestants)):
                progress((number + place / len(contestants)) / rounds, f"round {number + 1} of {rounds}")
                contestants[(number + place) % len(contestants)].turn(asked, calls)
    plain = {each.layout: each for each in contestants if each.noted is None}
    found = []
    for each in contestants:
        if each.noted is not None:
            traced, stamped = traces(each.noted / "trace.json"), stamps(each.noted)
            for length in lengths:
                one = summary(cuts(each.marks[length], traced, stamped))
                unnoted = _p50([mark.read - mark.begun for mark in plain[each.layout].marks[length]])
                found.append({"layout": each.layout, "length": length, "served_us": unnoted, **one})
    return found


def summary(cut: Sequence[Mapping[tuple[str, str], int]]) -> dict[str, Any]:
    """In us: p50 of what clients waited, each stage, each stage of each step, and what of p50 the stages are not.

    A stage is the mean over the fifth of the requests whose time is nearest to p50: medians of many stages do not add up,
    since each request is slow in another one.

    >>> found = summary([{("client", "encode"): 6000, ("core", "session"): 3000}])
    >>> found["p50_us"], found["stages_us"], found["remainder_us"], found["where_us"]["core"]
    (9.0, {'encode': 6.0, 'session': 3.0}, 0.0, {'session': 3.0})
    """
    waited = sorted(cut, key=lambda one: sum(one.values()))
    apart = 2 * len(waited) // 5
    middle = waited[apart : len(waited) - apart]
    p50 = _p50([sum(one.values()) for one in waited])
    where: dict[str, dict[str, float]] = defaultdict(dict)
    for place, stage in dict.fromkeys(each for one in middle for each in one):
        where[place][stage] = round(statistics.fmean(one.get((place, stage), 0) for one in middle) / 1e3, 1)
    stages = {
        stage: round(sum(found.get(stage, 0.0) for found in where.values()), 1)
        for stage in STAGES
        if any(stage in found for found in where.values())
    }
    return {
        "p50_us": p50,
        "stages_us": stages,
        "remainder_us": round(p50 - sum(stages.values()), 1),
        "where_us": dict(where),
        "requests": len(cut),
    }


def _p50(ns: Sequence[int]) -> float:
    return round(statistics.median(ns) / 1e3, 1)


def _served(stack: ExitStack, spec: Spec, layout: str, repository: Path, noted: Path | None) -> Contestant:
    """A server of the repository, or where a folder for notes is given, of a copy that notes its times; at rest."""
    arguments: list[str] = []
    environment: dict[str, str] = {}
    log = repository.with_name(f"{layout}.log")
    if noted is not None:
        shutil.rmtree(noted, ignore_errors=True)
        repository = copied(repository, noted / "models")
        arguments = [
            *_backends(noted / "backends"),
            *(f"--trace-config={each}" for each in ("mode=triton", "rate=1", "level=TIMESTAMPS")),
            f"--trace-config=triton,file={noted / 'trace.json'}",
        ]
        environment, log = {NOTES: str(noted)}, noted / "tritonserver.log"
    server = stack.enter_context(Server(repository, arguments=arguments, environment=environment, log=log))
    stack.callback(server.wake)  # to be told to stop
    client = Timed(server.grpc_url, spec=spec)
    stack.enter_context(client)
    server.rest()
    return Contestant(layout, server, client, noted)


def copied(repository: Path, folder: Path) -> Path:
    """A copy of a repository whose Python steps note their times."""
    shutil.copytree(repository, folder)
    for step in folder.glob("*/*/model.py"):
        _stamp(step)
    return folder


def _backends(folder: Path) -> list[str]:
    """The argument for a copy of the backends, in which the embedded ONNX Runtime's notes its times too; none for others."""
    installed = [each.split("=", 1)[1] for each in find().arguments if each.startswith(f"{BACKENDS}=")]
    if not installed:
        return []
    shutil.copytree(installed[0], folder)
    _stamp(folder / "onnxruntime" / "model.py")
    return [f"{BACKENDS}={folder}"]


def _stamp(step: Path) -> None:
    step.rename(step.with_name("served.py"))
    shutil.copy(SOURCE, step)
