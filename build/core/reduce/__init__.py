"""The reduction: from a model that answers every row to one that answers the wanted row, and computes little else.

The selection starts at the output and sinks toward the inputs as far as it changes nothing: `analysis` finds how far, by
the `rules` of every operator, and here the graph is written anew for the row. What feeds other rows as well (the keys and
values of attention, the steps of an LSTM) stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    CheckerPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    OutputFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)
from onnxscript import optimizer

from build.core.reduce import file
from build.core.reduce.analysis import Analysis, Rest, analyse
from build.core.reduce.cost import Cost, cost, tail
from build.core.reduce.emitter import Emitter, typed
from build.core.reduce.file import weights
from build.core.reduce.inputs import Declared, Input, Inputs
from build.core.reduce.layout import Kind, Layout, ReductionError
from build.core.reduce.rules import RECURRENT, rule_for, spell
from build.core.reduce.shapes import Dim, Shapes, fixed

__all__ = ["Cost", "Declared", "Inputs", "Reduction", "ReductionError", "Select", "narrow", "reduce"]

Select = Literal["last", "row", "mean", "max"]

OLDEST_OPSET = 13  # until then the axes of Softmax, Squeeze and Split mean something else
_FOLD_LIMIT = 1 << 30  # bytes: a layer's weights are brought into ONNX's layout whatever their size


@dataclass(frozen=True)
class Reduction:
    """A reduced model and what was gained.

    Attributes:
        model: the inputs of the full one and, as INT32 [batch], `lengths` (valid rows) or `row` (which row), to
            [batch, ...] without the time axis. Integer inputs are INT32.
        rests: where the row is taken, and why there.
        before, after: costs for one learner of `time` rows.
        empty: whether it answers a learner without any valid row: from the state or the row that comes before all.
        trimmed: whether it leaves out the columns that no learner of a batch has.
        tail: the graph from the output to the rests, as text.
        inputs: what the inputs of the full model are, as far as that is known.
    """

    model: ir.Model
    select: Select
    rests: tuple[str, ...]
    before: Cost
    after: Cost
    time: int
    empty: bool
    trimmed: bool
    tail: str
    inputs: Inputs


def reduce(
    full: ir.Model,
    *,
    select: Select = "last",
    time_axis: int = 1,
    output: str | None = None,
    window: int = 512,
    index_name: str | None = None,
    output_name: str | None = None,
    length_aware: bool = True,
    declared: Declared | None = None,
) -> Reduction:
    """Select in time at one output of a model and sink the selection.

    Args:
        full: with an output [batch, time, ...], or [time, batch, ...], or time further behind. Not changed.
        select: "last" valid row by the input `lengths`; "row" by the input `row`; "mean" or "max" over valid rows.
        output: which output is meant [default: the first]. The others are left out.
        window: rows that the model takes at most, for which costs are counted, where time is dynamic.
        index_name: what the input `lengths` or `row` is called instead [default: where that is taken, with a number behind].
        output_name: what the output is called instead.
        length_aware: whether recurrent layers stop at the wanted row and columns behind it are left out, so that a short
            history is cheap; otherwise all of the window is computed.
        declared: what the inputs hold.

    Raises:
        ReductionError: the model does not run, or its inputs or output do not have these axes.
    """
    batch_axis = 1 if time_axis == 0 else 0
    model = full.clone()
    graph = model.graph
    _check_opset(model)
    valid = _is_valid(model)
    target = next((v for v in graph.outputs if output in (None, v.name)), None)
    if target is None:
        raise ReductionError(
            f"there is no output {output!r}; there are {', '.join(str(v.name) for v in graph.outputs)}"
        )
    graph.outputs[:] = [target]
    labels = [getattr(size, "value", None) for size in target.shape or ()]
    _normalise(model)
    target = graph.outputs[0]
    inputs = Inputs.find(model, str(target.name), time_axis, window, declared, labels)
    shapes = Shapes(model, inputs)
    dims = shapes.of(target) if shapes.known(target) else ()
    if len(dims) <= max(batch_axis, time_axis) or dims[time_axis] != shapes.time or dims[batch_axis] != shapes.batch:
        raise ReductionError(
            f"output {target.name!r} is {spell(dims, shapes)}; needed are batch as axis {batch_axis} and time as axis "
            f"{time_axis}, of the same sizes as an input's. Name another output or time axis; of a model that selects its "
            "row itself, export what it selects from"
        )
    if select == "mean" and target.dtype is not None and not target.dtype.is_floating_point():
        raise ReductionError(f"output {target.name!r} is of integers, of which a mean is none; select last, row or max")
    time = window if not fixed(shapes.time) else shapes.time[0]
    before = cost(graph, shapes, time)

    name, taken = index_name or ("row" if select == "row" else "lengths"), {str(v.name) for v in graph.inputs}
    if index_name in taken:
        raise ReductionError(f"the model has an input {name!r} already; give the new one another name")
    name = next(free for free in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if free not in taken)
    batch = _batch(graph, inputs)
    lengths = ir.Value(name=name, shape=ir.Shape([batch]), type=ir.TensorType(ir.DataType.INT32))
    kind: Kind = "row" if select == "last" else select
    emitter = Emitter(model, shapes, kind, lengths, counted=select != "row")
    _rebuild_shapes(graph, shapes, emitter)
    wanted = Layout(time=time_axis, batch=batch_axis)
    found = analyse(graph, target, wanted, shapes, kind, length_aware)
    while any(_distribute(node, shapes, emitter) for node in found.mixed):
        TopologicalSortPass()(model)
        found = analyse(graph, target, wanted, shapes, kind, length_aware)
    row = _rewrite(found, graph, target, wanted, emitter)
    # The name goes to the new output.
    name, target.name = output_name or str(target.name), f"{target.name}_every_row"
    answer = emitter.node("Squeeze", [row, emitter.constant([time_axis])])
    answer.name = name
    typed(answer, target)
    kept = [batch, *_sizes(dims, time_axis, batch_axis)]
    answer.shape = ir.Shape(kept)
    graph.outputs[:] = [answer]
    graph.inputs.append(lengths)
    trimmed = length_aware and _trim(found, graph, answer, shapes, emitter)
    narrow(model)
    _finish(model, answer, valid)
    index = Input(
        str(lengths.name),
        np.dtype(np.int32),
        ("batch",),
        role="row" if select == "row" else "length",
        known="the index",
    )
    kept_inputs = [each for each in inputs.every if any(v.name == each.name for v in graph.inputs)]
    after_shapes = Shapes(model, replace(inputs, every=(*kept_inputs, index)), full=True)
    reasons = {r.value: r.reason for r in found.rests}
    taken_rows = {
        str(row.name): (f"{value.name} {spell(shapes.of(value), shapes)}", reasons[value])
        for row, value in emitter.taken.items()
    }
    return Reduction(
        model=model,
        select=select,
        rests=tuple(_described(r, shapes) for r in found.rests) + tuple(_ends(found, shapes)),
        before=before,
        after=cost(graph, after_shapes, time),
        time=time,
        empty=_answers_empty(found, emitter, select),
        trimmed=trimmed,
        tail=tail(graph, taken_rows, after_shapes),
        inputs=inputs,
    )


def _batch(graph: ir.Graph, inputs: Inputs) -> int | ir.SymbolicDim:
    """The size of the learners' axis, as the file has it."""
    for value, each in zip(graph.inputs, inputs.every, strict=True):
        if value.shape is not None and "batch" in each.axes:
            return value.shape[each.axes.index("batch")]
    return inputs.fixed["batch"]


