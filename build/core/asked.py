"""A full model and what it is asked: the rows that it answers, and the same histories in other company."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from build.core.reduce import Inputs, ReductionError, Select
from build.core.reduce.axes import BATCH, TIME
from build.core.reduce.shapes import run_far

Array = np.ndarray

NOISE, NEIGHBOURS, PADDING = "what lies behind its length", "its neighbours in a batch", "whether it is padded"


def by_name(session: ort.InferenceSession, answers: Sequence[Array]) -> dict[str, Array]:
    """All that a session answered, by the outputs' names."""
    return dict(zip((value.name for value in session.get_outputs()), answers, strict=True))


@dataclass(frozen=True)
class Question:
    """What a model is asked: sizes by axis; lengths and the number of the wanted row, from 1, [batch]; and the inputs."""

    sizes: dict[str, int]
    lengths: Array
    number: Array
    feeds: dict[str, Array]


@dataclass(frozen=True)
class Full:
    """The full model and which of its rows are wanted."""

    session: ort.InferenceSession
    inputs: Inputs
    outputs: tuple[str, ...]
    select: Select
    time_axis: int

    def rows(self, question: Question) -> list[Array]:
        """Every row of each output, [batch, time, ...]."""
        named = by_name(self.session, run_far(self.session, self.inputs, question.feeds, question.sizes))
        return [np.moveaxis(named[output], self.time_axis, 1) for output in self.outputs]

    def selected(self, rows: Sequence[Array], number: Array) -> list[Array]:
        """What is wanted of them, [batch, ...]."""
        pick: dict[str, Callable[[Array], Array]] = {
            "mean": lambda valid: valid.mean(0),
            "max": lambda valid: valid.max(0),
        }
        with np.errstate(invalid="ignore"):
            return [
                np.stack(
                    [pick.get(self.select, lambda valid: valid[-1])(r[:n]) for r, n in zip(each, number, strict=True)]
                )
                for each in rows
            ]

    def shortest(self) -> int:
        """The lowest length that is asked about."""
        return 1

    def others(self, rows: Sequence[Array], question: Question, rng: np.random.Generator) -> list[Array]:
        """What would be answered of other rows, [batch, ...]; of a single row there is no other."""
        del rng
        number = question.number
        return self.selected(rows, np.where(number > 1, number - 1, min(2, rows[0].shape[1])))

    def elsewhere(self, question: Question, rng: np.random.Generator) -> Iterator[tuple[str, list[Array], Array]]:
        """The same histories in other company: what is other, the answers, and whose of the batch they are."""
        everyone = np.arange(len(question.lengths))
        one = everyone[-1:]
        if len(everyone) > 1:  # before the noise, which is their neighbours' too
            yield NEIGHBOURS, [answer[one] for answer in self._answer(self._beside(question, one, rng))], one
        if self.select != "row" and question.sizes[TIME] > 1:
            yield NOISE, self._answer(self._beside(question, everyone, rng)), everyone
        if BATCH not in self.inputs.fixed and TIME not in self.inputs.fixed:
            for mine in everyone[:, None]:
                yield PADDING, self._answer(self._alone(question, mine)), mine

    def _answer(self, question: Question) -> list[Array]:
        return self.selected(self.rows(question), question.number)

    def _beside(self, question: Question, those: Array, rng: np.random.Generator) -> Question:
        """Everything drawn anew but the histories of some: where it is all of them, what lies behind them."""
        lengths = rng.integers(1, question.sizes[TIME] + 1, len(question.lengths))
        lengths[those] = question.lengths[those]
        number = np.minimum(question.number, lengths) if self.select == "row" else lengths
        number[those] = question.number[those]
        feeds = self.inputs.draw(question.sizes, lengths, rng)
        padded = self.select != "row" and len(those) == len(lengths)
        kept = lengths if padded else np.full_like(lengths, question.sizes[TIME])
        for each in self.inputs.every:
            if BATCH not in each.axes or each.axes.count(TIME) > 1:
                feeds[each.name] = question.feeds[each.name]  # it is nobody's own
                continue
            mine = np.zeros(len(lengths), bool)
            mine[those] = True
            if TIME in each.axes and each.role == "values":
                valid = replace(each, role="mask", dtype=np.dtype(bool)).draw(question.sizes, kept, rng)
            else:
                valid = np.ones_like(feeds[each.name], bool)
            valid = valid & mine.reshape([-1 if axis == BATCH else 1 for axis in each.axes])
            feeds[each.name] = np.where(valid, question.feeds[each.name], feeds[each.name])
        return Question(question.sizes, lengths, number, feeds)

    def _alone(self, question: Question, one: Array) -> Question:
        """One history by itself, and no longer than it is."""
        time = question.sizes[TIME] if self.select == "row" else int(question.lengths[one[0]])
        feeds = dict(question.feeds)
        for each in self.inputs.every:
            for number, axis in enumerate(each.axes):
                kept = {BATCH: one, TIME: np.arange(time)}.get(str(axis))
                if kept is not None:
                    feeds[each.name] = feeds[each.name].take(kept, number)
        return Question({**question.sizes, BATCH: 1, TIME: time}, question.lengths[one], question.number[one], feeds)


class Own(Full):
    """A model that selects its row itself: its answer is the one row that there is."""

    def rows(self, question: Question) -> list[Array]:
        named = by_name(self.session, run_far(self.session, self.inputs, question.feeds, question.sizes))
        return [named[output][:, None] for output in self.outputs]

    def selected(self, rows: Sequence[Array], number: Array) -> list[Array]:
        del number
        return [each[:, 0] for each in rows]

    def shortest(self) -> int:
        """0, if a length that nobody has declared is among the inputs, and the model takes it."""
        roles = {each.role for each in self.inputs.every if each.known != "declared" or each.role == "mask"}
        if "length" not in roles or roles & {"row", "mask"}:
            return 1
        sizes = self.inputs.sizes(2, min(3, self.inputs.window))
        nothing = np.zeros(sizes[BATCH], int)
        try:
            self.rows(Question(sizes, nothing, nothing, self.inputs.draw(sizes, nothing, np.random.default_rng(0))))
        except ReductionError:
            return 1
        return 0

    def others(self, rows: Sequence[Array], question: Question, rng: np.random.Generator) -> list[Array]:
        """Of other histories."""
        del rows
        feeds = self.inputs.draw(question.sizes, question.lengths, rng)
        return self.selected(self.rows(replace(question, feeds=feeds)), question.number)

    def elsewhere(self, question: Question, rng: np.random.Generator) -> Iterator[tuple[str, list[Array], Array]]:
        """Among other neighbours. What lies behind a length, and whether anything does, the cut is given too."""
        one = np.arange(len(question.lengths))[-1:]
        if len(question.lengths) > 1:
            yield NEIGHBOURS, [answer[one] for answer in self._answer(self._beside(question, one, rng))], one
