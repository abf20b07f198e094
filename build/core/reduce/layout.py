"""Which row of which tensor is wanted: the vocabulary of the reduction pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import gcd
from typing import Literal

from ensemble.errors import LastrowError

# What becomes of the time axis. "prefix" selects nothing: it asks for the rows up to the wanted one, all of them.
Kind = Literal["row", "mean", "max", "prefix"]


class ReductionError(LastrowError):
    """The model cannot be reduced; says which tensor or operator is in the way and what to do."""


class Stop(Exception):
    """A rule does not hold for this operator; the message is the reason that people read. No error: the pass rests here."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor keeps batch and time.

    time, batch: axes. They are equal where a Reshape has merged both into one, batch first unless time_first; then
        `rows` is the number of rows that went into it, in each run of `shapes`.
    inner: the batch axis has `inner` entries a history, next to each other (heads, as attention splits them).
    offset: the wanted row is this far behind the row that the model's output is asked for (a Slice moves it).
    before, step: wanted are also the rows up to `before` in front of it, every `step` of them: what a convolution looks at.
        Of those, the ones that the tensor does not have may hold anything: who asks for them fills them, as padding would.

    A tensor without batch (a position table, a mask) has the time axis alone: `batch` is then an axis of size 1, or
    negative where broadcasting would add it in front.

    >>> rows = Layout(time=1, batch=0)  # [batch, time, ...]
    >>> rows.moved(time=0, batch=1) == Layout(time=0, batch=1)
    True
    >>> Layout(time=0, batch=0).merged  # [batch x time, ...]
    True
    """

    time: int
    batch: int
    inner: int = 1
    offset: int = 0
    time_first: bool = False
    rows: tuple[int, ...] = ()
    before: int = 0
    step: int = 0

    @property
    def first(self) -> int:
        """The offset of the first row that is wanted."""
        return self.offset - self.before

    @property
    def count(self) -> int:
        """How many rows are wanted."""
        return self.before // self.step + 1 if self.step else 1

    def seen(self, kernel: int, dilation: int, pad: int) -> Layout:
        """What a window of `kernel` rows, `dilation` apart and over `pad` rows of padding in front, looks at.

        >>> Layout(time=1, batch=0).seen(kernel=3, dilation=4, pad=8).count  # rows 8, 4 and 0 in front
        3
        """
        reach = (kernel - 1) * dilation
        return replace(
            self,
            offset=self.offset + reach - pad,
            before=self.before + reach,
            step=gcd(self.step, dilation if reach else 0),
        )

    def union(self, other: Layout) -> Layout | None:
        """The rows of both; None where they lie on different axes.

        >>> rows = Layout(time=1, batch=0)
        >>> rows.union(replace(rows, offset=-6)) == replace(rows, before=6, step=6)
        True
        """
        if replace(self, offset=0, before=0, step=0) != replace(other, offset=0, before=0, step=0):
            return None
        last, first = max(self.offset, other.offset), min(self.first, other.first)
        step = gcd(self.step, other.step, last - self.offset, last - other.offset)
        return replace(self, offset=last, before=last - first, step=step)

    @property
    def merged(self) -> bool:
        """Whether batch and time share an axis."""
        return self.time == self.batch

    def moved(self, time: int, batch: int) -> Layout:
        """The same row of a tensor whose axes lie elsewhere."""
        return replace(self, time=time, batch=batch)


@dataclass(frozen=True)
class Needs:
    """What an operator needs so that its own output is right in the wanted row; by input number.

    rows: inputs of which that row is enough. prefixes: inputs needed up to that row. All others are needed whole.

    >>> Needs(rows={0: Layout(time=1, batch=0)}).prefixes
    {}
    """

    rows: dict[int, Layout] = field(default_factory=dict)
    prefixes: dict[int, Layout] = field(default_factory=dict)
