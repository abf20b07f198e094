"""What the tensors of a request may hold, and what is said of one that holds something else.

Numpy and the standard library alone, in the words of Python 3.8: a copy travels beside each Python step.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .window import PADDING, is_valid


class RefusedError(ValueError):
    """A request that breaks the contract: the message names tensor, history, position, value and what is allowed there.

    reason: what refusals are counted by: "shape", "padding", "too_short", "too_long", or that of the input's `Values`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Values(NamedTuple):
    """What an input may hold before its padding: whole numbers from `start` to below `end`; without an end, finite numbers.

    said: the same in words. reason: what a value beyond them is counted as. shape: of one step, or of a context. limits: the
    lowest and the highest of numbers without an end, if they have some.
    """

    end: int | None
    said: str
    reason: str
    start: int = 0
    shape: tuple[int, ...] = ()
    limits: tuple[float, float] | None = None

    @property
    def padding(self) -> float:
        """What stands in a request where no value does: NaN; of integers -1, or one below `start` where that is negative.

        >>> Values(9, "0 to 8", "id").padding, Values(9, "-5 to 8", "offset", -5).padding
        (-1, -6)
        """
        return math.nan if self.end is None else min(PADDING, self.start - 1)

    @property
    def is_open(self) -> bool:
        """Whether a context of it is of any length."""
        return -1 in self.shape


class Words(NamedTuple):
    """What messages call one history of a request, several of them, and the steps of one."""

    history: str = "history"
    histories: str = "histories"
    step: str = "step"
    steps: str = "steps"


WORDS = Words()


def batch_of(values: np.ndarray, name: str, axes: int = 1, words: Words = WORDS) -> np.ndarray:
    """[batch, ...] of a tensor that config.pbtxt reshapes to [batch, 1, ...]; axes: how many one history's share has.

    >>> batch_of(np.array([[[3, 4]]]), "problem_ids").tolist()
    [[3, 4]]

    Raises:
        RefusedError: there is no history; Triton hands such a tensor on without its batch axis.
    """
    if values.ndim != axes + 2 or not len(values):
        raise RefusedError("shape", f"{name} has 0 {words.histories}; send at least 1")
    return values[:, 0]


def check(
    inputs: Mapping[str, np.ndarray],
    allowed: Mapping[str, Values],
    shortest: int = 0,
    longest: int | None = None,
    words: Words = WORDS,
) -> np.ndarray:
    """Count the steps of every history, or say what is wrong with the request.

    >>> allowed = {"ids": Values(40, "0 to 39", "id"), "ratings": Values(None, "finite numbers", "rating")}
    >>> request = {"ids": np.array([[3, 4], [5, -1]]), "ratings": np.array([[1, 0.5], [2, np.nan]], np.float32)}
    >>> check(request, allowed).tolist()
    [2, 1]
    >>> request["ids"][1, 0] = 40
    >>> check(request, allowed)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ensemble.values.RefusedError: ids: history 1, position 0 is 40; allowed are 0 to 39, and -1 as padding ...

    Args:
        inputs: INT32 or INT64 [batch, time] or FP32 [batch, time, ...] by name, batch at least 1; the first is padded after
            its last step alone, with what its `Values` say (-1, NaN), and the others exactly where it is.
        shortest: steps that a history needs at least.
        longest: columns that a request has at most; None: any number.

    Returns:
        INT32 [batch], the number of steps before the padding.

    Raises:
        RefusedError: it breaks the contract.
    """
    (leading, first), *others = inputs.items()
    if longest is not None and first.shape[1] > longest:
        raise RefusedError(
            "too_long",
            f"{leading} has shape {list(first.shape)}; allowed are at most {longest} {words.steps} a "
            f"{words.history}: send the most recent ones",
        )
    for name, values in others:
        if values.shape[:2] != first.shape[:2]:
            raise RefusedError(
                "shape",
                f"{leading} has shape {list(first.shape)} and {name} {list(values.shape)}; "
                f"both need the same [{words.histories}, {words.steps}]",
            )
    if first.size and all(_is_full(values, allowed[name]) for name, values in inputs.items()):
        lengths = np.full(len(first), first.shape[1], np.int32)  # the usual request: no padding, nothing wrong
    else:
        lengths = _count(inputs, allowed, words)
    if lengths.min() < shortest:
        number = int((lengths < shortest).argmax())
        raise RefusedError(
            "too_short",
            f"{leading}: {words.history} {number} has {lengths[number]} {words.steps}; this model answers from "
            f"{shortest} on",
        )
    return lengths


