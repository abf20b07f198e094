"""Reference architectures for the next item: item ids in, a logit for every item out.

Ids are 1 to `items`; 0 is padding. The head is the table of items itself (tied weights), so column 0 of the answer is the
padding's, and no item's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

DROPOUT = 0.2  # in training alone


class Network(nn.Module):
    """Answers, after every item of a history, the logit of each item as the next one.

    A subclass makes `states`; table and head are common to all. `left`: whether histories are padded in front, and the
    wanted row is the last one, rather than behind, where lengths tell the row.

    Example:
        model = SASRec(items=1000, window=50, embedding=32, blocks=2, heads=2)
        logits = model(item_ids)  # [batch, time], integers, 0 in front of short histories; logits [batch, time, 1001]
        logits[:, -1, 1:].topk(10).indices + 1
    """

    left: ClassVar[bool]

    def __init__(self, items: int, embedding: int) -> None:
        super().__init__()
        self.items = items
        self.item_emb = nn.Embedding(items + 1, embedding)
        nn.init.normal_(self.item_emb.weight, std=0.02)  # so that popularity, in the bias, is where training begins
        self.bias = nn.Parameter(torch.zeros(items + 1))
        self.dropout = nn.Dropout(DROPOUT)

    def states(self, item_ids: Tensor) -> Tensor:
        """The state after every item, FP32 [batch, time, embedding]."""
        raise NotImplementedError

    def cold(self, batch: int) -> Tensor:
        """The state before any item, FP32 [batch, embedding]."""
        raise NotImplementedError

    def forward(self, item_ids: Tensor) -> Tensor:
        """Logits of every item after every item, FP32 [batch, time, items + 1], of INT32 or INT64 [batch, time]."""
        return self.head(self.states(item_ids))

    def head(self, states: Tensor) -> Tensor:
        """Logits FP32 [..., items + 1] of states [..., embedding]."""
        return nn.functional.linear(states, self.item_emb.weight, self.bias)

    def before(self, item_ids: Tensor) -> Tensor:
        """The state before every item, FP32 [batch, time, embedding]: what it is predicted from."""
        first = self.cold(len(item_ids))[:, None]
        if item_ids.shape[1] == 1:
            return first
        return torch.cat([first, self.states(item_ids[:, :-1])], dim=1)

    def last(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits after the last of `lengths` [batch] items, FP32 [batch, items + 1]: the cut, in PyTorch.

        A length of 0 is a cold start.
        """
        states = self.states(item_ids)
        row = (lengths.long() - 1).clamp(min=0)
        if self.left:
            row = torch.full_like(row, states.shape[1] - 1)
        state = states.gather(1, row[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
        return self.head(torch.where(lengths[:, None] > 0, state, self.cold(len(state))))


class SASRec(Network):
    """Self-attention over the history (Kang & McAuley, ICDM 2018), padded in front.

    Positions count back from the newest row and padding is masked, so that how far a history is padded changes nothing. A
    row of padding has no position and sees itself alone: it is a cold start, wherever it stands.
    """

    left = True

    def __init__(self, items: int, window: int, embedding: int, blocks: int, heads: int) -> None:
        super().__init__(items, embedding)
        self.positions = nn.Embedding(window, embedding)  # row 0 is the newest item's
        nn.init.normal_(self.positions.weight, std=0.1 * embedding**-0.5)
        self.blocks = nn.ModuleList(Block(embedding, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(embedding)
        # Shapes of weights do not tell it, and a checkpoint should.
        self.register_buffer("heads", torch.tensor(heads))

    def states(self, item_ids: Tensor) -> Tensor:
        valid = item_ids != 0
        number = torch.arange(item_ids.shape[1], device=item_ids.device)
        positions = self.positions(item_ids.shape[1] - 1 - number)
        x = self.dropout(self.item_emb(item_ids) + positions * valid[..., None])
        seen = (number <= number[:, None]) & valid[:, None] | (number == number[:, None])
        unseen = torch.where(seen, 0.0, -torch.inf)[:, None]
        for block in self.blocks:
            x = block(x, unseen)
        return self.norm(x)

    def cold(self, batch: int) -> Tensor:
        return self.states(torch.zeros(batch, 1, dtype=torch.int64, device=self.bias.device))[:, 0]


class Block(nn.Module):
    """Self-attention, then a feed-forward layer as wide as the model; FP32 [batch, time, embedding] in and out.

    unseen FP32 [batch, 1, time, time]: 0 where a row sees another, -inf where not.
    """

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(embedding)
        self.query = nn.Linear(embedding, embedding)
        self.key_value = nn.Linear(embedding, 2 * embedding)
        self.projection = nn.Linear(embedding, embedding)
        self.forward_norm = nn.LayerNorm(embedding)
        self.inner = nn.Linear(embedding, embedding)
        self.outer = nn.Linear(embedding, embedding)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, unseen: Tensor) -> Tensor:
        normal = self.attention_norm(x)
        query = self._split(self.query(normal))
        key, value = (self._split(part) for part in self.key_value(normal).chunk(2, dim=-1))
        # Written out, as the exporter guards the operator of it against rows that see nothing: of these there are none.
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + unseen).softmax(-1)
        x = x + self.dropout(self.projection((weights @ value).transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.outer(self.inner(self.forward_norm(x)).relu()))

    def _split(self, x: Tensor) -> Tensor:
        """[batch, time, embedding] to [batch, heads, time, embedding / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GRU4Rec(Network):
    """A GRU over the history (Hidasi et al., ICLR 2016), padded behind."""

    left = False

    def __init__(self, items: int, embedding: int, hidden: int) -> None:
        super().__init__(items, embedding)
        self.gru_layer = nn.GRU(embedding, hidden, batch_first=True)
        self.projection = nn.Linear(hidden, embedding)

    def states(self, item_ids: Tensor) -> Tensor:
        states, _ = self.gru_layer(self.dropout(self.item_emb(item_ids)))
        return self.projection(states)

    def cold(self, batch: int) -> Tensor:
        return self.projection(self.bias.new_zeros(batch, self.projection.in_features))


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the constructor that made a state_dict, and under "type" which one: "sasrec" or "gru4rec".

    Raises:
        KeyError: it is neither's.
    """
    rows, embedding = state["item_emb.weight"].shape
    sizes: dict[str, Any] = {"items": rows - 1, "embedding": embedding}
    if "gru_layer.weight_hh_l0" in state:
        return {"type": "gru4rec", **sizes, "hidden": state["gru_layer.weight_hh_l0"].shape[1]}
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    window, heads = len(state["positions.weight"]), int(state["heads"])
    return {"type": "sasrec", **sizes, "window": window, "blocks": len(blocks), "heads": heads}


def create(type: str, **sizes: int) -> Network:
    """An untrained model: `create(**describe(state))` is one that takes the state."""
    return {"sasrec": SASRec, "gru4rec": GRU4Rec}[type](**sizes)
