"""A reference architecture for forecasts: rows of features in, quantiles of the first feature's next values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Forecaster(nn.Module):
    """An LSTM over a series, and after every row quantiles of the next `horizon` values of its first feature.

    Raw values go in and come out: `mean` and `scale`, of every feature, are part of the model. What the head answers is
    the distance from the newest value, so that a level that was never seen in training is followed. Quantiles rise: each
    is the one below plus a softplus (and are sorted in the sense of Gasthaus et al., AISTATS 2019, at no cost).

    Args:
        quantiles: levels between 0 and 1, rising.

    Example:
        model = Forecaster(features=8, horizon=24, quantiles=(0.1, 0.5, 0.9), hidden=64, layers=1)
        model(series)[:, -1]  # series FP32 [batch, time, 8]; FP32 [batch, 24, 3]
    """

    mean: Tensor
    scale: Tensor
    quantiles: Tensor

    def __init__(self, features: int, horizon: int, quantiles: Sequence[float], hidden: int, layers: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("quantiles", torch.tensor(quantiles, dtype=torch.float64))
        self.lstm_layer = nn.LSTM(features, hidden, layers, batch_first=True)
        self.out_layer = nn.Linear(hidden, horizon * len(quantiles))

    def forward(self, series: Tensor) -> Tensor:
        """FP32 [batch, time, features] to FP32 [batch, time, horizon, quantiles], after every row."""
        states, _ = self.lstm_layer((series - self.mean) / self.scale)
        # No reshape: behind a recurrent layer PyTorch 2.13's exporter takes time for fixed there.
        lowest, *steps = self.out_layer(states).chunk(len(self.quantiles), dim=-1)
        rising = [lowest]
        for step in steps:
            rising.append(rising[-1] + nn.functional.softplus(step))
        return series[..., :1, None] + self.scale[0] * torch.stack(rising, dim=-1)


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the constructor that made a state_dict.

    Raises:
        KeyError: it is no forecaster's.
    """
    quantiles = state["quantiles"].tolist()
    return {
        "features": len(state["mean"]),
        "horizon": len(state["out_layer.bias"]) // len(quantiles),
        "quantiles": tuple(quantiles),
        "hidden": state["lstm_layer.weight_hh_l0"].shape[1],
        "layers": sum(name.startswith("lstm_layer.weight_hh_l") for name in state),
    }