def check_ids(ids: np.ndarray, allowed: Values, name: str, words: Words = WORDS) -> None:
    """Refuse ids, INT32 or INT64 [batch, any], that are neither allowed nor padding, wherever that stands.

    >>> check_ids(np.array([[3, -1, 4]]), Values(5, "0 to 4", "id"), "ids")
    >>> check_ids(np.array([[3, -1, 5]]), Values(5, "0 to 4", "id"), "ids")
    Traceback (most recent call last):
    ensemble.values.RefusedError: ids: history 0, position 2 is 5; allowed are 0 to 4, and -1 as padding

    Raises:
        RefusedError: names history, position and value.
    """
    wrong = ~(_is_allowed(ids, allowed) | is_padding(ids, allowed))
    if wrong.any():
        number, position = np.argwhere(wrong)[0]
        raise RefusedError(
            allowed.reason,
            f"{name}: {words.history} {number}, position {position} is {_spelled(ids[number, position])}; "
            f"allowed are {allowed.said}, and {_fill(allowed)} as padding",
        )


def check_context(values: np.ndarray, allowed: Values, name: str, batch: int, words: Words = WORDS) -> None:
    """Refuse a context, [batch, ...], that is of another shape, or holds what is neither allowed nor padding of any length.

    >>> check_context(np.array([3, 5]), Values(5, "0 to 4", "item"), "item", 2)
    Traceback (most recent call last):
    ensemble.values.RefusedError: item: history 1 is 5; allowed are 0 to 4

    Raises:
        RefusedError: names history and value.
    """
    fits = values.ndim == len(allowed.shape) + 1
    fits = fits and all(size in (-1, given) for size, given in zip(allowed.shape, values.shape[1:]))
    if len(values) != batch or not fits:
        raise RefusedError(
            "shape",
            f"{name} has shape {list(values.shape)}; needed is {list(allowed.shape)} for each of {batch} {words.histories}",
        )
    if allowed.is_open:
        check_ids(values, allowed, name, words)
        return
    known = _fits(values, allowed)
    if not known.all():
        number, *where = np.argwhere(~known)[0].tolist()
        position = f", position {', '.join(map(str, where))}" if where else ""
        raise RefusedError(
            allowed.reason,
            f"{name}: {words.history} {number}{position} is {values[(number, *where)]}; allowed are {allowed.said}",
        )


def counted(values: np.ndarray, allowed: Values, name: str, padded: bool, words: Words = WORDS) -> np.ndarray:
    """How many there are of a checked context of any length, INT32 [batch]: at least one, and what pads it behind them.

    >>> counted(np.array([[3, 4], [5, -1]]), Values(9, "0 to 8", "item", shape=(-1,)), "items", padded=True).tolist()
    [2, 1]

    Args:
        padded: whether one may have fewer than another.

    Raises:
        RefusedError: it has none, some behind padding, or another number than its neighbours where that may not be.
    """
    there = ~is_padding(values, allowed)
    counts: np.ndarray = there.sum(axis=1, dtype=np.int32)
    said = ""
    if (there != is_valid(counts, there.shape[1])).any():
        number = int((there != is_valid(counts, there.shape[1])).any(axis=1).argmax())
        said = f"has {_fill(allowed)} before its last one; that is allowed only as padding behind it"
    elif not counts.all():
        number, said = int(counts.argmin()), "has none; send at least 1"
    elif not padded and (counts != counts[0]).any():
        number = int((counts != counts[0]).argmax())
        said = (
            f"has {counts[number]}, and {words.history} 0 has {counts[0]}; the model knows no padding of it: send those of "
            "one length together"
        )
    if said:
        raise RefusedError("shape", f"{name}: {words.history} {number} {said}")
    return counts


