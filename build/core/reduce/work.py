"""What one operator does for one history: arithmetic by kind, and bytes that it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import onnx_ir as ir

from build.core.reduce.rules import RECURRENT
from build.core.reduce.rules.base import constant
from build.core.reduce.shapes import Shapes

EXP = 10  # operations that an exponential counts, a logarithm, a sine, and what is made of one: about its polynomial's

# Operations an entry of the output, of what is neither a product nor 1 (an addition, a comparison).
_ENTRY = {
    **dict.fromkeys(("Exp", "Log", "Sin", "Cos", "Tan", "Tanh", "Sigmoid", "Elu", "Selu", "Celu", "Sinh", "Cosh"), EXP),
    **dict.fromkeys(("Erf", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish", "Pow", "Softplus", "Mish"), 2 * EXP),
    # A maximum, a difference, an exponential, a sum, a quotient.
    **dict.fromkeys(("Softmax", "LogSoftmax"), EXP + 4),
    # Two sums, a difference, a square, a quotient, scale and shift.
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), 8),
    **dict.fromkeys(("SkipLayerNormalization", "EmbedLayerNormalization"), 9),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"), 5),
    **dict.fromkeys(("BatchNormalization", "LpNormalization"), 2),
}
# Of these ONNX Runtime computes one entry at a time (measured: 1.4 to 9 ns, where Exp takes 0.2), and of an RNN.
_SCALAR = frozenset({"Log", "Sin", "Cos", "Tan", "Elu", "Selu", "Celu", "Sinh", "Cosh", "Pow", "Softplus", "Mish"})
# Of a recurrent layer's hidden unit and step: its gates' activations, and what joins them.
_UNIT = {"LSTM": 5 * EXP + 7, "GRU": 3 * EXP + 8, "RNN": EXP + 1}
# Operators that give their input another name, or look at its shape.
_NAMES = frozenset({"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"})
# Operators that move numbers about and compute none.
_MOVES = _NAMES | {
    *("Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Range", "Slice"),
    *("Split", "Tile", "Transpose", "Trilu", "Where", "ScatterElements", "ScatterND"),
}
# Operators that read of their first input what they write, and not all of it.
_PICKS = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})


@dataclass(frozen=True)
class Work:
    """What is done for a batch of one.

    Attributes:
        products: operations of matrix products and convolutions, 2 a multiplication with addition.
        softmaxes: operations of softmaxes: exp of a masked score leaves a number so small (denormal) that it is slow to add.
        others: operations of everything else that runs many entries at a time. An exponential counts EXP.
        scalars: those that run an entry at a time.
        moved: bytes read and written. A recurrent layer reads its weights in every step.
        nodes: operators.
    """

    products: int = 0
    softmaxes: int = 0
    others: int = 0
    scalars: int = 0
    moved: int = 0
    nodes: int = 1

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    @property
    def operations(self) -> int:
        """Floating-point operations, of every kind."""
        return self.products + self.softmaxes + self.others + self.scalars


def work(node: ir.Node, shapes: Shapes, time: int) -> Work:
    """What one operator does for a batch of one, of `time` rows.

    >>> from build.core.reduce.example import model, shapes_of
    >>> full = model("y = MatMul(x, w)", weights="float[2, 1] w = {1, 2}")
    >>> work(full.graph[0], shapes_of(full), time=512)  # 512 x 2 multiplications, and as many additions
    Work(products=2048, softmaxes=0, others=0, scalars=0, moved=6152, nodes=1)
    >>> full = model("y = Exp(x)")
    >>> work(full.graph[0], shapes_of(full), time=512)
    Work(products=0, softmaxes=0, others=10240, scalars=0, moved=8192, nodes=1)
    """

    def at(value: ir.Value | None) -> tuple[int, ...]:
        return shapes.at(value, 1, time) if value is not None and shapes.known(value) else ()

    op, inputs = node.op_type, node.inputs
    moved = _moved(node, at)
    if op in RECURRENT:
        steps, batch, width = at(inputs[0])
        directions, rows, hidden = at(inputs[2])  # recurrent weights [directions, gates x hidden, hidden]
        products = 2 * steps * batch * directions * rows * (width + hidden)
        units = steps * batch * directions * hidden * _UNIT[op]
        moved += (steps - 1) * _bytes(inputs[2], at)
        others, scalars = (0, units) if op == "RNN" else (units, 0)
        return Work(products, others=others, scalars=scalars, moved=moved)
    products = _products(node, at)
    if op in ("Attention", "MultiHeadAttention"):
        return Work(products, softmaxes=(EXP + 4) * _scores(node, at), moved=moved)
    if products:
        return Work(products, moved=moved)
    entries = 0 if op in _MOVES else _entries(node, at)
    if op in ("Softmax", "LogSoftmax"):
        return Work(softmaxes=entries * _ENTRY[op], moved=moved)
    if op == "Pow" and _is_small_power(inputs[1]):
        return Work(others=entries, moved=moved)
    if op in _SCALAR:
        return Work(scalars=entries * _ENTRY[op], moved=moved)
    return Work(others=entries * _ENTRY.get(op, 1), moved=moved)


_At = Callable[[ir.Value | None], tuple[int, ...]]


def _products(node: ir.Node, at: _At) -> int:
    """Operations of an operator that multiplies matrices; 0 where it is none."""
    op, inputs = node.op_type, node.inputs
    made = max((math.prod(at(value)) for value in node.outputs if value.name), default=0)
    if "MatMul" in op or op == "Gemm":
        first = at(inputs[0])
        if not first:
            return 0
        return 2 * made * first[-2 if node.attributes.get_int("transA", 0) == 1 and len(first) > 1 else -1]
    if op == "Einsum":
        terms = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
        sizes = [dict(zip(term, at(value), strict=False)) for term, value in zip(terms, inputs, strict=False)]
        if len(sizes) < 2 or any("." in term for term in terms):
            return 0
        return 2 * math.prod({label: size for term in sizes for label, size in term.items()}.values())
    if "Conv" in op:
        return 2 * made * math.prod(at(inputs[3 if op == "QLinearConv" else 1])[1:])
    if op in ("Attention", "MultiHeadAttention"):
        query, key = at(inputs[0]), at(inputs[1])
        return 4 * math.prod(query) * key[-2] if query and len(key) > 1 else 0
    return 0


def _scores(node: ir.Node, at: _At) -> int:
    """Entries of an attention's softmax."""
    query, key = at(node.inputs[0]), at(node.inputs[1])
    if len(query) < 3 or len(key) < 2:
        return 0
    name = "q_num_heads" if node.op_type == "Attention" else "num_heads"
    heads = query[1] if len(query) == 4 else node.attributes.get_int(name, 1)
    return query[0] * heads * query[-2] * key[-2]


