"""What the foreign models share: ids embedded, a body that is theirs, and a linear head."""

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, ANSWERS, HEADS = 11, 8, 13, 2
LONGEST = 40


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
