"""An input of a random model: what it holds, known here and not read from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Array = np.ndarray
Role = Literal["ids", "values", "length", "mask"]
IDS = 11  # numbers that an input of them may hold: 0 to 10
PADDING = 7  # the one of them that models treat otherwise
BATCH, TIME, STEPS = "batch", "time", "steps"


@dataclass(frozen=True)
class Given:
    """An input: what it holds, and by the names of its axes how much; ids are below `below`."""

    name: str
    role: Role
    axes: tuple[str | int, ...]
    dtype: type
    below: int = IDS

    def draw(self, sizes: Mapping[str, int], lengths: Array, rng: np.random.Generator) -> Array:
        """Random values; lengths [batch]: rows of every history that are valid."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        if self.role == "length":
            return lengths.astype(self.dtype)
        if self.role == "mask":
            valid = np.arange(sizes[TIME]) < lengths[:, None]
            return (valid if self.axes[0] == BATCH else valid.T).astype(self.dtype)
        if self.role == "ids":
            drawn = rng.integers(0, self.below, shape)
            padded = rng.random(shape) < rng.choice([0.0, 0.3])
            return np.where(padded & (self.below > PADDING), PADDING, drawn).astype(self.dtype)
        return (rng.choice([0.5, 1.0, 2.0]) * rng.standard_normal(shape)).astype(self.dtype)

    def of(self, value: Array, kept: Mapping[str, Array]) -> Array:
        """The part of it that has these indices of the named axes."""
        for number, axis in enumerate(self.axes):
            if axis in kept:
                value = value.take(kept[str(axis)], number)
        return value