def _grows(dim: Dim, shapes: Shapes) -> bool:
    """Whether an axis depends on the number of rows."""
    numbers = shapes.coefficients(dim)
    return not fixed(dim) and (numbers is None or numbers[2:] != (0, 0))


def _counts_rows(graph: ir.Graph, answer: ir.Value, shapes: Shapes, emitter: Emitter) -> bool:
    """Whether the number of rows goes into a computation (a position as a share of it), and not into shapes alone."""
    live = set()
    todo = [answer]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in live:
            live.add(node)
            todo += [value for value in node.inputs if value is not None]
    graph.sort()
    counts: set[ir.Value] = set()
    sizes: set[ir.Value] = set()  # of these, the ones that nothing has been reckoned with yet
    for node in graph:
        if node not in live or emitter.numbers & set(node.outputs):
            continue
        # A shape says how much there is, whatever it holds.
        shape = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        reads = {number for number, value in enumerate(node.inputs) if value in counts and number != shape}
        if node.op_type != "Shape" and not reads:
            continue
        for value in node.outputs:
            # Of a shape a part may be taken that time is not in. The result of a calculation may look so in a few runs only.
            part = node.op_type in ("Shape", "Gather", "Slice", "Squeeze", "Unsqueeze", "Cast") and reads <= {0}
            part = part and all(v in sizes for v in node.inputs[:1] if v in counts)
            if (part and shapes.timeless(value)) or emitter.is_batch(value):
                continue
            if part or (node.op_type == "Concat" and all(v in sizes for v in node.inputs if v in counts)):
                sizes.add(value)
            few = not shapes.known(value) or all(fixed(dim) for dim in shapes.of(value))
            if not few or value.dtype not in (None, ir.DataType.INT64, ir.DataType.INT32):
                return True
            counts.add(value)
    return False


