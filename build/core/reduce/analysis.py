"""Which tensors are needed for the wanted row alone, which up to it, which whole: one walk from the output to the inputs.

An operator is computed for the row only if nobody needs more of it. So a tensor's demands are all known before its
operator is looked at: the walk goes against the direction of computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from build.core.reduce.emitter import without_batch
from build.core.reduce.layout import Kind, Layout, Needs, Stop
from build.core.reduce.rules import RECURRENT, rule_for
from build.core.reduce.shapes import Shapes


@dataclass(frozen=True)
class Demand:
    """How much of a tensor its readers need; layout says where time is, unless all of it is needed.

    >>> rows = Layout(time=1, batch=0)
    >>> Demand("row", rows).join(Demand("prefix", rows)).amount
    'prefix'
    >>> Demand("row", rows).join(Demand("row", Layout(time=1, batch=0, offset=1))).layout.count
    2
    """

    amount: Literal["row", "prefix", "whole"]
    layout: Layout | None = None
    reader: ir.Node | None = None

    def join(self, other: Demand) -> Demand:
        """What satisfies both."""
        if self.layout is None or other.layout is None:
            return self if self.layout is None else other
        if self == replace(other, reader=self.reader):
            return self
        both = self.layout.union(other.layout)
        if both is None:
            return Demand("whole", None, other.reader)
        if self.amount == other.amount == "row" and not both.merged:
            return Demand("row", both, other.reader)
        return Demand("prefix", replace(both, before=0, step=0), other.reader)


@dataclass(frozen=True)
class Rest:
    """Where the selection comes to rest: this tensor is computed as before, and the row is taken from it."""

    value: ir.Value
    layout: Layout
    reason: str


@dataclass
class Analysis:
    """Attributes:
    plan: operators that are computed for the row alone, with the layout of their output and what they need.
    rests: tensors that the row is taken from, in the order of the walk.
    demands: how much of every tensor is needed.
    mixed: tensors of which some readers need the row and some more.
    """

    plan: dict[ir.Node, tuple[Layout, Needs]] = field(default_factory=dict)
    rests: list[Rest] = field(default_factory=list)
    demands: dict[ir.Value, Demand] = field(default_factory=dict)
    mixed: list[ir.Value] = field(default_factory=list)


def analyse(
    graph: ir.Graph,
    outputs: Sequence[ir.Value],
    layout: Layout,
    shapes: Shapes,
    kind: Kind,
    length_aware: bool = True,
    supposed: Rest | None = None,
    kept: AbstractSet[ir.Node] = frozenset(),
) -> Analysis:
    """Walk the graph, whose nodes are in the order of computation.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("s = CumSum(x, axis)  z = Tanh(s)  y = Neg(z)", weights="int64 axis = {1}")
    >>> found = analyse(full.graph, full.graph.outputs, Layout(time=1, batch=0), shapes_of(full), "row")
    >>> [node.op_type for node in found.plan]
    ['Neg', 'Tanh']
    >>> [(rest.value.name, rest.reason) for rest in found.rests]
    [('s', 'it works along time (axis 1)')]

    Args:
        outputs: of which the row under `layout` is wanted.
        length_aware: whether recurrent layers may stop early.
        supposed: a rest of an earlier walk: as if its row were enough, and the row of what its operator reads.
        kept: nodes that are computed in any case. A recurrent layer among them is not computed twice.
    """
    found = Analysis()
    rows: dict[ir.Value, list[Layout]] = {}

    def demand(value: ir.Value | None, wanted: Demand) -> None:
        if value is None:
            return
        if wanted.amount == "prefix" and wanted.layout is not None:
            wanted = replace(wanted, layout=replace(wanted.layout, before=0, step=0))
        if wanted.amount == "row" and wanted.layout is not None and wanted.layout not in rows.setdefault(value, []):
            rows[value].append(wanted.layout)
        before = found.demands.get(value)
        found.demands[value] = wanted if before is None else before.join(wanted)

    def rest(value: ir.Value, reason: str) -> None:
        found.rests.extend(Rest(value, wanted, reason) for wanted in rows.get(value, []))

    def pass_on(node: ir.Node, needs: Needs, amount: Literal["row", "prefix"]) -> None:
        for number, value in enumerate(node.inputs):
            if number in needs.rows:
                demand(value, Demand(amount, needs.rows[number], node))
            elif number in needs.prefixes:
                demand(value, Demand("prefix", needs.prefixes[number], node))
            elif node.op_type != "Shape":  # which reads sizes, and those are the inputs' whatever becomes of the rows
                demand(value, Demand("whole", None, node))

    for output in outputs:
        demand(output, Demand("row", layout))
    for node in reversed(graph):
        used = [value for value in node.outputs if value in found.demands]
        if not used:
            continue
        wanted = found.demands[used[0]]
        for value in used[1:]:
            wanted = wanted.join(found.demands[value])
        suppose = supposed is not None and supposed.value in used
        if supposed is not None and suppose:
            wanted = Demand("row", supposed.layout)
        inside = wanted.layout
        if wanted.amount == "row" and inside is not None:
            needs: Needs | None
            try:
                if node.op_type in RECURRENT and not length_aware:
                    raise Stop("it is to compute the whole window")
                if node.op_type in RECURRENT and node in kept:
                    raise Stop("another part of the model needs its states too")
                needs = _needs(node, used, inside, shapes, kind)
            except Stop as stop:
                needs, reason = _same_rows(node, inside, shapes) if suppose else None, str(stop)
            if needs is not None:
                found.plan[node] = inside, needs
                pass_on(node, needs, "row")
                continue
        else:
            reason = f"{_named(wanted.reader)} needs more of it than the row"
            found.mixed.extend(value for value in used if value in rows)
            if node.op_type == "Split" and node.inputs[0] is not None and any(value in rows for value in used):
                found.mixed.append(node.inputs[0])
        for value in used:
            rest(value, reason)
        try:
            needs = Needs() if inside is None else _needs(node, used, inside, shapes, "prefix")
        except Stop:
            needs = Needs()
        pass_on(node, needs, "prefix")
        for captured in _captured(node):
            demand(captured, Demand("whole", None, node))
    for value in [*graph.inputs, *graph.initializers.values()]:
        rest(value, "it is an input" if value.is_graph_input() else "it is a constant")
    return found


def _needs(node: ir.Node, used: list[ir.Value], layout: Layout, shapes: Shapes, kind: Kind) -> Needs:
    known = all(shapes.known(value) for value in [*used, *node.inputs] if value is not None)
    # The rows that a loop collects may be no tensor: what there is to say of it is said of the loop.
    for made in (node, *([] if known else map(_producer, node.inputs))):
        if made is not None and made.op_type in ("Loop", "Scan"):
            rule_for(made, kind)
    if not known:
        raise Stop("its shape, or that of an input, is not the same kind in every run")
    if without_batch(layout, shapes.of(used[0]), shapes):
        raise Stop("it is the same for the whole batch")
    if used != [node.outputs[0]] and node.op_type != "Split":
        raise Stop("another of its outputs is read too")
    return rule_for(node, kind).needs(node, layout, shapes, kind)


def _same_rows(node: ir.Node, layout: Layout, shapes: Shapes) -> Needs:
    """The row of every input that has batch and time, wherever they are."""
    rows = {}
    for number, value in enumerate(node.inputs):
        dims = shapes.of(value) if value is not None and shapes.known(value) else ()
        if shapes.time in dims and shapes.batch in dims and not layout.merged:
            rows[number] = layout.moved(dims.index(shapes.time), dims.index(shapes.batch))
    return Needs(rows=rows)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _named(node: ir.Node | None) -> str:
    return "the model" if node is None else f"{node.op_type} {node.outputs[0].name}"


def _captured(node: ir.Node) -> list[ir.Value]:
    """What the bodies of If, Loop and Scan read from outside."""
    bodies = [a.value for a in node.attributes.values() if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]
    graphs = [g for body in bodies for g in (body if isinstance(body, (list, tuple)) else [body])]
    inner = [n for graph in graphs for n in ir.traversal.RecursiveGraphIterator(graph)]
    made = {v for n in inner for v in n.outputs} | {v for graph in graphs for v in graph.inputs}
    return [v for n in inner for v in n.inputs if v is not None and v not in made]
