"""The pass with one rule broken: what it writes then is wrong, and the comparison has to see that.

Each fault goes with a model whose cut it spoils. Without the fault the model is written, with it nothing is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from build.core import reduce, reduction
from build.core.reduce import Declared, ReductionError, rules
from build.core.reduce.emitter import Emitter
from build.core.reduce.layout import Layout, Needs
from build.core.reduce.shapes import Shapes
from build.core.reduction import reduce_file
from tests.unit.reduce.graphs import FLOAT, Graph

Fault = Callable[[pytest.MonkeyPatch], None]
Model = Callable[[], ir.Model]

CAUGHT = "parts from the full one|the reduced model answers|does not run at|changes with"


# Models


def embedded(g: Graph, width: int = 4, name: str = "ids", dtype: type = np.int64) -> str:
    return g.op("Gather", g.weight(11, width), g.sequence(name=name, dtype=dtype))


def recurrent(g: Graph, x: str, *more: str | None, width: int = 4, op: str = "LSTM", **attributes: object) -> str:
    """[batch, time, width] of the same."""
    rows = {"LSTM": 4, "GRU": 3}[op] * width
    first = g.op("Transpose", x, perm=[1, 0, 2])
    every = g.op(
        *(op, first, g.weight(1, rows, width), g.weight(1, rows, width), *more), hidden_size=width, **attributes
    )
    return g.op("Transpose", g.op("Squeeze", every, [1]), perm=[1, 0, 2])


def head() -> ir.Model:
    """A table and a linear layer: the row is taken of the ids."""
    g = Graph()
    return g.model(g.op("MatMul", embedded(g), g.weight(4, 3)))


def lstm(initial: bool = False) -> ir.Model:
    g = Graph()
    x = embedded(g)
    more: list[str | None] = [None, None]
    if initial:
        shape = g.op("Concat", [1], g.size("ids", 0), [4], axis=0)
        more.append(g.op("Expand", g.weight(1, 1, 4), shape))
    return g.model(g.op("MatMul", recurrent(g, x, *more), g.weight(4, 3)))


def share() -> ir.Model:
    """States divided by how many rows there are."""
    g = Graph()
    x = embedded(g)
    return g.model(g.op("Div", recurrent(g, x), g.op("Cast", g.size(x, 1), to=FLOAT)))


def own_lengths() -> ir.Model:
    """An LSTM that stops a row before the last."""
    g = Graph()
    x = embedded(g)
    given = g.op("Sub", g.input("n", "batch", dtype=np.int32), np.array(1, np.int32))
    return g.model(recurrent(g, x, None, g.op("Max", given, np.array(1, np.int32))))


def shifted() -> ir.Model:
    """What is asked for is a row further on, behind a row that stands in front of all."""
    g = Graph()
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size("ids", 0), [1, 4], axis=0))
    longer = g.op("Concat", first, embedded(g), axis=1)
    states = recurrent(g, longer)
    return g.model(g.op("MatMul", g.op("Slice", states, [1], [1000], [1]), g.weight(4, 3)))


def previous() -> ir.Model:
    """Every row is the one before it, and the first is a constant."""
    g = Graph()
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size("ids", 0), [1, 4], axis=0))
    longer = g.op("Concat", first, embedded(g), axis=1)
    return g.model(g.op("Tanh", g.op("Slice", longer, [0], [-1], [1])))


def rising() -> ir.Model:
    """Rows that grow with their number: the largest is the last valid one."""
    g = Graph()
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    return g.model(g.op("Add", embedded(g), g.op("Unsqueeze", g.op("Cast", numbers, to=FLOAT), [1])))


def sums() -> ir.Model:
    g = Graph()
    return g.model(g.op("CumSum", embedded(g), np.array(1)))


def backwards() -> ir.Model:
    """A layer that reads from the end; the whole window is the history."""
    g = Graph()
    return g.model(recurrent(g, embedded(g), direction="reverse"))


def time_first_rows() -> ir.Model:
    """Learners and time in one axis, time first."""
    g = Graph()
    flat = g.op("Reshape", g.op("Transpose", embedded(g), perm=[1, 0, 2]), [-1, 4])
    made = g.op("Gemm", flat, g.weight(4, 3))
    shape = g.op("Concat", g.size("ids", 1), g.size("ids", 0), [3], axis=0)
    return g.model(g.op("Transpose", g.op("Reshape", made, shape), perm=[1, 0, 2]))


def attention(op: str = "MatMul") -> ir.Model:
    g = Graph(opset=23 if op == "Attention" else 20)
    x = embedded(g)
    q, k, v = (g.op("MatMul", x, g.weight(4, 4)) for _ in range(3))
    if op == "Attention":
        return g.model(g.op("Attention", q, k, v, q_num_heads=2, kv_num_heads=2, is_causal=1))
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    seen = g.op("LessOrEqual", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1]))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    scores = g.op("Where", seen, scores, np.array(-np.inf, np.float32))
    return g.model(g.op("MatMul", g.op("Softmax", scores, axis=-1), v))


def fused_projection() -> ir.Model:
    """Queries, keys and values of one matrix: they are projected apart, for the queries' sake."""
    g = Graph()
    x = embedded(g)
    linear = g.op("Add", g.op("MatMul", x, g.weight(4, 12)), g.weight(12))
    q, k, v = g.ops("Split", 3, linear, [4, 4, 4], axis=-1)
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    seen = g.op("LessOrEqual", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1]))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    weights = g.op("Softmax", g.op("Where", seen, scores, np.array(-np.inf, np.float32)), axis=-1)
    return g.model(g.op("MatMul", weights, v))


