"""Faults to plant in the pass: a rule broken, or the graph that it made changed before it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from build.core import reduction
from build.core.reduce import rules
from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Layout, Needs
from build.core.reduce.picker import Picker
from build.core.reduce.projection import Part
from build.core.reduce.shapes import Shapes

Fault = Callable[[pytest.MonkeyPatch], None]


def swapped(owner: object, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Fault:
    """Another function in place of the one of that name; `make` gets that."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, make(getattr(owner, name)))

    return plant


def edited(edit: Callable[[onnx.ModelProto], None]) -> Fault:
    """The finished graph, changed before it is written."""

    def make(save: Callable[[ir.Model, Path], None]) -> Callable[[ir.Model, Path], None]:
        def changed(model: ir.Model, path: Path) -> None:
            proto = ir.to_proto(model)
            edit(proto)
            del proto.graph.value_info[:]
            onnx.save(proto, path)

        return changed

    return swapped(reduction, "save", make)


def shift_rule(rule: type[rules.Rule], change: Callable[[Needs], Needs]) -> Fault:
    """What a rule needs, changed."""

    def make(needs: Callable[..., Needs]) -> Callable[..., Needs]:
        return lambda *given: change(needs(*given))

    return swapped(rule, "needs", make)


def moved_rows(**change: Callable[[Layout], Any]) -> Callable[[Needs], Needs]:
    """Needs whose layouts have other values."""

    def other(needs: Needs) -> Needs:
        rows = {n: replace(one, **{k: how(one) for k, how in change.items()}) for n, one in needs.rows.items()}
        return Needs(rows, needs.prefixes)

    return other


def behind_answer(op_type: str, *constants: np.ndarray, **attributes: object) -> Fault:
    """One more operator between the answer and the output."""

    def edit(proto: onnx.ModelProto) -> None:
        name = proto.graph.output[0].name
        for node in proto.graph.node:
            for number, output in enumerate(node.output):
                if output == name:
                    node.output[number] = f"{name}_right"
            for number, read in enumerate(node.input):
                if read == name:
                    node.input[number] = f"{name}_right"
        names = [f"fault_{number}" for number in range(len(constants))]
        proto.graph.initializer.extend(numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True))
        proto.graph.node.append(helper.make_node(op_type, [f"{name}_right", *names], [name], **attributes))

    return edited(edit)


