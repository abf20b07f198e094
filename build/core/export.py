"""To ONNX: the model as it was trained, every row of its output included, under the spec's names."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from build.core.reduce import narrow
from build.core.reduce.file import load, open_session, save
from build.model.network import Network
from ensemble.errors import LastrowError
from ensemble.spec import Spec
from ensemble.tables import OnnxNetwork

# What ONNX 1.13 wrote with opset 18; ONNX Runtime refuses files of an IR version newer than itself.
IR_VERSION = 8
EXAMPLE = (2, 7)  # batch and time that exporters trace
_TRACED = (EXAMPLE[1], EXAMPLE[1] + 2)  # times at which it is asked whether a trace has a copy of something a row
NEWEST_OPSET = 21  # beyond, a file may use types that came with later versions


class ExportError(LastrowError):
    """The model cannot be exported, or an ONNX file is not of the form that is served."""


@dataclass(frozen=True)
class Full:
    """model: recent_problem_ids, recent_responses INT32 [batch, time] to all_logits FP32 [batch, time, problems].

    sigmoid: whether the model itself answers probabilities; the graph then ends before that sigmoid, which is postprocess'.
    """

    model: ir.Model
    sigmoid: bool


class _Wide(nn.Module):
    """Somebody's module takes INT64; what is served is INT32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        return self.module(problem_ids.long(), responses.long())


def export(model: nn.Module, spec: Spec) -> Full:
    """Export with batch and time dynamic, inputs INT32.

    The current exporter (dynamo) comes first. It takes time for fixed behind a recurrent layer whose output is reshaped;
    where that happens, the older one (TorchScript) has its turn.

    Raises:
        ExportError: neither gives a model that runs at other sizes than the example's, or the model loops over time in
            Python. That is asked first: the exporters find out late, and say something else.
    """
    module = (model if isinstance(model, Network) else _Wide(model)).eval()
    _check_no_loop(model, module, spec)
    reasons = []
    for dynamo in (True, False):
        try:
            with _quiet():
                exported = _export(module, spec, dynamo)
            _run_elsewhere(exported)
        # What tracing somebody's code, and loading what became of it, may raise has no common base.
        except Exception as e:
            reasons.append(next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__))
        else:
            return _adopted(exported, spec)
    raise ExportError(
        f"PyTorch cannot export {type(model).__name__} with batch and time dynamic: {reasons[0]} (and with the older "
        f"exporter: {reasons[1]}). Export it yourself and give the ONNX file as CHECKPOINT="
    )


def _check_no_loop(model: nn.Module, module: nn.Module, spec: Spec) -> None:
    """Refuse a model whose traced graph has a copy of a step for each row of the example: it grows with the example."""
    counts = [_operators(module, rows) for rows in _TRACED]
    if not 0 < counts[0] < counts[1]:
        return
    raise ExportError(
        f"{type(model).__name__} loops over time in Python: traced with {_TRACED[0]} rows it is {counts[0]} operators, with "
        f"{_TRACED[1]} rows {counts[1]}, so what is exported has as many steps as the example has rows. Let a recurrent "
        "layer (torch.nn.LSTM, GRU, RNN) run the loop. Or export it yourself at a fixed "
        f"window, with an example of [1, {spec.model.window}] and the batch alone dynamic, and give the ONNX file as "
        "CHECKPOINT="
    )


def _operators(module: nn.Module, rows: int) -> int:
    """How many operators a trace of the module has; 0 where it cannot be traced."""
    example = tuple(torch.zeros((EXAMPLE[0], rows), dtype=torch.int32) for _ in range(2))
    try:
        with _quiet(), torch.no_grad():
            graph = torch.jit.trace(module, example, check_trace=False).inlined_graph
    except Exception:  # the exporters will say what is in the way
        return 0
    return sum(1 for _ in graph.nodes())


def _export(module: nn.Module, spec: Spec, dynamo: bool) -> ir.Model:
    tensors = spec.tensors
    inputs = [tensors.recent_problem_ids.name, tensors.recent_responses.name]
    output = tensors.all_logits.name
    # Two tensors: given one twice, the exporter takes both inputs for the same.
    example = tuple(torch.zeros(EXAMPLE, dtype=torch.int32) for _ in inputs)
    axes = {0: "batch", 1: "time"}
    names: dict[str, Any] = {"input_names": inputs, "output_names": [output], "opset_version": spec.export.opset}
    if not dynamo:
        shapes = dict.fromkeys([*inputs, output], axes)
        with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(module, example, file, dynamo=False, dynamic_axes=shapes, **names)
            return load(file)
    # An export leaves PyTorch 2.13 with cached kernels that unroll recurrent layers; the next export in this process would
    # find time fixed at the example's and fail.
    for layer in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        layer._dispatch_cache.clear()
    program = torch.onnx.export(module, example, dynamo=True, dynamic_shapes=(axes, axes), verbose=False, **names)
    assert program is not None
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notices about torch's own internals."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)


