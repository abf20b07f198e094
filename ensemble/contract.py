"""What a request has to be, and what the core gets of it: the one place where it is checked, windowed and padded.

Numpy and the standard library alone, in the words of Python 3.8: a copy travels beside each Python step, into whatever
container serves it, and the client, the parity gate and the benches use this one.

A request is {input name: [batch, time, ...]}, oldest first, its inputs aligned. Of the first one the padding tells how long
each history is; the others follow it. What an input may hold is said in `Values`, all that a model asks for in `Contract`.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

PADDING = -1


class RefusedError(ValueError):
    """A request that breaks the contract: the message names tensor, history, position, value and what is allowed there.

    reason: what refusals are counted by: "shape", "padding", "too_short", "too_long", or that of the input's `Values`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Values(NamedTuple):
    """What an input may hold before its padding: whole numbers from `start` to below `end`; without an end, finite numbers.

    said: the same in words. reason: what a value beyond them is counted as.
    """

    end: int | None
    said: str
    reason: str
    start: int = 0


class Words(NamedTuple):
    """What messages call one history of a request, several of them, and the steps of one."""

    history: str = "history"
    histories: str = "histories"
    step: str = "step"
    steps: str = "steps"


WORDS = Words()


class Source(NamedTuple):
    """An input of the core: `of` an input of the request, or derived: "lengths", how many of its steps are valid."""

    name: str
    of: str


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
    ensemble.contract.RefusedError: ids: history 1, position 0 is 40; allowed are 0 to 39, and -1 as padding ...

    Args:
        inputs: INT32 or INT64 [batch, time] or FP32 [batch, time, ...] by name, batch at least 1; the first is padded after
            its last step alone, with -1 or NaN, and the others exactly where it is.
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
    """Refuse ids, INT32 or INT64 [batch, any], that are neither allowed nor -1, wherever that stands.

    >>> check_ids(np.array([[3, -1, 4]]), Values(5, "0 to 4", "id"), "ids")
    >>> check_ids(np.array([[3, -1, 5]]), Values(5, "0 to 4", "id"), "ids")
    Traceback (most recent call last):
    ensemble.contract.RefusedError: ids: history 0, position 2 is 5; allowed are 0 to 4, and -1 as padding

    Raises:
        RefusedError: names history, position and value.
    """
    wrong = ~(_is_allowed(ids, allowed) | (ids == PADDING))
    if wrong.any():
        number, position = np.argwhere(wrong)[0]
        raise RefusedError(
            allowed.reason,
            f"{name}: {words.history} {number}, position {position} is {ids[number, position]}; "
            f"allowed are {allowed.said}, and -1 as padding",
        )


def recent(
    values: np.ndarray, lengths: np.ndarray, width: int, dtype: Any = np.int32, fill: float = 0, left: bool = False
) -> np.ndarray:
    """The most recent `width` steps of every history, oldest first, and `fill` behind them (left: in front): [batch, width].

    Not the request's own padding: the core looks embeddings up for padding too, before its lengths make it ignore them.

    >>> recent(np.array([[3, 4, 5], [6, -1, -1]]), np.array([3, 1]), 2).tolist()
    [[4, 5], [6, 0]]
    >>> recent(np.array([[3, 4, 5], [6, -1, -1]]), np.array([3, 1]), 4, fill=9, left=True).tolist()
    [[9, 3, 4, 5], [9, 9, 9, 6]]

    Args:
        values: [batch, time, ...], valid up to `lengths` [batch].
    """
    batch, time, *shape = values.shape
    if not (left or fill) and time <= width and values.dtype.kind == "i":
        kept = np.zeros((batch, width), dtype)
        np.maximum(values, 0, out=kept[:, :time], casting="same_kind")
        return kept
    kept = np.full((batch, width, *shape), fill, dtype)
    columns, valid = np.arange(width), is_valid(lengths, width, left)
    source = columns + np.maximum(lengths - width, 0)[:, None] if not left else columns + (lengths - width)[:, None]
    kept[valid] = values[np.nonzero(valid)[0], source[valid]]
    return kept


def is_valid(lengths: np.ndarray, width: int, left: bool = False) -> np.ndarray:
    """Where a window holds steps and not padding: BOOL [batch, width].

    >>> is_valid(np.array([1, 5]), 3).astype(int).tolist(), is_valid(np.array([1]), 3, left=True).astype(int).tolist()
    ([[1, 0, 0], [1, 1, 1]], [[0, 0, 1]])
    """
    columns = np.arange(width)
    return columns[::-1] < lengths[:, None] if left else columns < lengths[:, None]


def narrowest(widths: Sequence[int], longest: int) -> int:
    """The smallest of the rising `widths` that holds `longest` steps; the largest where none does.

    >>> narrowest([64, 128, 512], 65)
    128
    """
    return next((width for width in widths if width >= longest), widths[-1])


def last_rows(rows: np.ndarray, lengths: np.ndarray, names: tuple[str, str], words: Words = WORDS) -> np.ndarray:
    """The row of the last step, [batch, any], of rows [batch, window, any].

    >>> last_rows(np.array([[[0.1], [0.2]], [[0.3], [0.4]]]), np.array([2, 1]), ("lengths", "logits")).tolist()
    [[0.2], [0.3]]

    Args:
        lengths: INT32 [batch], steps, 1 to window.
        names: what lengths and rows are called in messages.

    Raises:
        RefusedError: a length has no row.
    """
    window = rows.shape[1]
    wrong = (lengths < 1) | (lengths > window)
    if wrong.any():
        number = int(wrong.argmax())
        raise RefusedError(
            "shape",
            f"{names[0]}: {words.history} {number} has {lengths[number]}; {names[1]} has {window} rows a {words.history}, "
            f"so allowed are {f'1 to {window}' if window else 'none'}",
        )
    return rows[np.arange(len(rows)), lengths - 1]