def before_input(of: str, op_type: str, *constants: np.ndarray | str, **attributes: object) -> Fault:
    """One more operator between an input and all that read it."""

    def edit(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.input[:] = [f"{of}_wrong" if name == of else name for name in node.input]
        names = [c if isinstance(c, str) else f"fault_{number}" for number, c in enumerate(constants)]
        arrays = [(c, n) for c, n in zip(constants, names, strict=True) if not isinstance(c, str)]
        proto.graph.initializer.extend(numpy_helper.from_array(c, n) for c, n in arrays)
        proto.graph.node.insert(0, helper.make_node(op_type, [of, *names], [f"{of}_wrong"], **attributes))

    return edited(edit)


def cut_by_longest(of: str) -> Fault:
    """An axis that is not time, cut as time is."""

    def edit(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.input[:] = [f"{of}_cut" if name == of else name for name in node.input]
        for name, numbers in (("fault_zero", [0]), ("fault_one", [1])):
            proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        made = [
            helper.make_node("ReduceMax", ["lengths"], ["fault_longest"], keepdims=1),
            helper.make_node("Cast", ["fault_longest"], ["fault_end"], to=onnx.TensorProto.INT64),
            helper.make_node("Slice", [of, "fault_zero", "fault_end", "fault_one"], [f"{of}_cut"]),
        ]
        for node in reversed(made):
            proto.graph.node.insert(0, node)

    return edited(edit)


def rounded(proto: onnx.ModelProto) -> None:
    """Weights in 16 bits' precision."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))


def other_constant(proto: onnx.ModelProto, number: int, other: int) -> None:
    """A constant of one number holds another one."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64 and array.reshape(-1).tolist() == [number]:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, other), tensor.name))


def without_steps(proto: onnx.ModelProto) -> None:
    """A recurrent layer that is not told where to stop."""
    for node in proto.graph.node:
        if node.op_type in rules.RECURRENT:
            node.input[4] = ""


def whole_mean(emitter: Emitter, value: ir.Value, layout: Layout, dims: list[Any]) -> ir.Value:
    """The mean over the padding too."""
    return emitter.node("ReduceMean", [value, emitter.constant([layout.time])], f"{value.name}_mean", keepdims=1)


def without_bias(picker: Picker, row: ir.Value) -> ir.Value:
    """What selects nothing answers what the bias is, and not a sum of nothing."""
    return picker.node("Squeeze", [row, picker.constant([1])])


def not_causal(rule: rules.Attention, node: ir.Node, inputs: Any, layout: Layout, emitter: Emitter) -> list[ir.Value]:
    """One query that sees every key."""
    made = emitter.like(node, inputs)
    maker = made[0].producer()
    assert maker is not None
    maker.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)
    return made


def first_run_alone(shapes: Shapes, dim: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Sizes as the first run had them."""
    return dim[0], 0, 0, 0


def skip_check(*_: object) -> None:
    """No axis is in the way."""


def seen_otherwise(change: Callable[[Layout], Layout]) -> Fault:
    """What a window looks at, changed."""
    return swapped(Layout, "seen", lambda seen: lambda *given, **named: change(seen(*given, **named)))


def parts_turned(parts: Callable[..., list[Part] | None]) -> Callable[..., list[Part] | None]:
    """Parts of a projection change places: each takes the columns from the end that it should take from the beginning."""

    def turned(node: ir.Node, number: int, shapes: Shapes) -> list[Part] | None:
        found = parts(node, number, shapes)
        if found is None or node.inputs[0] is None:
            return found
        dims = shapes.of(node.inputs[0])
        return [replace(part, numbers=dims[part.axis][0] - 1 - part.numbers) for part in found]

    return turned


def columns_off(take: Callable[..., Any]) -> Callable[..., Any]:
    """Every part's columns begin one off."""

    def taken(value: ir.Value, axis: int, numbers: np.ndarray, *more: Any) -> Any:
        node = value.producer()
        biased = node is not None and node.op_type == "Add"
        return take(value, axis, np.roll(numbers, 1) if biased else numbers, *more)

    return taken


def turned_lookup(_: Callable[..., Needs]) -> Callable[..., Needs]:
    """The index of a lookup taken for the other of its two axes."""

    def turned(rule: rules.Gather, node: ir.Node, layout: Layout, *more: Any) -> Needs:
        return Needs({1: layout.moved(layout.batch, layout.time)})

    return turned


def lenient(needs: Callable[..., Needs]) -> Callable[..., Needs]:
    """A recurrent layer's direction is not looked at."""

    def blind(rule: rules.Recurrent, node: ir.Node, layout: Layout, *more: Any) -> Needs:
        return Needs(prefixes={0: layout.moved(0, 1)})

    return blind


def no_choice(_: Callable[..., Any]) -> Callable[..., Any]:
    """Of rows joined in time only those of the sequence are looked at."""

    def emit(rule: rules.Rule, node: ir.Node, inputs: Any, *more: Any) -> list[ir.Value]:
        return [next(row for row in inputs if row not in node.inputs)]

    return emit


def lengths_sorted(_: Callable[..., None]) -> Callable[..., None]:
    """Of a packed sequence the histories stay as they come, and the lengths are sorted nevertheless."""

    def left_out(sorting: Any) -> None:
        for node in [*sorting.begins, *sorting.ends]:
            node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)

    return left_out


def unread_time(broadcast: Callable[..., Layout | None]) -> Callable[..., Layout | None]:
    """A table's row of positions is always the first."""

    def other(value: ir.Value, rank: int, layout: Layout, shapes: Shapes) -> Layout | None:
        found = broadcast(value, rank, layout, shapes)
        return replace(found, offset=found.offset + 1) if found is not None and found.batch < 0 else found

    return other


def gathers_last(proto: onnx.ModelProto, axis: int) -> None:
    """Every pick of features is one of the last axis."""
    for node in proto.graph.node:
        if node.op_type == "Gather":
            for attribute in node.attribute:
                if attribute.name == "axis" and attribute.i == 2:
                    attribute.i = axis


def replaced(proto: onnx.ModelProto, op_type: str, other: str) -> None:
    """Another operator, or for "Or" of comparisons what is true always."""
    for node in proto.graph.node:
        if node.op_type != op_type:
            continue
        if other == "Or":
            node.op_type, node.input[1] = "Equal", node.input[0]
        else:
            node.op_type = other


def always(proto: onnx.ModelProto, mask: str) -> None:
    """The cast of a mask answers 1 everywhere."""
    proto.graph.node.insert(0, helper.make_node("Or", [mask, f"{mask}_not"], [f"{mask}always"]))
    for node in proto.graph.node[1:]:
        node.input[:] = [f"{mask}always" if name == mask else name for name in node.input]
    proto.graph.node.insert(0, helper.make_node("Not", [mask], [f"{mask}_not"]))


def shape_of(proto: onnx.ModelProto, of: str, other: str) -> None:
    for node in proto.graph.node:
        if node.op_type == "Shape" and node.input[0] == of:
            node.input[0] = other
