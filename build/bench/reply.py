"""What is answered: which of a spec's answers is measured, how it is made of the core's rows, and how far two are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from build.core.inference import Inference, run
from build.core.reduce.file import open_session
from build.core.served import types
from build.repository.assembly import core_file
from ensemble.chain import answer as chained
from ensemble.errors import SpecError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Answer, Core, Spec

Array = np.ndarray


class Expected(NamedTuple):
    """One history's answer, and the core's row that it is made of."""

    answer: Array
    row: Array


def sequence(spec: Spec) -> SequenceSpec:
    """The spec, of any sequence model.

    Raises:
        SpecError: it is of knowledge tracing.
    """
    if not isinstance(spec, SequenceSpec):
        raise SpecError(f"{spec.model.name} is described by [tensors], and this is for a spec with [history]")
    return spec


def whole(spec: Spec) -> Answer:
    """The answer that rungs are measured on: the first that has every column, or the first of all."""
    every = (made for made in spec.answers if len(made.tensors) == 1 and core_of(spec, made).columns is None)
    return next(every, spec.answers[0])


def picked(spec: Spec) -> Answer | None:
    """The first answer that picks some of the columns that `whole` has all of; None: there is none, or `whole` is one."""
    if len(whole(spec).tensors) > 1:
        return None
    return next((made for made in spec.answers if len(made.tensors) > 1), None)


def title(spec: Spec) -> str:
    """What a report is about, in a few words."""
    if isinstance(spec, KnowledgeTracing):
        return f"{spec.network.type}, {spec.model.problems:,} problems"
    numbers = math.prod(spec.dims(whole(spec).of))
    return f"{spec.model.name}, {numbers:,} numbers a row"


def core_of(spec: Spec, answer: Answer) -> Core:
    """Which core an answer is made of."""
    return next(core for core in spec.cores if answer.of in core.outputs)


def made(answer: Answer, rows: Array, request: Mapping[str, Array]) -> list[Array]:
    """What the answer's chain makes of the core's rows [batch, ...], an array a history: see `joined`."""
    return joined(chained(answer.chain, rows, request))


def joined(tensors: Sequence[Array]) -> list[Array]:
    """An answer's tensors [batch, ...] as an array a history; ids and values beside each other, FP64 [k, 2]."""
    return list(tensors[0] if len(tensors) == 1 else np.stack(tensors, axis=-1))


def rows_of(spec: SequenceSpec, answer: Answer, outputs: Sequence[Array], request: Mapping[str, Array]) -> Array:
    """Of the wanted row of every output of the whole model what the answer's core has of it: [batch, columns]."""
    core = core_of(spec, answer)
    if core.columns is None:
        return outputs[core.outputs.index(answer.of)]
    at = next(source.of for source in spec.contract.core if source.name == core.columns)
    return np.take_along_axis(outputs[core.of], np.maximum(request[at], 0).astype(np.int64), 1)


def by_author(author: Inference, answer: Answer, request: Mapping[str, Array]) -> list[Expected]:
    """What the model by itself answers, asked as its author asks it."""
    rows = rows_of(author.spec, answer, author.rows(request), request)
    return _expected(answer, rows, request)


def by_core(repository: Path, spec: Spec, answer: Answer, request: Mapping[str, Array]) -> list[Expected]:
    """What the repository's core answers in this process."""
    core, lengths = core_of(spec, answer), spec.contract.check(request)
    session = open_session(core_file(spec, repository, core.step))
    fed = spec.contract.feed(request, lengths, types(spec))
    (rows,) = run(session, fed, [answer.of.name])
    if spec.reduce.where != "core":  # every row of each window, padded behind
        rows = rows[np.arange(len(rows)), np.minimum(lengths, spec.model.window) - 1]
    return _expected(answer, rows, request)


def _expected(answer: Answer, rows: Array, request: Mapping[str, Array]) -> list[Expected]:
    return [Expected(*pair) for pair in zip(made(answer, rows, request), rows, strict=True)]


def apart(answer: Answer, got: Array, wanted: Expected) -> float:
    """The largest difference, as a part of the largest number wanted. Which of two equal columns comes first is nothing."""
    if got.size != wanted.answer.size:
        return float("inf")
    if len(answer.tensors) == 1:
        return _part(got.reshape(-1), wanted.answer.reshape(-1))
    ids, expected = got[:, 0].astype(int), wanted.answer[:, 0].astype(int)
    if (ids < 0).sum() != (expected < 0).sum() or len({*ids[ids >= 0]}) != (ids >= 0).sum():
        return float("inf")
    columns = _part(wanted.row[ids[ids >= 0]], wanted.row[expected[expected >= 0]])
    return max(columns, _part(got[:, 1], wanted.answer[:, 1]))


def _part(got: Array, wanted: Array) -> float:
    difference = np.abs(got.astype(np.float64) - wanted).max(initial=0.0)
    return float(difference / max(float(np.abs(wanted).max(initial=0.0)), 1e-6))
