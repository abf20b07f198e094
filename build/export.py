"""PyTorch to ONNX: the model as it was trained, every row of its output included."""

from __future__ import annotations

import logging
import warnings

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from build.dkt import DKT
from ensemble.spec import Spec

# What ONNX 1.13 wrote with opset 18; ONNX Runtime refuses files of an IR version newer than itself.
IR_VERSION = 8


def export(model: DKT, spec: Spec) -> ir.Model:
    """Export with the current (dynamo) exporter, batch and time dynamic, inputs INT32.

    Returns:
        recent_problem_ids, recent_responses INT32 [batch, time] to all_logits FP32 [batch, time, problems], under the
        names of the spec.
    """
    tensors = spec.tensors
    inputs = [tensors.recent_problem_ids.name, tensors.recent_responses.name]
    # Two tensors: given one twice, the exporter takes both inputs for the same.
    example = tuple(torch.zeros(2, 7, dtype=torch.int32) for _ in inputs)
    axes = {0: "batch", 1: "time"}
    # An export leaves PyTorch 2.13 with a cached kernel that unrolls LSTMs; the next export in this process would find
    # time fixed at the example's and fail.
    torch.ops.aten.lstm.input._dispatch_cache.clear()
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notices about torch's own internals
            program = torch.onnx.export(
                model.eval(),
                example,
                dynamo=True,
                dynamic_shapes=(axes, axes),
                input_names=inputs,
                output_names=[tensors.all_logits.name],
                opset_version=spec.export.opset,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    graph = program.model
    # The exporter notes the example's time as a constant behind the LSTM, and Triton checks the output's shape at load.
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    graph.graph.outputs[0].shape = ir.Shape(["batch", "time", spec.model.problems])
    return finish(graph)


def finish(model: ir.Model) -> ir.Model:
    """What every file leaves with: no traces of this machine's source paths, and an IR version old servers read."""
    ClearMetadataAndDocStringPass()(model)
    model.ir_version = IR_VERSION
    return model
