"""To ONNX: the model as it was trained, every row of its output included, under the spec's names."""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from build.core.reduce import narrow
from build.core.reduce.file import load, open_session, save
from build.core.served import BATCH, TIME, Served, axes_of, check, example, is_whole, own_outputs
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import OnnxNetwork
from ensemble.tables import Tensor as TensorTable

# What ONNX 1.13 wrote with opset 18; ONNX Runtime refuses files of an IR version newer than itself.
IR_VERSION = 8
EXAMPLE = (2, 7)  # batch and time that exporters trace
_TRACED = (EXAMPLE[1], EXAMPLE[1] + 2)  # times at which it is asked whether a trace has a copy of something a row
MOST_UNROLLED = 6000  # operators of a loop: minutes of export, and a graph that is slow to load, beyond
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


def export(model: nn.Module, spec: Spec) -> Full:
    """Export with batch and time dynamic, inputs INT32.

    The current exporter (dynamo) comes first. It takes time for fixed behind a recurrent layer whose output is reshaped;
    where that happens, the older one (TorchScript) has its turn. A model that has another number of operators for each
    number of steps (a loop in Python), or that takes whole windows alone, is exported at its window, where that is all that
    the core ever gets.

    Raises:
        ExportError: neither gives a model that runs at other sizes than the example's, or the model loops over time in
            Python, and its window is too long for that, or there are several. That is asked first: the exporters find out
            late, and say something else.
    """
    check(model, spec)
    module = Served(model, spec, single=True)
    loops = _loops(model, module, spec)
    reasons = []
    ways = [False] * (not loops) + [True] * is_whole(spec)  # at the window alone
    for fixed, dynamo in itertools.product(ways, (True, False)):
        try:
            with _quiet(), _packed_states(), _masks_unread():
                exported = _export(module, spec, dynamo, spec.model.window if fixed else None)
            _run_elsewhere(exported, spec, spec.model.window if fixed else None)
        # What tracing somebody's code, and loading what became of it, may raise has no common base.
        except Exception as e:
            reasons.append(next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__))
        else:
            return _adopted(exported, spec)
    others = f" (and with the older exporter: {reasons[1]})" if len(reasons) > 1 else ""
    raise ExportError(
        f"PyTorch cannot export {type(model).__name__} with batch{' and time' * (not loops)} dynamic: {reasons[0]}{others}. "
        "Export it yourself and give the ONNX file as CHECKPOINT="
    )


def _loops(model: nn.Module, module: nn.Module, spec: Spec) -> bool:
    """Whether a model's traced graph has a copy of a step for each row of the example.

    Raises:
        ExportError: it has, and there is no one window to export it at, or one of too many steps.
    """
    counts = [_operators(module, spec, rows) for rows in _TRACED]
    if not 0 < counts[0] < counts[1]:
        return False
    steps = spec.model.window - _TRACED[0]
    operators = counts[0] + (counts[1] - counts[0]) * steps // (_TRACED[1] - _TRACED[0])
    if is_whole(spec) and operators <= MOST_UNROLLED:
        return True
    obstacle = (
        f"at the window of {spec.model.window} it would be {operators}, and {MOST_UNROLLED} are unrolled at most"
        if is_whole(spec)
        else "and this spec has windows of more than one width (model.buckets, or model.padding)"
    )
    raise ExportError(
        f"{type(model).__name__} loops over time in Python: traced with {_TRACED[0]} rows it is {counts[0]} operators, with "
        f"{_TRACED[1]} rows {counts[1]}; {obstacle}: let a recurrent layer (torch.nn.LSTM, GRU, RNN) run the loop, or take "
        "one shorter window, model.buckets = []"
    )