def encoder(counted: bool = False) -> ir.Model:
    """Rows that ask the states of an encoder, of another length."""
    g = Graph()
    states = g.input("states", "batch", "steps", 4)
    x = embedded(g)
    if counted:
        return g.model(g.op("Div", x, g.op("Cast", g.size(states, 1), to=FLOAT)))
    scores = g.op("MatMul", x, g.op("Transpose", states, perm=[0, 2, 1]))
    return g.model(g.op("MatMul", g.op("Softmax", scores, axis=-1), states))


def positions() -> ir.Model:
    g = Graph()
    x = embedded(g)
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size("ids", 1)), np.array(1))
    return g.model(g.op("Add", x, g.op("Gather", g.weight(64, 4), numbers)))


def square() -> ir.Model:
    """[batch, time, 4, 4]: a transposed answer has the same shape."""
    g = Graph()
    x = embedded(g)
    product = g.op("Mul", g.op("Unsqueeze", x, [3]), g.op("Unsqueeze", g.op("MatMul", x, g.weight(4, 4)), [2]))
    return g.model(product)


def vocabulary() -> ir.Model:
    """A table of more rows than a byte counts."""
    g = Graph()
    return g.model(g.op("Gather", g.weight(1000, 4), g.sequence(name="ids", dtype=np.int64)))


def masked() -> ir.Model:
    """A mask among the inputs keeps a row out of the sum so far."""
    g = Graph()
    mask = g.sequence(name="mask", dtype=np.bool_)
    x = g.op("Mul", embedded(g), g.op("Unsqueeze", g.op("Cast", mask, to=FLOAT), [2]))
    return g.model(g.op("CumSum", x, np.array(1)))


def columns() -> ir.Model:
    """One column of a table that has learners and time, picked on the last axis."""
    g = Graph()
    x = g.op("Reshape", embedded(g), [0, 0, 2, 2])
    return g.model(g.op("Gather", x, np.array([[0, 1], [1, 0]]), axis=2))


# Faults


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


def without_steps(proto: onnx.ModelProto) -> None:
    """A recurrent layer that is not told where to stop."""
    for node in proto.graph.node:
        if node.op_type in rules.RECURRENT:
            node.input[4] = ""


def whole_mean(emitter: Emitter, value: ir.Value, layout: Layout, dims: list[Any]) -> ir.Value:
    """The mean over the padding too."""
    return emitter.node("ReduceMean", [value, emitter.constant([layout.time])], f"{value.name}_mean", keepdims=1)


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


