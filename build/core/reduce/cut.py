"""The cut: a selection in time put behind the output, and the graph written anew for the row as far up as that sinks."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from build.core.reduce import own
from build.core.reduce.analysis import Analysis, Rest, analyse
from build.core.reduce.cost import Cost, cost, tail
from build.core.reduce.declared import Declared
from build.core.reduce.emitter import Emitter, typed
from build.core.reduce.inputs import Input, Inputs, Role
from build.core.reduce.layout import Kind, Layout, ReductionError
from build.core.reduce.passes import check_opset, finish, is_valid, narrow, normalise
from build.core.reduce.picker import Picker
from build.core.reduce.projection import distribute
from build.core.reduce.rules import RECURRENT, Filling, rule_for
from build.core.reduce.rules.recurrent import is_zero_before
from build.core.reduce.shapes import Dim, Shapes, fixed, spell
from build.core.reduce.sizes import from_inputs
from build.core.reduce.trim import trim
from build.core.reduce.unsort import unsort
from build.core.reduce.worth import worth

Select = Literal["last", "row", "mean", "max", "own"]


@dataclass(frozen=True)
class Reduction:
    """A reduced model and what was gained.

    Attributes:
        model: the inputs of the full one and, as INT32 [batch], `lengths` (valid rows) or `row` (which row), unless the
            selection is the model's own, to [batch, ...] without the time axis. Integer inputs are INT32.
        rests: where the row is taken, and why there.
        worths: of each rest the predicted milliseconds that are spent on other rows because of it.
        before, after: costs for a batch of one, of `time` rows.
        empty: whether it answers a history without any valid row: from the state or the row that comes before all.
        trimmed: whether it leaves out the columns that no history of a batch has.
        tail: the graph from the outputs to the rests, as text.
        inputs: what the inputs of the full model are, as far as that is known.
    """

    model: ir.Model
    select: Select
    rests: tuple[str, ...]
    worths: tuple[float, ...]
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
    output: str | Sequence[str] | None = None,
    window: int = 512,
    index_name: str | None = None,
    output_name: str | None = None,
    length_aware: bool = True,
    declared: Declared | None = None,
) -> Reduction:
    """Select in time at the outputs of a model and sink the selection.

    >>> from build.core.reduce.example import model
    >>> full = model("s = CumSum(x, axis)  y = Tanh(s)", weights="int64 axis = {1}")
    >>> reduction = reduce(full)
    >>> print(reduction.tail)
    Squeeze  y [batch, 2]
      Tanh  y_row [batch, 1, 2]
        GatherND  s_row [batch, 1, 2]
          <- s [batch, time, 2]: it works along time (axis 1)
    >>> [value.name for value in reduction.model.graph.inputs]
    ['x', 'lengths']

    Args:
        full: with an output [batch, time, ...], or [time, batch, ...], or time further behind. Not changed.
        select: "last" valid row by the input `lengths`; "row" by the input `row`; "mean" or "max" over valid rows; "own"
            is what the graph selects itself, and time_axis then the inputs'.
        output: which output is meant, or, unless it is "own", which ones, all with the same axis of time [default: the
            first]. The others are left out.
        window: rows that the model takes at most, for which costs are counted, where time is dynamic.
        index_name: what the input `lengths` or `row` is called instead [default: where that is taken, with a number behind].
        output_name: what the output, of several the first, is called instead.
        length_aware: whether recurrent layers stop at the wanted row and columns behind it are left out, so that a short
            history is cheap; otherwise all of the window is computed.
        declared: what the inputs hold.

    Raises:
        ReductionError: the model does not run, or its inputs or outputs do not have these axes.
    """
    model = full.clone()
    graph = model.graph
    check_opset(model)
    valid = is_valid(model)
    graph.outputs[:] = _named(graph, output)
    labels = [getattr(size, "value", None) for size in graph.outputs[0].shape or ()]
    names = [str(value.name) for value in graph.outputs]
    if select == "own" and len(names) > 1:
        raise ReductionError(f"with --select own one output is cut, not {len(names)} ({', '.join(names)}); name one")
    normalise(model)
    targets = list(graph.outputs)
    graph.outputs[:] = dict.fromkeys(targets)  # one may be another by a second name
    inputs = Inputs.find(model, str(targets[0].name), time_axis, window, declared, labels, own=select == "own")
    shapes = Shapes(model, inputs)
    time = window if not fixed(shapes.time) else shapes.time[0]
    before, batch = cost(graph, shapes, time), _batch(graph, inputs)
    unsort(graph, shapes)
    index: list[Input] = []
    if select == "own":
        made = _cut_own(model, targets[0], shapes, length_aware, time)
        sizes = [shapes.of(targets[0])[1:]]
        targets[0].name = f"{targets[0].name}_before"
    else:
        wanted = Layout(time=time_axis, batch=1 if time_axis == 0 else 0)
        for target in targets:
            _check_target(target, _dims(target, shapes), wanted, shapes, select)
        name = _free_name(graph, select, index_name)
        lengths = ir.Value(name=name, shape=ir.Shape([batch]), type=ir.TensorType(ir.DataType.INT32))
        made = _cut_given(model, targets, wanted, shapes, select, lengths, length_aware, time)
        role: Role = "row" if select == "row" else "length"
        index.append(Input(name, np.dtype(np.int32), ("batch",), role=role, known="the index"))
        apart = (wanted.time, wanted.batch)
        sizes = [tuple(dim for axis, dim in enumerate(shapes.of(t)) if axis not in apart) for t in targets]
    for answer, name, dims in zip(graph.outputs, [output_name or names[0], *names[1:]], sizes, strict=True):
        answer.name = name
        answer.shape = ir.Shape([batch, *(dim[0] if fixed(dim) else None for dim in dims)])
    narrow(model)
    finish(model, valid)
    kept_inputs = [each for each in inputs.every if any(v.name == each.name for v in graph.inputs)]
    after_shapes = Shapes(model, replace(inputs, every=(*kept_inputs, *index)), full=True)
    return Reduction(
        model=model,
        select=select,
        rests=tuple(rest for rest, _ in made.rests),
        worths=tuple(worth for _, worth in made.rests),
        before=before,
        after=cost(graph, after_shapes, time),
        time=time,
        empty=made.empty,
        trimmed=made.trimmed,
        tail=tail(graph, {str(row.name): told for row, told in made.taken.items()}, after_shapes),
        inputs=inputs,
    )


@dataclass(frozen=True)
class _Made:
    """A graph that is cut: where it rests and why, with what that is worth; by a row what it is taken from, and why."""

    rests: list[tuple[str, float]]
    taken: dict[ir.Value, tuple[str, str]]
    empty: bool
    trimmed: bool


def _cut_given(
    model: ir.Model,
    targets: list[ir.Value],
    wanted: Layout,
    shapes: Shapes,
    select: Select,
    lengths: ir.Value,
    length_aware: bool,
    time: int,
) -> _Made:
    """Select by the new input `lengths`."""
    graph = model.graph
    kind: Kind = select if select in ("mean", "max") else "row"
    emitter = Emitter(model, shapes, kind, lengths, counted=select != "row")
    from_inputs(graph, shapes, emitter)
    found, rests = _sunk(model, targets, wanted, emitter, length_aware, time)
    empty = all(_answers_empty(found, target, wanted, emitter, select) for target in targets)
    answers = []
    for target, row in zip(targets, _rewrite(found, graph, targets, wanted, emitter), strict=True):
        target.name = f"{target.name}_every_row"  # the name goes to the new output
        answers.append(typed(emitter.node("Squeeze", [row, emitter.constant([wanted.time])]), target))
    graph.outputs[:] = answers
    graph.inputs.append(lengths)
    trimmed = length_aware and trim(found, graph, answers, shapes, emitter)
    return _Made(rests, _taken(found, emitter), empty, trimmed)


def _cut_own(model: ir.Model, target: ir.Value, shapes: Shapes, length_aware: bool, time: int) -> _Made:
    """Every selection that the graph makes itself, one after another."""
    graph, dims = model.graph, _dims(target, shapes)
    if not dims or dims[0] != shapes.batch or (own.has_time(target, shapes) and not fixed(shapes.time)):
        raise ReductionError(
            f"output {target.name!r} is {spell(dims, shapes)}; a model that selects its row itself has batch as axis 0 "
            "and no time: name another output, or take --select last, row, mean or max of rows"
        )
    sizes = [dim for value in graph.inputs for dim in shapes.of(value)]
    if shapes.time not in sizes or shapes.batch not in sizes:
        raise ReductionError("no input has both batch and time where they are looked for: name the inputs' --time-axis")
    from_inputs(graph, shapes, Emitter(model, shapes, "row", ir.Value(name="none"), counted=False))
    selections, others = own.find(target, shapes)
    if not selections:
        raise ReductionError(_no_selection(target, others, shapes))
    rests: dict[str, float] = {}
    taken: dict[ir.Value, tuple[str, str]] = {}
    trimmed = False
    for selection in selections:
        graph.sort()
        answer = selection.node.outputs[0]
        kept = own.beside(graph.outputs[0], selection)
        picker = Picker(model, shapes, selection)
        found, more = _sunk(model, [selection.value], selection.layout, picker, length_aware, time, kept)
        rests |= {rest: max(worth, rests.get(rest, 0.0)) for rest, worth in more}
        if not selection.gains(found.plan):
            # What picks the row, or sums the rows up, is there already.
            taken[answer] = _source(selection.value, shapes), found.rests[0].reason
            continue
        [row] = _rewrite(found, graph, [selection.value], selection.layout, picker)
        taken |= _taken(found, picker)
        picked = typed(picker.answer(typed(row, selection.value)), answer)
        shapes.set(picked, shapes.of(answer))
        answer.replace_all_uses_with(picked, replace_graph_outputs=True)
        if length_aware and [selection] == selections and not others and selection.ends_early(kept, shapes):
            trimmed = trim(found, graph, list(graph.outputs), shapes, picker)
    rests |= {f"{node.op_type} {node.outputs[0].name}: it takes no single row, but all of them": 0.0 for node in others}
    return _Made(list(rests.items()), taken, empty=False, trimmed=trimmed)


def _sunk(
    model: ir.Model,
    targets: Sequence[ir.Value],
    wanted: Layout,
    emitter: Emitter,
    length_aware: bool,
    time: int,
    kept: AbstractSet[ir.Node] = frozenset(),
) -> tuple[Analysis, list[tuple[str, float]]]:
    """How far the selection of some tensors' rows sinks; and where it rests, as text, with what that is worth."""
    graph, shapes, kind = model.graph, emitter.shapes, emitter.kind

    def analysed(supposed: Rest | None = None) -> Analysis:
        return analyse(graph, targets, wanted, shapes, kind, length_aware, supposed, kept)

    found = analysed()
    while any(distribute(value, shapes, emitter) for value in found.mixed):
        TopologicalSortPass()(model)
        found = analysed()
    rests = [(_described(rest, shapes), worth(rest, found, analysed, shapes, time)) for rest in found.rests]
    return found, rests + [(end, 0.0) for end in _ends(found, shapes)]


