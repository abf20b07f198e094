"""What random models are made of, as people write them.

Where `test_differential` draws single operators, a layer here is what a model is made of: attention with masks, recurrent
layers with lengths, windows of the own history, sizes that depend on values, states of an encoder, branches and loops.
Every layer makes [batch, time, width] of that, so any follows any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from tests.unit.reduce.composition import STATIC, Composition
from tests.unit.reduce.graphs import BOOL, FLOAT, FLOAT16, INT64, NEVER
from tests.unit.reduce.inputs import BATCH, IDS, PADDING, STEPS
from tests.unit.reduce.test_differential import BLOCKS, POSITIONS, Tensor

Layer = Callable[[Composition, Tensor], Tensor]


def embedding(m: Composition, x: Tensor) -> Tensor:
    """Numbers looked up, and added to what there is."""
    return m.op("Add", x[0], m.op("Gather", m.weight(IDS, x[1]), m.ids())), x[1]


def positions(m: Composition, x: Tensor) -> Tensor:
    """Learned, of the rows' numbers; the last ones are one."""
    last = m.number(5, POSITIONS - 1, "last position")
    m.marks.add(last)
    return m.op("Add", x[0], m.op("Gather", m.weight(last + 1, x[1]), m.op("Min", m.numbers(), np.array(last)))), x[1]


def causal_attention(m: Composition, x: Tensor) -> Tensor:
    q, k, v = (m.op("MatMul", x[0], m.weight(x[1], 4)) for _ in range(3))
    scores = m.op("MatMul", q, m.op("Transpose", k, perm=[0, 2, 1]))
    seen = m.causal()
    if m.flag("padding mask"):
        # The own row is seen always: without any, a softmax over -1e9 is a mean over all columns there are.
        own = m.op("Equal", m.op("Unsqueeze", m.numbers(), [0]), m.op("Unsqueeze", m.numbers(), [1]))
        seen = m.op("Or", m.op("And", seen, m.op("Unsqueeze", m.valid(), [1])), own)
    form = m.choose("where", "add", label="mask")
    if form == "where":
        scores = m.op("Where", seen, scores, NEVER)
    else:
        scores = m.op("Add", scores, m.op("Where", seen, np.array(0, np.float32), np.array(-1e9, np.float32)))
    return m.op("Add", m.op("MatMul", m.op("Softmax", scores, axis=-1), v), m.as_wide(x, 4)), 4


def cross_attention(m: Composition, x: Tensor) -> Tensor:
    """Over the states of an encoder, whose axis is none of the model's rows."""
    form = m.choose("batch", "shared", label="states")
    memory, width = (m.states(), 3) if form == "batch" else (m.take("bank", "values", STEPS, 3, dtype=np.float32), 3)
    q = m.op("MatMul", x[0], m.weight(x[1], 4))
    k, v = (m.op("MatMul", memory, m.weight(width, 4)) for _ in range(2))
    turned = m.op("Transpose", k, perm=[0, 2, 1] if form == "batch" else [1, 0])
    weights = m.op("Softmax", m.op("MatMul", q, turned), axis=-1)
    return m.op("Add", m.op("MatMul", weights, v), m.as_wide(x, 4)), 4


def of_states(m: Composition, x: Tensor) -> Tensor:
    """What an encoder found, as one row for all; or divided by how many steps it took."""
    steps = m.size(m.states(), 1)
    form = m.choose("mean", "sum over steps", "first", label="of states")
    if form == "first":
        one = m.op("Slice", m.states(), [0], [1], [1])
    elif form == "mean":
        one = m.op("ReduceMean", m.states(), [1], keepdims=1)
    else:
        one = m.op("Div", m.op("ReduceSum", m.states(), [1], keepdims=1), m.op("Cast", steps, to=FLOAT))
    return m.op("Add", x[0], m.op("MatMul", one, m.weight(3, x[1]))), x[1]


def static_features(m: Composition, x: Tensor) -> Tensor:
    wide = m.op("Unsqueeze", m.static(), [1])
    if m.flag("added"):
        return m.op("Add", x[0], m.op("MatMul", wide, m.weight(STATIC, x[1]))), x[1]
    wide = m.op("Expand", wide, m.op("Concat", m.learners(), m.rows(), [STATIC], axis=0))
    return m.op("MatMul", m.op("Concat", x[0], wide, axis=2), m.weight(x[1] + STATIC, 4)), 4


