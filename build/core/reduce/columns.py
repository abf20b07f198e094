"""The columns that a request wants, in place of all: taken in front of the last product, so that no other is computed.

A row of scores is [batch, N]; a request may want twenty of them. The columns' numbers become an input, and the taking sinks
from the output toward the inputs: through what treats every entry by itself, to the product of the head, of whose matrix
the wanted rows are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from build.core.reduce.emitter import typed
from build.core.reduce.layout import ReductionError
from build.core.reduce.passes import check_opset, finish, is_valid, normalise
from build.core.reduce.taker import Dims, Taker, ancestors, axes_of, spelled

_COUNT = "count"


@dataclass(frozen=True)
class Columns:
    """A model that answers columns.

    Attributes:
        model: the inputs of the given one and, unless the columns are fixed, INT32 [batch, count], numbers from 0 to N - 1;
            its output is [batch, count].
        rests: which tensors are computed with every column, and why; empty where the wanted ones alone are.
    """

    model: ir.Model
    rests: tuple[str, ...]


def columns(model: ir.Model, output: str, name: str = "columns", fixed: Sequence[int] | None = None) -> Columns:
    """Answer some columns of an output [batch, N].

    >>> from build.core.reduce.example import model
    >>> head = "float[2, 3] w = {1, 0, 2, 0, 1, -1}, float[3] b = {1, 2, 3}"
    >>> row = model("z = MatMul(x, w)  s = Add(z, b)  y = Sigmoid(s)", "float[batch, 2] x", head)
    >>> made = columns(row, "y")
    >>> made.rests, [value.name for value in made.model.graph.inputs]
    ((), ['x', 'columns'])
    >>> [node.op_type for node in made.model.graph]
    ['Gather', 'Reshape', 'MatMul', 'Squeeze', 'Gather', 'Add', 'Sigmoid']
    >>> columns(model("z = MatMul(x, w)  y = Softmax(z)", "float[batch, 2] x", head), "y").rests
    ('Softmax y [batch, 3]: it works along the columns (axis 1)',)
    >>> [value.shape for value in columns(row, "y", fixed=[2, 0]).model.graph.initializers.values()]
    [Shape([2, 2]), Shape([2])]

    Args:
        model: as `reduce` makes one, or any other. Not changed; its other outputs stay what they are.
        output: the one that is meant.
        name: what the new input is called. It may name a column twice; a number beyond N is an error when the model runs.
        fixed: keep these columns, in this order, in place of a new input.

    Raises:
        ReductionError: there is no such output, it is not [batch, N], or a name or a number is not allowed.
    """
    model = model.clone()
    graph = model.graph
    check_opset(model)
    valid = is_valid(model)
    noted = {str(value.name): value.shape for value in graph.outputs}
    if output not in noted:
        raise ReductionError(f"there is no output {output!r}; there are {', '.join(noted)}")
    place = list(noted).index(output)
    normalise(model)
    ShapeInferencePass()(model)
    for value, shape in zip(graph.outputs, noted.values(), strict=True):
        value.shape = shape or value.shape
    target = graph.outputs[place]
    dims = axes_of(target) or []
    if len(dims) != 2 or not isinstance(dims[1], int):
        raise ReductionError(
            f"output {output!r} is {spelled(dims) if dims else 'of a shape that is not known'}; columns are taken of "
            "[batch, N], N a number in the file. Name another output, or reduce the model to one row first"
        )
    taker = _taker(graph, name, dims, fixed)
    others = [value for number, value in enumerate(graph.outputs) if number != place]
    answer = taker.sunk(target, 1)
    # What is computed with every column for somebody else, or for a rest, is not computed anew for some.
    while taker.anew & (whole := ancestors([*others, *taker.used])):
        taker.restart(whole)
        answer = taker.sunk(target, 1)
    target.name = f"{output}_every_column"
    typed(answer, target).name = output
    answer.shape = ir.Shape([dims[0], _COUNT if fixed is None else len(fixed)])
    graph.outputs[place] = answer
    finish(model, valid)
    return Columns(model, tuple(taker.rests))


def _taker(graph: ir.Graph, name: str, dims: Dims, fixed: Sequence[int] | None) -> Taker:
    """What takes the columns, by a new input or by fixed numbers."""
    number = dims[1]
    assert isinstance(number, int)
    if fixed is not None:
        wrong = next((each for each in fixed if not 0 <= each < number), None)
        if wrong is not None or not len(fixed):
            raise ReductionError(
                f"fixed columns {list(fixed)[:10]}: needed are one or more numbers of 0 to {number - 1}"
            )
        return Taker(graph, number, None, np.asarray(fixed, np.int64))
    taken = {value.name for value in graph.inputs} | {value.name for node in graph for value in node.outputs}
    if name in taken | set(graph.initializers):
        raise ReductionError(f"the model has a tensor {name!r} already; give the new input another name")
    ids = ir.Value(name=name, shape=ir.Shape([dims[0], _COUNT]), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(ids)
    return Taker(graph, number, ids, None)
