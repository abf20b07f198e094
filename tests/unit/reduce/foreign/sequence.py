"""What the sequence as a whole, its length or another row has a say in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.reduce.foreign.embedded import LONGEST, WIDTH, Embedded


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


class Mixer(Embedded):
    """A linear layer over time, which fixes it: every row sees every other."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(WIDTH)

    def body(self, x: Tensor) -> Tensor:
        return x + self.across(self.norm(x).transpose(1, 2)).relu().transpose(1, 2)


class Pooled(Embedded):
    def body(self, x: Tensor) -> Tensor:
        return x.mean(1)


class OneRowFewer(Embedded):
    def body(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :-1]
