"""Sequence models as their authors wrote them: each says how it is asked, and how a spec would describe it.

`alone` is the author's own inference of one history: plain PyTorch, with nothing of this project's.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

IDS, WIDTH, WINDOW = 11, 8, 12
ITEMS = {"values": [1, 10]}
Given = dict[str, Tensor]


def causal(time: int) -> Tensor:
    return torch.triu(torch.full((time, time), float("-inf")), 1)


class Foreign(nn.Module):
    """spec: its tables but [network] and [batching]. close: how near its answers have to be."""

    spec: ClassVar[dict[str, Any]]
    close: ClassVar[float] = 1e-4

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        """What is wanted, of a history's steps [time, ...] and its contexts."""
        return self(*(each[None] for each in h.values()))[0, -1]


def table(**tables: Any) -> dict[str, Any]:
    model = {"name": "foreign", "window": WINDOW, **tables.pop("model", {})}
    return {"model": model, "outputs": {"logits": {"shape": [IDS]}}, "answer": [{"name": "scores"}], **tables}


class Packed(Foreign):
    """It packs its rows by their lengths, and answers from the final state."""

    spec = table(
        model={"shortest_history": 1},
        history={"item_ids": ITEMS},
        inputs=["item_seq", "item_seq_len"],
        row={"select": "own"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS, WIDTH, padding_idx=0)
        self.gru, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, IDS)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.items(item_seq), item_seq_len.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        return self(h["item_ids"][None], torch.tensor([len(h["item_ids"])]))[0]


class PackedBothWays(Packed):
    """Both directions, packed; the mean of its valid rows."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, IDS)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.items(item_seq), item_seq_len.cpu(), batch_first=True, enforce_sorted=False)
        rows = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=item_seq.shape[1])[0]
        return self.head(rows.sum(1) / item_seq_len[:, None])


class Mamba(Foreign):
    """A block of a selective state space: a short causal convolution, and a scan as sums of logarithms."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens"])

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inside = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3)
        self.step, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        u, gate = self.inside(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2))
        step = F.softplus(self.step(u))
        faded = torch.cumsum(-step, 1)
        state = torch.exp(faded) * torch.cumsum(torch.exp(-faded) * step * u, 1)
        return (x + self.out(state * F.silu(gate))) @ self.embedding.weight.T


class EncoderDecoder(Foreign):
    """An encoder reads the history, and a decoder asks it with a query."""

    spec = table(
        history={"items": ITEMS},
        context={"query": {"values": [0, 10]}},
        inputs={"src": "items", "src_key_padding_mask": "padding", "tgt": "query"},
        row={"select": "own"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, IDS)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor, tgt: Tensor) -> Tensor:
        memory = self.encoder(self.items(src), src_key_padding_mask=src_key_padding_mask)
        asked = self.decoder(self.items(tgt)[:, None], memory, memory_key_padding_mask=src_key_padding_mask)
        return self.head(asked[:, 0])

    def alone(self, h: Given, c: Given) -> Any:
        src = h["items"][None]
        return self(src, torch.zeros(src.shape, dtype=torch.bool), c["query"][None])[0]


class Towers(Foreign):
    """A tower of the user's history, and one of the candidates that are asked about: a score for each of these."""

    spec = table(
        history={"item_ids": ITEMS},
        context={"candidates": {"values": [1, 10], "shape": [-1]}},
        inputs={"history": "item_ids", "lens": "lengths", "candidates": "candidates"},
        row={"select": "own"},
        outputs={"scores": {"shape": ["candidates"]}},
        answer=[{"name": "probabilities", "chain": ["sigmoid"]}],
    )

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS, WIDTH)
        self.user, self.item = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, WIDTH)

    def forward(self, history: Tensor, lens: Tensor, candidates: Tensor) -> Tensor:
        rows = self.user(self.items(history))[0]
        user = rows[torch.arange(len(lens)), lens - 1]
        return torch.einsum("bd,bnd->bn", user, torch.tanh(self.item(self.items(candidates))))

    def alone(self, h: Given, c: Given) -> Any:
        return self(h["item_ids"][None], torch.tensor([len(h["item_ids"])]), c["candidates"][None])[0].sigmoid()