def _no_selection(target: ir.Value, others: list[ir.Node], shapes: Shapes) -> str:
    told = ", ".join(f"{node.op_type} {node.outputs[0].name}" for node in others)
    return (
        f"nothing in front of output {target.name!r} {spell(shapes.of(target), shapes)} takes one row of a tensor "
        f"[batch, time, ...]{f'; all rows go into {told}' if told else ''}. There is nothing to cut: serve it as it is"
    )


def _taken(found: Analysis, emitter: Emitter) -> dict[ir.Value, tuple[str, str]]:
    """By a row: the tensor that it is taken from, and why there."""
    reasons = {rest.value: rest.reason for rest in found.rests}
    return {row: (_source(value, emitter.shapes), reasons[value]) for row, value in emitter.taken.items()}


def _source(value: ir.Value, shapes: Shapes) -> str:
    return f"{value.name} {spell(shapes.of(value), shapes)}"


def _dims(value: ir.Value, shapes: Shapes) -> tuple[Dim, ...]:
    return shapes.of(value) if shapes.known(value) else ()


def _named(graph: ir.Graph, output: str | Sequence[str] | None) -> list[ir.Value]:
    """The outputs of these names, or the first."""
    there = {str(value.name): value for value in graph.outputs}
    names = list(there)[:1] if output is None else [output] if isinstance(output, str) else list(output)
    missing = next((name for name in names if name not in there), None)
    if missing is not None or not names:
        raise ReductionError(f"there is no output {missing!r}; there are {', '.join(there)}")
    if len(set(names)) < len(names):
        raise ReductionError(f"an output is named twice ({', '.join(names)}); name each once")
    return [there[name] for name in names]