def normalized_residual(m: Composition, x: Tensor) -> Tensor:
    made = m.op("LayerNormalization", x[0], m.weight(x[1]), m.weight(x[1]), axis=-1, epsilon=0.1)
    made = m.op("Relu", m.op("MatMul", made, m.weight(x[1], 6)))
    return m.op("Add", x[0], m.op("MatMul", made, m.weight(6, x[1]))), x[1]


def recurrent_with_lengths(m: Composition, x: Tensor) -> Tensor:
    op = str(m.choose("LSTM", "GRU", label="recurrent"))
    rows = {"LSTM": 4, "GRU": 3}[op] * 4
    form = m.choose("none", "given", "of the mask", "time", label="sequence_lens")
    lens = None
    if form == "given":
        lens = m.op("Cast", m.lengths(), to=onnx.TensorProto.INT32)
    elif form == "of the mask":
        lens = m.op("ReduceSum", m.op("Cast", m.valid(), to=onnx.TensorProto.INT32), [1], keepdims=0)
    elif form == "time":
        lens = m.op("Cast", m.op("Expand", m.rows(), m.learners()), to=onnx.TensorProto.INT32)
    first = m.op("Transpose", x[0], perm=[1, 0, 2])
    weights = [m.weight(1, rows, x[1]), m.weight(1, rows, 4), m.weight(1, 2 * rows), lens]
    every, final, *_ = m.ops(op, 2, first, *weights, hidden_size=4)
    made = m.op("Transpose", m.op("Squeeze", every, [1]), perm=[1, 0, 2])
    if m.number(0, 4, "final") == 4:
        made = m.op("Add", made, m.op("Transpose", final, perm=[1, 0, 2]))
    return made, 4


def causal_convolution(m: Composition, x: Tensor) -> Tensor:
    """One or several, dilated, with the padding where people put it; pooled at last."""
    made, width = m.op("Transpose", x[0], perm=[0, 2, 1]), x[1]
    for _ in range(m.number(1, 3, "convolutions")):
        kernel, dilation = m.number(1, 3, "kernel"), m.number(1, 4, "dilation")
        reach = (kernel - 1) * dilation
        m.marks.add(reach + 1)
        way = m.choose("pads", "Pad", "chomp", label="padding")
        read = m.op("Pad", made, [0, 0, reach, 0, 0, 0], m.weight()) if way == "Pad" else made
        pads = {"pads": [reach, 0], "Pad": [0, 0], "chomp": [reach, reach]}[str(way)]
        read = m.op("Conv", read, m.weight(4, width, kernel), pads=pads, dilations=[dilation])
        if way == "chomp" and reach:
            read = m.op("Slice", read, [0], [-reach], [2])
        made, width = m.op("Add", made, read) if width == 4 and m.flag("residual") else read, 4
    if m.flag("pooled"):
        made = m.op("MaxPool", made, kernel_shape=[3], pads=[2, 0])
    return m.op("Transpose", made, perm=[0, 2, 1]), width


def row_before(m: Composition, x: Tensor) -> Tensor:
    """Rows further up beside each, moved by padding."""
    by = m.number(1, 5, "rows before")
    m.marks.add(by)
    return m.op("Add", x[0], m.op("Slice", m.op("Pad", x[0], [0, by, 0, 0, 0, 0]), [0], [-by], [1])), x[1]


def rows_in_front(m: Composition, x: Tensor) -> Tensor:
    """Start tokens or zeros in front of all, the layer over both, and as many rows left as there were."""
    by = m.number(1, 3, "rows in front")
    m.marks.add(by)
    first = m.op("Expand", m.weight(1, by, x[1]), m.op("Concat", m.learners(), [1, 1], axis=0))
    longer = m.op("Concat", first, x[0], axis=1)
    if m.flag("recurrent"):
        turned = m.op("Transpose", longer, perm=[1, 0, 2])
        every = m.op("GRU", turned, m.weight(1, 12, x[1]), m.weight(1, 12, 4), hidden_size=4)
        longer, x = m.op("Transpose", m.op("Squeeze", every, [1]), perm=[1, 0, 2]), (x[0], 4)
    start = m.number(0, by, "from row")
    return m.op("Slice", longer, [start], m.op("Add", m.rows(), [start]), [1]), x[1]


def row_behind(m: Composition, x: Tensor) -> Tensor:
    """The next row beside each, or a convolution that looks at both sides."""
    if m.flag("convolution"):
        made = m.op("Conv", m.op("Transpose", x[0], perm=[0, 2, 1]), m.weight(x[1], x[1], 3), pads=[1, 1])
        return m.op("Transpose", made, perm=[0, 2, 1]), x[1]
    return m.op("Add", x[0], m.op("Slice", m.op("Pad", x[0], [0, 0, 0, 0, 1, 0]), [1], [100000], [1])), x[1]