@contextmanager
def _packed_states() -> Iterator[None]:
    """The older exporter knows packed rows by where they are padded again, which nobody does who takes the last state alone:
    that state is made to depend on the padded rows, by adding nothing of them."""
    layers: tuple[Any, ...] = (nn.GRU, nn.LSTM, nn.RNN)
    originals = [layer.forward for layer in layers]

    def padded(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(layer: nn.Module, given: Any, states: Any = None) -> Any:
            rows, state = forward(layer, given, states)
            if isinstance(rows, PackedSequence):
                nothing = pad_packed_sequence(rows)[0][:0].sum()
                state = tuple(each + nothing for each in state) if isinstance(state, tuple) else state + nothing
            return rows, state

        return run

    try:
        for layer, original in zip(layers, originals, strict=True):
            layer.forward = padded(original)
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.forward = original


def _operators(module: nn.Module, spec: Spec, rows: int) -> int:
    """How many operators a trace of the module has; 0 where it cannot be traced."""
    if rows > spec.model.window:
        return 0
    try:
        example = _tensors(spec, EXAMPLE[0], rows)
        with _quiet(), torch.no_grad():
            graph = torch.jit.trace(module, example, check_trace=False).inlined_graph
    except Exception:  # the exporters will say what is in the way
        return 0
    return sum(1 for _ in graph.nodes())


def _export(module: nn.Module, spec: Spec, dynamo: bool, fixed: int | None) -> ir.Model:
    axes = [{n: axis for n, axis in enumerate(each) if axis != TIME or not fixed} for each in axes_of(spec).values()]
    inputs, outputs = list(axes_of(spec)), [f"{tensor.name}" for tensor in full_outputs(spec)]
    example = _tensors(spec, EXAMPLE[0], fixed or min(EXAMPLE[1], spec.model.window))
    names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "opset_version": spec.export.opset}
    if not dynamo:
        whole = {0: BATCH} if _is_own(spec) or fixed else {0: BATCH, 1: TIME}
        shapes = {**dict(zip(inputs, axes, strict=True)), **dict.fromkeys(outputs, whole)}
        with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(module, example, file, dynamo=False, dynamic_axes=shapes, **names)
            return load(file)
    # An export leaves PyTorch 2.13 with cached kernels that unroll recurrent layers; the next export in this process would
    # find time fixed at the example's and fail.
    for layer in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        layer._dispatch_cache.clear()
    program = torch.onnx.export(module, example, dynamo=True, dynamic_shapes=(tuple(axes),), verbose=False, **names)
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


@contextmanager
def _masks_unread() -> Iterator[None]:
    """Without PyTorch's look whether an attention mask's values are causal, which no exporter can follow.

    By its documentation what it finds is a hint for faster kernels: the mask itself is applied either way.
    """

    def hint(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
        return is_causal is True

    looks = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = hint
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = looks


def _run_elsewhere(model: ir.Model, spec: Spec, fixed: int | None) -> None:
    """Run the model at a batch and a time that the exporter has not seen; fixed: but for the only one that it takes."""
    time = fixed or min(EXAMPLE[1] + 4, spec.model.window)
    with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
        save(model, Path(folder) / "model.onnx")
        session = open_session(Path(folder) / "model.onnx")
        fed, taken = example(spec, EXAMPLE[0] + 4, time), {value.name for value in session.get_inputs()}
        answers = session.run(None, {name: value for name, value in fed.items() if name in taken})
    leading = [EXAMPLE[0] + 4] if _is_own(spec) else [EXAMPLE[0] + 4, time]
    for answer in answers:
        if list(answer.shape[: len(leading)]) != leading:
            raise ExportError(f"for {leading} the exported model answers {list(answer.shape)}")


def _tensors(spec: Spec, batch: int, time: int) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in example(spec, batch, time).values())


def _is_own(spec: Spec) -> bool:
    """Whether the model answers one row by itself."""
    return isinstance(spec, Sequence) and spec.row.select == "own"


def full_outputs(spec: Spec) -> tuple[TensorTable, ...]:
    """What the model answers before it is cut, every row of it."""
    return (spec.tensors.all_logits,) if isinstance(spec, KnowledgeTracing) else spec.cores[0].outputs


def adopt(path: Path, spec: Spec) -> Full:
    """An ONNX file in the form of `export`.

    Raises:
        ExportError: it has not the inputs or the output that the spec's network names.
        ReductionError: it cannot be read.
    """
    model = load(path)
    graph = model.graph
    given = spec.network if isinstance(spec.network, OnnxNetwork) else None
    own = (given.problem_ids, given.responses) if given else tuple(spec.fed)
    asked = [given.output] if given else list(own_outputs(spec))
    where = ("network.problem_ids, network.responses", "network.output") if given else ("inputs", "outputs")
    names = dict(zip(own, axes_of(spec), strict=True))
    if {value.name for value in graph.inputs} != set(names):
        raise ExportError(
            f"{path} has the inputs {', '.join(str(v.name) for v in graph.inputs)}; the spec says {', '.join(names)} "
            f"({where[0]})"
        )
    found = {str(value.name): value for value in graph.outputs}
    missing = next((name for name in asked if name not in found), None)
    if missing is not None:
        raise ExportError(f"{path} has the outputs {', '.join(found)}; the spec says {missing} ({where[1]})")
    graph.outputs[:] = [found[name] for name in asked]
    taken = {*names.values(), *(tensor.name for tensor in full_outputs(spec))}
    for node in graph:
        for value in node.outputs:
            if value.name in taken and value not in graph.outputs:
                value.name = f"{value.name}_inside"
    graph.inputs[:] = sorted(graph.inputs, key=lambda value: own.index(str(value.name)))
    for value in graph.inputs:
        value.name = names[str(value.name)]
    if isinstance(spec, Sequence) and spec.model.time_major:
        swap(model, [name for name, axes in axes_of(spec).items() if TIME in axes], not _is_own(spec))
    return _adopted(model, spec)


