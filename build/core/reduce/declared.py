"""What somebody says of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from build.core.reduce.layout import ReductionError


@dataclass(frozen=True)
class Declared:
    """What somebody says of a model's inputs, by their names.

    Attributes:
        ranges: the lowest and the highest value, both included.
        lengths: inputs that hold how many rows of a history are valid, in front of the padding.
        masks: inputs [batch, time] that are 1 at valid rows and 0 behind them.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lengths: frozenset[str] = frozenset()
    masks: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, ranges: Sequence[str] = (), lengths: Sequence[str] = (), masks: Sequence[str] = ()) -> Declared:
        """From a command line's words.

        >>> Declared.parse(["ids=0:9999"]).ranges
        {'ids': (0.0, 9999.0)}

        Raises:
            ReductionError: a range is not of the form NAME=LOW:HIGH.
        """
        found = {}
        for text in ranges:
            name, _, numbers = text.rpartition("=")
            low, _, high = numbers.partition(":")
            try:
                found[name] = (float(low), float(high))
            except ValueError:
                name = ""
            if not name or not found[name][0] <= found[name][1]:
                raise ReductionError(
                    f"--range {text}: needed is NAME=LOW:HIGH, both numbers included, as in ids=0:9999"
                )
        return cls(found, frozenset(lengths), frozenset(masks))

    def check(self, model: ir.Model) -> None:
        """Every declared input has to be there, once.

        >>> from build.core.reduce.example import model
        >>> Declared(masks=frozenset({"mask"})).check(model("y = Tanh(x)"))
        Traceback (most recent call last):
            ...
        build.core.reduce.layout.ReductionError: the model has no input 'mask' to declare; it has x

        Raises:
            ReductionError: it is not.
        """
        names = {str(value.name) for value in model.graph.inputs}
        said = [*self.ranges, *self.lengths, *self.masks]
        for name in said:
            if name not in names:
                raise ReductionError(f"the model has no input {name!r} to declare; it has {', '.join(sorted(names))}")
            if said.count(name) > 1:
                raise ReductionError(f"input {name!r} is declared twice; it has a range, or is a length, or is a mask")
