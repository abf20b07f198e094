"""What a request has to be, and what the core gets of it: the one place where it is checked, windowed and padded.

Numpy and the standard library alone, in the words of Python 3.8: a copy travels beside each Python step, into whatever
container serves it, and the client, the parity gate and the benches use this one.

A request is {input name: [batch, time]}, oldest first, its inputs aligned. Of the first one the padding tells each learner's
length; the others follow it. What an input may hold is said in `Values`.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

PADDING = -1
REASONS = ("shape", "problem_id", "response", "padding", "too_short", "too_long")


class RefusedError(ValueError):
    """A request that breaks the contract: the message names tensor, learner, position, value and what is allowed there.

    reason: one of REASONS, what refusals are counted by.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Values(NamedTuple):
    """What an input may hold before its padding: whole numbers from 0 to below `end`.

    said: the same in words. reason: what a value beyond them is counted as.
    """

    end: int
    said: str
    reason: str


def knowledge_tracing(names: Sequence[str], problems: int) -> dict[str, Values]:
    """What a learner's problem ids and responses may hold, by the names of these two inputs.

    >>> knowledge_tracing(("problem_ids", "responses"), 40)["problem_ids"]
    Values(end=40, said='0 to 39', reason='problem_id')
    """
    ids, responses = names
    return {
        ids: Values(problems, f"0 to {problems - 1}", "problem_id"),
        responses: Values(2, "0 (wrong) and 1 (correct)", "response"),
    }


def batch_of(values: np.ndarray, name: str, axes: int = 1) -> np.ndarray:
    """[batch, ...] of a tensor that config.pbtxt reshapes to [batch, 1, ...]; axes: how many a learner's share has.

    >>> batch_of(np.array([[[3, 4]]]), "problem_ids").tolist()
    [[3, 4]]

    Raises:
        RefusedError: there is no learner; Triton hands such a tensor on without its batch axis.
    """
    if values.ndim != axes + 2 or not len(values):
        raise RefusedError("shape", f"{name} has 0 learners; send at least 1")
    return values[:, 0]


def check(
    inputs: Mapping[str, np.ndarray],
    allowed: Mapping[str, Values],
    shortest: int = 0,
    longest: int | None = None,
) -> np.ndarray:
    """Count the interactions of every learner, or say what is wrong with the request.

    >>> request = {"problem_ids": np.array([[3, 4], [5, -1]]), "responses": np.array([[1, 0], [1, -1]])}
    >>> check(request, knowledge_tracing(tuple(request), problems=40)).tolist()
    [2, 1]
    >>> check(request, knowledge_tracing(tuple(request), problems=5))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ensemble.contract.RefusedError: problem_ids: learner 1, position 0 is 5; allowed are 0 to 4, and -1 as padding ...

    Args:
        inputs: INT32 or INT64 [batch, time] by name, batch at least 1; of the first -1 is allowed only after the last
            interaction, of the others exactly where it is in the first.
        shortest: interactions that a learner needs at least.
        longest: interactions that it may have at most, padding included; None: any number.

    Returns:
        INT32 [batch], the number of interactions before the padding.

    Raises:
        RefusedError: it breaks the contract.
    """
    (leading, first), *others = inputs.items()
    if longest is not None and first.shape[1] > longest:
        raise RefusedError(
            "too_long",
            f"{leading} has shape {list(first.shape)}; allowed are at most {longest} interactions a "
            "learner: send the most recent ones",
        )
    for name, values in others:
        if values.shape != first.shape:
            raise RefusedError(
                "shape",
                f"{leading} has shape {list(first.shape)} and {name} {list(values.shape)}; "
                "both need the same [learners, interactions]",
            )
    if first.size and all(_unsigned(values).max() < allowed[name].end for name, values in inputs.items()):
        lengths = np.full(len(first), first.shape[1], np.int32)  # the usual request: no padding, nothing wrong
    else:
        lengths = _count(inputs, allowed)
    if lengths.min() < shortest:
        learner = int((lengths < shortest).argmax())
        raise RefusedError(
            "too_short",
            f"{leading}: learner {learner} has {lengths[learner]} interactions; this model answers from {shortest} on",
        )
    return lengths


