"""The reduction on architectures that its rules were not written for: exact, or refused with the reason."""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from build.core.reduce import Reduction, ReductionError, reduce

VOCABULARY, WIDTH, ANSWERS, HEADS = 11, 8, 13, 2
SIZES = ((1, 1), (2, 7), (4, 20), (3, 33))  # batch and time; not those that the pass looks at
LONGEST = 40
OUTPUTS = ["first_rows", "second_rows"]

AT_ITS_STATE = "its final state is that row"
READ_IN_FULL = "needs more of it than the row"
NO_RULE = "no rule knows how it treats time"


def embedding() -> nn.Embedding:
    return nn.Embedding(VOCABULARY, WIDTH)


def causal(time: int) -> Tensor:
    return torch.triu(torch.ones(time, time, dtype=torch.bool), 1)


def split_heads(x: Tensor) -> Tensor:
    """[batch, time, width] to [batch, heads, time, width of a head]."""
    return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


class Embedded(nn.Module):
    """Embedding, a body that subclasses write, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = embedding()
        self.head = nn.Linear(WIDTH, ANSWERS)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids)))


class Bidirectional(Embedded):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class StackedBidirectional(Bidirectional):
    """The layer on top reads forward only, but what it reads has seen the end."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.top(self.lstm(x)[0])[0]


class CausalConv(nn.Module):
    def __init__(self, out: int = WIDTH, kernel: int = 3, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.pad = (kernel - 1) * dilation
        self.conv = nn.Conv1d(WIDTH, out, kernel, dilation=dilation, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.pad, 0)))


class ConvLSTM(Embedded):
    def __init__(self) -> None:
        super().__init__()
        self.conv = CausalConv()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.lstm(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))[0]


class WaveNet(Embedded):
    """Dilated convolutions with tanh and sigmoid gates, residual and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(CausalConv(2 * WIDTH, 2, dilation=2**n) for n in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 1) for _ in range(3))

    def body(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        total = torch.zeros_like(x)
        for conv, skip in zip(self.convs, self.skips, strict=True):
            value, gate = conv(x).chunk(2, 1)
            residual, out = skip(value.tanh() * gate.sigmoid()).chunk(2, 1)
            x, total = x + residual, total + out
        return total.relu().transpose(1, 2)


class Depthwise(Embedded):
    """A convolution module as in Conformer: pointwise, gate, depthwise, batch norm, swish, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inward = nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = CausalConv(groups=WIDTH)
        self.channels = nn.BatchNorm1d(WIDTH)
        self.outward = nn.Linear(WIDTH, WIDTH)

    def body(self, x: Tensor) -> Tensor:
        y = F.glu(self.inward(self.norm(x))).transpose(1, 2)
        return x + self.outward(F.silu(self.channels(self.conv(y))).transpose(1, 2))


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
        angles = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
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


class Gated(Embedded):
    """Rows that know nothing of each other: residual blocks with gates."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GLU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Experts(Embedded):
    """A softmax gate over experts that all compute."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3))

    def body(self, x: Tensor) -> Tensor:
        return (torch.stack([e(x) for e in self.experts], 2) * self.gate(x).softmax(-1)[..., None]).sum(2)


class BatchedExperts(Embedded):
    """Experts as one tensor of weights, of which the two best of a row are asked, behind a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / 3)

    def body(self, x: Tensor) -> Tensor:
        x = self.gru(x)[0]
        weights, chosen = self.gate(x).topk(2, -1)
        every = torch.einsum("btd,edf->btef", x, self.experts)
        asked = every.gather(2, chosen[..., None].expand(-1, -1, -1, WIDTH))
        return (asked * weights.softmax(-1)[..., None]).sum(2)


class TwoOutputs(Embedded):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.second = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self.lstm(self.embed(ids))[0]
        return self.head(states), self.second(states).log_softmax(-1)


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = embedding()
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)

    def forward(self, ids: Tensor, answers: Tensor) -> Tensor:
        states = self.lstm(self.embed(ids) * answers[..., None])[0]
        return F.linear(states, self.embed.weight)


class ResidualGRU(Embedded):
    def __init__(self) -> None:
        super().__init__()
        self.grus = nn.ModuleList(nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def body(self, x: Tensor) -> Tensor:
        for gru, norm in zip(self.grus, self.norms, strict=True):
            x = x + gru(norm(x))[0]
        return x


class LearnedState(Embedded):
    """A plain recurrent layer that begins in a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(WIDTH, WIDTH, batch_first=True)
        self.state = nn.Parameter(torch.randn(1, 1, WIDTH))

    def body(self, x: Tensor) -> Tensor:
        return self.rnn(x, self.state.expand(1, x.shape[0], -1).contiguous())[0]


