"""What a rest is worth: the time that would be saved if the row of its tensor were enough."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from build.core.reduce.analysis import Analysis, Rest
from build.core.reduce.cost import milliseconds
from build.core.reduce.rules import RECURRENT
from build.core.reduce.shapes import Shapes, fixed
from build.core.reduce.work import work


def worth(rest: Rest, found: Analysis, suppose: Callable[[Rest], Analysis], shapes: Shapes, time: int) -> float:
    """Predicted milliseconds that are spent on other rows because of this rest: what a rule for it could save at most.

    The operators are those below, as far as the known rules would then carry the selection, and what others make of all
    rows of its tensor (the keys and values of attention). A recurrent layer saves nothing: its steps are needed anyhow.

    >>> from build.core.reduce.analysis import analyse
    >>> from build.core.reduce.example import model, shapes_of
    >>> from build.core.reduce.layout import Layout
    >>> full = model("a = Exp(x)  b = Tanh(a)  s = CumSum(b, axis)  y = Neg(s)", weights="int64 axis = {1}")
    >>> shapes, rows = shapes_of(full), Layout(time=1, batch=0)
    >>> again = lambda rest=None: analyse(full.graph, full.graph.outputs, rows, shapes, "row", supposed=rest)
    >>> found = again()
    >>> [rest.value.name for rest in found.rests]
    ['s']
    >>> three = sum(milliseconds(work(node, shapes, 512)) for node in full.graph if node.op_type != "Neg")
    >>> 0 < worth(found.rests[0], found, again, shapes, time=512) < three
    True

    Args:
        suppose: analyses anew as if the row of the rest's tensor were enough.
        time: rows of a history.
    """
    if rest.value.producer() is None:
        return 0.0
    below = {node for node in suppose(rest).plan if node not in found.plan and node.op_type not in RECURRENT}

    def spent(node: ir.Node) -> float:
        """On all rows but one."""
        whole = milliseconds(work(node, shapes, time))
        grown = any(shapes.time in shapes.of(value) for value in node.outputs if shapes.known(value))
        if fixed(shapes.time):
            return whole * (1 - 1 / time) if grown else 0.0
        return max(0.0, whole - milliseconds(work(node, shapes, 1)))

    return sum(map(spent, below | _above(rest.value, found)))


def _above(value: ir.Value, found: Analysis) -> set[ir.Node]:
    """Operators that are computed for all rows of what the value becomes."""
    above: set[ir.Node] = set()
    todo = [value]
    while todo:
        for node, _ in todo.pop().uses():
            live = any(made in found.demands for made in node.outputs)
            if live and node not in found.plan and node not in above and node.op_type not in (*RECURRENT, "Shape"):
                above.add(node)
                todo += node.outputs
    return above
