"""How well a ranking of items predicts what a user takes next: leave one out, among all items that the user has not seen.

Whoever ranks (the running server, PyTorch, popularity) is measured by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.table import Table

from build.model.next_item.histories import Held, History
from build.model.next_item.network import Network
from build.progress import answers

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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def score(rank: Rank, held: Sequence[Held]) -> Score:
    """Score a ranking.

    Args:
        rank: histories to item ids [users, up to 10], best first; what is no item is 0.
    """
    held = [each for each in held if not (each.history.item_ids == each.item_id).any()]
    if not held:
        return Score(float("nan"), float("nan"), 0)
    ranked = np.asarray(rank([each.history for each in held]))[:, :TOP]
    hits = ranked == np.array([[each.item_id] for each in held])
    gains = hits / np.log2(np.arange(2, ranked.shape[1] + 2))
    return Score(float(hits.any(1).mean()), float(gains.sum(1).mean()), len(held))


def popularity(training: Sequence[History], items: int) -> Rank:
    """Rank by how often an item was taken in training, the lower id first of equals."""
    counts = np.bincount(np.concatenate([h.item_ids for h in training]), minlength=items + 1).astype(np.float32)
    return lambda histories: _unseen(torch.from_numpy(counts).repeat(len(histories), 1), histories)


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
            found.append(_unseen(logits, part))
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


def show(scores: Mapping[str, Score]) -> None:
    """Print the scores as a table on stdout."""
    table = Table(title="next item, leave one out, among all unseen items")
    for column in ("", "users", f"hit rate at {TOP}", f"NDCG at {TOP}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in scores.items():
        table.add_row(name, f"{found.users:,}", f"{found.hit_rate:.4f}", f"{found.ndcg:.4f}")
    answers().print(table)


def _unseen(scores: torch.Tensor, histories: Sequence[History]) -> np.ndarray:
    """The best unseen item ids [users, 10] by scores FP32 [users, items + 1]; 0 where there are fewer."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    for row, history in zip(scores, histories, strict=True):
        row[torch.from_numpy(history.item_ids.astype(np.int64))] = -torch.inf
    best, ids = scores.sort(dim=1, descending=True, stable=True)
    return torch.where(best > -torch.inf, ids, 0)[:, :TOP].numpy()