def _check_target(target: ir.Value, dims: tuple[Dim, ...], wanted: Layout, shapes: Shapes, select: Select) -> None:
    """The output has to keep batch and time where it is said to, and its rows have to have what is selected."""
    time, batch = wanted.time, wanted.batch
    if len(dims) <= max(batch, time) or dims[time] != shapes.time or dims[batch] != shapes.batch:
        raise ReductionError(
            f"output {target.name!r} is {spell(dims, shapes)}; needed are batch as axis {batch} and time as axis {time}, of "
            "the same sizes as an input's. Name another output or time axis; of a model that selects its row itself, take "
            "--select own"
        )
    if select == "mean" and target.dtype is not None and not target.dtype.is_floating_point():
        raise ReductionError(f"output {target.name!r} is of integers, of which a mean is none; select last, row or max")


def _free_name(graph: ir.Graph, select: Select, index_name: str | None) -> str:
    """What the input that says which row is wanted is called."""
    name, taken = index_name or ("row" if select == "row" else "lengths"), {str(v.name) for v in graph.inputs}
    if index_name in taken:
        raise ReductionError(f"the model has an input {name!r} already; give the new one another name")
    return next(free for free in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if free not in taken)


def _batch(graph: ir.Graph, inputs: Inputs) -> int | ir.SymbolicDim:
    """The size of the batch axis, as the file has it."""
    for value, each in zip(graph.inputs, inputs.every, strict=True):
        if value.shape is not None and "batch" in each.axes:
            return value.shape[each.axes.index("batch")]
    return inputs.fixed["batch"]


