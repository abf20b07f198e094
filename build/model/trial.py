"""What a trained model is tried on: requests that were held out of its training, and what answers to them are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Worth = Mapping[str, float]  # by what each number is called


@dataclass(frozen=True)
class Trial:
    """Whoever answers (the running server, PyTorch, a core in 8 bits) is judged by the same code.

    Attributes:
        title: what is held out, in words.
        requests: inputs by name as a client has them, a history each, without batch axis.
        answer: which of the spec's answers is asked for; its first tensor is judged.
        answered: that tensor, by the request's number and the row that the model answers there [...]. It is made here, and
            not by the chain that is served.
        worth: of one such tensor for every request, in their order.
        baselines: the worth of something simpler, by what it is called.
    """

    title: str
    requests: Sequence[Mapping[str, Array]]
    answer: str
    answered: Callable[[int, Array], Array]
    worth: Callable[[Sequence[Array]], Worth]
    baselines: Mapping[str, Worth]


def chosen(count: int, sample: int | None, seed: int = 0) -> list[int]:
    """Which of `count` held requests are asked: all, or as many as `sample` at random, in their order.

    >>> chosen(3, None), len(chosen(100, 10))
    ([0, 1, 2], 10)
    """
    if sample is None or sample >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, sample, replace=False).tolist())
