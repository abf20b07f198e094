"""LSTM, GRU and RNN: where they are cut, and the zeros from which they start."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter, beyond
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules.base import Inputs, Rule
from build.core.reduce.shapes import Shapes, one

RECURRENT = ("LSTM", "GRU", "RNN")


class Recurrent(Rule):
    """LSTM, GRU, RNN: the row is the state in which the layer ends when it is stopped there.

    With lengths of its own (a packed sequence) it ends at the nearer of the two: rows behind its length are zeros.

    >>> from build.core.reduce.example import LSTM, cut
    >>> reduction = cut(*LSTM)
    >>> print(reduction.tail)
    Squeeze  y [batch, 3]
      MatMul  y_row [batch, 1, 3]
        Transpose  hidden_row [batch, 1, 2]
          Reshape  forward_row [1, batch, 2]
            Unsqueeze  unsqueeze [1, 1, batch, 2]
              LSTM  final_state [1, batch, 2]
    >>> print(*reduction.rests)
    LSTM states [time, 1, batch, 2]: it ends at the wanted row, and its final state is that row
    """

    op_types: ClassVar[tuple[str, ...]] = RECURRENT

    def needs(self, node: ir.Node, layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
        if node.attributes.get_string("direction", "forward") != "forward":
            raise Stop("it reads the sequence from its end too")
        if node.attributes.get_int("layout", 0):
            raise Stop("it has the batch first (layout = 1), which ONNX Runtime does not run")
        if kind in ("mean", "max"):
            raise Stop(f"the {kind} does not commute with it")
        # A batch fixed at 1 may have changed places with the direction, which has size 1 as well.
        if layout.merged or layout.time != 0 or (layout.batch != 2 and not one(shapes.batch)):
            raise Stop("time is not its first axis")
        if kind == "row" and (layout.before or beyond(layout, shapes.of(node.outputs[0]), shapes)):
            raise Stop("more rows than the one that it ends at are wanted")
        return Needs(prefixes={0: layout.moved(0, 1)})

    def emit(self, node: ir.Node, inputs: Inputs, layout: Layout, emitter: Emitter) -> list[ir.Value]:
        slots = [*inputs, *([None] * (6 - len(inputs)))]
        own, steps = slots[4], None
        if own is not None or not emitter.ends(emitter.shapes.of(node.outputs[0])[0], layout.offset):
            steps = emitter.steps(layout.offset, layout.inner)
            slots[4] = steps if own is None else emitter.node("Min", [own, steps], "steps")
        every, state = emitter.like(node, slots, outputs=2)
        every.name = ""  # left out
        state.name = emitter.name("final_state")
        # Y_h is [1, batch, hidden]; Y has time in front of it.
        row = emitter.node("Unsqueeze", [state, emitter.constant([0])])
        if own is None:
            return [row]
        there = emitter.node("GreaterOrEqual", [own, steps], "has_the_row")
        there = emitter.node("Reshape", [there, emitter.constant([1, 1, -1, 1])])
        zero = emitter.constant(np.zeros((), (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()))
        return [emitter.node("Where", [there, row, zero], f"{node.outputs[0].name}_or_zero")]


def drop_zero_states(graph: ir.Graph) -> None:
    """Leave out initial states that are zeros expanded to the batch: zeros are ONNX's default, at no cost.

    >>> from build.core.reduce.example import model
    >>> weights = "float[1, 1, 2] w = {1, 2}, float[1, 1, 1] r = {1}, float[1, 1, 1] h = {0}"
    >>> full = model("y = RNN<hidden_size = 1>(x, w, r, , , h)", weights=weights)
    >>> drop_zero_states(full.graph)
    >>> full.graph[0].inputs[5] is None
    True
    """
    for node in graph:
        if node.op_type not in RECURRENT:
            continue
        for number in _states(node):
            if is_zero(node.inputs[number]):
                node.replace_input_with(number, None)


def is_zero_before(value: ir.Value) -> bool:
    """Whether these are a recurrent layer's states, and the one before the first is zeros.

    >>> from build.core.reduce.example import model
    >>> full = model("y = RNN<hidden_size = 1>(x, w, r)", weights="float[1, 1, 2] w = {1, 2}, float[1, 1, 1] r = {1}")
    >>> is_zero_before(full.graph.outputs[0])
    True
    """
    node = value.producer()
    if node is None or node.op_type not in RECURRENT or value is not node.outputs[0]:
        return False
    forward = node.attributes.get_string("direction", "forward") == "forward"
    return forward and all(is_zero(node.inputs[number]) for number in _states(node))


def _states(node: ir.Node) -> list[int]:
    """Numbers of the initial states that a recurrent layer is given."""
    return [number for number in (5, 6) if number < len(node.inputs) and node.inputs[number] is not None]


def is_zero(value: ir.Value | None) -> bool:
    """Whether it is zeros, made without any calculation.

    >>> from build.core.reduce.example import model
    >>> is_zero(model("y = Expand(h, s)", "int64[2] s", "float h = {0}").graph.outputs[0])
    True
    """
    while value is not None and value.const_value is None:
        producer = value.producer()
        if producer is not None and producer.op_type == "ConstantOfShape":
            filled = producer.attributes.get("value")
            return filled is None or not filled.as_tensor().numpy().any()
        # Expand and Slice of zeros are zeros; anything else may compute a state.
        value = producer.inputs[0] if producer is not None and producer.op_type in ("Expand", "Slice") else None
    return value is not None and value.const_value is not None and not value.const_value.numpy().any()
