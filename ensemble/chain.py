"""From what the core answers to what a client gets: a chain of links, each a small function over numpy arrays.

Numpy alone, in the words of Python 3.8: a copy travels beside the last steps. A chain is a list of links, as JSON has them:
    ["sigmoid"], ["softmax"], ["exp"], ["scale", 2.5]   every number of the row
    ["at", "candidate_ids"]         rows are of these columns already; what pads them is 0
    ["leave_out", "item_ids", 1]    columns that the history has, or that are below the first id, are not proposed
    ["top", 10]                     the columns of the largest numbers, and these
    ["nearest", 0.7, 10]            the columns of the numbers nearest to 0.7, and these
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Overflows are meant, see below; np.errstate around each would cost more than the arithmetic.
np.seterr(over="ignore", invalid="ignore")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float32, in one temporary. Far negative logits overflow exp to inf, which is exactly 0.

    >>> sigmoid(np.array([[0, -200]], np.float32)).tolist()
    [[0.5, 0.0]]
    """
    probabilities = np.negative(logits)
    np.exp(probabilities, out=probabilities)
    probabilities += 1
    return np.reciprocal(probabilities, out=probabilities)


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) over its sum along the last axis, in float32.

    >>> softmax(np.array([[0, 0], [500, -500]], np.float32)).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"sigmoid": sigmoid, "softmax": softmax, "exp": np.exp}


BLOCKS = 64  # numbers of which the least one stands for all


def first(distances: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` smallest finite distances, smallest first; equal ones by their number. Fewer if so few are.

    >>> first(np.array([0.3, 0.1, np.inf, 0.1], np.float32), 3).tolist()
    [1, 3, 0]
    """
    # Everything as near as the count-th: a partial sort alone would pick among equals by chance. The count-th of the least
    # ones of many columns is as far or farther, and found in a tenth of the time.
    columns = len(distances) // BLOCKS
    least = distances[: columns * BLOCKS].reshape(BLOCKS, columns).min(axis=0) if columns >= count else distances
    candidates = np.flatnonzero(distances <= np.partition(least, count - 1)[count - 1])
    nearest = candidates[np.argsort(distances[candidates], kind="stable")][:count]
    return nearest[np.isfinite(distances[nearest])]


def answer(chain: Sequence[Sequence[Any]], rows: np.ndarray, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a chain makes of rows FP32 [batch, columns]: the same shape, or INT32 [batch, k] columns and FP32 [batch, k].

    -1 and 0 fill up where a history leaves fewer than k columns.

    >>> chain = [["leave_out", "seen", 0], ["top", 2]]
    >>> ids, values = answer(chain, np.array([[0.5, 3, 2, 1]], np.float32), {"seen": np.array([[1, -1]])})
    >>> ids.tolist(), values.tolist()
    ([[2, 3]], [[2.0, 1.0]])

    Args:
        given: what links name, as far as the request has it: ids INT32 or INT64 [batch, any], -1 is padding.
    """
    left_out: tuple[np.ndarray, int] | None = None
    padded: np.ndarray | None = None
    for name, *arguments in chain:
        if name in ACTIVATIONS:
            rows = ACTIVATIONS[name](rows)
        elif name == "scale":
            rows = rows * np.float32(arguments[0])
        elif name == "at":
            padded = given[arguments[0]] < 0 if arguments[0] in given else np.full(rows.shape, True)
        elif name == "leave_out":
            left_out = given.get(arguments[0], np.zeros((len(rows), 0), np.int32)), arguments[1]
        elif name == "nearest":
            return _picked(np.abs(rows - np.float32(arguments[0])), rows, arguments[1], left_out)
        elif name == "top":
            return _picked(np.negative(rows), rows, arguments[0], left_out)
        else:
            raise ValueError(f"there is no link {name!r}")
    return [rows if padded is None else np.where(padded, np.float32(0), rows)]


def damage(rows: np.ndarray, name: str, history: str) -> str | None:
    """What is wrong with rows FP32 [batch, ...] that are not all finite numbers; None where all are.

    >>> damage(np.array([[1.0], [np.nan]]), "logits", "history")[:56]
    'logits has 1 values that are not finite for history 1; a'

    name, history: what the rows, and each one, are called in the message.
    """
    # One pass, without a temporary: a NaN or an infinity stays in a sum. So does an overflow, which is why it only suspects.
    if math.isfinite(rows.sum()):
        return None
    for number, row in enumerate(rows):
        count = int((~np.isfinite(row)).sum())
        if count:
            return (
                f"{name} has {count} values that are not finite for {history} {number}; allowed are finite numbers: "
                "the weights or the arithmetic of the core that answered them are damaged"
            )
    return None


def _picked(
    distances: np.ndarray, rows: np.ndarray, count: int, left_out: tuple[np.ndarray, int] | None
) -> list[np.ndarray]:
    """Of each row the columns of its smallest distances, and their numbers."""
    ids, values = np.full((len(rows), count), -1, np.int32), np.zeros((len(rows), count), np.float32)
    for number, distance in enumerate(distances):
        if left_out is not None:
            seen, start = left_out[0][number], left_out[1]
            distance[seen[seen >= 0]] = np.inf
            distance[:start] = np.inf
        nearest = first(distance, count)
        ids[number, : len(nearest)] = nearest
        values[number, : len(nearest)] = rows[number, nearest]
    return [ids, values]