def _is_full(values: np.ndarray, allowed: Values) -> bool:
    """Whether all of it is allowed: one pass, for the request that has no padding. An overflow of a sum only suspects."""
    if allowed.limits is not None:
        low, high = allowed.limits
        return bool(low <= values.min() and values.max() <= high)  # neither is true of a NaN
    if allowed.end is None:
        return bool(np.isfinite(values.sum()))
    return bool(_above(values, allowed.start).max() < allowed.end - allowed.start)


def _is_allowed(values: np.ndarray, allowed: Values) -> np.ndarray:
    """Of each step, BOOL [batch, time]."""
    fits: np.ndarray = _fits(values, allowed).all(axis=tuple(range(2, values.ndim)))
    return fits


def _fits(values: np.ndarray, allowed: Values) -> np.ndarray:
    """Of each number, BOOL of the same shape."""
    fits: np.ndarray
    if allowed.limits is not None:
        fits = (values >= allowed.limits[0]) & (values <= allowed.limits[1])
    elif allowed.end is None:
        fits = np.isfinite(values)
    else:
        fits = _above(values, allowed.start) < allowed.end - allowed.start
    return fits


def is_padding(values: np.ndarray, allowed: Values) -> np.ndarray:
    """Of each step, BOOL [batch, time]."""
    missing: np.ndarray = np.isnan(values) if allowed.end is None else values == allowed.padding
    return missing.all(axis=tuple(range(2, values.ndim)))


def _fill(allowed: Values) -> str:
    """What pads it, as messages show it."""
    return "NaN" if allowed.end is None else str(allowed.padding)


def _count(inputs: Mapping[str, np.ndarray], allowed: Mapping[str, Values], words: Words) -> np.ndarray:
    """`check` for requests with padding or with something wrong in them."""
    known = [_is_allowed(values, allowed[name]) for name, values in inputs.items()]
    lengths: np.ndarray = known[0].sum(axis=1, dtype=np.int32)
    padding = functools.reduce(operator.and_, (is_padding(values, allowed[name]) for name, values in inputs.items()))
    right = np.where(is_valid(lengths, known[0].shape[1]), functools.reduce(operator.and_, known), padding)
    if not right.all():
        number, position = np.argwhere(~right)[0]
        where = f"{words.history} {number}, position {position}"
        raise _refusal({name: values[number] for name, values in inputs.items()}, allowed, position, where, words)
    return lengths


def _refusal(
    inputs: Mapping[str, np.ndarray], allowed: Mapping[str, Values], position: int, where: str, words: Words
) -> RefusedError:
    """Why the step at `position` of one history's [time, ...] inputs is refused."""
    leading = next(iter(inputs))
    fill = {name: _fill(allowed[name]) for name in inputs}
    known = {name: bool(_is_allowed(values[None], allowed[name])[0, position]) for name, values in inputs.items()}
    padding = {name: is_padding(values[None], allowed[name])[0] for name, values in inputs.items()}
    if padding[leading][position]:
        if not padding[leading][position + 1 :].all():
            return RefusedError(
                "padding",
                f"{leading}: {where} is {fill[leading]}, but {words.steps} follow it; {fill[leading]} is allowed only as "
                "padding after the last one",
            )
        name = next(name for name in inputs if not padding[name][position])
        return RefusedError(
            "padding",
            f"{name}: {where} is {_spelled(inputs[name][position])}; where {leading} is {fill[leading]} only {fill[name]} "
            "is allowed",
        )
    name = next(name for name in inputs if not known[name])
    others = f"{fill[name]} where {leading} is {fill[leading]}"
    if name == leading:
        others = f"{fill[name]} as padding after the last {words.step}"
    return RefusedError(
        allowed[name].reason,
        f"{name}: {where} is {_spelled(inputs[name][position])}; allowed are {allowed[name].said}, and {others}",
    )


def _spelled(value: np.ndarray) -> str:
    """One step of an input, as messages show it."""
    return str(value if value.ndim == 0 else value.tolist())


def _above(values: np.ndarray, start: int) -> np.ndarray:
    """How far integers are above `start`, without a sign: what is below is far above any limit, and one comparison does."""
    return (values - values.dtype.type(start) if start else values).view(f"u{values.itemsize}")
