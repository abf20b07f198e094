"""Rows that know nothing of each other, or only through a GRU in front: gates and experts."""

import torch
from torch import Tensor, nn

from tests.unit.reduce.foreign.embedded import WIDTH, Embedded


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
