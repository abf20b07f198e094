"""What takes columns: a graph written anew for the wanted ones, from its output toward its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from build.core.reduce.layout import Stop
from build.core.reduce.rules.axes import AlongAxis
from build.core.reduce.rules.elementwise import Elementwise
from build.core.reduce.rules.registry import RULES
from build.core.reduce.writer import Writer

Dims = Sequence[int | str | None]

_MOVES = RULES["Reshape"].op_types
_FUSED_BIAS = ("BiasGelu", "FastGelu")  # their second operand may be [N] and nothing else


class Taker(Writer):
    """Writes every tensor on the way as [batch, count], so that what only moves axes about vanishes.

    A tensor with columns has batch beside them, and other axes of size 1 alone; where it has more, they are taken behind.

    Attributes:
        anew: nodes that are written once more, for the wanted columns.
        rests: where columns are taken of all of them, and why.
        used: tensors that are read as they are.

    >>> from build.core.reduce.example import model
    >>> from onnx_ir.passes.common import ShapeInferencePass
    >>> full = model("z = Tanh(x)  y = Add(z, b)", "float[batch, 3] x", "float[3] b = {1, 2, 3}")
    >>> assert ShapeInferencePass()(full).modified
    >>> taker = Taker(full.graph, 3, ir.Value(name="ids"), None)
    >>> made = taker.sunk(full.graph.outputs[0], 1)
    >>> [node.op_type for node in full.graph], list(taker.rests)
    (['Tanh', 'Add', 'GatherElements', 'Tanh', 'Gather', 'Add'], ['x [batch, 3]: it is an input'])
    """

    def __init__(self, graph: ir.Graph, number: int, ids: ir.Value | None, fixed: np.ndarray | None) -> None:
        """number: N; ids: the input that says which columns; or else fixed: their numbers."""
        super().__init__(graph)
        self.number, self.ids, self.fixed = number, ids, fixed
        self._whole: set[ir.Node] = set()
        self._reasons: dict[tuple[ir.Value, int], str] = {}
        self.restart(set())

    def restart(self, whole: set[ir.Node]) -> None:
        """Forget what was made; whole: nodes that turned out to be computed with every column in any case."""
        self._whole |= whole
        self.anew: set[ir.Node] = set()
        self.rests: dict[str, None] = {}
        self.used: list[ir.Value] = []
        self._made: dict[tuple[ir.Value, int], ir.Value] = {}

    def sunk(self, value: ir.Value, axis: int) -> ir.Value:
        """The wanted columns of a tensor that has all of them along `axis`."""
        key = value, axis
        if key not in self._made:
            try:
                self._made[key] = self._computed(value, axis)
                self.anew.update([node for node in [value.producer()] if node is not None])
            except Stop as e:
                node = value.producer()
                kind = f"{node.op_type} " if node is not None else ""
                reason = self._reasons.setdefault(key, str(e))  # before it was whole for that very reason
                self.rests[f"{kind}{value.name} {spelled(axes_of(value) or [])}: {reason}"] = None
                self._made[key] = self._taken(value, axis)
        return self._made[key]

    def _computed(self, value: ir.Value, axis: int) -> ir.Value:
        """The columns, from those of what the tensor is made of.

        Raises:
            Stop: that is not how they are made.
        """
        node = value.producer()
        if node is None:
            raise Stop("it is an input" if value.is_graph_input() else "it is a constant")
        if node in self._whole:
            raise Stop("all of it is needed elsewhere")
        dims = _known(value)
        rule = None if node.domain not in ("", "com.microsoft") else RULES.get(node.op_type)
        if node.op_type in ("MatMul", "Gemm") and not node.domain:
            return self._matmul(node, axis) if node.op_type == "MatMul" else self._gemm(node, axis)
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", list(reversed(range(len(dims)))))
            return self.sunk(_given(node, 0), order[axis])
        if node.op_type in _MOVES:
            return self.sunk(_given(node, 0), self._before_reshape(_given(node, 0), value, axis))
        if isinstance(rule, Elementwise) and node.op_type not in _FUSED_BIAS:
            operands = [self._check_operand(each, len(dims), axis) for each in node.inputs]
            inputs = [
                given if given is None or (node.op_type == "CastLike" and n) else self._operand(given, inside)
                for n, (given, inside) in enumerate(zip(node.inputs, operands, strict=True))
            ]
            attributes: dict[str, Any] = dict(node.attributes)
            return self.node(node.op_type, inputs, str(value.name), domain=node.domain, **attributes)
        if isinstance(rule, AlongAxis) and axis in rule.axes(node, len(dims)):
            raise Stop(f"it works along the columns (axis {axis})")
        raise Stop("no rule knows how it treats columns")

    def _before_reshape(self, inner: ir.Value, outer: ir.Value, axis: int) -> int:
        """Which axis the columns were before a reshape: they and batch stay in this order, whatever axes of size 1 come."""
        dims = _known(inner)
        found = [n for n, dim in enumerate(dims) if dim == self.number]
        if len(found) != 1:
            raise Stop(f"it makes columns of {spelled(dims)}")
        _check_plain(dims, found[0])
        if _wide(dims) and _wide(_known(outer)) and _behind(dims, found[0]) != _behind(_known(outer), axis):
            raise Stop(f"it makes columns of {spelled(dims)}")
        return found[0]

    def _check_operand(self, value: ir.Value | None, rank: int, axis: int) -> int | None:
        """Of an operand that broadcasts to an output the axis of columns; None where it has none, and one number does."""
        if value is None:
            return None
        dims = _known(value)
        inside = axis - rank + len(dims)
        if inside < 0 or dims[inside] == 1:
            _check_plain(dims, inside)
            return None
        if dims[inside] != self.number:
            raise Stop(f"whether {value.name!r} has columns is not known")
        _check_plain(dims, inside)
        return inside

    def _operand(self, value: ir.Value, axis: int | None) -> ir.Value:
        """An operand in its form of two axes, or of none."""
        array = _constant(value)
        if axis is not None:
            if array is not None and array.size == self.number:
                return self._lookup(value, array.reshape(-1))
            return self.sunk(value, axis)
        if array is not None and array.size == 1:
            return value if array.ndim <= 2 else self.initializer(array.reshape(()), f"{value.name}_number")
        self.used.append(value)
        if not _known(value):  # what Clip takes has to stay one number
            return value
        return self.node("Reshape", [value, self.constant([-1, 1])], f"{value.name}_column")

    def _matmul(self, node: ir.Node, axis: int) -> ir.Value:
        value, ranks = node.outputs[0], [len(_known(_given(node, n))) for n in (0, 1)]
        rank = len(_known(value))
        if min(ranks) < 2:
            raise Stop("it multiplies by a vector")
        if axis < rank - 2:
            raise Stop("its columns are a stack of matrices")
        number = 1 if axis == rank - 1 else 0
        return self._product(node, number, number == 1, ranks[1 - number] - (1 if number else 2))

    def _gemm(self, node: ir.Node, axis: int) -> ir.Value:
        flags = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inside = self._check_operand(bias, 2, axis)
        turned = not flags[1] if axis == 1 else bool(flags[0])
        summed = (0 if flags[0] else 1) if axis == 1 else (1 if flags[1] else 0)
        made = self._scaled(self._product(node, axis, turned, summed), alpha, node)
        if bias is None:
            return made
        shift = self._scaled(self._operand(bias, inside), beta, node)
        return self.node("Add", [made, shift], str(node.outputs[0].name))

    def _scaled(self, value: ir.Value, by: float, node: ir.Node) -> ir.Value:
        if by == 1.0:
            return value
        dtype = next(array.dtype for array in map(_constant, node.inputs) if array is not None)
        return self.node("Mul", [value, self.initializer(np.array(by, dtype), "factor")], f"{value.name}_scaled")

    def _product(self, node: ir.Node, number: int, turned: bool, summed: int) -> ir.Value:
        """Rows of a matrix times what it is multiplied with.

        Args:
            number: which input the matrix is; turned: whether its last axis is the columns, and not the last but one.
            summed: the axis of the other input that is summed over.
        """
        matrix, other, name = _given(node, number), _given(node, 1 - number), str(node.outputs[0].name)
        array = _constant(matrix)
        if array is None:
            raise Stop(f"its matrix {matrix.name!r} is computed")
        if math.prod(array.shape[:-2]) != 1:
            raise Stop(f"its matrix {matrix.name!r} is a stack of matrices")
        array = array.reshape(array.shape[-2:])
        table = array.T if turned else array
        _check_plain(_known(other), summed)
        self.used.append(other)
        width = table.shape[1]
        if self.fixed is not None:
            part = self.initializer(table[self.fixed].T, f"{matrix.name}_part")
            return self.node("MatMul", [self._flat(other, summed, [-1, width]), part], name)
        rows, column = self._lookup(matrix, table), self._flat(other, summed, [-1, width, 1])
        return self.node("Squeeze", [self.node("MatMul", [rows, column], name), self.constant([2])], name)

    def _lookup(self, value: ir.Value, table: np.ndarray) -> ir.Value:
        """The wanted entries along the first axis of a table, which are a constant's."""
        if self.ids is None:
            return self.initializer(table[self.fixed], f"{value.name}_part")
        return self.node("Gather", [self._table(value, table), self.ids], f"{value.name}_wanted", axis=0)

    def _table(self, value: ir.Value, table: np.ndarray) -> ir.Value:
        """An initializer of these numbers: one that there is (the items' own, of a tied head), or a new one."""
        for each in self.graph.initializers.values():
            if each.const_value is not None and tuple(each.const_value.shape.numpy()) == table.shape:
                there = each.const_value.numpy()
                if there.dtype == table.dtype and there.tobytes() == table.tobytes():
                    return each
        return self.initializer(table, f"{value.name}_rows")

    def _taken(self, value: ir.Value, axis: int) -> ir.Value:
        """The wanted columns of a tensor that is computed with all of them."""
        self.used.append(value)
        dims, name = axes_of(value) or [], f"{value.name}_wanted"
        single = not _wide([dim for n, dim in enumerate(dims) if n != axis])  # one row for the whole batch
        flat = self._flat(value, axis, [-1] if single and self.ids is not None else [-1, self.number])
        if self.ids is None:
            assert self.fixed is not None
            return self.node("Gather", [flat, self.constant(self.fixed)], name, axis=1)
        if single:
            return self.node("Gather", [flat, self.ids], name, axis=0)
        return self.node("GatherElements", [flat, self.ids], name, axis=1)

    def _flat(self, value: ir.Value, axis: int, shape: list[int]) -> ir.Value:
        """In such a shape, [batch, size] in that order, size being that of `axis`."""
        dims = _known(value)
        if len(dims) == len(shape) and axis == 1:
            return value
        if _behind(dims, axis):
            order = [*(n for n in range(len(dims)) if n != axis), axis]
            value = self.node("Transpose", [value], f"{value.name}_turned", perm=order)
        return self.node("Reshape", [value, self.constant(shape)], f"{value.name}_flat")