class FinalState(Embedded):
    """A summary of the whole sequence, the state it ends in, is added to each row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        states, final = self.gru(x)
        return states + final[0][:, None]


class Normalised(nn.Module):
    """Continuous features, BatchNorm1d over them, an LSTM; one number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.norm.running_mean = torch.randn(WIDTH)
        self.norm.running_var = torch.rand(WIDTH) + 0.5
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]).squeeze(-1).sigmoid()


class ChannelwiseLSTM(nn.Module):
    """Each feature is a sequence of its own: to the LSTM the batch has batch x features learners."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH * WIDTH, ANSWERS)

    def forward(self, x: Tensor) -> Tensor:
        states = self.lstm(x.transpose(1, 2).flatten(0, 1)[..., None])[0]
        return self.head(states.unflatten(0, (-1, WIDTH)).transpose(1, 2).flatten(2))


class CumulativeMean(Embedded):
    def body(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Decay(Embedded):
    """A weighted mean of the past, as a product with a matrix that only the number of rows decides."""

    def body(self, x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[1], dtype=torch.float32)
        weights = torch.tril(torch.exp(-0.3 * (numbers[:, None] - numbers).clamp(min=0)))
        return (weights / weights.sum(-1, keepdim=True)) @ x


class SqueezeExcite(Embedded):
    """What the sequence has on average gates each row."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, WIDTH), nn.Sigmoid())

    def body(self, x: Tensor) -> Tensor:
        return x + x * self.gate(x.mean(1, keepdim=True))


class AttentionPooling(Embedded):
    """The sequence's summary, weighed by a softmax over time, before a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.gru(x + (self.score(x).softmax(1) * x).sum(1, keepdim=True))[0]


class GroupNormalised(Embedded):
    """Statistics over groups of features and all of time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.gru(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]


class Backwards(Embedded):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.gru(x.flip(1))[0].flip(1)


class Shifted(Embedded):
    """Each row sees another row's answer: the one before it, or the one behind."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.by = by

    def forward(self, ids: Tensor, answers: Tensor) -> Tensor:
        other = F.pad(self.embed(answers), (0, 0, self.by, -self.by))
        return self.head(self.gru(self.embed(ids) + other)[0])


class Progress(Embedded):
    """Positions as a share of the whole sequence: no row is read ahead, but how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[1], dtype=torch.float32)
        return self.gru(x + (numbers / x.shape[1])[:, None])[0]


class Countdown(Embedded):
    """Learned positions counted from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.positions = nn.Embedding(LONGEST, WIDTH)

    def body(self, x: Tensor) -> Tensor:
        return self.gru(x + self.positions(x.shape[1] - 1 - torch.arange(x.shape[1])))[0]


class Scaled(Progress):
    """The states alone are divided by how many rows there are."""

    def body(self, x: Tensor) -> Tensor:
        return self.gru(x)[0] / x.shape[1]


class Peers(Embedded):
    """A row is measured against the batch's other learners in the same row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.gru(x - x.mean(0, keepdim=True))[0]


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = embedding()
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ANSWERS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(ids))[0])


class TimeFirstOutside(TimeFirst):
    """Learners come first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.T).transpose(0, 1)


class Mixer(Embedded):
    """A linear layer over time, which fixes it: every row sees every other."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(WIDTH)

    def body(self, x: Tensor) -> Tensor:
        return x + self.across(self.norm(x).transpose(1, 2)).relu().transpose(1, 2)


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


class Pooled(Embedded):
    def body(self, x: Tensor) -> Tensor:
        return x.mean(1)


class OneRowFewer(Embedded):
    def body(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :-1]


