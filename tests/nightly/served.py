"""Sequence models as people serve them, small: next items, answers, tags and forecasts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ITEMS, WIDTH, LONGEST = 10_000, 64, 200


class SASRec(nn.Module):
    """The next item: causal attention over items and positions, two convolutions of one row, scores against the items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.attention = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.inward, self.outward = (nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(2)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        x = self.items(ids) + self.positions(torch.arange(time))
        mask = torch.ones(time, time, dtype=torch.bool).triu(1)
        for n, (attention, inward, outward) in enumerate(zip(self.attention, self.inward, self.outward, strict=True)):
            q = self.norms[2 * n](x)
            x = self.norms[2 * n + 1](q + attention(q, x, x, attn_mask=mask, need_weights=False)[0])
            x = x + outward(inward(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.norms[4](x) @ self.items.weight.T


class GRU4Rec(nn.Module):
    """The next item: one GRU, and scores against the items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, WIDTH)
        self.gru = nn.GRU(WIDTH, 2 * WIDTH, batch_first=True, bias=False)
        self.dense = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.gru(self.items(ids))[0]) @ self.items.weight.T


class SAKT(nn.Module):
    """Whether the next exercise is solved: its row asks the rows of what was answered; one probability a row."""

    def __init__(self) -> None:
        super().__init__()
        self.answered, self.asked = nn.Embedding(2000, WIDTH), nn.Embedding(1000, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, answered: Tensor, asked: Tensor) -> Tensor:
        x, q, time = self.answered(answered), self.asked(asked), asked.shape[1]
        mask = torch.ones(time, time, dtype=torch.bool).triu(1)
        seen = self.attention(q, x, x, attn_mask=mask, need_weights=False)[0]
        return self.dense(self.norm(q + seen)).squeeze(-1).sigmoid()


class LanguageModel(nn.Module):
    """The next token: two pre-norm blocks with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(ITEMS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        mask = torch.ones(time, time, dtype=torch.bool).triu(1)
        x = self.blocks(self.tokens(ids) + self.positions(torch.arange(time)), mask=mask, is_causal=True)
        return x @ self.tokens.weight.T


class Tagger(nn.Module):
    """A tag for each token: an LSTM both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5000, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(ids))[0])


class DeepAR(nn.Module):
    """A forecast as a mean and a spread: two LSTMs over features of each row and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, WIDTH, num_layers=2, batch_first=True)
        self.mean, self.spread = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
        h = self.lstm(torch.cat([x, static[:, None].expand(-1, x.shape[1], -1)], -1))[0]
        return self.mean(h).squeeze(-1), F.softplus(self.spread(h)).squeeze(-1)


def ids(below: int) -> Tensor:
    return torch.randint(1, below, (2, 7))


# By name: the model, and its inputs.
MODELS: dict[str, tuple[type[nn.Module], dict[str, Tensor]]] = {
    "SASRec": (SASRec, {"ids": ids(ITEMS)}),
    "GRU4Rec": (GRU4Rec, {"ids": ids(ITEMS)}),
    "SAKT": (SAKT, {"answered": ids(2000), "asked": ids(1000)}),
    "language model": (LanguageModel, {"ids": ids(ITEMS)}),
    "tagger": (Tagger, {"ids": ids(5000)}),
    "DeepAR": (DeepAR, {"x": torch.randn(2, 7, 8), "static": torch.randn(2, 4)}),
}
