"""The cut: from a model that answers every row to a core that answers the last valid one.

The head is a matrix product over rows that do not know of each other, so the row can be selected before it: T times less
arithmetic and T times fewer bytes. The LSTM offers that row itself as its final state Y_h, and with `sequence_lens` it
stops there: a learner of 20 interactions costs 20 steps.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CheckerPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript import optimizer

from build.export import finish
from ensemble.errors import LastrowError
from ensemble.spec import Spec

# Operators that move rows about but neither mix nor change them, and those that compute the shapes they need.
_LAYOUT = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"}
_FOLD_LIMIT = 1 << 30  # bytes: fold the LSTM's weights into the layout that ONNX wants, whatever their size


class ReductionError(LastrowError):
    """The model is not of a form in which the row can be taken before the head; names the operator in the way."""


def reduce(full: ir.Model, spec: Spec) -> ir.Model:
    """Take the last valid row below the head.

    Args:
        full: [batch, time] inputs to [batch, time, problems] logits, as `build.export.export` makes it. Not changed.

    Returns:
        The same inputs and `lengths` INT32 [batch] (0 to time), to `logits` FP32 [batch, problems].

    Raises:
        ReductionError: the graph does not end in LSTM, layout, MatMul, Add.
    """
    model = ir.from_proto(ir.to_proto(full))
    optimizer.fold_constants(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    graph = model.graph
    bias = _producer(graph.outputs[0], "Add")
    projection = _producer(_computed(bias), "MatMul")
    lstm = _lstm_below(projection.inputs[0])

    lengths = ir.Value(name=spec.tensors.lengths.name, shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(lengths)
    lstm.replace_input_with(4, lengths)
    _drop_zero_states(lstm)
    _trim_padding(graph, lengths)

    # Y_h is [directions, batch, hidden], the state after `lengths` steps, and the zero state where that is 0.
    lstm.resize_outputs(2)
    lstm.outputs[1].name = "final_state"
    squeeze = ir.node("Squeeze", [lstm.outputs[1], _constant(graph, "direction_axis", 0)])
    squeeze.outputs[0].name = "last_state"
    graph.insert_before(projection, squeeze)
    projection.replace_input_with(0, squeeze.outputs[0])

    graph.outputs[0].name = spec.tensors.logits.name
    for node in graph:
        for value in node.outputs:
            value.shape = None  # noted for the model as it was
    graph.outputs[0].shape = ir.Shape(["batch", spec.model.problems])

    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass()(model)
    ShapeInferencePass()(model)
    finish(model)
    CheckerPass(full_check=True)(model)
    return model


def _producer(value: ir.Value | None, op_type: str) -> ir.Node:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type:
        found = node.op_type if node is not None else "a graph input or constant"
        name = value.name if value is not None else "nothing"
        raise ReductionError(
            f'expected {op_type} to make {name!r}, found {found}; set reduce.where = "postprocess" in the spec to '
            "select the row after the model instead"
        )
    return node


def _computed(node: ir.Node) -> ir.Value | None:
    """The one input that is not a constant."""
    return next((value for value in node.inputs if value is not None and value.const_value is None), None)


def _lstm_below(value: ir.Value | None) -> ir.Node:
    """Follow layout operators down to the LSTM whose rows they rearrange."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _LAYOUT:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "LSTM" or node.attributes.get_string("direction", "forward") != "forward":
        found = node.op_type if node is not None else "a graph input or constant"
        raise ReductionError(
            f'expected a forward LSTM below the head, found {found}; set reduce.where = "postprocess" in the spec to '
            "select the row after the model instead"
        )
    return node


def _drop_zero_states(lstm: ir.Node) -> None:
    """Leave out initial states that are zeros expanded to the batch: zeros are ONNX's default, at no cost."""
    for index in (5, 6):
        source = lstm.inputs[index] if index < len(lstm.inputs) else None
        while source is not None and source.const_value is None:
            producer = source.producer()
            # Expand and Slice of zeros are zeros; anything else may compute a state.
            source = producer.inputs[0] if producer is not None and producer.op_type in {"Expand", "Slice"} else None
        if source is not None and source.const_value is not None and not source.const_value.numpy().any():
            lstm.replace_input_with(index, None)


def _trim_padding(graph: ir.Graph, lengths: ir.Value) -> None:
    """Cut the windows at the longest history of the batch, so that embeddings of mere padding are never fetched.

    At least one column stays: an LSTM takes no sequence of no steps, cold start or not.
    """
    axis = _constant(graph, "time_axis", 1)
    start = _constant(graph, "first_column", 0)
    longest = ir.node("ReduceMax", [lengths])
    at_least_one = ir.node("Max", [longest.outputs[0], _constant(graph, "one_column", 1, np.int32)])
    end = ir.node("Cast", [at_least_one.outputs[0]], {"to": ir.DataType.INT64})
    nodes = [longest, at_least_one, end]
    for tensor in [value for value in graph.inputs if value is not lengths]:
        trimmed = ir.node("Slice", [tensor, start, end.outputs[0], axis])
        trimmed.outputs[0].name = f"{tensor.name}_trimmed"
        ir.convenience.replace_all_uses_with(tensor, trimmed.outputs[0])
        trimmed.replace_input_with(0, tensor)
        nodes.append(trimmed)
    for name, node in zip(("longest", "columns", "last_column"), nodes, strict=False):
        node.outputs[0].name = name
    graph.insert_before(graph[0], nodes)


def _constant(graph: ir.Graph, name: str, number: int, dtype: type = np.int64) -> ir.Value:
    """A one-element initializer [number]."""
    value = ir.Value(name=name, const_value=ir.tensor(np.array([number], dtype), name=name))
    graph.register_initializer(value)
    return value