def parts_turned(distribute: Callable[..., bool]) -> Callable[..., bool]:
    """Parts of a projection change places."""

    def turned(split: ir.Node, shapes: Shapes, emitter: Emitter) -> bool:
        def last_first(array: np.ndarray, ends: np.ndarray, axis: int = 0, right: Any = np.split) -> list[np.ndarray]:
            return right(array, ends, axis=axis)[::-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reduce.np, "split", last_first)
            return distribute(split, shapes, emitter)

    return turned


def turned_lookup(_: Callable[..., Needs]) -> Callable[..., Needs]:
    """The index of a lookup taken for the other of its two axes."""

    def turned(rule: rules.Gather, node: ir.Node, layout: Layout, *more: Any) -> Needs:
        return Needs({1: layout.moved(layout.batch, layout.time)})

    return turned


def lenient(needs: Callable[..., Needs]) -> Callable[..., Needs]:
    """A recurrent layer's own lengths, and its direction, are not looked at."""

    def blind(rule: rules.Recurrent, node: ir.Node, layout: Layout, *more: Any) -> Needs:
        return Needs(prefixes={0: layout.moved(0, 1)})

    return blind


def unread_time(broadcast: Callable[..., Layout | None]) -> Callable[..., Layout | None]:
    """A table's row of positions is always the first."""

    def other(value: ir.Value, rank: int, layout: Layout, shapes: Shapes) -> Layout | None:
        found = broadcast(value, rank, layout, shapes)
        return replace(found, offset=found.offset + 1) if found is not None and found.batch < 0 else found

    return other


CASES: dict[str, tuple[Model, Fault, str]] = {
    "the row behind the last": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n + 1)), "last"),
    "the row before the last": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n - 1)), "last"),
    "the row behind the asked one": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n + 1)), "row"),
    "the number of the row ignored": (head, before_input("row", "Mul", np.zeros(1, np.int32)), "row"),
    "a step too many": (lstm, swapped(Emitter, "steps", lambda f: lambda e, n, i=1: f(e, n + 1, i)), "last"),
    "a step too few": (shifted, swapped(Emitter, "steps", lambda f: lambda e, n, i=1: f(e, n - 1, i)), "last"),
    "sequence_lens dropped": (lstm, edited(without_steps), "last"),
    "sequence_lens of its own overwritten": (own_lengths, swapped(rules.Recurrent, "needs", lenient), "last"),
    "a backward layer stopped at the row": (backwards, swapped(rules.Recurrent, "needs", lenient), "row"),
    "a learned state taken for zeros": (
        *(partial(lstm, True), swapped(reduce, "_is_zero", lambda _: lambda value: value is not None)),
        "last",
    ),
    "where a slice begins, ignored": (shifted, shift_rule(rules.Slice, moved_rows(offset=lambda _: 0)), "last"),
    "where a slice begins, one off": (
        *(shifted, shift_rule(rules.Slice, moved_rows(offset=lambda one: one.offset + 1))),
        "last",
    ),
    "a sum over time taken for the row's": (sums, swapped(rules, "check_apart", lambda _: skip_check), "last"),
    "axes of a transpose the wrong way round": (
        *(
            time_first_rows,
            shift_rule(rules.Transpose, moved_rows(time=lambda one: one.batch, batch=lambda one: one.time)),
        ),
        "last",
    ),
    "learners before time where time is first": (
        *(time_first_rows, shift_rule(rules.Reshape, moved_rows(time_first=lambda one: not one.time_first))),
        "last",
    ),
    "sizes as the first run had them": (share, swapped(Shapes, "coefficients", lambda _: first_run_alone), "row"),
    "columns cut off where rows are counted": (
        *(share, swapped(reduce, "_counts_rows", lambda _: lambda *_: False)),
        "row",
    ),
    "a concatenation in time taken for one of features": (
        *(previous, swapped(rules, "check_apart", lambda _: skip_check)),
        "last",
    ),
    "a lookup's indices turned": (head, swapped(rules.Gather, "needs", turned_lookup), "last"),
    "a pick on the wrong axis": (columns, edited(lambda p: _gathers_last(p, 3)), "last"),
    "the next position": (positions, swapped(rules, "broadcast", unread_time), "last"),
    "causality left out of fused attention": (
        *(partial(attention, "Attention"), swapped(rules.Attention, "emit", lambda _: not_causal)),
        "last",
    ),
    "a mask that lets all through": (attention, edited(lambda p: _replaced(p, "LessOrEqual", "Or")), "last"),
    "parts of a fused projection in another order": (
        fused_projection,
        swapped(reduce, "_distribute", parts_turned),
        "last",
    ),
    "a mask among the inputs ignored": (masked, edited(lambda p: _always(p, "mask")), "last"),
    "the padding in the mean": (head, swapped(Emitter, "_pool", lambda _: whole_mean), "mean"),
    "the padding in the maximum": (rising, edited(lambda p: _replaced(p, "Less", "LessOrEqual")), "max"),
    "an encoder's states cut as the rows are": (encoder, cut_by_longest("states"), "last"),
    "time counted in place of an encoder's steps": (
        *(partial(encoder, True), edited(lambda p: _shape_of(p, "states", "ids"))),
        "last",
    ),
    "the answer transposed": (square, behind_answer("Transpose", perm=[0, 2, 1]), "last"),
    "the answer a thousandth off": (head, behind_answer("Mul", np.array(1.002, np.float32)), "last"),
    "weights in the precision of 16 bits": (head, edited(rounded), "last"),
    "ids in a byte": (vocabulary, before_input("ids", "Clip", np.array(0, np.int32), np.array(255, np.int32)), "last"),
}