def narrow(model: ir.Model) -> None:
    """INT64 inputs become INT32, half the bytes; where 64 bits are asked for, a Cast gives them."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype != ir.DataType.INT64:
            continue
        value.type = ir.TensorType(ir.DataType.INT32)  # a new one: copies of a model share theirs
        cast = ir.node("Cast", [value], {"to": ir.DataType.INT64})
        cast.outputs[0].name = f"{value.name}_wide"
        for reader, number in list(value.uses()):
            # Indices may be of either type, and sizes have none.
            if reader is not cast and (reader.op_type, number) not in (("Gather", 1), ("Shape", 0)):
                reader.replace_input_with(number, cast.outputs[0])
        if cast.outputs[0].uses():
            graph.insert_before(graph[0], cast)
        else:
            cast.replace_input_with(0, None)


def _sizes(dims: tuple[Dim, ...], time_axis: int, batch_axis: int) -> list[int | None]:
    """The output's remaining axes: a number, or None where it depends on batch or time."""
    return [dim[0] if fixed(dim) else None for axis, dim in enumerate(dims) if axis not in (time_axis, batch_axis)]


def _check_opset(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise ReductionError(
            f"the model is of ONNX opset {opset}; {OLDEST_OPSET} is the oldest that is known here. Export it anew, or "
            "convert it with onnx.version_converter"
        )


def _is_valid(model: ir.Model) -> bool:
    """Whether onnx.checker accepts the model. It knows nothing of operators that ONNX Runtime's own optimiser leaves."""
    if weights(model) >= file.PROTOBUF_LIMIT:
        return False
    try:
        CheckerPass(full_check=True)(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _normalise(model: ir.Model) -> None:
    """Functions written out, constants folded: what the rules know are operators."""
    InlinePass()(model)
    RemoveUnusedFunctionsPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # exporters note sizes that only the example had; folding would believe them
    if weights(model) < file.PROTOBUF_LIMIT:
        optimizer.fold_constants(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _untype_sequences(model.graph)
    OutputFixPass()(model)
    _eliminate_identities(model)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)


def _eliminate_identities(model: ir.Model) -> None:
    """Leave out what only renames; but a branch or a body that answers a tensor from outside needs an Identity for that."""
    answers = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "Identity" and node.graph is not model.graph and node.outputs[0].is_graph_output()
    ]
    for node in answers:
        node.op_type = "Answer"
    IdentityEliminationPass()(model)
    for node in answers:
        node.op_type = "Identity"


def _rebuild_shapes(graph: ir.Graph, shapes: Shapes, emitter: Emitter) -> None:
    """Sizes come from the inputs, and not from tensors that would be computed in full for the sake of their size."""
    for node in list(graph):
        if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].is_graph_input():
            continue
        dims = shapes.of(node.inputs[0]) if shapes.known(node.inputs[0]) else None
        if dims is None or any(shapes.coefficients(dim) is None for dim in dims):
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
        rebuilt = emitter.shape(dims[start:end], infer=False)
        shapes.set(rebuilt, shapes.of(node.outputs[0]))
        node.outputs[0].replace_all_uses_with(rebuilt, replace_graph_outputs=True)
    graph.sort()


def _distribute(split: ir.Node, shapes: Shapes, emitter: Emitter) -> bool:
    """A projection to several parts at once becomes one projection a part, so that each can be selected by itself."""
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


def _rewrite(found: Analysis, graph: ir.Graph, target: ir.Value, wanted: Layout, emitter: Emitter) -> ir.Value:
    """Write every planned operator for the row; returns the output's row."""
    made: dict[tuple[ir.Value, Layout], ir.Value] = {}

    def selected(value: ir.Value, layout: Layout) -> ir.Value:
        if (value, layout) not in made:
            row = emitter.select(value, layout)
            before_all = _is_zero_before(value) and emitter.precedes(layout)
            made[value, layout] = emitter.or_zero(row, value, layout) if before_all else row
        return made[value, layout]

    for node in [node for node in graph if node in found.plan]:
        layout, needs = found.plan[node]
        inputs = [
            selected(value, needs.rows[number]) if value is not None and number in needs.rows else value
            for number, value in enumerate(node.inputs)
        ]
        for old, new in zip(
            node.outputs, rule_for(node, emitter.kind).emit(node, inputs, layout, emitter), strict=False
        ):
            made[old, layout] = new
    return selected(target, wanted)