def cumulative(m: Composition, x: Tensor) -> Tensor:
    """A mean of the rows so far: over their number, over how many are valid, or over the last few."""
    total = m.op("CumSum", x[0], np.array(1))
    form = m.choose("number", "valid", "window", label="cumulative")
    if form == "number":
        count = m.op("Cast", m.op("Add", m.numbers(), np.array(1)), to=FLOAT)
        return m.op("Div", total, m.op("Unsqueeze", count, [0, 2])), x[1]
    if form == "valid":
        valid = m.op("Unsqueeze", m.op("Cast", m.valid(), to=FLOAT), [2])
        total = m.op("CumSum", m.op("Mul", x[0], valid), np.array(1))
        return m.op("Div", total, m.op("Max", m.op("CumSum", valid, np.array(1)), np.array(1, np.float32))), x[1]
    rows = m.number(2, 45, "window")
    m.marks.add(rows)
    before = m.op("Slice", m.op("Pad", total, [0, rows, 0, 0, 0, 0]), [0], m.rows(), [1])
    return m.op("Div", m.op("Sub", total, before), np.array(rows, np.float32)), x[1]


def masked(m: Composition, x: Tensor) -> Tensor:
    """What is not valid is left out: set to a number, or multiplied with 0."""
    valid = m.op("Unsqueeze", m.valid(), [2])
    if m.flag("where"):
        return m.op("Where", valid, x[0], m.weight(1)), x[1]
    return m.op("Mul", x[0], m.op("Cast", valid, to=FLOAT)), x[1]


def summary(m: Composition, x: Tensor) -> Tensor:
    """One row for all of a learner's valid ones: their mean, the last one, or the largest."""
    valid = m.op("Cast", m.op("Unsqueeze", m.valid(), [2]), to=FLOAT)
    form = m.choose("mean", "by the length", "last", label="summary")
    if form == "last":
        number = m.op("Unsqueeze", m.op("Sub", m.lengths(), np.array(1)), [1])
        one = m.op("Unsqueeze", m.op("GatherND", x[0], number, batch_dims=1), [1])
    else:
        total = m.op("ReduceSum", m.op("Mul", x[0], valid), [1], keepdims=1)
        count = m.op("Max", m.op("ReduceSum", valid, [1], keepdims=1), np.array(1, np.float32))
        if form == "by the length":
            count = m.op("Unsqueeze", m.op("Cast", m.lengths(), to=FLOAT), [1, 2])
        one = m.op("Div", total, count)
    return m.op("Add", x[0], one), x[1]


def own_history(m: Composition, x: Tensor) -> Tensor:
    """The last rows or the first ones, or as many as there are of a window, and how many these are."""
    rows = int(m.choose(2, 5, 20, 30, 40, label="own history"))
    m.marks.add(rows)
    form = m.choose("last", "first", "computed", label="cut")
    if form == "computed":
        count = m.op("Min", m.rows(), [rows])
        part = m.op("Slice", x[0], m.op("Neg", count), [100000], [1])
    else:
        part = m.op("Slice", x[0], [-rows if form == "last" else 0], [100000 if form == "last" else rows], [1])
    total = m.op("ReduceSum", part, [1], keepdims=1)
    by = m.op("Cast", m.size(part, 1), to=FLOAT) if m.flag("divided by its size") else np.array(rows, np.float32)
    return m.op("Add", x[0], m.op("Div", total, by)), x[1]


def by_size(m: Composition, x: Tensor) -> Tensor:
    """Times what is reckoned of the number of rows: it, a part, a remainder, at most so many."""
    rows = m.number_of_rows()
    number = m.number(2, 45, "number")
    m.marks.add(number)
    op = str(m.choose("Min", "Max", "Mod", "Div", "Mul", label="by size"))
    return m.op("Mul", x[0], m.as_factor(m.op(op, rows, np.array(number)))), x[1]


