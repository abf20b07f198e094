"""Sizes that a graph reckons with, computed from the inputs' alone."""

from __future__ import annotations

import onnx_ir as ir

from build.core.reduce.emitter import Emitter
from build.core.reduce.shapes import Shapes


def from_inputs(graph: ir.Graph, shapes: Shapes, emitter: Emitter) -> None:
    """Sizes come from the inputs, and not from tensors that would be computed in full for the sake of their size.

    Nor are they reckoned with: what exporters write to find out which of an Expand's sizes are -1 goes.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("h = Exp(x)  s = Shape(h)  t = Abs(s)  y = Expand(zero, t)", weights="float zero = {0}")
    >>> shapes = shapes_of(full)
    >>> from_inputs(full.graph, shapes, Emitter(full, shapes, "row", ir.Value(name="lengths"), counted=True))
    >>> full.graph.outputs[0].producer().inputs[1].producer().op_type  # of the batch's size, time's, and 2
    'Concat'
    """
    asked = {"Shape": 0, "Expand": 1, "ConstantOfShape": 0}  # which input has, or says, the size
    for node in list(graph):
        number = asked.get(node.op_type)
        given = node.inputs[number] if number is not None else None
        if number is None or given is None or given.is_graph_input() or given.const_value is not None:
            continue
        told = given if node.op_type == "Shape" else node.outputs[0]
        dims = shapes.of(told) if shapes.known(told) else None
        if dims is None or any(shapes.coefficients(dim) is None for dim in dims):
            continue
        if node.op_type != "Shape":
            node.replace_input_with(number, emitter.shape(dims, infer=False))
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
        rebuilt = emitter.shape(dims[start:end], infer=False)
        shapes.set(rebuilt, shapes.of(node.outputs[0]))
        node.outputs[0].replace_all_uses_with(rebuilt, replace_graph_outputs=True)
    graph.sort()
