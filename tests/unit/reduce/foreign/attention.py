"""Attention in the forms that people write and libraries have."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.reduce.foreign.embedded import (
    HEADS,
    LONGEST,
    VOCABULARY,
    WIDTH,
    Embedded,
    causal,
    join_heads,
    split_heads,
)


class Encoder(Embedded):
    """nn.TransformerEncoder with learned positions."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.positions = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.masked = masked

    def body(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        x = x + self.positions[:time]
        # is_causal is said, since an export cannot look into the mask to find out
        return self.encoder(x, mask=causal(time), is_causal=True) if self.masked else self.encoder(x)


class Interleaved(Encoder):
    """Two tokens a row, question and answer; the answer's states are read."""

    def __init__(self) -> None:
        super().__init__(masked=True)
        self.positions = nn.Parameter(torch.randn(2 * LONGEST, WIDTH))

    def forward(self, ids: Tensor, answers: Tensor) -> Tensor:
        x = torch.stack([self.embed(ids), self.embed(answers)], 2).flatten(1, 2)
        return self.head(self.body(x)[:, 1::2])


class Decoder(Embedded):
    """Causal over the answers, and across to every question."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True)

    def forward(self, ids: Tensor, answers: Tensor) -> Tensor:
        mask = causal(ids.shape[1])
        return self.head(self.decoder(self.embed(answers), self.embed(ids), tgt_mask=mask))


class SelfAttention(Embedded):
    """Projections and causal attention with something to say about the scores; subclasses say it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def turn(self, x: Tensor) -> Tensor:
        return x

    def bias(self, distance: Tensor) -> Tensor:
        return 0.0 * distance

    def body(self, x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[1])
        q, k, v = (split_heads(f(x)) for f in (self.queries, self.keys, self.values))
        scores = self.turn(q) @ self.turn(k).transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        scores = scores + self.bias(numbers[:, None] - numbers[None, :])
        return x + join_heads(scores.masked_fill(causal(x.shape[1]), -math.inf).softmax(-1) @ v)


class RelativeBias(SelfAttention):
    """As in T5: a learned number for each head and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, HEADS)

    def bias(self, distance: Tensor) -> Tensor:
        return self.table(distance.clamp(0, 7)).permute(2, 0, 1)


class Alibi(SelfAttention):
    def bias(self, distance: Tensor) -> Tensor:
        return -distance.abs() * torch.tensor([0.5, 0.25])[:, None, None]


class Rotary(SelfAttention):
    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * torch.logspace(0, -1, WIDTH // HEADS // 2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class FusedProjection(SelfAttention):
    """One projection for queries, keys and values, and the operator that torch has for attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def body(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(y) for y in self.project(x).chunk(3, -1))
        return x + join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class FoldedHeads(SelfAttention):
    """Heads are part of the batch, as older code has them, and the mask has neither."""

    def body(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(f(x)).flatten(0, 1) for f in (self.queries, self.keys, self.values))
        mask = torch.zeros(x.shape[1], x.shape[1]).masked_fill(causal(x.shape[1]), -math.inf)
        seen = (torch.bmm(q, k.transpose(1, 2)) + mask).softmax(-1) @ v
        return x + join_heads(seen.unflatten(0, (-1, HEADS)))


class WeighedAttention(Embedded):
    """nn.MultiheadAttention as it computes when its weights are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, attn_mask=causal(x.shape[1]), need_weights=True)[0]


class AttentiveLSTM(Embedded):
    """Each state asks the states before it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.mix = nn.Linear(2 * WIDTH, WIDTH)

    def body(self, x: Tensor) -> Tensor:
        states = self.lstm(x)[0]
        scores = (states @ states.transpose(1, 2)).masked_fill(causal(x.shape[1]), -math.inf)
        return self.mix(torch.cat([scores.softmax(-1) @ states, states], -1)).tanh()


class Square(nn.Module):
    """Width, answers and time are all 24: only the order of axes tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.lstm = nn.LSTM(24, 24, batch_first=True)
        self.attention = nn.MultiheadAttention(24, HEADS, batch_first=True)
        self.head = nn.Linear(24, 24)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.lstm(self.embed(ids))[0]
        return self.head(x + self.attention(x, x, x, attn_mask=causal(x.shape[1]), need_weights=False)[0])