def _rewrite(
    found: Analysis, graph: ir.Graph, targets: Sequence[ir.Value], wanted: Layout, emitter: Emitter
) -> list[ir.Value]:
    """Write every planned operator for the row; returns the outputs' rows."""
    made: dict[tuple[ir.Value, Layout], ir.Value] = {}

    def selected(value: ir.Value, layout: Layout) -> ir.Value:
        node = value.producer()
        every = found.plan[node][0] if node in found.plan else None
        if (value, layout) not in made and every is not None:
            made[value, layout] = emitter.part(made[value, every], every, layout)
        elif (value, layout) not in made:
            row = emitter.select(value, layout)
            before_all = is_zero_before(value) and emitter.precedes(layout)
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
    return [selected(target, wanted) for target in targets]


def _answers_empty(found: Analysis, target: ir.Value, wanted: Layout, emitter: Emitter, select: Select) -> bool:
    """Whether every part of the answer exists before the first row: rows that a Slice left out, or a zero state."""
    if select != "last":
        return False
    todo, seen = [(target, wanted)], {target}
    while todo:
        value, layout = todo.pop()
        node = value.producer()
        if node not in found.plan:
            if not emitter.answers_nothing(layout.first) and not (is_zero_before(value) and emitter.precedes(layout)):
                return False
            continue
        layout, needs = found.plan[node]
        if node.op_type in RECURRENT and not is_zero_before(node.outputs[0]):
            return False
        rule = rule_for(node, emitter.kind)
        if (
            isinstance(rule, Filling)
            and rule.fills(node, layout, emitter.shapes)
            and emitter.answers_nothing(layout.first)
        ):
            continue  # of what it fills, nothing has to be there
        more = [(value, needs.rows[n]) for n, value in enumerate(node.inputs) if n in needs.rows and value is not None]
        todo += [pair for pair in more if pair[0] not in seen]
        seen.update(value for value, _ in more)
    return True


def _described(rest: Rest, shapes: Shapes) -> str:
    node = rest.value.producer()
    kind = f"{node.op_type} " if node is not None else ""
    return f"{kind}{_source(rest.value, shapes)}: {rest.reason}"


def _ends(found: Analysis, shapes: Shapes) -> list[str]:
    return [
        f"{node.op_type} {node.outputs[0].name} {spell(shapes.of(node.outputs[0]), shapes)}: it ends at the wanted row, and "
        "its final state is that row"
        for node in found.plan
        if node.op_type in RECURRENT
    ]