class Transposed(TimeFirst):
    """Inputs [batch, time], output [time, batch, answers]."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.T)


@dataclass(frozen=True)
class Case:
    """A model and what has to become of it.

    Attributes:
        rests: part of one of `Reduction.rests`.
        trimmed: whether columns behind the longest history are left out.
        ahead: whether the model's rows depend on what lies behind them.
        inputs: how many of ids; 0: one of continuous features.
        sizes: batch and time that are fixed in the file; None: dynamic.
        by: exporters: "dynamo", and "script" for the one before it, which is the faster one.
        opset: None: 18, and 17 for the older exporter.
    """

    make: Callable[[], nn.Module]
    rests: str
    trimmed: bool = False
    ahead: bool = False
    inputs: int = 1
    output: int = 0
    time_axis: int = 1
    sizes: tuple[int | None, int | None] = (None, None)
    by: tuple[str, ...] = ("script",)
    opset: int | None = None
    selects: tuple[str, ...] = ("last", "row")


POOLED = ("last", "row", "mean", "max")
BOTH = ("dynamo", "script")

TABLE = {
    "bidirectional LSTM": Case(Bidirectional, "it reads the sequence from its end too", ahead=True, by=BOTH),
    "GRU on a bidirectional LSTM": Case(StackedBidirectional, AT_ITS_STATE, ahead=True),
    "convolution and LSTM": Case(ConvLSTM, AT_ITS_STATE),
    "WaveNet": Case(WaveNet, NO_RULE, selects=POOLED),
    "depthwise convolution": Case(Depthwise, NO_RULE),
    "causal encoder": Case(partial(Encoder, True), READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "encoder": Case(partial(Encoder, False), READ_IN_FULL, ahead=True, by=("dynamo",)),
    "interleaved tokens": Case(
        Interleaved, "it counts time from the end, or leaves steps out", inputs=2, by=("dynamo",)
    ),
    "decoder": Case(Decoder, READ_IN_FULL, ahead=True, inputs=2, by=("dynamo",)),
    "relative position bias": Case(RelativeBias, READ_IN_FULL, by=BOTH),
    "ALiBi": Case(Alibi, READ_IN_FULL),
    "rotary positions": Case(Rotary, READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "fused projection": Case(FusedProjection, READ_IN_FULL),
    "fused projection and operator": Case(FusedProjection, READ_IN_FULL, by=("dynamo",), opset=23),
    "heads in the batch": Case(FoldedHeads, READ_IN_FULL, by=BOTH, selects=POOLED),
    "attention with its weights": Case(WeighedAttention, READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "LSTM and attention over its states": Case(AttentiveLSTM, READ_IN_FULL),
    "gated rows": Case(Gated, "it is an input", by=BOTH, selects=POOLED),
    "experts": Case(Experts, "it is an input"),
    "batched experts": Case(BatchedExperts, NO_RULE, by=BOTH),
    "two outputs, the first": Case(TwoOutputs, AT_ITS_STATE, trimmed=True),
    "two outputs, the second": Case(TwoOutputs, AT_ITS_STATE, trimmed=True, output=1),
    "tied head": Case(TiedHead, AT_ITS_STATE, trimmed=True, inputs=2),
    "residual GRU": Case(ResidualGRU, AT_ITS_STATE, trimmed=True, by=BOTH, selects=POOLED),
    "learned first state": Case(LearnedState, AT_ITS_STATE, trimmed=True),
    "final state in each row": Case(FinalState, READ_IN_FULL, ahead=True),
    "batch norm over features": Case(Normalised, AT_ITS_STATE, trimmed=True, inputs=0, by=BOTH),
    "a learner a feature": Case(ChannelwiseLSTM, "LSTM", trimmed=True, inputs=0, selects=POOLED),
    "cumulative mean": Case(CumulativeMean, "it works along time", by=BOTH, selects=POOLED),
    "decaying mean": Case(Decay, "it is the same for the whole batch"),
    "squeeze and excite": Case(SqueezeExcite, READ_IN_FULL, ahead=True, selects=POOLED),
    "attention pooling": Case(AttentionPooling, AT_ITS_STATE, ahead=True),
    "group norm over time": Case(GroupNormalised, AT_ITS_STATE, ahead=True),
    "backwards": Case(Backwards, "it counts time from the end, or leaves steps out", ahead=True),
    "the answer before": Case(partial(Shifted, 1), AT_ITS_STATE, inputs=2),
    "the answer behind": Case(partial(Shifted, -1), AT_ITS_STATE, ahead=True, inputs=2),
    "positions as a share of time": Case(Progress, AT_ITS_STATE),
    "positions from the end": Case(Countdown, AT_ITS_STATE),
    "states as a share of time": Case(Scaled, AT_ITS_STATE),
    "states as a share of time, one learner": Case(Scaled, AT_ITS_STATE, sizes=(1, None), by=("dynamo",)),
    "other learners": Case(Peers, AT_ITS_STATE),
    "time first": Case(TimeFirst, AT_ITS_STATE, trimmed=True, time_axis=0),
    "time first outside": Case(TimeFirstOutside, AT_ITS_STATE, trimmed=True, time_axis=0, by=("dynamo",)),
    "static time, mixed": Case(Mixer, READ_IN_FULL, ahead=True, sizes=(None, 24)),
    "static time": Case(AttentiveLSTM, READ_IN_FULL, sizes=(None, 24)),
    "one learner": Case(TiedHead, AT_ITS_STATE, trimmed=True, inputs=2, sizes=(1, None), by=("dynamo",)),
    "one learner, static time": Case(ResidualGRU, AT_ITS_STATE, sizes=(1, 24), by=("dynamo",), selects=POOLED),
    # The older exporter squeezes the GRU's direction and the learner, both of size 1, and which is which is lost: whether
    # the GRU ends at the row or is read in full is all the same here.
    "one learner, squeezed": Case(ResidualGRU, "GRU", sizes=(1, 24)),
    "one learner, attention": Case(partial(Encoder, True), READ_IN_FULL, sizes=(1, 24)),
    "one learner, all sizes equal": Case(Square, READ_IN_FULL, sizes=(1, 24)),
}
CASES = {f"{name}, {by}": replace(case, by=(by,)) for name, case in TABLE.items() for by in case.by}

REFUSED = {
    "no time in the output": (Case(Pooled, ""), {}, r"is \[batch, 13\]; needed are batch as axis 0 and time as axis 1"),
    "a row fewer": (Case(OneRowFewer, ""), {}, r"is \[batch, time \+ -1, 13\]; needed are .* of the same sizes"),
    "time elsewhere": (Case(Transposed, ""), {}, r"is \[time, batch, 13\]; .* Name another output or time axis"),
    "a time that the exporter fixed": (
        *(Case(partial(Encoder, True), ""), {}),
        r"does not run at batch 3, time 5: .* fixed in its inputs, or exported as dynamic",
    ),
    "no such output": (Case(Gated, ""), {"output": "third"}, r"no output 'third'; there are first_rows"),
    "a name that is taken": (Case(Gated, ""), {"index_name": "ids"}, "has an input 'ids' already"),
    "an old opset": (Case(Gated, "", opset=12), {}, "opset 12; 13 is the oldest"),
}


def randoms(case: Case, batch: int, time: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs of a size. Two inputs are never the same: an exporter may take equal examples for one tensor."""
    numbers = np.random.default_rng(seed)
    shape = (batch, time) if case.time_axis else (time, batch)
    if not case.inputs:
        return {"x": numbers.normal(size=(*shape, WIDTH)).astype(np.float32)}
    return {name: numbers.integers(0, VOCABULARY, shape).astype(np.int32) for name in ("ids", "answers")[: case.inputs]}


