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
from tests.unit.reduce.graphs import FLOAT, FLOAT16, SELECTS
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
    select: Select = m.choose(*SELECTS, "last", "last", "row", "own", "own", label="select")
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
        if select == "own":
            answer = own(m, answer)
        elif m.time_axis != 1:
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
    several = select != "own" and m.number(0, 2, "every output") == 2
    options = Options(
        select=select,
        time_axis=min(m.time_axis, 1) if select == "own" else m.time_axis,
        outputs=tuple(names) if several else (m.choose(*names, label="output"),),
        window=m.choose(*WINDOWS, label="window"),
        declared=declared,
    )
    model = m.model(*names, dtype=np.float16 if half else np.float32)
    return Example(model, tuple(every), options, m.half, frozenset(m.marks))


def own(m: Composition, rows: str) -> str:
    """[batch, width] of [batch, time, width]: the row or rows that the model selects itself."""
    form = m.choose("last", "first", "kept", "pairs", "row", "merged", "mean", "both", label="own")
    if form == "kept":
        return m.op("Squeeze", m.op("Slice", rows, [-1], [2**63 - 1], [1]), [1])
    if form == "both":
        return m.op("Add", *(m.op("Gather", rows, np.array(number), axis=1) for number in (0, -1)))
    if form == "mean":
        mask = m.op("Cast", m.op("Unsqueeze", m.valid(), [2]), to=FLOAT)
        total = m.op("ReduceSum", m.op("Mul", rows, mask), [1], keepdims=0)
        return m.op("Div", total, m.op("Clip", m.op("ReduceSum", mask, [1], keepdims=0), np.array(1e-6, np.float32)))
    if form in ("last", "first"):
        return m.op("Gather", rows, np.array(-1 if form == "last" else 0), axis=1)
    index = m.op("Sub", m.lengths(), np.array(1))
    if form == "row":
        return m.op("GatherND", rows, m.op("Unsqueeze", index, [1]), batch_dims=1)
    histories = m.op("Range", np.array(0), m.op("Squeeze", m.learners()), np.array(1))
    if form == "pairs":
        return m.op("GatherND", rows, m.op("Concat", *(m.op("Unsqueeze", n, [1]) for n in (histories, index)), axis=1))
    merged = m.op("Reshape", rows, m.op("Concat", [-1], m.size(rows, 2), axis=0))
    return m.op("Gather", merged, m.op("Add", m.op("Mul", histories, m.number_of_rows()), index))