def _entries(node: ir.Node, at: _At) -> int:
    """How often an operator computes what it computes: an entry that it makes, or where it reduces, that it reads."""
    op = node.op_type
    made = max((math.prod(at(value)) for value in node.outputs if value.name), default=0)
    read = max((math.prod(at(value)) for value in node.inputs[:1] if value is not None), default=0)
    if op in ("DFT", "STFT"):  # 5 n log n, whatever n is a power of
        entries = max(made, read) // 2
        given = (
            constant(node.inputs[2]) if op == "DFT" and len(node.inputs) > 2 else None
        )  # opset 20; an attribute before
        axis = given[0] if given else node.attributes.get_int("axis", -2 if op == "DFT" else 1)
        length = at(node.inputs[0])[axis] if at(node.inputs[0]) else 2
        return math.ceil(5 * entries * math.log2(max(length, 2)))
    if op in ("TopK", "Unique"):
        return math.ceil(read * math.log2(max(read, 2)))
    if op.startswith(("Reduce", "Arg", "Global")) or op == "NonZero":
        return read * (EXP if op in ("ReduceLogSumExp",) else 1)
    if op.endswith("Pool"):
        return made * math.prod(node.attributes.get_ints("kernel_shape", [1]))
    return made


def _moved(node: ir.Node, at: _At) -> int:
    """Bytes that an operator reads and writes."""
    if node.op_type in _NAMES:
        return 0
    written = sum(_bytes(value, at) for value in node.outputs if value.name)
    read = sum(_bytes(value, at) for value in node.inputs[1 if node.op_type in _PICKS else 0 :])
    return written + read + (written if node.op_type in _PICKS else 0)


def _bytes(value: ir.Value | None, at: _At) -> int:
    if value is None or not (value.name and (at(value) or value.dtype is not None)):
        return 0
    return math.ceil(math.prod(at(value)) * (value.dtype.itemsize if value.dtype is not None else 4))


def _is_small_power(exponent: ir.Value | None) -> bool:
    """Whether it is a square or a cube, which ONNX Runtime multiplies out."""
    tensor = exponent.const_value if exponent is not None else None
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().reshape(-1)[0]) in (2.0, 3.0)
