"""What a graph costs: arithmetic, bytes that leave it, nodes; and its tail as a picture in text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from build.core.reduce.rules import RECURRENT
from build.core.reduce.shapes import Shapes, spell

# Operators that move numbers about and compute none.
_MOVES = frozenset(
    {
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Dropout", "Expand", "Flatten", "Gather", "GatherElements"),
        *("GatherND", "Identity", "Pad", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
        *("Trilu", "Unsqueeze", "Where"),
    }
)


@dataclass(frozen=True)
class Cost:
    """operations: floating-point operations of one history; output_bytes: what leaves the graph for it."""

    operations: int
    output_bytes: int
    nodes: int


def cost(graph: ir.Graph, shapes: Shapes, time: int) -> Cost:
    """The cost for a batch of one, of `time` rows.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}")
    >>> cost(full.graph, shapes_of(full), time=512)
    Cost(operations=2048, output_bytes=2048, nodes=1)
    """
    return Cost(
        operations=sum(operations(node, shapes, time) for node in graph),
        output_bytes=sum(
            math.prod(shapes.at(v, 1, time)) * int(v.dtype.itemsize if v.dtype is not None else 4)
            for v in graph.outputs
        ),
        nodes=len(graph),
    )


def operations(node: ir.Node, shapes: Shapes, time: int) -> int:
    """Floating-point operations of one node: 2 a multiplication with addition, 1 an entry of anything else.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}")
    >>> operations(full.graph[0], shapes_of(full), time=512)  # 512 x 2 multiplications, and as many additions
    2048
    """

    def at(value: ir.Value | None) -> tuple[int, ...]:
        return shapes.at(value, 1, time) if value is not None and shapes.known(value) else ()

    op, inputs = node.op_type, node.inputs
    made = max((math.prod(at(value)) for value in node.outputs if value.name), default=0)
    if op in _MOVES:
        return 0
    if op in ("MatMul", "Gemm"):
        inner = at(inputs[0])[-2 if op == "Gemm" and node.attributes.get_int("transA", 0) == 1 else -1]
        return 2 * made * inner
    if op in RECURRENT:
        steps, batch, width = at(inputs[0])
        directions, rows, hidden = at(inputs[2])  # recurrent weights [directions, gates x hidden, hidden]
        return 2 * steps * batch * directions * rows * (width + hidden)
    if op.startswith("Conv"):
        return 2 * made * math.prod(at(inputs[1])[1:])
    if op in ("Attention", "MultiHeadAttention"):
        query, key = at(inputs[0]), at(inputs[1])
        return 4 * math.prod(query) * key[-2]
    return made


def tail(graph: ir.Graph, taken: dict[str, tuple[str, str]], shapes: Shapes) -> str:
    """The graph from its output down to where the selection rests, one node a line.

    >>> from build.core.reduce.example import cut
    >>> print(cut("z = Exp(x)  y = Softmax<axis = 1>(z)").tail)
    Squeeze  y [batch, 2]
      GatherND  y_row [batch, 1, 2]
        <- y_every_row [batch, time, 2]: it works along time (axis 1)

    Args:
        taken: by the name of a tensor that is the wanted row of another: that one's name and shape, and why it rests there.
    """
    lines: list[str] = []
    seen: set[ir.Value] = set()
    leading: dict[ir.Value, bool] = {}

    def leads(value: ir.Value) -> bool:
        """Whether a selection lies below."""
        if value not in leading:
            node = value.producer()
            leading[value] = False
            leading[value] = value.name in taken or (
                node is not None and (node.op_type in RECURRENT or any(leads(v) for v in node.inputs if v is not None))
            )
        return leading[value]

    todo: list[tuple[ir.Value, int]] = [(value, 0) for value in reversed(graph.outputs)]
    while todo:
        value, depth = todo.pop()
        node = value.producer()
        if node is None:
            continue
        again = value in seen
        seen.add(value)
        lines.append(
            f"{'  ' * depth}{node.op_type}  {value.name} {_shape(value, shapes)}{'  (above)' if again else ''}"
        )
        if again:
            continue
        if value.name in taken:
            source, why = taken[value.name]
            lines.append(f"{'  ' * (depth + 1)}<- {source}: {why}")
        elif node.op_type not in RECURRENT:
            todo += [(v, depth + 1) for v in reversed(node.inputs) if v is not None and leads(v)]
    return "\n".join(lines)


def _shape(value: ir.Value, shapes: Shapes) -> str:
    return spell(shapes.of(value), shapes) if shapes.known(value) else ""
