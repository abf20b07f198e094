"""The battery: a reduced model held against the full one, with feeds that could part them.

Values over the whole range of each input, batches and times that include 1, the window, one less and odd ones, further axes
of other lengths, histories of unequal lengths with noise behind them. It also asks of the full model what serving relies on:
that a history's answer depends neither on its neighbours in a batch nor on what lies behind its length. And it asks itself
whether a wrong row would have been seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from build.core.asked import NEIGHBOURS, NOISE, PADDING, Full, Own, Question, by_name
from build.core.reduce import Inputs, ReductionError, Select
from build.core.reduce.axes import BATCH, TIME
from build.core.reduce.file import open_session
from build.core.reduce.inputs import Input
from build.core.reduce.shapes import run

Array = np.ndarray

TOLERANCE = 1e-4  # of the answers' spread: sums of other shape round in other places
HALF_TOLERANCE = 2e-2  # the same where a model computes in 16 bits
_FLOOR = 0.1  # of the largest answer: answers that hardly differ are held against this
_TELLING = 10  # times what is allowed: so far from the right row a wrong one is seen
_SHORT = 64  # rows up to which a history is asked for twice
_SCALES = (1.0, 3.0)  # of floating-point inputs that nothing bounds


@dataclass(frozen=True)
class Case:
    """One size to compare at. seed: of the values."""

    batch: int
    time: int
    others: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Proof:
    """What was checked, and with what result.

    Attributes:
        difference: the largest one from the full model, of the answers' spread.
        dependence: the largest effect of neighbours and of what lies behind a history's length, likewise.
        cases: the sizes compared at.
        inputs: what was fed.
    """

    difference: float
    dependence: float
    cases: tuple[Case, ...]
    inputs: tuple[Input, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """For people: what was checked.

        >>> Proof(difference=2e-7, dependence=0, cases=(Case(2, 512, (), 0),), inputs=()).lines()[0]
        "largest difference from the full model: 2.0e-07 of the answers' spread"
        """
        sizes = ", ".join(f"{case.batch} x {case.time}" for case in self.cases)
        return [
            f"largest difference from the full model: {self.difference:.1e} of the answers' spread",
            f"largest effect of neighbours and of noise behind the length: {self.dependence:.1e}",
            f"compared at batch x time {sizes}, with",
            *(f"  {each}" for each in self.inputs),
        ]


def times(window: int) -> list[int]:
    """The lengths to compare at: short ones, odd ones, the window and one less.

    >>> times(512)
    [1, 2, 5, 17, 33, 64, 171, 257, 511, 512]
    """
    wanted = {1, 2, 5, 17, 33, 64, window // 3 | 1, window // 2 | 1, window - 1, window}
    return sorted(time for time in wanted if 1 <= time <= window)


def cases(inputs: Inputs) -> list[Case]:
    """The sizes to compare at: a seed makes each another one even where the file fixes all sizes.

    Short ones are cheap, and asked twice.

    >>> [(case.batch, case.time) for case in cases(Inputs((), {}, 512))][:10]
    [(1, 1), (3, 2), (2, 5), (5, 17), (2, 33), (3, 64), (1, 171), (3, 257), (2, 511), (2, 512)]
    >>> [(case.batch, case.time) for case in cases(Inputs((), {}, 512))][10:]
    [(2, 2), (3, 5), (1, 17), (3, 33), (2, 64)]
    """
    window = inputs.window
    batches = [1, 3, 2, 5, 2, 3]
    found = []
    every = times(window)
    for number, time in enumerate([*every, *(time for time in every if 1 < time <= _SHORT)]):
        # A whole window is padded too: what a model does from some number of rows on, it does there to a short history.
        batch = 2 if 1 < window - 1 <= time else batches[number % len(batches)]
        # Of further axes one size that time has not; every third time the same, which is the commonest in use.
        further = [
            min(window, (3 * number + 7 * n + 1) % 40 + 1) if number % 3 else time for n in range(len(inputs.others))
        ]
        sizes = inputs.sizes(batch, time)
        found.append(Case(sizes[BATCH], sizes[TIME], tuple(further), number))
    return found


def prove(
    full: Path,
    reduced: Path,
    inputs: Inputs,
    outputs: str | Sequence[str],
    select: Select = "last",
    time_axis: int = 1,
    allowed: float = TOLERANCE,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Proof:
    """Hold the reduced model against the full one.

    >>> from tempfile import TemporaryDirectory
    >>> from build.core.reduce.example import cut, model
    >>> from build.core.reduce.file import save
    >>> reduction = cut("y = Tanh(x)")
    >>> with TemporaryDirectory() as folder:
    ...     full, row = Path(folder) / "full.onnx", Path(folder) / "row.onnx"
    ...     save(model("y = Tanh(x)"), full)
    ...     save(reduction.model, row)
    ...     proof = prove(full, row, reduction.inputs, "y")
    >>> proof.difference, len(proof.cases)
    (0.0, 15)
    >>> print(*proof.inputs)
    x [batch, time, 2]: of any size (floating point)

    Args:
        inputs: of the full model.
        outputs: of the full model, the ones that were reduced, in the order of the reduced model's. Each is compared.
        allowed: how far they may part, of the answers' spread.

    Raises:
        ReductionError: they part, the full model answers a history otherwise in other company, or the comparison says
            nothing; and in each case what to do.
    """
    if inputs.unknown:
        raise ReductionError(_undeclared(inputs))
    # The full model is the measure: ONNX Runtime's fusions believe sizes that exporters note and only the example had.
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    kind = Own if select == "own" else Full
    whole = kind(open_session(full, optimised=False), inputs, names, select, time_axis)
    row = open_session(reduced)
    index = [i.name for i in row.get_inputs() if i.name not in {i.name for i in whole.session.get_inputs()}]
    shortest = whole.shortest()
    todo = cases(inputs)
    worst = dependence = 0.0
    telling: dict[str, list[bool]] = {}
    for done, case in enumerate(todo):
        progress(done / len(todo), f"batch {case.batch}, time {case.time}")
        rng = np.random.default_rng(case.seed)
        sizes = inputs.sizes(case.batch, case.time, case.others)
        lengths = _lengths(case, rng, shortest)
        # Which row: the last valid one, or any valid one. Counted from 1.
        number = rng.integers(1, lengths + 1) if select == "row" else lengths
        question = Question(sizes, lengths, number, inputs.draw(sizes, lengths, rng, _SCALES[done % len(_SCALES)]))
        rows = whole.rows(question)
        wanted = whole.selected(rows, number)
        others = whole.others(rows, question, rng)
        scales = [_scale(np.concatenate([r, other[:, None]], 1)) for r, other in zip(rows, others, strict=True)]
        answers = run(row, {**question.feeds, **dict.fromkeys(index, number - (select == "row"))}, sizes)
        difference = valid = 0.0
        for got, expected, scale in zip(answers, wanted, scales, strict=True):
            if got.shape != expected.shape or got.dtype != expected.dtype:
                raise ReductionError(
                    f"the reduced model answers {got.dtype} {list(got.shape)} in place of {expected.dtype} "
                    f"{list(expected.shape)} (batch {case.batch}, time {case.time}). Nothing was written; please report the "
                    "model"
                )
            difference = _largest(difference, _apart(got, expected) / scale)
            valid = _largest(valid, _apart(got[lengths > 0], expected[lengths > 0]) / scale)
        worst = max(worst, difference)
        if valid <= allowed and not difference <= allowed:
            raise ReductionError(_EMPTY)
        if not difference <= allowed:  # a NaN fails too
            raise ReductionError(
                f"the reduced model parts from the full one by {difference:.1e} of the answers' spread (batch {case.batch}, "
                f"time {case.time}); allowed is {allowed:.0e}. Nothing was written; please report the model"
            )
        if case.time > 1:
            with np.errstate(invalid="ignore"):
                for output, other, expected, scale in zip(names, others, wanted, scales, strict=True):
                    apart = np.abs(_numbers(other) - _numbers(expected))
                    telling.setdefault(output, []).append(bool((apart > _TELLING * allowed * scale).any()))
        for company, elsewhere, same in whole.elsewhere(question, rng):
            effect = 0.0
            for answer, expected, scale in zip(elsewhere, wanted, scales, strict=True):
                effect = _largest(effect, _apart(answer, expected[same]) / scale)
            dependence = max(dependence, effect)
            if not effect <= allowed:
                raise ReductionError(_dependent(company, effect, allowed, case, inputs))
    silent = [output for output, told in telling.items() if sum(told) < len(told) / 2]
    if silent:
        raise ReductionError(
            "the comparison says nothing: with what was fed, neighbouring rows of the full model's answer "
            f"{', '.join(silent)} are the same, or "
            f"are no numbers. Fed were {'; '.join(map(str, inputs.every))}. Declare what the inputs really hold: "
            f"{_DECLARE}"
        )
    return Proof(worst, dependence, tuple(todo), inputs.every)


def prove_columns(
    full: Path,
    taken: Path,
    inputs: Inputs,
    output: str,
    name: str = "columns",
    select: Select = "last",
    allowed: float = TOLERANCE,
) -> float:
    """Hold a model that answers the columns of its input `name` against the one that answers all, [batch, N].

    Asked are one column, a few of which some come twice, and as many as there are; the first and the last among them.

    Args:
        inputs: as `reduce` says that they are; an input that they lack is the index, which `select` says how to count.
        output: the one of the full model, by name; of the other model it is the output of the same name.
        allowed: how far they may part, of the answers' spread.

    Returns:
        The largest difference, of the answers' spread.

    Raises:
        ReductionError: they part, or a wrong column or another history's would not have been seen.
    """
    if inputs.unknown:
        raise ReductionError(_undeclared(inputs))
    every, some = open_session(full, optimised=False), open_session(taken)
    index = [i.name for i in every.get_inputs() if i.name not in {each.name for each in inputs.every}]
    worst = 0.0
    telling: dict[str, list[bool]] = {"neighbouring columns": [], "histories": []}
    for done, case in enumerate(cases(inputs)):
        rng = np.random.default_rng(case.seed)
        sizes, lengths = inputs.sizes(case.batch, case.time, case.others), _lengths(case, rng)
        answers = []
        for _ in range(2):  # of the histories that are asked, and of others
            feeds = inputs.draw(sizes, lengths, rng, _SCALES[done % len(_SCALES)])
            feeds |= dict.fromkeys(index, lengths - (select == "row"))
            answers.append((feeds, by_name(every, run(every, feeds, sizes))[output]))
        (feeds, rows), (_, others) = answers
        number = rows.shape[1]
        ids = rng.integers(0, number, (case.batch, (1, min(number, 20), number)[done % 3]))
        ids[:, 0], ids[0, -1] = 0, number - 1
        if ids.shape[1] > 3:
            ids[:, 1] = ids[:, 2]
        got = by_name(some, run(some, {**feeds, name: ids}, sizes))[output]
        expected, scale = np.take_along_axis(rows, ids, 1), _scale(np.stack([rows, others], 1))
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ReductionError(
                f"asked for columns {list(ids.shape)}, the model answers {got.dtype} {list(got.shape)} in place of "
                f"{expected.dtype} {list(expected.shape)}. Nothing was written; please report the model"
            )
        difference = _apart(got, expected) / scale
        worst = _largest(worst, difference)
        if not difference <= allowed:  # a NaN fails too
            raise ReductionError(
                f"the columns part from those of the full answer by {difference:.1e} of the answers' spread (batch "
                f"{case.batch}, time {case.time}, {ids.shape[1]} columns); allowed is {allowed:.0e}. Nothing was written; "
                "please report the model"
            )
        for kind, other in (("neighbouring columns", np.roll(rows, 1, 1)), ("histories", others)):
            apart = _apart(np.take_along_axis(other, ids, 1), expected) > _TELLING * allowed * scale
            telling[kind].append(apart or (number == 1 and kind != "histories"))
    silent = [kind for kind, told in telling.items() if sum(told) < len(told) / 2]
    if silent:
        raise ReductionError(
            f"the comparison says nothing: with what was fed, the answers of {' and '.join(silent)} are the same. Fed were "
            f"{'; '.join(map(str, inputs.every))}. Declare what the inputs really hold: {_DECLARE}"
        )
    return worst


_DECLARE = (
    "--range NAME=LOW:HIGH, --length NAME (how many rows are valid), --mask NAME (1 at valid rows, 0 behind them)"
)
_EMPTY = (
    "the reduced model answers a history of length 0 otherwise than the full one, which takes a row of another history for "
    "it. If a length is 1 at least, declare the input that holds it: --length NAME"
)


def _lengths(case: Case, rng: np.random.Generator, shortest: int = 1) -> Array:
    """Unequal histories; every third time all are short, so that columns could be left out, and else the last one is."""
    longest = max(1, case.time // 4) if case.seed % 3 == 2 else case.time
    lengths = rng.integers(1, longest + 1, case.batch)
    lengths[-1] = rng.integers(1, max(1, case.time // 4) + 1)
    if case.seed % 3 == 0:
        lengths[0] = case.time
    if shortest == 0 and case.seed % 3:
        lengths[case.seed % len(lengths)] = 0
    return lengths


def _numbers(answers: Array) -> Array:
    return np.array(answers, np.float64)


def _scale(rows: Array) -> float:
    """What differences are held against: how far the answers of all rows lie apart."""
    flat = _numbers(rows).reshape(rows.shape[0] * rows.shape[1], -1)
    flat[~np.isfinite(flat)] = np.nan
    if np.isnan(flat).all():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any number
        highest, lowest = np.nanmax(flat, 0), np.nanmin(flat, 0)
    spread, numbers = np.nanmax(highest - lowest), np.concatenate([highest, lowest])
    return float(max(spread, _FLOOR * np.nanmax(np.abs(numbers)), 1e-6))


def _apart(one: Array, other: Array) -> float:
    """The largest difference; what is not a number, or infinite, has to be so in both."""
    a, b = _numbers(one), _numbers(other)
    with np.errstate(invalid="ignore"):
        return float(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)).max(initial=0.0))


def _largest(one: float, other: float) -> float:
    """The larger of two differences, and what is no number before any."""
    return float(np.maximum(one, other))


def _undeclared(inputs: Inputs) -> str:
    told = "; ".join(f"{each.name!r} ({each.dtype} [{', '.join(map(str, each.axes))}])" for each in inputs.unknown)
    return f"nothing in the model says what its inputs hold, so it cannot be checked: {told}. Declare it: {_DECLARE}"


def _dependent(company: str, effect: float, allowed: float, case: Case, inputs: Inputs) -> str:
    cure = {
        NOISE: "the model looks ahead (a layer that reads backwards, attention without a causal mask)",
        NEIGHBOURS: "the model mixes the histories of a batch",
        PADDING: "the model counts the columns that it is given, or looks ahead",
    }[company]
    return (
        f"the full model's answer for a history changes with {company}, by {effect:.1e} of the answers' spread (batch "
        f"{case.batch}, time {case.time}; allowed is {allowed:.0e}): {cure}. If an input says which rows are valid, declare "
        f"it: {_DECLARE}. If the whole window is the history, with nothing behind it, take --select row. Fed were "
        f"{'; '.join(map(str, inputs.every))}"
    )
