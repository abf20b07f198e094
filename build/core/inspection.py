"""What a model takes and answers, found by running it: which inputs are histories, what they hold, how long they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from build.core.subject import ONCE, Array, Given, InspectionError, Subject, is_named, told

WINDOW = 256  # where a model takes histories of any length
_SIZES = ((3, 5), (2, 4))  # batch and time that a model is tried at
_LONGEST, _LARGEST = 2048, 1 << 24  # steps and ids that are tried


@dataclass(frozen=True)
class Inspection:
    """A model, as far as running it tells.

    Attributes:
        outputs: by name the shape of one row.
        left_out: outputs that are not served, and why.
        own: whether it answers one row a history by itself.
        ahead: whether its first row changes with the last step.
        window: steps that it takes at most; bounded: whether it is the model that says so.
        alone: inputs of which a row sees its own step and none before it, beside inputs of which it sees all.
    """

    name: str
    inputs: tuple[Given, ...]
    outputs: Mapping[str, tuple[int, ...]]
    left_out: Mapping[str, str]
    time_major: bool
    own: bool
    ahead: bool
    window: int
    bounded: bool
    alone: tuple[str, ...]

    @property
    def is_told(self) -> bool:
        """Whether the model is told where a history ends."""
        return any(given.of in ("lengths", "mask", "padding", "row") for given in self.inputs)


def look(subject: Subject) -> Inspection:
    """Find out what a model takes.

    Raises:
        InspectionError: it runs in no way that is known, or answers nothing that is one row a history or a step.
    """
    found, time_major = _way(subject)
    trial = _Trial(subject, found, time_major)
    answers = {size: trial.shapes(*size) for size in trial.sizes}
    outputs, left_out, own = _outputs(subject, answers, time_major)
    trial = replace(trial, inputs=tuple(_counting(trial, given) for given in found)).bounded()
    trial = replace(trial, inputs=_without_padding(trial.inputs, subject))
    window, bounded = (subject.time, True) if subject.time else trial.longest()
    first = next(iter(outputs))
    ahead = not own and trial.changes(first, -1, 0)
    sees = {
        given.name: own or trial.changes(first, 0, -1, given.name) for given in trial.inputs if given.of == "history"
    }
    alone = tuple(name for name, all_steps in sees.items() if not all_steps) if any(sees.values()) else ()
    return Inspection(subject.name, trial.inputs, outputs, left_out, time_major, own, ahead, window, bounded, alone)


@dataclass(frozen=True)
class _Trial:
    subject: Subject
    inputs: tuple[Given, ...]
    time_major: bool

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(batch, self.subject.time or time) for batch, time in _SIZES]

    def feed(self, batch: int, time: int, rng: np.random.Generator | None = None) -> dict[str, Array]:
        return {given.name: given.draw(batch, time, self.time_major, rng) for given in self.inputs}

    def shapes(self, batch: int, time: int) -> dict[str, tuple[int, ...]]:
        return {name: answer.shape for name, answer in self.subject.run(self.feed(batch, time)).items()}

    def takes(self, batch: int, time: int, values: Mapping[str, int]) -> bool:
        """Whether the model runs with these values all over some of its inputs."""
        feed = self.feed(batch, time)
        feed.update({name: np.full_like(feed[name], value) for name, value in values.items()})
        try:
            self.subject.run(feed)
        except Exception:  # whatever it is: it does not take them
            return False
        return True

    def bounded(self) -> _Trial:
        """With the largest integers that the model takes in all of its inputs at once."""
        asked = [given.name for given in self.inputs if given.is_drawn and given.dtype.kind == "i"]
        alone = {name: self.highest(name, {}, _LARGEST) for name in asked}
        highest: dict[str, int] = {}
        # Two may share a table (a response moves a problem's number): who takes fewer numbers keeps them.
        for name, number in sorted(alone.items(), key=lambda item: item[1]):
            highest[name] = self.highest(name, highest, number)
        inputs = tuple(
            replace(told(given, f"0 to {highest[given.name]} are taken"), high=highest[given.name])
            if highest.get(given.name, _LARGEST) < _LARGEST
            else given
            for given in self.inputs
        )
        return replace(self, inputs=inputs)

    def highest(self, name: str, others: Mapping[str, int], limit: int) -> int:
        """The largest number that one input takes beside the others'."""
        return _largest(lambda number: self.takes(*self.sizes[-1], {**others, name: number}), limit)

    def longest(self) -> tuple[int, bool]:
        """Steps that it takes, and whether more are refused."""

        def takes(time: int) -> bool:
            try:
                self.subject.run(self.feed(1, time, np.random.default_rng(0)))
            except Exception:  # whatever it is: it does not take as many
                return False
            return True

        most = _largest(takes, _LONGEST)
        return (most, True) if most < _LONGEST else (WINDOW, False)

    def changes(self, output: str, step: int, row: int, name: str | None = None) -> bool:
        """Whether a row of all histories changes with a step of theirs, of all inputs or of one."""
        rng, (batch, time) = np.random.default_rng(0), self.sizes[0]
        feed, others = self.feed(batch, time, rng), self.feed(batch, time, rng)
        changed = {key: value.copy() for key, value in feed.items()}
        for given in self.inputs:
            if given.of == "history" and name in (None, given.name):
                at = (step,) if self.time_major else (slice(None), step)
                changed[given.name][at] = others[given.name][at]
        where = (row,) if self.time_major else (slice(None), row)
        return _differ(self.subject.run(feed)[output][where], self.subject.run(changed)[output][where])

    def mixes(self) -> bool:
        """Whether what is taken for other histories' answers changes with the first one."""
        rng, (batch, time) = np.random.default_rng(0), self.sizes[0]
        feed, others = self.feed(batch, time, rng), self.feed(batch, time, rng)
        changed = {key: value.copy() for key, value in feed.items()}
        for given in self.inputs:
            if given.of == "history":
                at = (slice(None), 0) if self.time_major else (0,)
                changed[given.name][at] = others[given.name][at]
        one, other = self.subject.run(feed), self.subject.run(changed)
        for name, answer in one.items():
            axis = 1 if self.time_major and answer.shape[:2] == (time, batch) else 0
            if answer.ndim > axis and answer.shape[axis] == batch:
                kept = range(1, batch)
                return _differ(answer.take(kept, axis), other[name].take(kept, axis))
        return False


