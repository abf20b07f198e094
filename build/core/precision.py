"""The core in lower precision.

float16, for GPUs: weights and arithmetic. float32 stay both ends, a recurrent layer's state (it is fed back hundreds of
times), and what sums or exponentiates: softmax, normalisation, reductions.

int8, for CPUs: weights of LSTMs and of products, and what is multiplied with them. The rest stays float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime.quantization as quantization
from onnx_ir.passes.common import RemoveUnusedNodesPass

from build.core.reduce.file import PROTOBUF_LIMIT, load, save, weights
from build.core.reduce.rules import RECURRENT
from ensemble.errors import LastrowError
from ensemble.tables import Precision

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
NORMALISATIONS = (
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LpNormalization",
)
REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "CumSum",
    "Pow",
    "Exp",
    "Log",
)
FLOAT32 = {*RECURRENT, *NORMALISATIONS, *REDUCTIONS, "BatchNormalization", "Range", "Resize"}
QUANTISED = ("LSTM", "MatMul", "Gemm")
# What ONNX Runtime's quantiser looks for before it asks for its own optimisations, which the export has done.
READY = {"onnx.quant.pre_process": "onnxruntime.quant"}


class PrecisionError(LastrowError):
    """The core cannot be brought to this precision."""


def lower(model: ir.Model, precision: Precision) -> ir.Model:
    """The model in this precision, inputs and outputs as they are; it may be changed in place.

    Raises:
        PrecisionError: it has what cannot be brought to it.
    """
    return {"float32": lambda core: core, "float16": halve, "int8": quantise}[precision](model)


def quantise(model: ir.Model) -> ir.Model:
    """The model with the weights of its LSTMs and products in 8 bits, a scale each, by ONNX Runtime's own quantiser.

    Only -64 to 64 is used of them: a CPU with AVX2 alone sums two products with numbers of up to 255 in 16 bits, and weights
    beyond would overflow them, where one with VNNI has 32. So the answers are the same on both.

    What they are multiplied with gets its scale while it runs, one for the whole batch: a learner's answer depends, within
    the tolerance, on who else is in it. An LSTM may not be told of lengths (the spec insists): ONNX Runtime 1.31's then
    answers the same batch of unequal histories otherwise from one run to the next.

    Raises:
        PrecisionError: none of them has weights to quantise, or the quantiser fails.
    """
    with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
        single, eighth = Path(folder) / "single.onnx", Path(folder) / "eighth.onnx"
        before = dict(model.metadata_props)
        model.metadata_props.update(READY)
        save(model, single)
        try:
            quantization.quantize_dynamic(
                single,
                eighth,
                op_types_to_quantize=list(QUANTISED),
                weight_type=quantization.QuantType.QInt8,
                reduce_range=True,
                use_external_data_format=weights(model) > PROTOBUF_LIMIT,
            )
        except Exception as e:  # it raises whatever its Python comes upon
            raise PrecisionError(
                f'ONNX Runtime cannot quantise the core: {str(e).splitlines()[0]}; set export.precision = "float32"'
            ) from e
        quantised = load(eighth)
    if not any(v.dtype == ir.DataType.INT8 for v in quantised.graph.initializers.values()):
        raise PrecisionError(
            f"the core has no {', '.join(QUANTISED[:-1])} or {QUANTISED[-1]} with weights to quantise; "
            'set export.precision = "float32"'
        )
    quantised.metadata_props.clear()
    quantised.metadata_props.update(before)
    return quantised


def halve(model: ir.Model) -> ir.Model:
    """The model in half precision, in place; inputs and outputs keep their types.

    onnxruntime.transformers.float16 would do this, but leaves graphs out of order and casts a weight that two layers share
    under one name twice.

    Raises:
        PrecisionError: it has control flow, or a tensor whose type is not known.
    """
    graph = model.graph
    halves: dict[ir.Value, ir.Value] = {}
    floats: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise PrecisionError(
                f"the core has control flow ({node.op_type}), which is not brought to half precision; "
                'set export.precision = "float32"'
            )
        if any(value.dtype is None and value.uses() for value in node.outputs):
            raise PrecisionError(
                f"the type of what {node.op_type} {node.outputs[0].name} answers is not known; "
                'set export.precision = "float32"'
            )
        kept = node.op_type in FLOAT32 or node.domain not in ("", "ai.onnx")
        for number, value in enumerate(node.inputs):
            if value is None:
                continue
            if kept and value.dtype == HALF:
                node.replace_input_with(number, _cast(graph, value, FLOAT, floats))
            elif not kept and value.dtype == FLOAT:
                node.replace_input_with(number, _weight(graph, value, halves) or _cast(graph, value, HALF, halves))
        if not kept:
            _halve_outputs(node)
    for number, value in enumerate(graph.outputs):
        if value.dtype == HALF:
            name, shape = value.name, value.shape
            value.name = f"{name}_half"
            graph.outputs[number] = wide = _cast(graph, value, FLOAT, {})
            wide.name, wide.shape = name, shape
    RemoveUnusedNodesPass()(model)
    return model


def _halve_outputs(node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes.get_int("to") == FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(HALF))
    filled = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and (filled is None or filled.as_tensor().dtype == FLOAT):
        array = np.zeros(1) if filled is None else filled.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(np.float16)))
    for value in node.outputs:
        if value.dtype == FLOAT:
            value.type = ir.TensorType(HALF)


def _weight(graph: ir.Graph, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """A constant's twin in half precision, numbers beyond its range at the end of it; None if it is no constant."""
    if value.const_value is None or value.is_graph_input():
        return None
    if value not in halves:
        array = value.const_value.numpy()
        finite = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
        name = f"{value.name}_half"
        halves[value] = ir.Value(name=name, const_value=ir.tensor(finite.astype(np.float16), name=name))
        halves[value].type, halves[value].shape = ir.TensorType(HALF), value.shape
        graph.register_initializer(halves[value])
    return halves[value]


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """The value as `to`, right behind where it comes from."""
    if value not in made:
        cast = ir.node("Cast", [value], {"to": to})
        cast.outputs[0].name = f"{value.name}_{'half' if to == HALF else 'float'}"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(to), value.shape
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, cast)
        else:
            graph.insert_before(graph[0], cast)
        made[value] = cast.outputs[0]
    return made[value]