class Likes(Foreign):
    """What a user likes in general, any number of tags of which 0 is padding, beside a history."""

    spec = table(
        history={"item_ids": ITEMS},
        context={"likes": {"values": [1, 10], "shape": [-1], "padding": 0}},
        inputs={"ids": "item_ids", "likes": "likes"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.tags = nn.Embedding(IDS, WIDTH), nn.Embedding(IDS, WIDTH, padding_idx=0)
        self.gru, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor, likes: Tensor) -> Tensor:
        liked = self.tags(likes).sum(1) / (likes != 0).sum(1, keepdim=True).clamp(min=1)
        return self.head(self.gru(self.items(ids) + liked[:, None])[0])

    def alone(self, h: Given, c: Given) -> Any:
        return self(h["item_ids"][None], c["likes"][None])[0, -1]


class Blind(Likes):
    """It takes the mean of all tags, those that pad them too: none may be padded."""

    spec: ClassVar[dict[str, Any]] = {
        **Likes.spec,
        "context": {"likes": {"values": [-5, 4], "shape": [-1]}},
    }

    def forward(self, ids: Tensor, likes: Tensor) -> Tensor:
        return self.head(self.gru(self.items(ids) + self.tags(likes + 5).mean(1)[:, None])[0])


class Signed(Foreign):
    """A context of integers below 0, and one that a request may do without."""

    spec = table(
        history={"item_ids": ITEMS},
        context={"moods": {"values": [-5, 5], "shape": [3]}, "age": {"dtype": "FP32", "default": -1.5}},
        inputs={"ids": "item_ids", "moods": "moods", "age": "age"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.moods, self.age = nn.Embedding(IDS, WIDTH), nn.Embedding(11, WIDTH), nn.Linear(1, WIDTH)
        self.gru, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor, moods: Tensor, age: Tensor) -> Tensor:
        known = self.moods(moods + 5).sum(1) + self.age(age[:, None])
        return self.head(self.gru(self.items(ids) + known[:, None])[0])

    def alone(self, h: Given, c: Given) -> Any:
        return self(h["item_ids"][None], c["moods"][None], c.get("age", torch.tensor(-1.5))[None])[0, -1]


class FromTheRight(Foreign):
    """Padded in front; the newest step has position 0, and padding none."""

    spec = table(model={"padding": "left", "shortest_history": 0}, history={"item_ids": ITEMS}, inputs=["item_seq"])

    def __init__(self) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(IDS, WIDTH, padding_idx=0), nn.Embedding(WINDOW, WIDTH)
        self.block, self.norm = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), nn.LayerNorm(WIDTH)

    def forward(self, item_seq: Tensor) -> Tensor:
        time = item_seq.shape[1]
        places = torch.arange(time - 1, -1, -1)
        x = (self.items(item_seq) + self.places(places)) * (item_seq != 0).unsqueeze(-1)
        hidden = (item_seq == 0)[:, None].expand(-1, time, -1) & ~torch.eye(time, dtype=torch.bool)
        mask = hidden.repeat_interleave(2, 0) | (causal(time) < 0)
        return self.norm(self.block(x, src_mask=mask)) @ self.items.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        window = torch.zeros(1, WINDOW, dtype=torch.int64)
        if len(h["item_ids"]):
            window[0, -len(h["item_ids"]) :] = h["item_ids"]
        return self(window)[0, -1]


class LeftPositions(Foreign):
    """A decoder that is padded in front, told its positions and a mask, as language models are."""

    spec = table(
        model={"padding": "left"},
        history={"tokens": {"values": [0, 10]}},
        inputs=["input_ids", "attention_mask", "position_ids"],
    )

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(IDS, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.attention, self.norm = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.LayerNorm(WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places(position_ids)
        time = input_ids.shape[1]
        added = (1.0 - attention_mask[:, None].float()) * -1e9 + causal(time).clamp(min=-1e9)
        return self.norm(x + self.attention(x, x, x, attn_mask=added.repeat_interleave(2, 0))[0]) @ self.tokens.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        tokens = h["tokens"][None]
        return self(tokens, torch.ones_like(tokens), torch.arange(tokens.shape[1])[None])[0, -1]


class Alibi(Foreign):
    """Distances as numbers on the scores, and nothing else that says where."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens"])

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.project, self.norm = (
            nn.Embedding(IDS, WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x, time = self.tokens(tokens), tokens.shape[1]
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.project(self.norm(x)).chunk(3, -1))
        numbers = torch.arange(time)
        away = (numbers[None] - numbers[:, None]).float() * torch.tensor([0.5, 0.25])[:, None, None]
        scores = q @ k.transpose(-1, -2) / math.sqrt(4) + away
        weights = scores.masked_fill(numbers[None] > numbers[:, None], float("-inf")).softmax(-1)
        return (x + (weights @ v).transpose(1, 2).flatten(2)) @ self.tokens.weight.T


class TargetIndex(Foreign):
    """A classifier of one step of a text, which it is told and gathers itself."""

    spec = table(
        history={"tokens": {"values": [0, 10]}},
        context={"target": {"values": [0, 40]}},
        inputs={"tokens": "tokens", "mask": {"from": "mask", "dtype": "BOOL"}, "target_index": "row"},
        row={"select": "own", "index": "target"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, IDS)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor, target_index: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(x, x, x, key_padding_mask=~mask)[0]
        return self.head(x[torch.arange(x.shape[0]), target_index])

    def alone(self, h: Given, c: Given) -> Any:
        tokens = h["tokens"][None]
        return self(tokens, torch.ones(tokens.shape, dtype=torch.bool), c["target"][None])[0]


class Pooled(Foreign):
    """A class of the whole text: the mean over a mask."""

    spec = table(
        history={"tokens": {"values": [0, 10]}}, inputs=["input_ids", "attention_mask"], row={"select": "own"},
        outputs={"logits": {"shape": [5]}},
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 5)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask[..., None].float()
        x = self.tokens(input_ids) * kept
        x = self.conv(x.transpose(1, 2)).relu().transpose(1, 2)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1e-9))

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        tokens = h["tokens"][None]
        return self(tokens, torch.ones_like(tokens))[0]
