"""A projection to several parts at once (queries, keys and values), taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from build.core.reduce.emitter import Emitter, typed
from build.core.reduce.rules import RULES, Elementwise, Regrouping
from build.core.reduce.rules.base import constant
from build.core.reduce.shapes import Shapes, fixed, one


@dataclass(frozen=True)
class Part:
    """Some entries of one axis of a tensor: what a Split, a Slice or a Gather of constant numbers makes.

    dropped: whether the axis, of which one entry is taken, is left out.
    """

    value: ir.Value
    axis: int
    numbers: np.ndarray
    dropped: bool = False


def distribute(packed: ir.Value, shapes: Shapes, emitter: Emitter) -> bool:
    """A projection to several parts at once becomes one projection a part, so that each can be selected by itself.

    A column of a product comes from that column of the matrix, and what stands between the product and its parts moves
    entries about or treats each by itself. Whoever reads more than a part needs it all the same: then it stays.

    >>> from build.core.reduce.example import model, shapes_of
    >>> numbers = "int64[4] apart = {0, 0, 2, 1}, int64 zero = {0}, int64 one = {1}"
    >>> full = model("p = MatMul(x, w)  r = Reshape(p, apart)  t = Transpose<perm = [2, 0, 1, 3]>(r) "
    ...              "q = Gather(t, one)  k = Gather(t, zero)  y = Mul(q, k)",
    ...              weights=f"float[2, 2] w = {{1, 2, 3, 4}}, {numbers}")
    >>> shapes = shapes_of(full)
    >>> packed = full.graph[3].inputs[0]
    >>> distribute(packed, shapes, Emitter(full, shapes, "row", ir.Value(name="lengths"), counted=True))
    True
    >>> query = full.graph[5].inputs[0].producer()  # a Squeeze of a Transpose of a Reshape of
    >>> product = query.inputs[0].producer().inputs[0].producer().inputs[0].producer()
    >>> product.op_type, product.inputs[1].const_value.numpy().tolist()
    ('MatMul', [[2.0], [4.0]])
    """
    found = [_parts(node, number, shapes) for node, number in _readers(packed)]
    parts = [part for those in found if those is not None for part in those]
    axes = {part.axis for part in parts}
    if None in found or len(axes) != 1 or len(parts) < 2:
        return False
    # Entries that two parts have in common would be projected twice.
    if sum(len(part.numbers) for part in parts) > shapes.of(packed)[axes.pop()][0]:
        return False
    for part in parts:
        made = _taken(packed, part.axis, part.numbers, shapes, emitter)
        if made is None:
            return False  # for the first one already: it is the same way for every part
        if part.dropped:
            made = emitter.node("Squeeze", [made, emitter.constant([part.axis])], f"{part.value.name}_part")
            shapes.set(typed(made, part.value), shapes.of(part.value))
        part.value.replace_all_uses_with(made, replace_graph_outputs=True)
    return True


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """What reads a value and is read itself."""
    return [
        (node, number)
        for node, number in value.uses()
        if any(made.uses() or made.is_graph_output() for made in node.outputs)
    ]


def _parts(node: ir.Node, number: int, shapes: Shapes) -> list[Part] | None:
    """The parts of its first input that a node makes; None where it makes something else."""
    value = node.inputs[0]
    if number or value is None or node.op_type not in ("Split", "Slice", "Gather") or node.domain:
        return None
    if not all(shapes.known(each) for each in [value, *node.outputs]):
        return None
    dims = shapes.of(value)
    rank = len(dims)
    if node.op_type == "Slice":
        return _slice(node, value, shapes)
    axis = node.attributes.get_int("axis", 0) % rank
    if not fixed(dims[axis]):
        return None
    every = np.arange(dims[axis][0])
    if node.op_type == "Split":
        ends = np.cumsum([shapes.of(made)[axis][0] for made in node.outputs])[:-1]
        return [Part(made, axis, part) for made, part in zip(node.outputs, np.split(every, ends), strict=True)]
    wanted = constant(node.inputs[1])
    width = len(shapes.of(node.inputs[1])) if wanted is not None and node.inputs[1] is not None else 2
    return [Part(node.outputs[0], axis, every[wanted], dropped=width == 0)] if width < 2 else None


def _slice(node: ir.Node, value: ir.Value, shapes: Shapes) -> list[Part] | None:
    dims, made = shapes.of(value), shapes.of(node.outputs[0])
    given = [*node.inputs[1:], None, None][:4]
    starts, ends, axes, steps = (constant(each) for each in given)
    if starts is None or ends is None or any(each is not None and constant(each) is None for each in given):
        return None
    numbers = [axis % len(dims) for axis in axes or range(len(starts))]
    steps = steps or [1] * len(starts)
    # Exporters slice axes from end to end; in steps of 1 nothing is cut where nothing is missing.
    cut = [n for n, axis in enumerate(numbers) if dims[axis] != made[axis] or steps[n] != 1]
    if len(cut) != 1 or steps[cut[0]] < 0 or not fixed(dims[numbers[cut[0]]]):
        return None
    axis, start, end, step = (each[cut[0]] for each in (numbers, starts, ends, steps))
    return [Part(node.outputs[0], axis, np.arange(dims[axis][0])[start:end:step])]


def _taken(value: ir.Value, axis: int, numbers: np.ndarray, shapes: Shapes, emitter: Emitter) -> ir.Value | None:
    """These entries of an axis, computed from these columns of a matrix; None where that is not where they come from."""
    dims = list(shapes.of(value))
    dims[axis] = (len(numbers),) * len(dims[axis])
    node = value.producer()
    if node is None or any(shapes.coefficients(dim) is None for dim in dims):
        return None
    inputs: list[ir.Value | None] = list(node.inputs)

    def replaced(number: int, axis: int, numbers: np.ndarray = numbers) -> bool:
        given = inputs[number]
        assert given is not None
        if given.const_value is not None:
            inputs[number] = _initializer(
                emitter, np.take(given.const_value.numpy(), numbers, axis), f"{given.name}_part"
            )
        elif len(_readers(given)) == 1:
            inputs[number] = _taken(given, axis, numbers, shapes, emitter)
        else:
            inputs[number] = None
        return inputs[number] is not None

    if node.op_type in ("MatMul", "Gemm") and not node.domain:
        if not _columns(node, axis, shapes, replaced):
            return None
        made = emitter.like(node, inputs)[0]
    elif node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", list(reversed(range(len(dims)))))
        if not replaced(0, order[axis]):
            return None
        made = emitter.like(node, inputs)[0]
    elif node.op_type in RULES["Reshape"].op_types:
        given = inputs[0]
        assert given is not None
        inner, outer = shapes.of(given), shapes.of(value)
        before, after = Regrouping(inner, outer).of_output(axis)
        if len(before) != 1 or one(outer[axis]) or not all(fixed(outer[a]) for a in after):
            return None
        every = np.arange(inner[before[0]][0]).reshape([outer[a][0] for a in after])
        if not replaced(0, before[0], np.take(every, numbers, after.index(axis)).reshape(-1)):
            return None
        made = typed(emitter.node("Reshape", [inputs[0], emitter.shape(dims)], f"{value.name}_part"), value)
    elif isinstance(RULES.get(node.op_type if not node.domain else ""), Elementwise):
        for number, given in enumerate(list(inputs)):
            inside = axis - len(dims) + len(shapes.of(given)) if given is not None else -1
            if given is not None and inside >= 0 and not one(shapes.of(given)[inside]) and not replaced(number, inside):
                return None
        made = emitter.like(node, inputs)[0]
    else:
        return None
    shapes.set(made, tuple(dims))
    return made


def _columns(node: ir.Node, axis: int, shapes: Shapes, replaced: Callable[[int, int], bool]) -> bool:
    """Take columns of a product's constant matrix, and of a bias that has any."""
    matrix = node.inputs[1]
    if matrix is None or matrix.const_value is None or axis != len(shapes.of(node.outputs[0])) - 1:
        return False
    if node.op_type == "MatMul":
        return len(shapes.of(matrix)) > 1 and replaced(1, len(shapes.of(matrix)) - 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if (
        bias is not None
        and shapes.of(bias)
        and not one(shapes.of(bias)[-1])
        and not replaced(2, len(shapes.of(bias)) - 1)
    ):
        return False
    return replaced(1, 0 if node.attributes.get_int("transB", 0) else 1)


def _initializer(emitter: Emitter, array: np.ndarray, name: str) -> ir.Value:
    name = emitter.name(name)
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    emitter.graph.register_initializer(value)
    return value