def axes_of(value: ir.Value) -> list[int | str | None] | None:
    """The axes as the file has them: a size, a name, or nothing; None where not even their number is known."""
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return None if shape is None else [dim if isinstance(dim, int) else dim.value for dim in shape]


def _known(value: ir.Value) -> list[int | str | None]:
    dims = axes_of(value)
    if dims is None:
        raise Stop(f"the shape of {value.name!r} is not known")
    return dims


def spelled(dims: Dims) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def _wide(dims: Dims) -> int:
    """How many axes may be of another size than 1."""
    return sum(dim != 1 for dim in dims)


def _behind(dims: Dims, axis: int) -> bool:
    return _wide(dims[axis + 1 :]) > 0


def _check_plain(dims: Dims, axis: int) -> None:
    """Beside the columns one axis may have a size: batch."""
    if _wide([dim for number, dim in enumerate(dims) if number != axis]) > 1:
        raise Stop(f"it has other axes than batch and columns: {spelled(dims)}")


def _given(node: ir.Node, number: int) -> ir.Value:
    value = node.inputs[number]
    assert value is not None
    return value


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """A constant's numbers; those of a matrix that is turned when the model runs, too."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Transpose" or _given(node, 0).const_value is None:
        return None
    array = _constant(_given(node, 0))
    return None if array is None else array.transpose(node.attributes.get_ints("perm", range(array.ndim)[::-1]))


def ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that some values are made by."""
    todo, found = [value.producer() for value in values], set[ir.Node]()
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [value.producer() for value in node.inputs if value is not None]
    return found