@cache
def exported(case: Case) -> ir.Model:
    for operator in (torch.ops.aten.lstm, torch.ops.aten.gru, torch.ops.aten.rnn_tanh):
        operator.input._dispatch_cache.clear()  # else a second export in the process finds the first one's layer
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = case.make().eval()
    batch, time = (size or example for size, example in zip(case.sizes, (2, 7), strict=True))
    feeds = randoms(case, batch, time, 0)
    axes = ("batch", "time") if case.time_axis else ("time", "batch")
    dynamic = {n: axes[n] for n, size in enumerate(case.sizes[:: 1 if case.time_axis else -1]) if size is None}
    names = {
        "input_names": list(feeds),
        "output_names": OUTPUTS[: 2 if case.make is TwoOutputs else 1],
        "opset_version": case.opset or (18 if "dynamo" in case.by else 17),
    }
    examples = tuple(map(torch.from_numpy, feeds.values()))
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        if "dynamo" in case.by:
            program = torch.onnx.export(
                model, examples, dynamo=True, dynamic_shapes=(dynamic,) * len(feeds), verbose=False, **names
            )
            assert program is not None
            return program.model
        file = Path(folder) / "model.onnx"
        every = dict.fromkeys([*feeds, *names["output_names"]], dynamic)
        torch.onnx.export(model, examples, str(file), dynamo=False, dynamic_axes=every, **names)
        return ir.from_proto(ir.to_proto(ir.load(file)))