def check_answered(problem_ids: np.ndarray, problems: int, name: str) -> None:
    """Refuse problem ids, INT32 or INT64 [batch, any], that are neither 0 to problems - 1 nor -1, wherever it stands.

    >>> check_answered(np.array([[3, -1, 4]]), 5, "problem_ids")
    >>> check_answered(np.array([[3, -1, 5]]), 5, "problem_ids")
    Traceback (most recent call last):
    ensemble.contract.RefusedError: problem_ids: learner 0, position 2 is 5; allowed are 0 to 4, and -1 as padding

    Raises:
        RefusedError: names learner, position and value.
    """
    # One above: of the negative ones only the padding is then near.
    above = _unsigned(problem_ids + 1)
    if above.max(initial=0) > problems:
        learner, position = np.argwhere(above > problems)[0]
        raise RefusedError(
            "problem_id",
            f"{name}: learner {learner}, position {position} is {problem_ids[learner, position]}; "
            f"allowed are 0 to {problems - 1}, and -1 as padding",
        )


def recent(values: np.ndarray, lengths: np.ndarray, window: int, dtype: Any = np.int32) -> np.ndarray:
    """The most recent `window` valid entries of every learner, oldest first, then zeros: [batch, window], of `dtype`.

    Zero and not -1: the core looks embeddings up for padding too, before its lengths make it ignore them.

    >>> recent(np.array([[3, 4, 5], [6, -1, -1]]), np.array([3, 1]), 2).tolist()
    [[4, 5], [6, 0]]

    Args:
        values: INT32 or INT64 [batch, time], valid up to `lengths` [batch], -1 behind.
    """
    batch, time = values.shape
    kept = np.zeros((batch, window), dtype)
    if time <= window:
        np.maximum(values, 0, out=kept[:, :time], casting="same_kind")
        return kept
    positions = np.maximum(lengths - window, 0)[:, None] + np.arange(window)
    kept[:] = np.take_along_axis(values, positions, axis=1)
    kept[positions >= lengths[:, None]] = 0
    return kept


def narrowest(widths: Sequence[int], longest: int) -> int:
    """The smallest of the rising `widths` that holds `longest` interactions; the largest where none does.

    >>> narrowest([64, 128, 512], 65)
    128
    """
    return next((width for width in widths if width >= longest), widths[-1])


