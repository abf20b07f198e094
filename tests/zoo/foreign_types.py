"""More of them: of other types, inputs and outputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from tests.zoo.foreign import (
    IDS,
    ITEMS,
    WIDTH,
    WINDOW,
    Alibi,
    Blind,
    EncoderDecoder,
    Foreign,
    FromTheRight,
    Given,
    LeftPositions,
    Likes,
    Mamba,
    Packed,
    PackedBothWays,
    Pooled,
    Signed,
    TargetIndex,
    Towers,
    table,
)  # fmt: skip


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
