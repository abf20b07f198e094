"""What a graph costs: arithmetic, memory, nodes, and the time that these predict; and its tail as a picture in text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from build.core.reduce.rules import RECURRENT
from build.core.reduce.shapes import Shapes, spell
from build.core.reduce.work import Work, work

# Nanoseconds of one core for each of `Work`'s quantities: the least squares of relative errors over the models of this
# room's README, which `python -m tests.nightly.costs` measures and fits.
RATES = {
    "products": 0.011,
    "softmaxes": 0.33,
    "others": 0.056,
    "scalars": 0.98,
    "moved": 0.0076,
    "nodes": 630.0,
}


@dataclass(frozen=True)
class Cost:
    """What one history costs: the work of all operators, and the bytes that leave the graph.

    >>> Cost(Work(products=2048, others=512, moved=8200), output_bytes=2048)
    Cost(operations=2560, output_bytes=2048, nodes=1, moved_bytes=8200)
    """

    work: Work
    output_bytes: int

    @property
    def operations(self) -> int:
        """Floating-point ones: 2 a multiplication with addition, 1 an entry of an addition or a comparison, 10 (`EXP`) an
        exponential and what is made of one, 14 an entry of a softmax, 8 of a layer normalisation."""
        return self.work.operations

    @property
    def nodes(self) -> int:
        """Operators."""
        return self.work.nodes

    @property
    def moved_bytes(self) -> int:
        """What the operators read and write; a recurrent layer reads its weights in every step."""
        return self.work.moved

    @property
    def milliseconds(self) -> float:
        """The time that `RATES` predict, of one core."""
        return milliseconds(self.work)

    def __repr__(self) -> str:
        names = ("operations", "output_bytes", "nodes", "moved_bytes")
        told = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"Cost({told})"


def cost(graph: ir.Graph, shapes: Shapes, time: int) -> Cost:
    """The cost for a batch of one, of `time` rows.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}")
    >>> cost(full.graph, shapes_of(full), time=512)
    Cost(operations=2048, output_bytes=2048, nodes=1, moved_bytes=6152)
    """
    leaves = sum(
        math.prod(shapes.at(v, 1, time)) * int(v.dtype.itemsize if v.dtype is not None else 4) for v in graph.outputs
    )
    return Cost(sum((work(node, shapes, time) for node in graph), Work(nodes=0)), leaves)


def milliseconds(done: Work) -> float:
    """What the rates predict.

    >>> milliseconds(Work(products=200_000_000, nodes=0)) > milliseconds(Work(products=100_000_000, nodes=0))
    True
    """
    return sum(rate * getattr(done, name) for name, rate in RATES.items()) / 1e6


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