def swap(model: ir.Model, inputs: Collection[str], outputs: bool) -> None:
    """Batch first where a model has time first: a Transpose behind these inputs, and one at each of the outputs."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in inputs]:
        dims = list(value.shape) if value.shape is not None else [None, None]
        order = [1, 0, *range(2, len(dims))]
        node = ir.node("Transpose", [value], {"perm": order})
        node.outputs[0].name = f"{value.name}_time_first"
        for reader, number in list(value.uses()):
            if reader is not node:
                reader.replace_input_with(number, node.outputs[0])
        value.shape = ir.Shape([dims[axis] for axis in order])
        graph.insert_before(graph[0], node)
    for number, value in enumerate(graph.outputs) if outputs else ():
        rank = len(value.shape) if value.shape is not None else 3
        node = ir.node("Transpose", [value], {"perm": [1, 0, *range(2, rank)]})
        node.outputs[0].name, value.name = value.name, f"{value.name}_time_first"
        node.outputs[0].type = value.type
        graph.append(node)
        graph.outputs[number] = node.outputs[0]


def finish(model: ir.Model) -> ir.Model:
    """What every file leaves with: no traces of this machine's source paths, and an IR version old servers read."""
    ClearMetadataAndDocStringPass()(model)
    if model.opset_imports.get("", 0) <= NEWEST_OPSET:
        model.ir_version = IR_VERSION
    return model


def widen(model: ir.Model, spec: Spec) -> ir.Model:
    """INT64 inputs where the spec says so. The model's own arithmetic stays as it is, behind a Cast."""
    for value in _wide(model, spec):
        if value.dtype == ir.DataType.INT64:
            continue
        readers = list(value.uses())
        value.type = ir.TensorType(ir.DataType.INT64)
        cast = ir.node("Cast", [value], {"to": ir.DataType.INT32})
        cast.outputs[0].name = f"{value.name}_narrow"
        for reader, number in readers:
            reader.replace_input_with(number, cast.outputs[0])
        model.graph.insert_before(model.graph[0], cast)
    return model


def _wide(model: ir.Model, spec: Spec) -> list[ir.Value]:
    """The inputs that are INT64 in the spec."""
    types = {tensor.name: tensor.dtype for tensor in spec.windows}
    return [value for value in model.graph.inputs if types.get(str(value.name)) == "INT64"]


def single(model: ir.Model) -> None:
    """FP32 in and out, whatever the model computes in between."""
    graph, others = model.graph, (ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for value in [value for value in graph.inputs if value.dtype in others]:
        assert value.dtype is not None
        node = ir.node("Cast", [value], {"to": value.dtype})
        node.outputs[0].name = f"{value.name}_own_type"
        for reader, number in [use for use in value.uses() if use.node is not node]:
            reader.replace_input_with(number, node.outputs[0])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(graph[0], node)
    for number, value in enumerate(graph.outputs):
        if value.dtype in others:
            node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            node.outputs[0].name, value.name = value.name, f"{value.name}_own_type"
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.append(node)
            graph.outputs[number] = node.outputs[0]


def _adopted(model: ir.Model, spec: Spec) -> Full:
    graph = model.graph
    single(model)
    # Exporters note the example's time as a constant behind an LSTM, and Triton checks the output's shape at load.
    for node in graph:
        for value in node.outputs:
            value.shape = None
    sigmoid = not isinstance(spec, Sequence) and _without_sigmoid(graph)
    shape = graph.inputs[0].shape
    time = shape[1] if shape is not None and len(shape) > 1 else None
    rows = [] if _is_own(spec) else [time if isinstance(time, int) else TIME]
    for value, tensor in zip(graph.outputs, full_outputs(spec), strict=True):
        value.name = tensor.name
        dims = spec.dims(tensor) if isinstance(spec, Sequence) else [spec.sizes_by_name["problems"]]
        value.shape = ir.Shape([BATCH, *rows, *(f"{tensor.name}_any" if size == -1 else size for size in dims)])
    narrow(model)
    if isinstance(spec, Sequence):  # what INT32 does not hold goes all the way
        for value in _wide(model, spec):
            value.type = ir.TensorType(ir.DataType.INT64)
    return Full(finish(model), sigmoid)


def _without_sigmoid(graph: ir.Graph) -> bool:
    """End a graph before the sigmoid that its only output is of, if it is of one."""
    last = graph.outputs[0].producer()
    if last is None or last.op_type != "Sigmoid" or graph.outputs[0].uses():
        return False
    assert last.inputs[0] is not None
    graph.outputs[0].name = f"{graph.outputs[0].name}_probabilities"
    graph.outputs[0] = last.inputs[0]
    graph.remove(last, safe=False)
    graph.outputs[0].dtype = ir.DataType.FLOAT
    return True