def _run_elsewhere(model: ir.Model) -> None:
    """Run the model at a batch and a time that the exporter has not seen."""
    with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
        save(model, Path(folder) / "model.onnx")
        session = open_session(Path(folder) / "model.onnx")
        other = [size + 4 for size in EXAMPLE]
        (answer,) = session.run(None, {value.name: np.zeros(other, np.int32) for value in session.get_inputs()})
    if list(answer.shape[:2]) != other:
        raise ExportError(f"for inputs {other} the exported model answers {list(answer.shape)}")


def adopt(path: Path, spec: Spec) -> Full:
    """An ONNX file in the form of `export`.

    Raises:
        ExportError: it has not the inputs or the output that the spec's network names.
        ReductionError: it cannot be read.
    """
    assert isinstance(spec.network, OnnxNetwork)
    model = load(path)
    graph, tensors = model.graph, spec.tensors
    names = {
        spec.network.problem_ids: tensors.recent_problem_ids.name,
        spec.network.responses: tensors.recent_responses.name,
    }
    if {value.name for value in graph.inputs} != set(names):
        raise ExportError(
            f"{path} has the inputs {', '.join(str(v.name) for v in graph.inputs)}; the spec says {', '.join(names)} "
            "(network.problem_ids, network.responses)"
        )
    output = next((value for value in graph.outputs if value.name == spec.network.output), None)
    if output is None:
        raise ExportError(
            f"{path} has the outputs {', '.join(str(v.name) for v in graph.outputs)}; the spec says {spec.network.output} "
            "(network.output)"
        )
    graph.outputs[:] = [output]
    taken = set(names.values()) | {tensors.all_logits.name}
    for node in graph:
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}_inside"
    for value in graph.inputs:
        value.name = names[str(value.name)]
    return _adopted(model, spec)


def finish(model: ir.Model) -> ir.Model:
    """What every file leaves with: no traces of this machine's source paths, and an IR version old servers read."""
    ClearMetadataAndDocStringPass()(model)
    if model.opset_imports.get("", 0) <= NEWEST_OPSET:
        model.ir_version = IR_VERSION
    return model


def widen(model: ir.Model, spec: Spec) -> ir.Model:
    """INT64 inputs where the spec says so. The model's own arithmetic stays as it is, behind a Cast."""
    types = {tensor.name: tensor.dtype for _, tensor in spec.tensors}
    for value in model.graph.inputs:
        if types[str(value.name)] != "INT64":
            continue
        readers = list(value.uses())
        value.type = ir.TensorType(ir.DataType.INT64)
        cast = ir.node("Cast", [value], {"to": ir.DataType.INT32})
        cast.outputs[0].name = f"{value.name}_narrow"
        for reader, number in readers:
            reader.replace_input_with(number, cast.outputs[0])
        model.graph.insert_before(model.graph[0], cast)
    return model


def _adopted(model: ir.Model, spec: Spec) -> Full:
    graph = model.graph
    # Exporters note the example's time as a constant behind an LSTM, and Triton checks the output's shape at load.
    for node in graph:
        for value in node.outputs:
            value.shape = None
    last = graph.outputs[0].producer()
    sigmoid = last is not None and last.op_type == "Sigmoid" and len(graph.outputs[0].uses()) == 0
    if sigmoid:
        assert last is not None
        assert last.inputs[0] is not None
        graph.outputs[0].name = f"{graph.outputs[0].name}_probabilities"
        graph.outputs[0] = last.inputs[0]
        graph.remove(last, safe=False)
        graph.outputs[0].dtype = ir.DataType.FLOAT
    graph.outputs[0].name = spec.tensors.all_logits.name
    time = graph.inputs[0].shape[1] if graph.inputs[0].shape is not None else None
    graph.outputs[0].shape = ir.Shape(["batch", time if isinstance(time, int) else "time", spec.model.problems])
    narrow(model)
    return Full(finish(model), sigmoid)
