"""A projection to several parts at once (queries, keys and values), taken apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter, typed
from build.core.reduce.shapes import Shapes


def distribute(split: ir.Node, shapes: Shapes, emitter: Emitter) -> bool:
    """A projection to several parts at once becomes one projection a part, so that each can be selected by itself.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("p = MatMul(x, w)  q, k = Split<axis = 2, num_outputs = 2>(p)  y = Mul(q, k)",
    ...              weights="float[2, 2] w = {1, 2, 3, 4}")
    >>> shapes = shapes_of(full)
    >>> distribute(full.graph[1], shapes, Emitter(full, shapes, "row", ir.Value(name="lengths"), counted=True))
    True
    >>> [value.producer().op_type for value in full.graph[2].inputs]
    ['MatMul', 'MatMul']
    """
    linear = split.inputs[0]
    assert linear is not None
    rank = len(shapes.of(linear))
    if split.attributes.get_int("axis", 0) % rank != rank - 1:
        return False
    bias, product = None, linear.producer()
    if product is not None and product.op_type == "Add":
        bias = next((v for v in product.inputs if v is not None and v.const_value is not None), None)
        other = next((v for v in product.inputs if v is not bias), None)
        product = other.producer() if bias is not None and other is not None else None
    if product is None or product.op_type != "MatMul" or product.inputs[1] is None:
        return False
    matrix = product.inputs[1].const_value
    if matrix is None or len(matrix.shape) != 2 or (bias is not None and len(shapes.of(bias)) != 1):
        return False
    ends = np.cumsum([shapes.of(value)[-1][0] for value in split.outputs])[:-1]
    parts = np.split(matrix.numpy(), ends, axis=1)
    biases: list[np.ndarray | None] = [None] * len(parts)
    if bias is not None and bias.const_value is not None:
        shifts = bias.const_value.numpy()
        biases = [shifts] * len(parts) if len(shifts) == 1 else list(np.split(shifts, ends))
    for value, part, shift in zip(list(split.outputs), parts, biases, strict=True):
        made = emitter.node("MatMul", [product.inputs[0], _initializer(emitter, part, f"{value.name}_weight")])
        shapes.set(typed(made, value), shapes.of(value))
        if shift is not None:
            made = emitter.node("Add", [made, _initializer(emitter, shift, f"{value.name}_bias")])
            shapes.set(typed(made, value), shapes.of(value))
        value.replace_all_uses_with(made, replace_graph_outputs=True)
    return True


def _initializer(emitter: Emitter, array: np.ndarray, name: str) -> ir.Value:
    name = emitter.name(name)
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    emitter.graph.register_initializer(value)
    return value
