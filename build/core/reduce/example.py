"""A model of a few operators and its cut: what the docstrings of the pass show, and a file to try the command with."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir

from build.core.reduce.cut import Reduction, Select, reduce
from build.core.reduce.file import save
from build.core.reduce.inputs import Inputs
from build.core.reduce.shapes import Shapes

# An embedding, an LSTM of two units over it, and a head of three scores.
LSTM = (
    """
    rows = Gather(embedding, ids)
    steps = Transpose<perm = [1, 0, 2]>(rows)
    states = LSTM<hidden_size = 2>(steps, weight, recurrent)
    forward = Squeeze(states, directions)
    hidden = Transpose<perm = [1, 0, 2]>(forward)
    y = MatMul(hidden, head)
    """,
    "int64[batch, time] ids",
    """
    float[4, 2] embedding = {1, 0, 0, 1, -1, 0, 0, -1},
    float[1, 8, 2] weight = {1, 2, -1, 0, 2, 1, 0, -1, 1, -1, 2, 0, 1, 1, 0, 2},
    float[1, 8, 2] recurrent = {1, 0, 0, 1, -1, 1, 1, -1, 0, 1, 1, 0, 1, 1, -1, 1},
    float[2, 3] head = {1, 0, 2, 0, 1, -1},
    int64[1] directions = {1}
    """,
)


def model(body: str, inputs: str = "float[batch, time, 2] x", weights: str = "") -> ir.Model:
    """A model that answers y, in ONNX's text form.

    >>> [node.op_type for node in model("z = Tanh(x)  y = Exp(z)").graph]
    ['Tanh', 'Exp']
    """
    header = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
    return ir.from_onnx_text(f"{header} example ({inputs}) => (float[] y) <{weights}> {{ {body} }}")


def shapes_of(full: ir.Model) -> Shapes:
    """Its shapes.

    >>> shapes_of(model("y = Concat<axis = 2>(x, x)")).batch
    (2, 3, 2, 3, 5, 2, 3, 3, 2, 1)
    """
    return Shapes(full, Inputs.find(full, "y", time_axis=1, window=512))


def cut(body: str, inputs: str = "float[batch, time, 2] x", weights: str = "", select: Select = "last") -> Reduction:
    """Its cut; the tail is the graph from the output down to where the row is taken.

    >>> print(cut("y = Tanh(x)").tail)
    Squeeze  y [batch, 2]
      Tanh  y_row [batch, 1, 2]
        GatherND  x_row [batch, 1, 2]
          <- x [batch, time, 2]: it is an input
    """
    return reduce(model(body, inputs, weights), select=select)


if __name__ == "__main__":
    save(model(*LSTM), Path(sys.argv[1]))
