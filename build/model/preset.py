"""What a preset has beside its spec: an untrained model, data or a simulation of it, a training, and requests to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from build.model.forecast.preset import Forecast
from build.model.next_item.preset import NextItem
from build.model.trial import Trial
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence


class Preset(Protocol):
    """One kind of model that is trained here. data: None where it is simulated."""

    def __init__(self, spec: Sequence, data: Path | None, count: int | None) -> None: ...

    def sizes(self) -> dict[str, int]:
        """What the data say of the spec's [sizes]."""
        ...

    def create(self) -> nn.Module:
        """An untrained model of the spec's network and sizes."""
        ...

    def train(
        self, budget_s: float, progress: Callable[[float, str], None]
    ) -> tuple[nn.Module, Callable[[str | None], str], str]:
        """The trained model, its report as JSON text by the digest of the data, and what it is worth in a sentence."""
        ...

    def trial(self, sample: int | None = None) -> Trial:
        """What was held out of the training, and what answers to it are worth. sample: so many requests at most."""
        ...

    def requests(self) -> dict[str, dict[str, np.ndarray]]:
        """Histories to show, without batch axis, by what they are called."""
        ...


KINDS: dict[str, type[Preset]] = {"sasrec": NextItem, "gru4rec": NextItem, "forecaster": Forecast}


def of(spec: Sequence, data: Path | None = None, count: int | None = None) -> Preset:
    """The preset of a spec's network. count: of histories, at most.

    Raises:
        LastrowError: it is of none; its weights have to be given.
    """
    if spec.network.type not in KINDS:
        raise LastrowError(
            f"a network of type {spec.network.type!r} is not trained here, and so nothing is held out to measure it by; "
            f"trained are {', '.join(KINDS)}. To serve it give its weights with CHECKPOINT="
        )
    return KINDS[spec.network.type](spec, data, count)
