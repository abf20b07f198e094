"""What a request has to be, and what the core gets of it: the one place where it is checked, windowed and padded.

Numpy and the standard library alone, in the words of Python 3.8: a copy travels beside each Python step, into whatever
container serves it, and the client, the parity gate and the benches use this one.

A request is {input name: [batch, time, ...]}, oldest first, its inputs aligned. Of the first one the padding tells how long
each history is; the others follow it. What an input may hold is said in values.py, how windows are taken in window.py, and
all that a model asks for in `Contract`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .values import WORDS, RefusedError, Values, Words, batch_of, check, check_context, check_ids, counted
from .window import PADDING, appended, is_valid, narrowest, pad, positions, recent, shifted

__all__ = [
    "PADDING",
    "Contract",
    "RefusedError",
    "Source",
    "Values",
    "Words",
    "batch_of",
    "check",
    "check_ids",
    "is_valid",
    "last_rows",
    "narrowest",
    "pad",
    "recent",
]


class Source(NamedTuple):
    """An input of the core: `of` an input of the request, or derived from how many of its steps are valid.

    Derived are "lengths", how many; "mask", 1 where they are, and "padding", 1 where they are not; "additive_mask", to be
    added to scores: 0 where they are, and the lowest number where they are not; "positions", their numbers from `start`;
    "token_types", zeros; "row", the number of the wanted one.

    append: a number, or the name of a context, that stands behind the history as one more step. shift: the name of a
    context: each step is replaced by the one after it, and the last by that. columns: whether it is a context that names
    wanted columns: what pads it, and who asks for none, computes column 0 and throws it away.
    """

    name: str
    of: str
    append: Any = None
    shift: str | None = None
    start: int = 0
    columns: bool = False


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
        even: whether nothing is padded: all histories of a request have one length, and the core sees that.
        contexts: what a request has once a history and not a step. optional: those that it may do without; defaults: what
            the core gets then. pads: what it gets behind a context of any length that is shorter than its neighbours'.
        select, row: which row the model is asked for, "last", "first", or that of the context `row`.
    """

    inputs: dict[str, Values]
    core: tuple[Source, ...]
    widths: tuple[int, ...]
    shortest: int = 0
    longest: int | None = None
    left: bool = False
    fills: tuple[tuple[str, float], ...] = ()
    words: Words = WORDS
    even: bool = False
    contexts: dict[str, Values] = {}  # noqa: RUF012 a NamedTuple's default, which nothing changes
    optional: tuple[str, ...] = ()
    select: str = "last"
    row: str | None = None
    defaults: tuple[tuple[str, Any], ...] = ()
    pads: tuple[tuple[str, float], ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """What refusals are counted by."""
        every = (*self.inputs.values(), *self.contexts.values())
        return ("shape", *dict.fromkeys(values.reason for values in every), "padding", "too_short", "too_long")

    def check(self, request: Mapping[str, np.ndarray]) -> np.ndarray:
        """How many steps each history has, INT32 [batch]; raises RefusedError where the request breaks the contract."""
        if not self.contexts and not self.even:
            return check(request, self.inputs, self.shortest, self.longest, self.words)
        histories = {name: request[name] for name in self.inputs}
        lengths = check(histories, self.inputs, self.shortest, self.longest, self.words)
        if self.even and (lengths != lengths[0]).any():
            number = int((lengths != lengths[0]).argmax())
            raise RefusedError(
                "shape",
                f"{next(iter(histories))}: {self.words.history} {number} has {lengths[number]} {self.words.steps}, and "
                f"{self.words.history} 0 has {lengths[0]}; this model is not padded: send those of one length together",
            )
        for name, allowed in self.contexts.items():
            if name in request:
                check_context(request[name], allowed, name, len(lengths), self.words)
                if allowed.is_open and self._is_seen(name):
                    counted(request[name], allowed, name, self.pads_context(name), self.words)
            elif name not in self.optional:
                raise RefusedError("shape", f"{name} is missing; this model needs it of each {self.words.history}")
        return lengths

    def feed(
        self, request: Mapping[str, np.ndarray], lengths: np.ndarray, dtypes: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """The core's inputs by name, of a checked request; dtypes: of those that are not INT32.

        Raises:
            RefusedError: the wanted row is not in the window.
        """
        request = self._whole(request, len(lengths))
        longer = any(source.append is not None for source in self.core)
        whole = lengths + 1 if longer else lengths
        valid = np.minimum(whole, self.widths[-1])
        width = int(valid.max()) if self.even else narrowest(self.widths, valid.max())
        fed, fills = {}, dict(self.fills)
        for source in self.core:
            dtype = (dtypes or {}).get(source.name, np.int32)
            if source.of in self.inputs:
                values, ends = request[source.of], lengths
                if source.append is not None:
                    values, ends = appended(values, lengths, request.get(source.append, source.append)), whole
                elif source.shift is not None:
                    values = shifted(values, lengths, request[source.shift])
                fed[source.name] = recent(values, ends, width, dtype, fills.get(source.of, 0), self.left)
            elif source.of in self.contexts:
                fed[source.name] = self._context(source, request, len(lengths)).astype(dtype, copy=False)
            else:
                fed[source.name] = self._derived(source, request, whole, valid, width).astype(dtype, copy=False)
        return fed

    def pads_context(self, name: str) -> bool:
        """Whether histories of one request may have a context of any length in unequal lengths."""
        return self.contexts[name].is_open and (name in dict(self.pads) or not self._is_seen(name))

    def _is_seen(self, context: str) -> bool:
        """Whether the core computes with a context's own values, and does not only look columns up by them."""
        return any(source.of == context and not source.columns for source in self.core)

    def _whole(self, request: Mapping[str, np.ndarray], batch: int) -> Mapping[str, np.ndarray]:
        """With what stands for the contexts that it has not."""
        missing = {name: value for name, value in self.defaults if name not in request}
        if not missing:
            return request
        types = {name: np.float32 if self.contexts[name].end is None else np.int64 for name in missing}
        return {**request, **{name: np.array([value] * batch, types[name]) for name, value in missing.items()}}

    def _context(self, source: Source, request: Mapping[str, np.ndarray], batch: int) -> np.ndarray:
        """A context as the core gets it: as it was sent, but for what pads it."""
        allowed, values = self.contexts[source.of], request.get(source.of)
        if values is None:  # wanted columns alone may be missing: one to compute, which counts as padding
            return np.zeros((batch, 1), np.int32)
        if not allowed.is_open:
            return values
        if source.columns:  # the core looks all of its ids up
            return np.maximum(values, 0)
        counts = counted(values, allowed, source.of, self.pads_context(source.of), self.words)
        return recent(values, counts, int(counts.max()), values.dtype, dict(self.pads).get(source.of, 0))

    def _derived(
        self, source: Source, request: Mapping[str, np.ndarray], whole: np.ndarray, valid: np.ndarray, width: int
    ) -> np.ndarray:
        """What a core is told of `whole` histories of which `valid` steps are in the window."""
        if source.of == "lengths":
            return valid
        if source.of == "mask":
            return is_valid(valid, width, self.left)
        if source.of == "padding":
            return ~is_valid(valid, width, self.left)
        if source.of == "additive_mask":
            return np.where(is_valid(valid, width, self.left), np.float32(0), np.finfo(np.float32).min)
        if source.of == "positions":
            return positions(valid, width, self.left, source.start)
        if source.of == "token_types":
            return np.zeros((len(valid), width), np.int32)
        first = width - valid if self.left else np.zeros_like(valid)
        if self.select == "first":
            return first
        if self.row is None:
            return np.maximum(first + valid - 1, 0)
        wanted = request[self.row]
        wrong = (wanted >= whole) | (wanted < whole - valid)
        if wrong.any():
            number = int(wrong.argmax())
            words, steps = self.words, whole[number]
            raise RefusedError(
                self.contexts[self.row].reason,
                f"{self.row}: {words.history} {number} has {wanted[number]}; of its {steps} {words.steps} the model sees "
                f"{steps - valid[number]} to {steps - 1}, and answers one of these",
            )
        return first + wanted - (whole - valid)

    def dumps(self) -> str:
        """As JSON, for the parameter of a step."""
        return json.dumps(self._asdict())

    @classmethod
    def loads(cls, text: str) -> Contract:
        """What `dumps` wrote."""
        found = json.loads(text)
        for each in ("inputs", "contexts"):
            found[each] = {
                name: Values(*values)._replace(shape=tuple(values[4]), limits=values[5] and tuple(values[5]))
                for name, values in found[each].items()
            }
        found["core"] = tuple(Source(*source) for source in found["core"])
        found["words"] = Words(*found["words"])
        for each in ("widths", "optional"):
            found[each] = tuple(found[each])
        for each in ("fills", "defaults", "pads"):
            found[each] = tuple((name, value) for name, value in found[each])
        return cls(**found)
