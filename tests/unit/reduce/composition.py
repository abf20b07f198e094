"""The graph that layers are added to one after another, with inputs of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.unit.reduce.graphs import BOOL, FLOAT, INT64
from tests.unit.reduce.inputs import BATCH, PADDING, STEPS, TIME, Given, Role
from tests.unit.reduce.test_differential import Maker

STATIC = 3  # features of a learner


class Composition(Maker):
    """A model of layers.

    Attributes:
        given: its inputs.
        marks: lengths at which a layer does something else, as a window of so many rows.
        half: whether 16 bits are computed with.
    """

    def __init__(self, data: st.DataObject) -> None:
        super().__init__(data)
        self.given: dict[str, Given] = {}
        self.marks: set[int] = set()
        self.half = False
        self.time_axis = self.choose(1, 1, 1, 0, 2, label="time axis")
        self._made: dict[str, str] = {}

    def take(self, name: str, role: Role, *axes: str | int, dtype: type) -> str:
        """An input, which there is once."""
        if name not in self.given:
            if self.time_axis == 0 and axes[:2] == (BATCH, TIME):
                axes = (TIME, BATCH, *axes[2:])
            self.given[name] = Given(name, role, axes, dtype)
            self.input(name, *axes, dtype=dtype)
        return name

    def once(self, name: str, make: Callable[[], str]) -> str:
        """A tensor that layers share."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def learners_first(self, value: str, rank: int) -> str:
        """An input [time, batch, ...] with its axes in the order that layers have."""
        return value if self.time_axis else self.op("Transpose", value, perm=[1, 0, *range(2, rank)])

    def ids(self) -> str:
        """INT64 or INT32 [batch, time]."""
        dtype = self.given["ids"].dtype if "ids" in self.given else self.choose(np.int64, np.int32, label="ids")
        return self.once("ids", lambda: self.learners_first(self.take("ids", "ids", BATCH, TIME, dtype=dtype), 2))

    def features(self) -> str:
        """FLOAT [batch, time, 3]."""
        dtype: type = np.float16 if self.flag("half input") else np.float32
        self.half |= dtype is np.float16

        def make() -> str:
            made = self.take("features", "values", BATCH, TIME, 3, dtype=dtype)
            return self.learners_first(self.op("Cast", made, to=FLOAT) if dtype is np.float16 else made, 3)

        return self.once("features", make)

    def lengths(self) -> str:
        """INT64 [batch]: an input of that, by one of the names that people give it."""
        name = str(self.choose("lengths", "n", label="lengths")) if "length" not in self._made else ""
        return self.once("length", lambda: self.take(name, "length", BATCH, dtype=np.int64))

    def static(self) -> str:
        """FLOAT [batch, 3]."""
        return self.take("static", "values", BATCH, STATIC, dtype=np.float32)

    def states(self) -> str:
        """FLOAT [batch, steps, 3]: of an encoder."""
        return self.take("states", "values", BATCH, STEPS, 3, dtype=np.float32)

    def valid(self) -> str:
        """BOOL [batch, time], by one of the ways in which models know their padding."""
        form = str(self.choose("lengths", "boolean mask", "mask", "float mask", "padding id", label="valid"))
        return self.once(form, lambda: self._valid(form))

    def _valid(self, form: str) -> str:
        if form == "lengths":
            return self.op("Less", self.numbers(), self.op("Unsqueeze", self.lengths(), [1]))
        if form == "padding id":
            return self.op("Not", self.op("Equal", self.op("Cast", self.ids(), to=INT64), np.array(PADDING)))
        dtype = {"boolean mask": np.bool_, "mask": np.int64, "float mask": np.float32}[form]
        mask = self.learners_first(self.take(form.replace(" ", "_"), "mask", BATCH, TIME, dtype=dtype), 2)
        return mask if dtype is np.bool_ else self.op("Cast", mask, to=BOOL)

    def number_of_rows(self) -> str:
        """INT64, without axes."""
        return self.op("Squeeze", self.rows())

    def as_factor(self, number: str) -> str:
        """An INT64 of one number as a FLOAT between 0 and 3, which products keep near 1."""
        some = self.op("Mul", self.op("Cast", number, to=FLOAT), np.array(0.37, np.float32))
        return self.op("Add", self.op("Sin", some), np.array(1.5, np.float32))

    def branch(self, name: str, nodes: list[onnx.NodeProto], output: str, kind: int = FLOAT) -> onnx.GraphProto:
        """A graph inside of a node, without inputs."""
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, kind, None)])
