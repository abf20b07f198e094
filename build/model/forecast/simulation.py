"""Simulated hourly series, for everyone who has no data: a demand with seasons, level shifts and what drives it.

Features, in this order: the demand; a temperature with weather that lasts for days; whether a promotion is on, and
whether one is on a day later; sine and cosine of the hour of the day and of the day of the week.
"""

from __future__ import annotations

import numpy as np

from build.model.forecast.series import Series

FEATURES = ("demand", "temperature", "promotion", "promotion_ahead", "hour_sin", "hour_cos", "day_sin", "day_cos")
DAY, WEEK = 24, 168  # hours


def simulate(series: int, hours: int, seed: int = 0) -> list[Series]:
    """`series` series of FP32 [hours, 8]; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    return [Series(str(number), _one(hours, rng)) for number in range(series)]


def _one(hours: int, rng: np.random.Generator) -> np.ndarray:
    hour = np.arange(hours + DAY) + rng.integers(WEEK)
    day, week = 2 * np.pi * hour / DAY, 2 * np.pi * hour / WEEK
    weather = np.zeros(len(hour))
    for n in range(1, len(hour)):
        weather[n] = 0.98 * weather[n - 1] + rng.normal(0.0, 0.6)
    temperature = 15 + 5 * np.sin(day - 2) + weather
    promotion = np.repeat(rng.random(len(hour) // DAY + 1) < 0.15, DAY)[: len(hour)].astype(float)
    level = 100 + np.cumsum(np.where(rng.random(len(hour)) < 1 / (3 * WEEK), rng.normal(0.0, 20.0, len(hour)), 0.0))
    weekend = (hour // DAY) % 7 >= 5
    demand = level + 20 * np.sin(day - 1) + 6 * np.sin(2 * day) - 15 * weekend + 15 * promotion
    demand += 1.0 * (temperature - 15) + rng.normal(0.0, 3.0, len(hour))
    ahead = promotion[DAY:]
    columns = (demand, temperature, promotion, np.sin(day), np.cos(day), np.sin(week), np.cos(week))
    cut = [values[:hours] for values in columns]
    return np.stack([*cut[:3], ahead[:hours], *cut[3:]], axis=1).astype(np.float32)
