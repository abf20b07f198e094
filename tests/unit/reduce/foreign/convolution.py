"""Causal convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.reduce.foreign.embedded import WIDTH, Embedded


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
