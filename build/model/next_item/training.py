"""Training of the next-item models, and what they are worth.

Every item of a history is predicted from those before it, by a softmax over all items; of more than FEW, over the right
one and some drawn by popularity, corrected for how likely each is drawn (Bengio & Senecal, 2008).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from build.model.next_item.evaluation import local, padded, popularity, score
from build.model.next_item.histories import Held, History
from build.model.next_item.network import Network
from ensemble.errors import LastrowError

FEWEST_ITEMS, MOST_ITEMS, STEPS = 1024, 4096, 75  # padded, of a batch; and of these an epoch, if it has as many
FEW = 4096  # items; drawn ones save little of these, and teach less
DRAWN = 512  # items beside the right one
LEARNING_RATE = 2e-3
MAX_EPOCHS = 40
TESTED = 1000  # users at most


@dataclass(frozen=True)
class Report:
    """What a training measured on held items: hit rate and NDCG at 10, and popularity's beside them."""

    hit_rate: float
    ndcg: float
    baseline_hit_rate: float
    baseline_ndcg: float
    items: int
    train_users: int
    test_users: int
    epochs: float
    seconds: float

    def to_json(self, data: str | None = None) -> str:
        """The report as JSON text; data: the digest of what it was trained on."""
        return json.dumps({**asdict(self), "data": data}, indent=1) + "\n"


def train(
    model: Network,
    training: Sequence[History],
    test: Sequence[Held],
    window: int,
    *,
    seed: int = 0,
    budget_s: float = 60.0,
    max_epochs: int = MAX_EPOCHS,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Report:
    """Train the model in place until the time or the epochs are used up.

    Args:
        model: untrained; its first weights are the caller's, batches and drawn items follow from `seed`.
        window: the most recent items that the model gets.
        budget_s: seconds of training; testing is not in it.

    Raises:
        LastrowError: an item id is not the model's, or there is nothing to learn from or to test on.
    """
    _check(model, training, test)
    torch.manual_seed(seed)
    counts = torch.from_numpy(np.bincount(np.concatenate([h.item_ids for h in training]), minlength=model.items + 1))
    chances = counts.double().clamp(min=1) ** 0.75
    chances[0] = 0.0
    chances /= chances.sum()
    with torch.no_grad():
        model.bias.copy_((counts.float() + 1).log() - (counts.float() + 1).log().mean())
    pieces = [h.item_ids[start : start + window] for h in training for start in range(0, len(h), window)]
    size = int(np.clip(sum(map(len, pieces)) // STEPS, FEWEST_ITEMS, MOST_ITEMS))
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng(seed)
    begun, steps, batches_an_epoch = time.monotonic(), 0, sum(1 for _ in _batches(pieces, size, rng, model.left))
    used = 0.0
    model.train()
    while used < 1.0:
        for item_ids in _batches(pieces, size, rng, model.left):
            used = max((time.monotonic() - begun) / budget_s, steps / (max_epochs * batches_an_epoch))
            if used >= 1.0:
                break
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * (1.0 - used)
            loss = _loss(model, item_ids, chances)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            steps += 1
            progress(used, f"loss {loss.item():.3f}")
    seconds = time.monotonic() - begun
    model.eval()
    chosen = np.random.default_rng(0).permutation(len(test))[:TESTED]
    held = [test[n] for n in chosen]
    found, baseline = score(local(model, window), held), score(popularity(training, model.items), held)
    progress(1.0, f"{steps / batches_an_epoch:.1f} epochs")
    return Report(
        hit_rate=found.hit_rate,
        ndcg=found.ndcg,
        baseline_hit_rate=baseline.hit_rate,
        baseline_ndcg=baseline.ndcg,
        items=model.items,
        train_users=len(training),
        test_users=found.users,
        epochs=round(steps / batches_an_epoch, 2),
        seconds=round(seconds, 1),
    )


def _loss(model: Network, item_ids: Tensor, chances: Tensor) -> Tensor:
    """Cross entropy of every item given those before it."""
    valid = item_ids != 0
    states, wanted = model.before(item_ids)[valid], item_ids[valid]
    if model.items <= FEW:
        return nn.functional.cross_entropy(model.head(states)[:, 1:], wanted - 1)
    drawn = torch.multinomial(chances, DRAWN, replacement=True)
    logits = nn.functional.linear(states, model.item_emb(drawn), model.bias[drawn])
    logits = logits - (DRAWN * chances[drawn]).log().float()
    logits = logits.masked_fill(drawn == wanted[:, None], -torch.inf)
    right = (states * model.item_emb(wanted)).sum(-1) + model.bias[wanted]
    return (torch.cat([right[:, None], logits], dim=1).logsumexp(1) - right).mean()


def _check(model: Network, training: Sequence[History], test: Sequence[Held]) -> None:
    for history in (*training, *(each.history for each in test)):
        if len(history) and not 1 <= history.item_ids.min() <= history.item_ids.max() <= model.items:
            raise LastrowError(
                f"user {history.user} has item ids {history.item_ids.min()} to {history.item_ids.max()}; the model has 1 "
                f"to {model.items}"
            )
    if not any(len(h) > 1 for h in training) or not test:
        raise LastrowError("no user has an item to learn or to test on; use more users, of three items at least")


def _batches(pieces: Sequence[np.ndarray], size: int, rng: np.random.Generator, left: bool) -> Iterator[Tensor]:
    """Batches of pieces of like length, of `size` items at most, in random order: ids INT64 [batch, time]."""
    order = sorted(range(len(pieces)), key=lambda n: (len(pieces[n]), rng.random()))
    groups: list[list[int]] = [[]]
    for n in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(pieces[n]) > size:
            groups.append([])
        groups[-1].append(n)
    for number in rng.permutation(len(groups)):
        yield torch.from_numpy(padded([pieces[n] for n in groups[number]], left))