def in_chunks(m: Composition, x: Tensor) -> Tensor:
    """Time padded to a multiple, and something done within every chunk; or only padded, and cut back."""
    chunk = m.number(2, 9, "chunk")
    rows = m.rows()
    missing = m.op("Mod", m.op("Sub", [0], rows), [chunk])
    pads = m.op("Concat", [0, 0, 0, 0], missing, [0], axis=0)
    padded = m.op("Pad", x[0], pads)
    form = m.choose("sum", "mean", "softmax", "row by row", label="in chunks")
    if form == "row by row":
        made = m.op("Tanh", padded)
    else:
        apart = m.op("Reshape", padded, m.op("Concat", m.learners(), [-1, chunk, x[1]], axis=0))
        if form == "sum":
            apart = m.op("CumSum", apart, np.array(2))
        elif form == "mean":
            apart = m.op("Sub", apart, m.op("ReduceMean", apart, [2], keepdims=1))
        else:
            apart = m.op("Softmax", apart, axis=2)
        made = m.op("Reshape", apart, m.op("Concat", m.learners(), [-1, x[1]], axis=0))
    return m.op("Slice", made, [0], rows, [1]), x[1]


def by_values(m: Composition, x: Tensor) -> Tensor:
    """Sizes that depend on what the inputs hold."""
    form = m.choose("nonzero", "compress", "longest", "largest", "mask of the longest", label="by values")
    if form == "longest":
        return m.op("Mul", x[0], m.as_factor(m.op("ReduceMax", m.lengths(), keepdims=0))), x[1]
    if form == "mask of the longest":
        longest = m.op("Max", m.op("ReduceMax", m.lengths(), keepdims=0), np.array(1))
        numbers = m.op("Range", np.array(0), longest, np.array(1))
        mask = m.op("Cast", m.op("Less", numbers, m.op("Unsqueeze", m.lengths(), [1])), to=FLOAT)
        part = m.op("Slice", x[0], [0], m.size(mask, 1), [1])
        total = m.op("ReduceSum", m.op("Mul", part, m.op("Unsqueeze", mask, [2])), [1], keepdims=1)
        return m.op("Add", x[0], m.op("Div", total, m.op("Cast", m.size(mask, 1), to=FLOAT))), x[1]
    wide = m.op("Cast", m.ids(), to=INT64)
    if form == "largest":
        zeros = m.op("ConstantOfShape", m.op("Unsqueeze", m.op("ReduceMax", wide, keepdims=0), [0]))
        return m.op("Mul", x[0], m.as_factor(m.size(zeros, 0))), x[1]
    other = m.op("Not", m.op("Equal", wide, np.array(int(m.choose(PADDING, 0, 1, label="id")))))
    if form == "nonzero":
        return m.op("Mul", x[0], m.as_factor(m.size(m.op("NonZero", other), 1))), x[1]
    some = m.op("Compress", m.op("Reshape", x[0], [-1, x[1]]), m.op("Reshape", other, [-1]), axis=0)
    count = m.op("Cast", m.op("Add", m.size(some, 0), [1]), to=FLOAT)
    return m.op("Add", x[0], m.op("Div", m.op("ReduceSum", some, [0], keepdims=1), count)), x[1]


def branch(m: Composition, x: Tensor) -> Tensor:
    """One of two, by the number of rows or by what an input holds; a branch may only hand on what is outside."""
    if m.flag("by size"):
        at = m.number(3, 45, "branch at")
        m.marks.add(at)
        condition = m.op("Greater", m.number_of_rows(), np.array(at))
    else:
        highest = m.op("ReduceMax", m.op("Cast", m.ids(), to=INT64), keepdims=0)
        condition = m.op("Greater", highest, np.array(m.number(5, IDS - 2, "highest")))
    then, other = (f"{x[0]}_{len(m._nodes)}_{name}" for name in ("then", "else"))
    return m.op(
        *("If", condition),
        then_branch=m.branch("then", [helper.make_node("Tanh", [x[0]], [then])], then),
        else_branch=m.branch("else", [helper.make_node("Identity", [x[0]], [other])], other),
    ), x[1]


