"""Sequence models that people serve, small and with random weights: what takes them in, each made by its class alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.reduce.inputs import IDS

WIDTH, HEADS, LONGEST = 8, 2, 32


def masked_to_past(time: int) -> Tensor:
    return torch.triu(torch.ones(time, time, dtype=torch.bool), 1)


class SASRec(nn.Module):
    """Next item: positions that padding (0) has none of, causal blocks of attention and width-1 convolutions, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(LONGEST + 1, WIDTH, padding_idx=0)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)
        self.first, self.second = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        x = self.items(ids) * WIDTH**0.5 + self.positions(torch.arange(1, time + 1)[None] * (ids != 0))
        keys = x.transpose(0, 1)
        query = self.norms[0](keys)
        mixed = self.attention(query, keys, keys, attn_mask=masked_to_past(time), need_weights=False)[0]
        x = self.norms[1]((query + mixed).transpose(0, 1))
        x = x + self.second(self.first(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.norms[2](x) @ self.items.weight.T


class GRU4Rec(nn.Module):
    """Next item: a GRU without biases, a dense layer, the items' own table as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS, WIDTH, padding_idx=0)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True, bias=False)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.gru(self.items(ids))[0]) @ self.items.weight.T


class OwnRow(GRU4Rec):
    """It takes the row of its own length itself."""

    def forward(self, ids: Tensor, n: Tensor) -> Tensor:
        states = self.dense(self.gru(self.items(ids))[0])
        last = (n - 1).view(-1, 1, 1).expand(-1, 1, WIDTH)
        return states.gather(1, last).squeeze(1) @ self.items.weight.T


class SAKT(nn.Module):
    """Knowledge tracing: the question to come asks the interactions so far; a probability a row."""

    def __init__(self) -> None:
        super().__init__()
        self.interactions, self.questions = nn.Embedding(2 * IDS, WIDTH), nn.Embedding(IDS, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, q: Tensor, r: Tensor, query: Tensor) -> Tensor:
        time = q.shape[1]
        x = self.interactions(q + IDS * r) + self.positions(torch.arange(time))[None]
        asked = self.questions(query)
        mixed = self.attention(asked, x, x, attn_mask=masked_to_past(time), need_weights=False)[0]
        return torch.sigmoid(self.head(self.norm(asked + mixed))).squeeze(-1)


class Transformer(nn.Module):
    """A block as language models have it: heads of a fused projection, scores with what is masked added as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(IDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def block(self, x: Tensor, added: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(self.norms[0](x)).chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + added
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.outer(F.gelu(self.inner(self.norms[1](x))))

    def embedded(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))


LOWEST = torch.finfo(torch.float32).min


class GPT2(Transformer):
    """A language model with a mask of the valid tokens."""

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        added = masked_to_past(ids.shape[1]).float() * LOWEST
        padding = (1 - attention_mask[:, None, None].float()) * LOWEST
        return self.block(self.embedded(ids), torch.minimum(added, padding)) @ self.tokens.weight.T


class GPT2Unmasked(Transformer):
    def forward(self, ids: Tensor) -> Tensor:
        return self.block(self.embedded(ids), masked_to_past(ids.shape[1]).float() * LOWEST) @ self.tokens.weight.T


class BertEveryRow(Transformer):
    """An encoder with segments and a mask; pooler and classifier on every row."""

    def __init__(self) -> None:
        super().__init__()
        self.segments, self.pooler, self.classifier = (
            nn.Embedding(2, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 5),
        )

    def forward(self, ids: Tensor, attention_mask: Tensor, segment: Tensor) -> Tensor:
        x = self.embedded(ids) + self.segments(segment)
        x = self.block(x, (1 - attention_mask[:, None, None].float()) * LOWEST)
        return self.classifier(self.pooler(x).tanh())


class Bert(BertEveryRow):
    """The first token's alone."""

    def forward(self, ids: Tensor, attention_mask: Tensor, segment: Tensor) -> Tensor:
        return super().forward(ids, attention_mask, segment)[:, 0]


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class T5Encoder(Transformer):
    """Positions as a number for each distance, in buckets; sums of squares in place of layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RootMeanSquare() for _ in range(2))
        self.distances = nn.Embedding(8, HEADS)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        numbers = torch.arange(ids.shape[1])
        bias = self.distances((numbers[None] - numbers[:, None]).clamp(-4, 3) + 4).permute(2, 0, 1)
        return self.block(self.tokens(ids), bias + (1 - attention_mask[:, None, None].float()) * LOWEST)


class TimeMajor(nn.Module):
    """[time, batch], as torch's recurrent layers have it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm, self.head = nn.Embedding(IDS, WIDTH), nn.LSTM(WIDTH, WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(ids))[0])


class TimeMajorPacked(TimeMajor):
    def forward(self, ids: Tensor, n: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.tokens(ids), n, enforce_sorted=False)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0])[0])


class Tagger(nn.Module):
    """A tag a token, from both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(IDS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(ids))[0])


class Forecast(nn.Module):
    """A horizon of 24 from every row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, WIDTH, num_layers=2, batch_first=True), nn.Linear(WIDTH, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class ForecastLast(Forecast):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class DeepAR(nn.Module):
    """Mean and spread of what comes next, of series with features of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3 + 4, WIDTH, num_layers=2, batch_first=True)
        self.mu, self.sigma = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
        states = self.lstm(torch.cat([x, static[:, None].expand(-1, x.shape[1], -1)], -1))[0]
        return self.mu(states).squeeze(-1), F.softplus(self.sigma(states)).squeeze(-1)


class StateSpace(nn.Module):
    """Diagonal state spaces: each feature a sum over its past that fades, by a causal convolution as long as the window."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, IDS)
        self.fading, self.gain = nn.Parameter(torch.linspace(-2, 2, WIDTH)), nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        ago = torch.arange(LONGEST - 1, -1, -1)
        kernel = self.gain[:, None] * torch.sigmoid(self.fading)[:, None] ** ago
        x = self.tokens(ids).transpose(1, 2)
        return self.head(F.conv1d(F.pad(x, (LONGEST - 1, 0)), kernel[:, None], groups=WIDTH).transpose(1, 2).tanh())


class Cumulative(nn.Module):
    """The mean of all rows so far, gated by the row: a state space whose state fades not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gate, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        count = torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.head(self.gate(x).sigmoid() * x.cumsum(1) / count)


class TwoStacks(nn.Module):
    """Items and ratings through a recurrent layer each, and both together into the next item."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(2 * WIDTH, IDS)
        self.first, self.second = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.LSTM(1, WIDTH, batch_first=True)

    def forward(self, items: Tensor, ratings: Tensor) -> Tensor:
        return self.head(torch.cat([self.first(self.items(items))[0], self.second(ratings[..., None])[0]], -1))


class CausalEncoder(nn.Module):
    """PyTorch's own encoder, given a causal mask of floats, as its tutorials do, and which steps are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(IDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor, padding_mask: Tensor) -> Tensor:
        time = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(time))
        causal = nn.Transformer.generate_square_subsequent_mask(time)
        return self.head(self.encoder(x, mask=causal, src_key_padding_mask=padding_mask))


class Loop(nn.Module):
    """A recurrence written as a loop in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.head = nn.Embedding(IDS, WIDTH), nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        x, state = self.tokens(ids), torch.zeros(len(ids), WIDTH)
        states = []
        for row in range(ids.shape[1]):
            state = self.cell(x[:, row], state)
            states.append(state)
        return self.head(torch.stack(states, 1))
