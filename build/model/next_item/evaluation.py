"""How well a ranking of items predicts what a user takes next: leave one out, among all items that the user has not seen.

Whoever ranks (the running server, PyTorch, popularity) is measured by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from build.model.next_item.histories import Held, History
from build.model.next_item.network import Network
from ensemble.errors import LastrowError

TOP = 10
Rank = Callable[[Sequence[History]], np.ndarray]
BATCH = 64  # users that PyTorch ranks at once


@dataclass(frozen=True)
class Score:
    """hit_rate: how often the held item is among the top 10; ndcg: 1 / log2(1 + its place) on average, places from 1.

    users: how many were asked; whose held item had been seen before cannot be answered, and is left out.
    """

    hit_rate: float
    ndcg: float
    users: int


def answerable(held: Sequence[Held]) -> list[Held]:
    """Those whose item their user had not had: what was seen is never ranked."""
    return [each for each in held if not (each.history.item_ids == each.item_id).any()]


def score(rank: Rank, held: Sequence[Held]) -> Score:
    """Score a ranking by the items that it can name.

    Args:
        rank: histories to item ids [users, up to 10], best first; what is no item is 0.
    """
    held = answerable(held)
    return judge(list(rank([each.history for each in held])) if held else [], held)


def judge(ranked: Sequence[np.ndarray], held: Sequence[Held]) -> Score:
    """Score one ranking a user, item ids [up to 10] each, best first.

    >>> judge([np.array([7, 5])], [Held(History("ada", np.array([3], np.int32)), 5)])
    Score(hit_rate=1.0, ndcg=0.6309297535714575, users=1)

    Raises:
        LastrowError: one names an item that its user has had, which would leave less room for what is asked about.
    """
    gains = []
    for ids, each in zip(ranked, held, strict=True):
        seen = np.intersect1d(ids, each.history.item_ids)
        if len(seen):
            raise LastrowError(
                f"item {seen[0]} is ranked for user {each.history.user}, who has had it; scored are rankings of unseen items"
            )
        (places,) = np.nonzero(np.asarray(ids)[:TOP] == each.item_id)
        gains.append(1 / np.log2(places[0] + 2) if len(places) else 0.0)
    if not gains:
        return Score(float("nan"), float("nan"), 0)
    return Score(float(np.mean(np.array(gains) > 0)), float(np.mean(gains)), len(gains))


def popularity(training: Sequence[History], items: int) -> Rank:
    """Rank by how often an item was taken in training, the lower id first of equals."""
    counts = np.bincount(np.concatenate([h.item_ids for h in training]), minlength=items + 1).astype(np.float32)
    return lambda histories: unseen(torch.from_numpy(counts).repeat(len(histories), 1), histories)


def local(model: Network, window: int) -> Rank:
    """Rank by the PyTorch model, which gets a history's most recent `window` items."""

    def rank(histories: Sequence[History]) -> np.ndarray:
        found = []
        order = sorted(range(len(histories)), key=lambda n: len(histories[n]))
        for start in range(0, len(order), BATCH):
            part = [histories[n] for n in order[start : start + BATCH]]
            recent = [h.item_ids[-window:] for h in part]
            lengths = torch.tensor([len(ids) for ids in recent])
            with torch.inference_mode():
                logits = model.last(torch.from_numpy(padded(recent, model.left)), lengths)
            found.append(unseen(logits, part))
        ranked = np.concatenate(found)
        return ranked[np.argsort(order)]

    return rank


def padded(sequences: Sequence[np.ndarray], left: bool) -> np.ndarray:
    """INT64 [users, longest], 1 at least, with 0 in front of what is shorter, or behind it."""
    ids = np.zeros((len(sequences), max(1, *map(len, sequences))), np.int64)
    for row, values in zip(ids, sequences, strict=True):
        if len(values):
            row[slice(-len(values), None) if left else slice(len(values))] = values
    return ids


def unseen(scores: torch.Tensor, histories: Sequence[History]) -> np.ndarray:
    """The best unseen item ids [users, 10] by scores FP32 [users, items + 1]; 0 where there are fewer."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    for row, history in zip(scores, histories, strict=True):
        row[torch.from_numpy(history.item_ids.astype(np.int64))] = -torch.inf
    best, ids = scores.sort(dim=1, descending=True, stable=True)
    return torch.where(best > -torch.inf, ids, 0)[:, :TOP].numpy()
