"""The preset of forecasts: an LSTM with quantiles on series of several features."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import numpy as np
import torch
from torch import nn

from build.model.forecast.network import Forecaster
from build.model.forecast.series import Series, read
from build.model.forecast.simulation import simulate
from build.model.forecast.training import SEASON, coverage, held, known, naive, pinball, train
from build.model.trial import Trial, Worth, chosen
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence
from ensemble.tables import ForecasterNetwork

SERIES, HOURS = 40, 24 * 7 * 16  # simulated


class Forecast:
    """A forecaster, and series to train it on. data: a CSV file of them; None: simulated series."""

    def __init__(self, spec: Sequence, data: Path | None, count: int | None) -> None:
        self.spec, self.data, self.count = spec, data, count

    def sizes(self) -> dict[str, int]:
        """Features of a row."""
        return {"features": self.series()[0].values.shape[1]}

    def series(self) -> list[Series]:
        """All of them, read or simulated.

        Raises:
            DataError: the file cannot be read.
        """
        return simulate(self.count or SERIES, HOURS) if self.data is None else read(self.data)[: self.count]

    def create(self) -> Forecaster:
        """An untrained model of the spec's network and sizes.

        Raises:
            LastrowError: the spec's output is not [horizon, quantiles], or it has not the network's quantiles.
        """
        network, (history, *_) = self.spec.network, self.spec.requested
        assert isinstance(network, ForecasterNetwork)
        shape = self.spec.dims(self.spec.cores[0].outputs[0])
        if len(shape) != 2 or shape[1] != len(network.quantiles) or len(history.shape) != 2:
            levels = list(network.quantiles)
            raise LastrowError(
                f"the forecaster takes rows of features and answers [horizon, quantiles]; the spec has {history.name} of "
                f"shape {self.spec.dims(history)[1:]}, an output of {shape}, and network.quantiles = {levels}"
            )
        features = self.spec.dims(history)[1]
        return Forecaster(features, shape[0], network.quantiles, network.hidden, network.layers)

    def train(
        self, budget_s: float, progress: Callable[[float, str], None]
    ) -> tuple[nn.Module, Callable[[str | None], str], str]:
        """Train on the first part of each series; test on the rest."""
        model = self.create()
        report = train(model, self.series(), self.spec.model.window, budget_s=budget_s, progress=progress)
        said = (
            f"pinball loss {report.pinball_loss:.3f}, yesterday's values {report.baseline_pinball_loss:.3f}; "
            f"{report.coverage:.0%} between the outer quantiles, meant are {report.nominal:.0%} ({report.series:,} series)"
        )
        return model, report.to_json, said

    def trial(self, sample: int | None = None) -> Trial:
        """The end of every series, a horizon at a time, beside the season before.

        Raises:
            LastrowError: the spec has no answer that is the model's own.
        """
        (name,), network = self.spec.history, self.spec.network
        assert isinstance(network, ForecasterNetwork)
        answer = next((each.name for each in self.spec.answer if not each.links), None)
        if answer is None:
            raise LastrowError(
                "a forecast is measured as the model answers it: the spec needs an [[answer]] without chain"
            )
        series, levels = self.series(), torch.tensor(network.quantiles)
        horizon = self.spec.dims(self.spec.cores[0].outputs[0])[0]
        windows, follows = held(series, self.spec.model.window, horizon)
        numbers = chosen(len(windows), sample)
        windows, wanted = windows[numbers], torch.from_numpy(follows[numbers])
        middle = int((levels - 0.5).abs().argmin())

        def worth(answers: SequenceOf[np.ndarray]) -> Worth:
            found = torch.from_numpy(np.stack(answers))
            return {
                "mean absolute error": (found[..., middle] - wanted).abs().mean().item(),
                "quantile loss": pinball(found, wanted, levels).item(),
                f"coverage (meant: {levels[-1] - levels[0]:.0%})": coverage(found, wanted),
            }

        season_before = naive(windows, known(series), levels.numpy(), horizon, SEASON)
        words = self.spec.words
        return Trial(
            f"the next {horizon} {words.steps} of {len(series):,} {words.histories}, {len(windows):,} times",
            [{name: each} for each in windows],
            answer,
            lambda _, row: row,
            worth,
            {f"the {SEASON} {words.steps} before": worth(list(season_before))},
        )

    def requests(self) -> dict[str, dict[str, np.ndarray]]:
        """A short series, one that fills the window, and a longer one."""
        (name,), window, series = self.spec.history, self.spec.model.window, self.series()
        lengths = {"short": self.spec.shortest_history, "fills the window": window, "longer": 2 * window}
        shown = zip(lengths.items(), series * len(lengths), strict=False)
        return {f"{each.name} ({said})": {name: each.values[-length:]} for (said, length), each in shown}
