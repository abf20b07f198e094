"""Training of the forecaster, and what it is worth beside the season before with the spread that it had in training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from build.model.forecast.network import Forecaster
from build.model.forecast.series import Series
from ensemble.errors import LastrowError

BATCH = 32  # windows
LEARNING_RATE = 5e-3
MAX_STEPS = 3000
SEASON = 24  # rows, of the naive forecast
TEST_SHARE = 0.2  # of each series, its end


@dataclass(frozen=True)
class Report:
    """What a training measured at the end of every series, which it had not seen.

    pinball_loss: mean over horizon and quantiles, in the target's unit; coverage: the share of values between the
    outermost quantiles, to compare with `nominal`; baseline_*: the same of the seasonal naive forecast.
    """

    pinball_loss: float
    coverage: float
    baseline_pinball_loss: float
    baseline_coverage: float
    nominal: float
    series: int
    forecasts: int
    steps: int
    seconds: float

    def to_json(self, data: str | None = None) -> str:
        """The report as JSON text; data: the digest of what it was trained on."""
        return json.dumps({**asdict(self), "data": data}, indent=1) + "\n"


def train(
    model: Forecaster,
    series: Sequence[Series],
    window: int,
    *,
    season: int = SEASON,
    seed: int = 0,
    budget_s: float = 60.0,
    max_steps: int = MAX_STEPS,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Report:
    """Train the model in place, its normalisation included, until the time or the steps are used up.

    Args:
        window: rows that the model gets. season: rows, of the naive forecast.

    Raises:
        LastrowError: a series has other features than the model, or too few rows for a window and a horizon.
    """
    _check(model, series, window, season)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    seen = known(series)
    joined = np.concatenate(seen)
    with torch.no_grad():
        model.mean.copy_(torch.from_numpy(joined.mean(0)))
        model.scale.copy_(torch.from_numpy(joined.std(0)).clamp(min=1e-6))
    length, begun, steps = window + model.horizon, time.monotonic(), 0
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    while (used := max((time.monotonic() - begun) / budget_s, steps / max_steps)) < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1.0 - used)
        chosen = [seen[n] for n in rng.integers(len(seen), size=BATCH)]
        starts = [int(rng.integers(len(values) - length + 1)) for values in chosen]
        rows = np.stack([v[start : start + length] for v, start in zip(chosen, starts, strict=True)])
        wanted = torch.from_numpy(rows[:, 1:, 0]).unfold(1, model.horizon, 1)  # [batch, window, horizon]
        answer = model(torch.from_numpy(rows[:, :window]))
        loss = pinball(answer, wanted, model.quantiles.float()) / model.scale[0]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps += 1
        progress(used, f"loss {loss.item():.3f}")
    seconds = time.monotonic() - begun
    model.eval()
    windows, follows = held(series, window, model.horizon)
    wanted, levels = torch.from_numpy(follows), model.quantiles.float()
    with torch.inference_mode():
        answer = torch.cat([model(part)[:, -1] for part in torch.from_numpy(windows).split(BATCH)])
    season_before = torch.from_numpy(naive(windows, seen, levels.numpy(), model.horizon, season))
    progress(1.0, f"{steps} steps")
    return Report(
        pinball_loss=pinball(answer, wanted, levels).item(),
        coverage=coverage(answer, wanted),
        baseline_pinball_loss=pinball(season_before, wanted, levels).item(),
        baseline_coverage=coverage(season_before, wanted),
        nominal=float(levels[-1] - levels[0]),
        series=len(series),
        forecasts=len(windows),
        steps=steps,
        seconds=round(seconds, 1),
    )


def pinball(answer: Tensor, wanted: Tensor, levels: Tensor) -> Tensor:
    """Mean pinball loss of quantiles FP32 [..., quantiles] at `levels` for values [...] (Koenker & Bassett, 1978)."""
    over = wanted[..., None] - answer
    return torch.maximum(levels * over, (levels - 1) * over).mean()


def coverage(answer: Tensor, wanted: Tensor) -> float:
    """Share of values [...] between the outermost of quantiles [..., quantiles], both included."""
    return ((wanted >= answer[..., 0]) & (wanted <= answer[..., -1])).float().mean().item()


def known(series: Sequence[Series]) -> list[np.ndarray]:
    """The rows of each series that are trained on: all but the last TEST_SHARE of it."""
    return [each.values[: int(len(each) * (1 - TEST_SHARE))] for each in series]


def held(series: Sequence[Series], window: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows FP32 [n, window, features] whose horizon lies in the test rows, and what follows [n, horizon].

    >>> windows, wanted = held([Series("a", np.arange(20, dtype=np.float32)[:, None])], window=3, horizon=2)
    >>> windows[0, :, 0].tolist(), wanted[0].tolist(), wanted[-1].tolist()
    ([13.0, 14.0, 15.0], [16.0, 17.0], [18.0, 19.0])
    """
    rows, wanted = [], []
    for each, seen in zip(series, known(series), strict=True):
        for now in range(len(seen), len(each) - horizon + 1, horizon):
            rows.append(each.values[now - window : now])
            wanted.append(each.values[now : now + horizon, 0])
    return np.stack(rows), np.stack(wanted)


def naive(rows: np.ndarray, seen: Sequence[np.ndarray], levels: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The last season again, with the quantiles of its errors in training: FP32 [n, horizon, quantiles].

    >>> naive(np.arange(6.0)[None, :, None], [np.arange(6.0)[:, None]], np.array([0.5]), 3, season=2)[0, :, 0].tolist()
    [6.0, 7.0, 6.0]
    """
    errors = np.concatenate([values[season:, 0] - values[:-season, 0] for values in seen])
    again = np.arange(horizon) % season - season
    answer: np.ndarray = rows[:, again, 0][..., None] + np.quantile(errors, levels)
    return answer.astype(np.float32)


def _check(model: Forecaster, series: Sequence[Series], window: int, season: int) -> None:
    features = len(model.mean)
    for each in series:
        if each.values.shape[1] != features:
            raise LastrowError(f"series {each.name} has {each.values.shape[1]} features; the model takes {features}")
        cut = int(len(each) * (1 - TEST_SHARE))
        if cut < window + model.horizon or len(each) - cut < model.horizon:
            raise LastrowError(
                f"series {each.name} has {len(each)} rows; a window of {window} and a horizon of {model.horizon} in "
                f"{1 - TEST_SHARE:.0%} of it, and a horizon in the rest, are needed"
            )
    if not series or season > window:
        raise LastrowError(f"needed are a series, and a window ({window}) that holds a season ({season})")