def windows(
    inputs: Iterable[np.ndarray], lengths: np.ndarray, widths: Sequence[int], dtypes: Sequence[Any] | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """What the core gets of a checked request: the most recent of every input, as wide as its histories need, and lengths.

    >>> (ids,), valid = windows([np.array([[3, 4, 5, 6, 7]])], np.array([5]), [2, 4])
    >>> ids.tolist(), valid.tolist()
    ([[4, 5, 6, 7]], [4])

    Args:
        inputs: INT32 or INT64 [batch, time], valid up to `lengths` [batch].
        widths: that the core knows, rising; the last is the window.
        dtypes: of what is returned; None: INT32.

    Returns:
        [batch, width] for each input, and [batch], how many entries of it are valid.
    """
    valid = np.minimum(lengths, widths[-1])
    width = narrowest(widths, valid.max())
    each = zip(inputs, dtypes or itertools.repeat(np.int32))
    return [recent(values, lengths, width, dtype) for values, dtype in each], valid


def last_rows(rows: np.ndarray, lengths: np.ndarray, names: tuple[str, str]) -> np.ndarray:
    """The row of the last interaction, [batch, any], of rows [batch, window, any].

    >>> last_rows(np.array([[[0.1], [0.2]], [[0.3], [0.4]]]), np.array([2, 1]), ("lengths", "logits")).tolist()
    [[0.2], [0.3]]

    Args:
        lengths: INT32 [batch], interactions, 1 to window.
        names: what lengths and rows are called in messages.

    Raises:
        RefusedError: a length has no row.
    """
    window = rows.shape[1]
    wrong = (lengths < 1) | (lengths > window)
    if wrong.any():
        learner = int(wrong.argmax())
        raise RefusedError(
            "shape",
            f"{names[0]}: learner {learner} has {lengths[learner]}; {names[1]} has {window} rows a learner, so allowed are "
            f"{f'1 to {window}' if window else 'none'}",
        )
    return rows[np.arange(len(rows)), lengths - 1]


def pad(
    sequences: Sequence[np.ndarray], width: int | None = None, fill: int = PADDING, dtype: Any = np.int32
) -> np.ndarray:
    """Sequences of unequal length as one tensor [batch, width], each from the left and `fill` behind it.

    >>> pad([np.array([3, 4, 5]), np.array([6])]).tolist()
    [[3, 4, 5], [6, -1, -1]]

    Args:
        width: None: of the longest, and at least 1: a tensor without elements cannot say how many learners it is about.
    """
    width = width or max(map(len, sequences), default=0) or 1
    if len(sequences) == 1 and len(sequences[0]) == width:
        return np.asarray(sequences[0], dtype)[None]  # nothing to pad, nothing to copy
    padded = np.full((len(sequences), width), fill, dtype)
    for learner, sequence in enumerate(sequences):
        padded[learner, : len(sequence)] = sequence
    return padded


def random_request(
    allowed: Mapping[str, Values], lengths: Sequence[int], width: int | None = None, seed: int = 0, padded: bool = True
) -> dict[str, np.ndarray]:
    """A valid request of random values for histories of these lengths: INT32 [batch, width] by input name.

    >>> of = knowledge_tracing(("problem_ids", "responses"), problems=40)
    >>> check(random_request(of, [2, 3]), of).tolist()
    [2, 3]

    Args:
        width: None: of the longest.
        padded: False leaves noise behind a length, so that whoever looks there answers otherwise.
    """
    rng = np.random.default_rng(seed)
    shape = (len(lengths), width or max(lengths))
    request = {name: rng.integers(0, values.end, shape, np.int32) for name, values in allowed.items()}
    if padded:
        behind = np.arange(shape[1]) >= np.asarray(lengths)[:, None]
        for values in request.values():
            values[behind] = PADDING
    return request


def _count(inputs: Mapping[str, np.ndarray], allowed: Mapping[str, Values]) -> np.ndarray:
    """`check` for requests with padding or with something wrong in them."""
    known = [_unsigned(values) < allowed[name].end for name, values in inputs.items()]
    lengths: np.ndarray = known[0].sum(axis=1, dtype=np.int32)
    before_padding = np.arange(known[0].shape[1]) < lengths[:, None]
    padding = functools.reduce(operator.and_, (values == PADDING for values in inputs.values()))
    right = np.where(before_padding, functools.reduce(operator.and_, known), padding)
    if not right.all():
        learner, position = np.argwhere(~right)[0]
        raise _refusal({name: values[learner] for name, values in inputs.items()}, allowed, learner, position)
    return lengths


def _refusal(
    inputs: Mapping[str, np.ndarray], allowed: Mapping[str, Values], learner: int, position: int
) -> RefusedError:
    """Why the interaction at `position` of one learner's [time] inputs is refused."""
    (leading, first), *others = inputs.items()
    where, entry = f"learner {learner}, position {position}", first[position]
    if entry == PADDING:
        if (first[position + 1 :] != PADDING).any():
            return RefusedError(
                "padding",
                f"{leading}: {where} is -1, but interactions follow it; -1 is allowed only as padding after the last one",
            )
        name, value = next((name, values[position]) for name, values in others if values[position] != PADDING)
        return RefusedError("padding", f"{name}: {where} is {value}; where {leading} is -1 only -1 is allowed")
    if not 0 <= entry < allowed[leading].end:
        return RefusedError(
            allowed[leading].reason,
            f"{leading}: {where} is {entry}; allowed are {allowed[leading].said}, "
            "and -1 as padding after the last interaction",
        )
    name, value = next(
        (name, values[position]) for name, values in others if not 0 <= values[position] < allowed[name].end
    )
    return RefusedError(
        allowed[name].reason,
        f"{name}: {where} is {value}; allowed are {allowed[name].said}, and -1 where {leading} is -1",
    )


def _unsigned(values: np.ndarray) -> np.ndarray:
    """The same bits without a sign: every negative is far above any limit, and one comparison does for two."""
    return values.view(f"u{values.itemsize}")
