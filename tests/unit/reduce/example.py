"""Random models as people write them, layers one after another, and how each is to be reduced.

What an input holds is known here and not read from the graph: the feeds are independent of what the pass believes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from build.core.reduce import Declared, Select
from tests.unit.reduce.composition import Composition
from tests.unit.reduce.graphs import FLOAT16, SELECTS
from tests.unit.reduce.inputs import IDS, Given
from tests.unit.reduce.layers import ANY, CAUSAL

WINDOWS = (8, 13, 24, 40, 64, 64, 100, 128)


@dataclass(frozen=True)
class Options:
    """How the pass is asked to reduce it."""

    select: Select
    time_axis: int
    outputs: tuple[str, ...]
    window: int
    declared: Declared


@dataclass(frozen=True)
class Example:
    """A model, what it takes, and how it is to be reduced."""

    model: ir.Model
    given: tuple[Given, ...]
    options: Options
    half: bool
    marks: frozenset[int]


def compose(data: st.DataObject) -> Example:
    """Draw a model and the options to reduce it with."""
    m = Composition(data)
    starts: list[tuple[str, ...]] = [("ids", "features"), ("features",), ("ids",), ("static", "ids")]
    for name in m.choose(*starts, label="inputs"):
        if name == "static":
            m.static()
            continue
        made = (m.op("Gather", m.weight(IDS, 4), m.ids()), 4) if name == "ids" else (m.features(), 3)
        m.first = m.first or made[0]
        m.pool.append(made)
    for _ in range(m.number(1, 5, "depth")):
        layer = data.draw(st.sampled_from(CAUSAL if m.number(0, 2, "kind") else ANY), label="layer")
        m.pool.append(layer(m, m.pool[-1] if m.number(0, 3, "continue") else m.earlier()))
    answers = [m.pool[-1], *([m.earlier()] if m.flag("second output") else [])]
    names = []
    for name, width in answers:
        answer = m.op("MatMul", name, m.weight(width, 3)) if m.flag("head") else m.op("Identity", name)
        if m.time_axis != 1:
            answer = m.op("Transpose", answer, perm=[1, 0, 2] if m.time_axis == 0 else [0, 2, 1])
        names.append(answer)
    half = m.number(0, 5, "half output") == 5
    m.half |= half
    names = [m.op("Cast", name, to=FLOAT16) for name in names] if half else names
    said = m.number(0, 3, "declared")
    every = m.given.values()
    declared = Declared(
        ranges={each.name: (0, IDS - 1) for each in every if each.role == "ids"} if said == 3 else {},
        lengths=frozenset(each.name for each in every if each.role == "length") if said else frozenset(),
        masks=frozenset(each.name for each in every if each.role == "mask") if said else frozenset(),
    )
    options = Options(
        select=m.choose(*SELECTS, "last", "last", "row", label="select"),
        time_axis=m.time_axis,
        outputs=tuple(names) if m.number(0, 2, "every output") == 2 else (m.choose(*names, label="output"),),
        window=m.choose(*WINDOWS, label="window"),
        declared=declared,
    )
    model = m.model(*names, dtype=np.float16 if half else np.float32)
    return Example(model, tuple(every), options, m.half, frozenset(m.marks))