@cache
def session(case: Case, select: str | None) -> tuple[ort.InferenceSession, Reduction | None]:
    options, reduction = ort.SessionOptions(), None
    options.log_severity_level = 3
    model = exported(case)
    if select is None:
        # Exporters note sizes that only the example had, and fusions believe them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if select is not None:
        reduction = reduce(
            model,
            select=select,  # type: ignore[arg-type]
            time_axis=case.time_axis,
            output=OUTPUTS[case.output],
            window=32,
        )
        model = reduction.model
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    ), reduction


def every_row(case: Case, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The full model's answer, [batch, time, ...]."""
    rows = session(case, None)[0].run([OUTPUTS[case.output]], feeds)[0]
    return rows if case.time_axis else rows.swapaxes(0, 1)


def expected(case: Case, select: str, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    pick = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0)}.get(select, lambda rows: rows[-1])
    return np.stack([pick(rows[:length]) for rows, length in zip(every_row(case, feeds), lengths, strict=True)])


def answered(case: Case, select: str, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    index = {"row": lengths - 1} if select == "row" else {"lengths": lengths}
    return session(case, select)[0].run(None, feeds | index)[0]


def agree(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(np.abs(other).max())))


def sizes(case: Case) -> list[tuple[int, int]]:
    return sorted({(case.sizes[0] or batch, case.sizes[1] or time) for batch, time in SIZES})


CHOICES = [pytest.param(case, select, id=f"{name}-{select}") for name, case in CASES.items() for select in case.selects]


@pytest.mark.parametrize(("case", "select"), CHOICES)
def test_the_reduced_model_answers_what_the_full_one_has_in_that_row(case, select):
    for seed, (batch, time) in enumerate(sizes(case)):
        feeds = randoms(case, batch, time, seed)
        drawn = np.random.default_rng(seed).integers(1, time + 1, batch)
        for lengths in (drawn, np.full(batch, time), np.ones(batch)):
            lengths = lengths.astype(np.int32)
            agree(answered(case, select, feeds, lengths), expected(case, select, feeds, lengths))


@pytest.mark.parametrize(("case", "select"), CHOICES)
def test_noise_behind_the_length_changes_as_much_as_in_the_full_model(case, select):
    """Columns may be left out only if nothing in them counts: neither what they hold nor that they are there."""
    batch, time = sizes(case)[-1]
    lengths = np.linspace(1, time // 2, batch).astype(np.int32)
    feeds, other = (randoms(case, batch, time, seed) for seed in (1, 2))
    for name, array in feeds.items():
        for learner, length in enumerate(lengths):
            past = (learner, slice(length)) if case.time_axis else (slice(length), learner)
            other[name][past] = array[past]
    full, reduced = ([how(case, select, inputs, lengths) for inputs in (feeds, other)] for how in (expected, answered))
    for mine, wanted in zip(reduced, full, strict=True):
        agree(mine, wanted)
    moved = [float(np.abs(one - two).max()) for one, two in map(tuple, (full, reduced))]
    if case.make is Peers:
        return  # for whom the noise is other learners' past
    assert [m > 1e-4 for m in moved] == [case.ahead, case.ahead], moved


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_the_row_is_taken_where_it_has_to_be(case):
    for select in ("last", "row"):
        reduction = session(case, select)[1]
        assert reduction is not None
        assert any(case.rests in rest for rest in reduction.rests), reduction.rests
        assert reduction.trimmed == case.trimmed
        assert not (case.ahead and reduction.trimmed)


@pytest.mark.parametrize(("case", "how", "reason"), [pytest.param(*found, id=name) for name, found in REFUSED.items()])
def test_what_has_no_such_rows_is_refused_with_the_reason(case, how, reason):
    with pytest.raises(ReductionError, match=reason):
        reduce(exported(case), **how)