def pad(
    sequences: Sequence[np.ndarray], width: int | None = None, fill: int = PADDING, dtype: Any = np.int32
) -> np.ndarray:
    """Sequences of unequal length as one tensor [batch, width], each from the left and `fill` behind it.

    >>> pad([np.array([3, 4, 5]), np.array([6])]).tolist()
    [[3, 4, 5], [6, -1, -1]]

    Args:
        width: None: of the longest, and at least 1: a tensor without elements cannot say how many histories it is about.
    """
    width = width or max(map(len, sequences), default=0) or 1
    if len(sequences) == 1 and len(sequences[0]) == width:
        return np.asarray(sequences[0], dtype)[None]  # nothing to pad, nothing to copy
    padded = np.full((len(sequences), width), fill, dtype)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded


class Contract(NamedTuple):
    """All that a model asks of a request, and what its core gets of it; as JSON it travels to a step.

    >>> of = Contract({"ids": Values(40, "0 to 39", "id")}, (Source("x", "ids"), Source("n", "lengths")), (2, 4))
    >>> given = {"ids": np.array([[3, 4, 5], [6, -1, -1]])}
    >>> {name: value.tolist() for name, value in of.feed(given, of.check(given)).items()}
    {'x': [[3, 4, 5, 0], [6, 0, 0, 0]], 'n': [3, 1]}
    >>> Contract.loads(of.dumps()) == of
    True

    Attributes:
        inputs: what each input of a request may hold; the first tells how long a history is.
        core: what the core gets, in its order.
        widths: that the core knows, rising; the last is the window.
        shortest, longest: steps of a history, at least and, in a request, at most.
        left: whether windows are padded in front. fills: what the core sees there, of an input that is not padded with 0.
    """

    inputs: dict[str, Values]
    core: tuple[Source, ...]
    widths: tuple[int, ...]
    shortest: int = 0
    longest: int | None = None
    left: bool = False
    fills: tuple[tuple[str, float], ...] = ()
    words: Words = WORDS

    @property
    def reasons(self) -> tuple[str, ...]:
        """What refusals are counted by."""
        return ("shape", *(values.reason for values in self.inputs.values()), "padding", "too_short", "too_long")

    def check(self, request: Mapping[str, np.ndarray]) -> np.ndarray:
        """How many steps each history has, INT32 [batch]; raises RefusedError where the request breaks the contract."""
        return check(request, self.inputs, self.shortest, self.longest, self.words)

    def feed(
        self, request: Mapping[str, np.ndarray], lengths: np.ndarray, dtypes: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """The core's inputs by name, of a checked request; dtypes: of those that are not INT32."""
        valid = np.minimum(lengths, self.widths[-1])
        width = narrowest(self.widths, valid.max())
        fed, fills = {}, dict(self.fills)
        for name, of in self.core:
            dtype = (dtypes or {}).get(name, np.int32)
            if of == "lengths":
                fed[name] = valid.astype(dtype, copy=False)
            else:
                fed[name] = recent(request[of], lengths, width, dtype, fills.get(of, 0), self.left)
        return fed

    def dumps(self) -> str:
        """As JSON, for the parameter of a step."""
        return json.dumps(self._asdict())

    @classmethod
    def loads(cls, text: str) -> Contract:
        """What `dumps` wrote."""
        found = json.loads(text)
        found["inputs"] = {name: Values(*values) for name, values in found["inputs"].items()}
        found["core"] = tuple(Source(*source) for source in found["core"])
        found["widths"], found["words"] = tuple(found["widths"]), Words(*found["words"])
        found["fills"] = tuple((name, fill) for name, fill in found["fills"])
        return cls(**found)


def _is_full(values: np.ndarray, allowed: Values) -> bool:
    """Whether all of it is allowed: one pass, for the request that has no padding. An overflow of a sum only suspects."""
    if allowed.end is None:
        return bool(np.isfinite(values.sum()))
    return bool(_above(values, allowed.start).max() < allowed.end - allowed.start)


def _is_allowed(values: np.ndarray, allowed: Values) -> np.ndarray:
    """Of each step, BOOL [batch, time]."""
    if allowed.end is None:
        finite: np.ndarray = np.isfinite(values)
        return finite.all(axis=tuple(range(2, values.ndim)))
    return _above(values, allowed.start) < allowed.end - allowed.start


def _is_padding(values: np.ndarray) -> np.ndarray:
    """Of each step, BOOL [batch, time]."""
    if values.dtype.kind == "i":
        return values == PADDING
    missing: np.ndarray = np.isnan(values)
    return missing.all(axis=tuple(range(2, values.ndim)))


def _count(inputs: Mapping[str, np.ndarray], allowed: Mapping[str, Values], words: Words) -> np.ndarray:
    """`check` for requests with padding or with something wrong in them."""
    known = [_is_allowed(values, allowed[name]) for name, values in inputs.items()]
    lengths: np.ndarray = known[0].sum(axis=1, dtype=np.int32)
    padding = functools.reduce(operator.and_, map(_is_padding, inputs.values()))
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
    fill = {name: "-1" if values.dtype.kind == "i" else "NaN" for name, values in inputs.items()}
    known = {name: bool(_is_allowed(values[None], allowed[name])[0, position]) for name, values in inputs.items()}
    padding = {name: _is_padding(values[None])[0] for name, values in inputs.items()}
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
