"""Recurrent layers: both ways, stacked, with states of their own, over features and with time first."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.reduce.foreign.embedded import ANSWERS, WIDTH, Embedded, embedding


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


class Transposed(TimeFirst):
    """Inputs [batch, time], output [time, batch, answers]."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.T)
