"""Specs against each other: a server each, loaded in turns, so that whatever the machine does hits all of them alike."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import tritonclient.grpc as grpcclient

from build.bench import load, statistic
from build.bench.caller import Caller, answers_of, difference, of_ensemble
from build.bench.cell import Cell
from build.bench.question import Question
from build.bench.variant import Variant, build
from build.core.parity import tolerance
from build.model.checkpoint import outside
from build.repository.assembly import core_file
from build.server import Server
from ensemble.errors import LastrowError
from ensemble.spec import Spec
from ensemble.tables import LAYOUTS, Serve

BUSY = 16  # callers that throughput is measured with
Progress = Callable[[float | None, str], None]


class ContestError(LastrowError):
    """A contender answers something else than ONNX Runtime does."""


@dataclass
class Contender:
    """A spec, and what it did with one caller and with BUSY."""

    spec: Spec
    one: Cell = field(default_factory=Cell)
    many: Cell = field(default_factory=Cell)

    @property
    def p50_ms(self) -> float:
        """With one caller: the median over turns."""
        return statistics.median(self.one.p50s_ms)

    @property
    def throughput(self) -> float:
        """Histories a second with BUSY callers: the median over turns."""
        return statistics.median(self.many.throughputs)


def run(
    specs: Sequence[Spec],
    checkpoint: Path,
    folder: Path,
    questions: Sequence[Question],
    rounds: int,
    seconds: float,
    progress: Progress,
    lender: Path | None = None,
) -> list[Contender]:
    """Build and start all, hold their answers against ONNX Runtime's, and measure in turns.

    Args:
        folder: repositories and logs go there.
        seconds: a turn, with one caller and with BUSY each.
        lender: a repository whose core is taken where it is the same; by default the first contender's.

    Raises:
        ContestError: one answers something else.
    """
    contenders = [Contender(spec) for spec in specs]
    with ExitStack() as stack:
        ready = []
        for number, spec in enumerate(specs):
            progress(None, f"start {number + 1} of {len(specs)}: {setting(spec)}")
            if number or lender:
                lend(lender or folder / "0", folder / str(number), spec)
            repository = build(Variant(spec), checkpoint, folder / str(number))
            server = stack.enter_context(Server(repository, log=folder / f"{number}.log"))
            stack.callback(server.wake)  # only who is awake can be told to end
            counters = grpcclient.InferenceServerClient(server.grpc_url)
            stack.callback(counters.close)
            callers = [of_ensemble(server.grpc_url, spec) for _ in range(BUSY)]
            for caller in callers:
                stack.callback(caller.close)
            stack.callback(server.wake)  # a client's end waits for its server
            _check(callers[0], repository, spec, questions[:4])
            load.run(callers, questions, 1, 0.2)
            server.rest()
            ready.append((server, counters, callers))
        for turn in range(rounds):
            order = list(zip(contenders, ready, strict=True))
            shift = turn % len(order)
            for done, (contender, (server, counters, callers)) in enumerate(order[shift:] + order[:shift]):
                progress((turn + done / len(order)) / rounds, setting(contender.spec))
                name = contender.spec.model.name
                contender.one.measure(server, counters, callers[:1], questions, seconds, name)
                contender.many.measure(server, counters, callers, questions, seconds, name)
    return contenders


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """after / before, turn by turn: the median and its 95 % bootstrap interval."""
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    return statistics.median(ratios), *statistic.interval(ratios)


def setting(spec: Spec) -> str:
    """What tells contenders apart, in a few words."""
    steps, core = spec.steps, spec.steps.core
    threads = f"{core.instances} x {core.intra_op_threads or 'all'} threads"
    if not core.spinning:
        threads += " that do not spin"
    if spec.serve.layout == "single":
        whole = f"one model {threads}"
    else:
        whole = f"core {threads}, steps {steps.preprocess.instances} and {steps.postprocess.instances}"
    return f"{whole}, delay {core.queue_delay_us:,} us, batch {spec.batching.max_batch_size}"


def lend(lender: Path, folder: Path, spec: Spec) -> None:
    """Give a repository another one's cores, which are kept if they are the same: an export takes longer than a copy.

    Whatever the layouts are. A core has another name in each, by which one whose weights lie beside it could not be lent.
    """
    for core in spec.cores:
        target = core_file(spec, folder, core.step)
        for layout in LAYOUTS:
            source = core_file(spec.model_copy(update={"serve": Serve(layout=layout)}), lender, core.step)
            weights = outside(source)
            if target.exists() or not source.is_file() or (weights and source.name != target.name):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            for file in weights:
                shutil.copy(file, target.with_name(file.name))
            shutil.copy(source, target)


def _check(caller: Caller, repository: Path, spec: Spec, questions: Sequence[Question]) -> None:
    key, allowed = tolerance(spec)
    for question, answer in zip(questions, answers_of(repository, spec, questions), strict=True):
        (served,) = caller.ask([question])
        off = difference(spec, served, answer)
        if not off <= allowed:
            raise ContestError(
                f"served with {setting(spec)}, the answer is {off:.1e} off ONNX Runtime's; allowed is {allowed:.0e} ({key})"
            )