def _way(subject: Subject) -> tuple[tuple[Given, ...], bool]:
    """What the inputs are, and whether time is their first axis."""
    refusal = ""
    for inputs in subject.ways:
        ways = []
        for time_major in (False, True):
            trial = _Trial(subject, inputs, time_major)
            try:
                fits = all(_fits(trial.shapes(*size), size, time_major) for size in trial.sizes)
            except Exception as e:  # the user's own code may raise anything
                refusal = refusal or (str(e).splitlines() or [type(e).__name__])[0]
                continue
            if fits:
                ways.append(trial)
        if ways:
            # Both may run: then it is time first where that keeps histories apart, and batch first does not.
            drawn = [trial.bounded() for trial in ways]
            apart = [trial for trial in drawn if not trial.mixes()]
            return inputs, (apart or drawn)[0].time_major
    tried = " or ".join(_spelled(way) for way in subject.ways[:2])
    raise InspectionError(
        f"{subject.name} does not run on {tried}{' and other ways' if len(subject.ways) > 2 else ''}: "
        f"{refusal or 'it answers nothing a history or a step'}; export it to ONNX, where shapes are written down, or write "
        "its spec by hand"
    )


def _fits(shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int], time_major: bool) -> bool:
    batch, time = size
    leading = (time, batch) if time_major else (batch, time)
    return any(shape[:2] == leading or (shape[:1] == (batch,) and time not in shape) for shape in shapes.values())


def _outputs(
    subject: Subject, answers: Mapping[tuple[int, int], Mapping[str, tuple[int, ...]]], time_major: bool
) -> tuple[dict[str, tuple[int, ...]], dict[str, str], bool]:
    """The outputs that are one row a step, or where there is none one a history; and those that are something else."""
    (batch, time), _ = answers
    whole, own, left_out = {}, {}, {}
    for name in next(iter(answers.values())):
        shapes = {size: each[name] for size, each in answers.items()}
        leading = {(b, t): (t, b) if time_major else (b, t) for b, t in answers}
        rests = {
            "step": {shape[2:] if shape[:2] == leading[size] else None for size, shape in shapes.items()},
            "history": {shape[1:] if shape[:1] == size[:1] else None for size, shape in shapes.items()},
        }
        (per_step, *_), (per_history, *_) = rests["step"], rests["history"]
        if len(rests["step"]) == 1 and per_step is not None:
            whole[name] = per_step
        elif len(rests["history"]) == 1 and per_history is not None and not (subject.time and time in per_history):
            own[name] = per_history
        else:
            left_out[name] = f"for {batch} histories of {time} steps it is {list(shapes[batch, time])}"
    served = whole or own
    if not served:
        told_of = ", ".join(f"{name}: {why}" for name, why in left_out.items())
        raise InspectionError(f"{subject.name} answers nothing that is one row a history or a step ({told_of})")
    left_out.update({name: "the others answer every row" for name in own if whole})
    return served, left_out, not whole


def _counting(trial: _Trial, given: Given) -> Given:
    """An integer a history whose name says nothing counts steps if that is as much as it takes; else it is a context."""
    if given.of != "lengths" or is_named(given):
        return given
    tries = [(trial.takes(b, t, {given.name: t}), trial.takes(b, t, {given.name: t + 1})) for b, t in trial.sizes]
    if all(tried == (True, False) for tried in tries):
        return told(given, "up to the number of steps")
    return replace(given, of="context")


def _without_padding(inputs: tuple[Given, ...], subject: Subject) -> tuple[Given, ...]:
    if not subject.padded:
        return inputs
    return tuple(
        replace(told(given, "0 is its padding"), low=1)
        if given.of == "history" and given.dtype.kind == "i" and (given.high or 0) > 1
        else given
        for given in inputs
    )


def _largest(takes: Callable[[int], bool], limit: int) -> int:
    """The largest number up to a limit that is taken, if all below it are."""
    high = 1
    while high < limit and takes(high):
        high *= 2
    if high >= limit and takes(limit):
        return limit
    low, high = high // 2, min(high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def _differ(one: Array, other: Array) -> bool:
    scale = float(np.abs(one).max()) if one.size else 0.0
    return bool(np.abs(one - other).max() > 1e-5 * max(scale, 1e-6)) if one.size else False


def _spelled(way: tuple[Given, ...]) -> str:
    axes = ["batch"]
    told_of = []
    for given in way:
        shape = [*axes, *([] if given.of in ONCE else ["time"]), *map(str, given.shape)]
        told_of.append(f"{given.name} {given.dtype} [{', '.join(shape)}]")
    return ", ".join(told_of)