def _gathers_last(proto: onnx.ModelProto, axis: int) -> None:
    """Every pick of features is one of the last axis."""
    for node in proto.graph.node:
        if node.op_type == "Gather":
            for attribute in node.attribute:
                if attribute.name == "axis" and attribute.i == 2:
                    attribute.i = axis


def _replaced(proto: onnx.ModelProto, op_type: str, other: str) -> None:
    """Another operator, or for "Or" of comparisons what is true always."""
    for node in proto.graph.node:
        if node.op_type != op_type:
            continue
        if other == "Or":
            node.op_type, node.input[1] = "Equal", node.input[0]
        else:
            node.op_type = other


def _always(proto: onnx.ModelProto, mask: str) -> None:
    """The cast of a mask answers 1 everywhere."""
    proto.graph.node.insert(0, helper.make_node("Or", [mask, f"{mask}_not"], [f"{mask}_always"]))
    for node in proto.graph.node[1:]:
        node.input[:] = [f"{mask}_always" if name == mask else name for name in node.input]
    proto.graph.node.insert(0, helper.make_node("Not", [mask], [f"{mask}_not"]))


def _shape_of(proto: onnx.ModelProto, of: str, other: str) -> None:
    for node in proto.graph.node:
        if node.op_type == "Shape" and node.input[0] == of:
            node.input[0] = other


@pytest.mark.parametrize(("model", "fault", "select"), [pytest.param(*case, id=name) for name, case in CASES.items()])
def test_a_fault_of_the_pass_is_seen_before_anything_is_written(model, fault, select, tmp_path, monkeypatch):
    ir.save(model(), tmp_path / "full.onnx")
    declared = Declared(lengths=frozenset({"n"}) if model is own_lengths else frozenset())
    given: dict[str, Any] = {"select": select, "window": 64, "declared": declared}
    reduce_file(tmp_path / "full.onnx", tmp_path / "right.onnx", **given)
    assert (tmp_path / "right.onnx").exists()
    fault(monkeypatch)
    with pytest.raises(ReductionError, match=CAUGHT) as raised:
        reduce_file(tmp_path / "full.onnx", tmp_path / "wrong.onnx", **given)
    assert type(raised.value) is ReductionError
    assert not (tmp_path / "wrong.onnx").exists()


def test_what_rounding_does_is_no_fault(tmp_path, monkeypatch):
    """The tolerance is there for sums in another order, and a millionth is one."""
    ir.save(head(), tmp_path / "full.onnx")
    behind_answer("Mul", np.array(1 + 1e-6, np.float32))(monkeypatch)
    proof = reduce_file(tmp_path / "full.onnx", tmp_path / "core.onnx", "last", window=64)[1]
    assert 0 < proof.difference < 1e-5