def loop(m: Composition, x: Tensor) -> Tensor:
    """Row by row: a state that decays, collected as a scan does, or in a sequence of tensors."""
    mark = f"loop{len(m._nodes)}_"
    number, on, state, out, row, rate = (mark + name for name in ("i", "on", "state", "out", "row", "rate"))
    info = helper.make_tensor_value_info
    rate_of = helper.make_node("Constant", [], [rate], value=helper.make_tensor(rate, FLOAT, [], [0.5]))
    step = [
        helper.make_node("Gather", [x[0], number], [row], axis=1),
        helper.make_node("Mul", [state, rate], [f"{row}_old"]),
        helper.make_node("Add", [row, f"{row}_old"], [f"{row}_sum"]),
        helper.make_node("Tanh", [f"{row}_sum"], [out]),
        helper.make_node("Identity", [f"{mark}on"], [f"{mark}goes_on"]),
    ]
    enters = [info(number, INT64, []), info(on, BOOL, [])]
    first = m.op("Mul", m.op("ReduceSum", m.op("Slice", x[0], [0], [1], [1]), [1], keepdims=0), np.array(0, np.float32))
    rows = m.number_of_rows()
    if m.flag("sequence"):
        names = [f"{mark}sequence", f"{mark}longer", f"{mark}wide"]
        body = helper.make_graph(
            [
                *(rate_of, *step, helper.make_node("Unsqueeze", [out, f"{mark}axis"], [names[2]])),
                helper.make_node("SequenceInsert", [names[0], names[2]], [names[1]]),
            ],
            "body",
            [*enters, info(state, FLOAT, None), helper.make_tensor_sequence_value_info(names[0], FLOAT, None)],
            [
                *(info(f"{mark}goes_on", BOOL, None), info(out, FLOAT, None)),
                helper.make_tensor_sequence_value_info(names[1], FLOAT, None),
            ],
            [helper.make_tensor(f"{mark}axis", INT64, [1], [1])],
        )
        empty = m.op("SequenceEmpty", dtype=FLOAT)
        every = m.ops("Loop", 2, rows, np.array(True), first, empty, body=body)[1]
        return m.op("ConcatFromSequence", every, axis=1), x[1]
    body = helper.make_graph(
        [rate_of, *step, helper.make_node("Identity", [out], [f"{mark}kept"])],
        "body",
        [*enters, info(state, FLOAT, None)],
        [info(f"{mark}goes_on", BOOL, None), info(out, FLOAT, None), info(f"{mark}kept", FLOAT, None)],
    )
    every = m.ops("Loop", 2, rows, np.array(True), first, body=body)[1]
    return m.op("Transpose", every, perm=[1, 0, 2]), x[1]


def halved(m: Composition, x: Tensor) -> Tensor:
    """In 16 bits and back."""
    m.half = True
    narrow = m.op("Cast", x[0], to=FLOAT16)
    width = m.number(2, 4, "width")
    matrix = m.constant((m.rng.normal(0, 0.5, (x[1], width))).astype(np.float16))
    return m.op("Cast", m.op("Tanh", m.op("MatMul", narrow, matrix)), to=FLOAT), width


def regrouped(m: Composition, x: Tensor) -> Tensor:
    """Reshapes with sizes that are computed, and through one flat axis."""
    every = m.op("Shape", x[0])
    flat = m.op("Reshape", x[0], [-1] if m.flag("flat") else [0, -1])
    return m.op("Reshape", m.op("Tanh", flat), every), x[1]


def by_other_axis(m: Composition, x: Tensor) -> Tensor:
    """Numbers of another axis than time are looked up and summed: a bag of tags that a learner has."""
    tags = m.take("tags", "ids", BATCH, STEPS, dtype=np.int64)
    bag = m.op("ReduceSum", m.op("Gather", m.weight(IDS, x[1]), tags), [1], keepdims=1)
    return m.op("Add", x[0], m.op("Tanh", bag)), x[1]


def interleaved(m: Composition, x: Tensor) -> Tensor:
    """Two tokens a row, a layer over them, and one of the two read."""
    name, width = m.earlier()
    other = m.op("MatMul", name, m.weight(width, x[1]))
    pair = m.op("Concat", m.op("Unsqueeze", x[0], [2]), m.op("Unsqueeze", other, [2]), axis=2)
    tokens = m.op("Reshape", pair, [0, -1, x[1]])
    inside = m.op("CumSum", tokens, np.array(1)) if m.flag("sum") else m.op("Tanh", tokens)
    return m.op("Slice", inside, [m.number(0, 1, "token")], [100000], [1], [2]), x[1]


# What answers for a row from it and the ones before it, so that most models keep to their history, and what need not.
CAUSAL: tuple[Layer, ...] = (
    *(embedding, positions, causal_attention, causal_attention, cross_attention, of_states, static_features),
    *(normalized_residual, recurrent_with_lengths, recurrent_with_lengths, causal_convolution, cumulative, masked),
    *(halved, by_other_axis, interleaved, loop, regrouped, in_chunks, causal_convolution, row_before, rows_in_front),
)
ANY: tuple[Layer, ...] = (*CAUSAL, summary, own_history, row_behind, by_size, by_values, branch, *BLOCKS)
