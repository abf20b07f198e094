"""Histories of unequal length as tensors of one width: padded, windowed, and what a model is told beside them.

Numpy alone, in the words of Python 3.8: a copy travels beside each Python step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PADDING = -1


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
    kept = np.full((batch, width, *shape), fill, dtype)
    if not left and time <= width:
        there = is_valid(lengths, time)
        np.copyto(kept[:, :time], values, casting="unsafe", where=there.reshape(*there.shape, *(1 for _ in shape)))
        return kept
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


def appended(values: np.ndarray, lengths: np.ndarray, more: Any) -> np.ndarray:
    """One step more behind the last of every history, [batch, time + 1, ...]; more: the same for all, or [batch, ...].

    >>> appended(np.array([[3, 4], [6, -1]]), np.array([2, 1]), np.array([8, 9])).tolist()
    [[3, 4, 8], [6, 9, -1]]
    """
    batch, time, *shape = values.shape
    longer = np.full((batch, time + 1, *shape), PADDING, np.result_type(values, more))
    longer[:, :time] = values
    longer[np.arange(batch), lengths] = more
    return longer


def shifted(values: np.ndarray, lengths: np.ndarray, following: Any) -> np.ndarray:
    """Every step replaced by the one after it, the last by `following`, [batch, time, ...]: one step ahead.

    >>> shifted(np.array([[3, 4], [6, -1]]), np.array([2, 1]), np.array([8, 9])).tolist()
    [[4, 8], [9, -1]]
    """
    return appended(values, lengths, following)[:, 1:]


def positions(lengths: np.ndarray, width: int, left: bool = False, start: int = 0) -> np.ndarray:
    """Of each step of a window its number, from `start`, oldest first; padding has 0: INT32 [batch, width].

    >>> positions(np.array([2]), 3).tolist(), positions(np.array([2]), 3, left=True, start=1).tolist()
    ([[0, 1, 0]], [[0, 1, 2]])
    """
    numbers = np.arange(width, dtype=np.int32) - (width - lengths[:, None] if left else 0) + start
    return np.where(is_valid(lengths, width, left), numbers, 0).astype(np.int32)
