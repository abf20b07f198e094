"""Sequence models as their authors wrote them: each says how it is asked, and how a spec would describe it.

`alone` is the author's own inference of one history: plain PyTorch, with nothing of this project's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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


class Double(Foreign):
    """Weights of 64 bits, numbers in, one number a history beside them."""

    spec = table(
        history={"series": {"dtype": "FP32", "shape": [2]}},
        context={"scale": {"dtype": "FP32"}},
        inputs={"series": "series", "scale": "scale"},
        outputs={"next": {}},
    )

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)
        self.double()

    def forward(self, series: Tensor, scale: Tensor) -> Tensor:
        return self.head(self.lstm(series / scale[:, None, None].abs().clamp(min=0.5))[0]).squeeze(-1)

    def alone(self, h: Given, c: Given) -> Any:
        return self(h["series"][None].double(), c["scale"][None].double())[0, -1]


class Half(Foreign):
    """Weights of 16 bits."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens"])
    close = 5e-3

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gru, self.head = (
            nn.Embedding(IDS, WIDTH),
            nn.GRU(WIDTH, WIDTH, batch_first=True),
            nn.Linear(WIDTH, IDS),
        )
        self.half()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.tokens(tokens))[0])


class Pair(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Named(Foreign):
    """It answers a named tuple, and what is served is not its first."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens"], outputs={"logits": {"shape": [WIDTH]}})

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gru, self.head = (
            nn.Embedding(IDS, WIDTH),
            nn.GRU(WIDTH, WIDTH, batch_first=True),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, tokens: Tensor) -> Any:
        rows = self.gru(self.tokens(tokens))[0]
        return Pair(rows, self.head(rows))

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        return self(h["tokens"][None]).logits[0, -1]


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor | None = None


class AsDataclass(Named):
    def forward(self, tokens: Tensor) -> Any:
        return Output(*super().forward(tokens))


class ModelOutput(OrderedDict[str, Tensor]):
    """As the transformers library's: a mapping whose keys are attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class AsMapping(Named):
    def forward(self, tokens: Tensor) -> Any:
        return ModelOutput(super().forward(tokens)._asdict())


class AdditiveMask(Foreign):
    """Its mask is a number to add: 0 at a step, the lowest where there is none."""

    spec = table(
        history={"tokens": {"values": [0, 10]}}, inputs=["tokens", "additive_mask"], row={"select": "first"}
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.attention = nn.Embedding(IDS, WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, tokens: Tensor, additive_mask: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return (x + self.attention(x, x, x, key_padding_mask=additive_mask)[0]) @ self.tokens.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        tokens = h["tokens"][None]
        return self(tokens, torch.zeros(tokens.shape))[0, 0]


class Clock(Foreign):
    """Milliseconds since 1970 beside the items: what matters is how long ago each is."""

    spec = table(
        history={"item_ids": ITEMS, "at": {"dtype": "INT64", "values": [0, 4_000_000_000_000]}},
        inputs={"ids": "item_ids", "timestamps": "at"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru, self.head = (
            nn.Embedding(IDS, WIDTH),
            nn.GRU(WIDTH + 1, WIDTH, batch_first=True),
            nn.Linear(WIDTH, IDS),
        )

    def forward(self, ids: Tensor, timestamps: Tensor) -> Tensor:
        gaps = torch.diff(timestamps, dim=1, prepend=timestamps[:, :1])
        days = torch.tanh(gaps.float() / 1e12)
        return self.head(self.gru(torch.cat([self.items(ids), days[..., None]], -1))[0])


class Below(Foreign):
    """Ids below 0, as hashed ones are."""

    spec = table(
        history={"item_ids": {"values": [-4, 6]}, "sign": {"values": [-1, 1]}},
        inputs={"ids": "item_ids", "sign": "sign"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru, self.head = (
            nn.Embedding(IDS, WIDTH),
            nn.GRU(WIDTH, WIDTH, batch_first=True),
            nn.Linear(WIDTH, IDS),
        )

    def forward(self, ids: Tensor, sign: Tensor) -> Tensor:
        return self.head(self.gru(self.items(ids + 4) * sign[..., None])[0])


class ManyTypes(Foreign):
    """Histories of several types, and contexts of one number and of several."""

    spec = table(
        history={
            "items": {"dtype": "INT64", "values": [0, 10]},
            "prices": {"dtype": "FP32"},
            "boxes": {"dtype": "FP32", "shape": [2]},
            "tags": {"values": [0, 10], "shape": [2]},
        },
        context={"budget": {"dtype": "FP32"}, "place": {"dtype": "FP32", "shape": [2]}, "kind": {"values": [0, 10]}},
        inputs=["items", "prices", "boxes", "tags", "budget", "place", "kind"],
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru = nn.Embedding(IDS, WIDTH), nn.GRU(WIDTH + 6, WIDTH, batch_first=True)

    def forward(
        self, items: Tensor, prices: Tensor, boxes: Tensor, tags: Tensor, budget: Tensor, place: Tensor, kind: Tensor
    ) -> Tensor:
        x = self.items(items) + self.items(tags).sum(2) + self.items(kind)[:, None]
        known = torch.cat([budget[:, None], place], -1)[:, None].expand(-1, items.shape[1], -1)
        return self.gru(torch.cat([x, prices[..., None], boxes, known], -1))[0] @ self.items.weight.T

    def alone(self, h: Given, c: Given) -> Any:
        return self(*(each[None] for each in (*h.values(), *c.values())))[0, -1]


class MaskToken(Foreign):
    """The next item is what stands for a mask behind the history; so nobody's history may be empty, and is answered."""

    spec = table(
        model={"shortest_history": 0},
        history={"item_ids": {"values": [1, 9]}},
        inputs={"ids": {"from": "item_ids", "append": 10}, "attention_mask": "mask"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.items, self.block = nn.Embedding(IDS, WIDTH), nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.places = nn.Embedding(WINDOW, WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.items(ids) + self.places(torch.arange(ids.shape[1]))
        return self.block(x, src_key_padding_mask=attention_mask == 0) @ self.items.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        ids = torch.cat([h["item_ids"], torch.tensor([10])])[None, -WINDOW:]
        return self(ids, torch.ones_like(ids))[0, -1]


class Narm(Foreign):
    """Attention of the last state over all, by lengths; the items' own table as the head."""

    spec = table(history={"item_ids": ITEMS}, inputs={"seqs": "item_ids", "seq_lens": "lengths"}, row={"select": "own"})

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru = nn.Embedding(IDS, WIDTH, padding_idx=0), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.one, self.two, self.v = (
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.Linear(WIDTH, 1),
        )
        self.out = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, seqs: Tensor, seq_lens: Tensor) -> Tensor:
        rows = self.gru(self.items(seqs))[0]
        last = rows.gather(1, (seq_lens - 1).view(-1, 1, 1).expand(-1, 1, WIDTH))
        valid = torch.arange(seqs.shape[1])[None] < seq_lens[:, None]
        weights = self.v(torch.sigmoid(self.one(rows) + self.two(last))).squeeze(-1).masked_fill(~valid, 0.0)
        return self.out(torch.cat([(weights[..., None] * rows).sum(1), last.squeeze(1)], -1)) @ self.items.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        return self(h["item_ids"][None], torch.tensor([len(h["item_ids"])]))[0]


class TimeMajorOwn(Foreign):
    """[time, batch], a row of its own by lengths."""

    spec = table(
        model={"time_major": True}, history={"tokens": {"values": [0, 10]}},
        inputs={"text": "tokens", "text_lengths": "lengths"}, row={"select": "own"},
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm, self.head = nn.Embedding(IDS, WIDTH), nn.LSTM(WIDTH, WIDTH, 2), nn.Linear(WIDTH, IDS)

    def forward(self, text: Tensor, text_lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.tokens(text), text_lengths.cpu(), enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        return self(h["tokens"][:, None], torch.tensor([len(h["tokens"])]))[0]


class BothWays(Foreign):
    """Attention over all that there is, past and future, with True where nothing is; the newest step's row."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens", "key_padding_mask"])

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.block = nn.Embedding(IDS, WIDTH), nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)

    def forward(self, tokens: Tensor, key_padding_mask: Tensor) -> Tensor:
        return self.block(self.tokens(tokens), src_key_padding_mask=key_padding_mask) @ self.tokens.weight.T

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        tokens = h["tokens"][None]
        return self(tokens, torch.zeros(tokens.shape, dtype=torch.bool))[0, -1]


class Caser(Foreign):
    """Convolutions over a window that is padded in front, as a picture; one row a history."""

    spec = table(model={"padding": "left"}, history={"item_ids": ITEMS}, inputs=["seq_var"], row={"select": "own"})

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(IDS, WIDTH, padding_idx=0)
        self.down, self.across = nn.Conv2d(1, 2, (WINDOW, 1)), nn.Conv2d(1, 3, (2, WIDTH))
        self.out = nn.Linear(2 * WIDTH + 3, IDS)

    def forward(self, seq_var: Tensor) -> Tensor:
        x = self.items(seq_var).unsqueeze(1)
        across = F.max_pool1d(self.across(x).squeeze(3).relu(), WINDOW - 1).squeeze(2)
        return self.out(torch.cat([self.down(x).flatten(1), across], 1))

    def alone(self, h: Given, c: Given) -> Any:  # noqa: ARG002
        window = torch.zeros(1, WINDOW, dtype=torch.int64)
        window[0, -len(h["item_ids"]) :] = h["item_ids"]
        return self(window)[0]


class Unrolled(Foreign):
    """A recurrence written as a loop in Python."""

    spec = table(history={"tokens": {"values": [0, 10]}}, inputs=["tokens"])

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.cell, self.head = nn.Embedding(IDS, WIDTH), nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, tokens: Tensor) -> Tensor:
        state, states = torch.zeros(len(tokens), WIDTH), []
        for x in self.tokens(tokens).unbind(1):
            state = self.cell(x, state)
            states.append(state)
        return self.head(torch.stack(states, 1))


MODELS: dict[str, type[Foreign]] = {each.__name__: each for each in (
    Packed, PackedBothWays, Mamba, EncoderDecoder, Towers, Likes, Blind, Signed, FromTheRight, LeftPositions, Alibi,
    TargetIndex, Pooled, Double, Half, Named, AsDataclass, AsMapping, AdditiveMask, Clock, Below, ManyTypes, MaskToken, Narm,
    TimeMajorOwn, BothWays, Caser, Unrolled,
)}  # fmt: skip