def _trim(found: Analysis, graph: ir.Graph, answer: ir.Value, shapes: Shapes, emitter: Emitter) -> bool:
    """Cut the inputs behind the last row that any learner of the batch needs, if no operator looks further.

    At least one column stays: recurrent layers take no sequence of no steps.
    """
    sequences = {
        value: [axis for axis, dim in enumerate(shapes.of(value)) if dim == shapes.time]
        for value in graph.inputs
        if value is not emitter.lengths
    }
    demands = {value: found.demands[value] for value in sequences if value in found.demands}
    if fixed(shapes.time) or any(d.amount == "whole" and sequences[value] for value, d in demands.items()):
        return False
    offset = max((d.layout.offset for d in demands.values() if d.layout is not None), default=0)
    if all(d.amount == "row" for d in demands.values()) or any(len(axes) > 1 for axes in sequences.values()):
        return False
    # Whatever is needed whole and grows with time may count the rows, even if it is made of ones.
    whole = [value for value, demand in found.demands.items() if demand.amount == "whole"]
    if any(not shapes.known(v) or any(_grows(dim, shapes) for dim in shapes.of(v)) for v in whole):
        return False
    if _counts_rows(graph, answer, shapes, emitter):
        return False
    longest = emitter.node("ReduceMax", [emitter.steps(offset)], "longest", keepdims=1)
    end = emitter.node("Cast", [emitter.node("Max", [longest, emitter.constant([1], np.int32)])], to=ir.DataType.INT64)
    for value, axes in sequences.items():
        if not axes:
            continue
        parts = [value, emitter.constant([0]), end, emitter.constant(axes)]
        trimmed = emitter.node("Slice", parts, f"{value.name}_trimmed")
        typed(trimmed, value)
        value.replace_all_uses_with(trimmed)
        made = trimmed.producer()
        assert made is not None
        made.replace_input_with(0, value)
    return True


def _finish(model: ir.Model, answer: ir.Value, valid: bool) -> None:
    TopologicalSortPass()(model)
    _eliminate_identities(model)
    _drop_zero_states(model.graph)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if value is not answer:
                value.shape = value.type = None  # noted for the model as it was
    DeduplicateInitializersPass()(model)
    RemoveUnusedOpsetsPass()(model)
    if weights(model) < file.PROTOBUF_LIMIT:  # both write the model out, which protobuf cannot do beyond
        if valid:
            CheckerPass(full_check=True)(model)
        ShapeInferencePass()(model)
        _untype_sequences(model.graph)


_SEQUENCES = ("SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SequenceMap")


def _untype_sequences(graph: ir.Graph) -> None:
    """onnx-ir notes a sequence's type as its elements', and the file would not load. Loops and branches answer some too."""
    for node in graph:
        if node.op_type not in (*_SEQUENCES, "Loop", "If", "Scan", "Identity"):
            continue
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _drop_zero_states(graph: ir.Graph) -> None:
    """Leave out initial states that are zeros expanded to the batch: zeros are ONNX's default, at no cost."""
    for node in graph:
        if node.op_type not in RECURRENT:
            continue
        for number in _states(node):
            if _is_zero(node.inputs[number]):
                node.replace_input_with(number, None)


def _states(node: ir.Node) -> list[int]:
    """Numbers of the initial states that a recurrent layer is given."""
    return [number for number in (5, 6) if number < len(node.inputs) and node.inputs[number] is not None]


def _is_zero(value: ir.Value | None) -> bool:
    """Whether it is zeros, made without any calculation."""
    while value is not None and value.const_value is None:
        producer = value.producer()
        # Expand and Slice of zeros are zeros; anything else may compute a state.
        value = producer.inputs[0] if producer is not None and producer.op_type in ("Expand", "Slice") else None
    return value is not None and value.const_value is not None and not value.const_value.numpy().any()


def _is_zero_before(value: ir.Value) -> bool:
    """Whether these are a recurrent layer's states, and the one before the first is zeros."""
    node = value.producer()
    if node is None or node.op_type not in RECURRENT or value is not node.outputs[0]:
        return False
    forward = node.attributes.get_string("direction", "forward") == "forward"
    return forward and all(_is_zero(node.inputs[number]) for number in _states(node))


def _answers_empty(found: Analysis, emitter: Emitter, select: Select) -> bool:
    """Whether every part of the answer exists before the first row: rows that a Slice left out, or a zero state."""
    if select != "last":
        return False
    states = (node for node in found.plan if node.op_type in RECURRENT)
    rests = (
        emitter.answers_nothing(rest.layout.offset) or (_is_zero_before(rest.value) and emitter.precedes(rest.layout))
        for rest in found.rests
    )
    return all(rests) and all(all(value is None for value in node.inputs[5:]) for node in states)


def _described(rest: Rest, shapes: Shapes) -> str:
    node = rest.value.producer()
    source = f"{node.op_type} " if node is not None else ""
    return f"{source}{rest.value.name} {spell(shapes.of(rest.value), shapes)}: {rest.reason}"


def _ends(found: Analysis, shapes: Shapes) -> list[str]:
    return [
        f"{node.op_type} {node.outputs[0].name} {spell(shapes.of(node.outputs[0]), shapes)}: it ends at the wanted row, and "
        "its final state is that row"
        for node in found.plan
        if node.op_type in RECURRENT
    ]
