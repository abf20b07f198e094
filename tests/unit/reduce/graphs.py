"""Small graphs, and the comparison that every test of the reduction comes down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from build.core.reduce import Declared, Reduction, Select, reduce

SIZES = ((1, 1), (1, 7), (3, 1), (2, 29), (2, 5), (3, 4), (4, 19))  # batch, time
SELECTS: tuple[Select, ...] = ("last", "row", "mean", "max")
TIME = 101  # a prime that no other axis of a test has: what is a multiple of it has time inside
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

Operand = str | np.ndarray | Sequence[int] | None


class Graph:
    """Builds a model node by node; tensors are their names, arrays and lists of numbers become constants."""

    def __init__(self, opset: int = 20, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: list[onnx.TensorProto] = []

    def input(self, name: str, *axes: str | int, dtype: type = np.float32) -> str:
        """One more input of the model."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, axes))
        return name

    def sequence(self, *widths: int, name: str = "x", dtype: type = np.float32) -> str:
        """An input [batch, time, ...]."""
        return self.input(name, "batch", "time", *widths, dtype=dtype)

    def weight(self, *shape: int) -> str:
        """A random constant, of a scale that keeps products near 1."""
        scale = np.sqrt(shape[-2]) if len(shape) > 1 else 1.0
        return self.constant(self.rng.normal(0, 1 / scale, shape).astype(np.float32))

    def constant(self, array: np.ndarray | Sequence[int]) -> str:
        """A constant; numbers are INT64."""
        name = f"c{len(self._constants)}"
        array = array if isinstance(array, np.ndarray) else np.array(array, np.int64)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: Operand, **attributes: object) -> str:
        """One more node with one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, outputs: int, *inputs: Operand, **attributes: object) -> list[str]:
        """One more node, with several outputs; other domains stand in front of op_type."""
        domain, _, op_type = op_type.rpartition(".")
        names = ["" if v is None else v if isinstance(v, str) else self.constant(v) for v in inputs]
        while names and not names[-1]:
            names.pop()  # ONNX Runtime does not always expect the ones that are left out to be named
        made = [f"{op_type.lower()}{len(self._nodes)}_{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(op_type, names, made, domain=domain, **attributes))
        return made

    def size(self, value: str, axis: int) -> str:
        """INT64 [1]: an axis' size at run time."""
        return self.op("Gather", self.op("Shape", value), [axis])

    def table(self, *widths: int, like: str = "x", axis: int = 1) -> str:
        """[time, ...], the same for every learner: as many rows of a constant as `like` has along `axis`."""
        return self.op("Slice", self.weight(TIME + 1, *widths), [0], self.size(like, axis), [0])

    def model(self, *outputs: str, dtype: type = np.float32) -> ir.Model:
        """The model that answers these tensors."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        values = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "graph", self._inputs, values, self._constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def square(g: Graph, *, axes: tuple[int, int] = (0, 1)) -> str:
    """A table of every row against every row, the same for every learner."""
    time = g.size("x", 1)
    shape = [TIME + 1 if axis in axes else 1 for axis in range(max(axes) + 1)]
    return g.op("Slice", g.weight(*shape), [0, 0], g.op("Concat", time, time, axis=0), list(axes))


def flat(g: Graph, value: str, width: int) -> str:
    """[batch, time, width] to [batch x time, width]."""
    return g.op("Reshape", value, [-1, width])


def back(g: Graph, value: str, width: int) -> str:
    """[batch x time, width] to [batch, time, width]."""
    return g.op("Reshape", value, g.op("Concat", g.op("Shape", "x", end=2), [width], axis=0))


def heads(g: Graph, value: str, count: int, width: int) -> str:
    """[batch, time, count x width] to [batch, count, time, width]."""
    return g.op("Transpose", g.op("Reshape", value, [0, 0, count, width]), perm=[0, 2, 1, 3])


def joined(g: Graph, value: str, width: int) -> str:
    """And back."""
    return g.op("Reshape", g.op("Transpose", value, perm=[0, 2, 1, 3]), [0, 0, width])


def causal(g: Graph, x: str) -> str:
    """BOOL [time, time]: which keys a query sees."""
    numbers = g.op("Range", np.array(0), g.op("Squeeze", g.size(x, 1)), np.array(1))
    return g.op("LessOrEqual", g.op("Unsqueeze", numbers, [0]), g.op("Unsqueeze", numbers, [1]))


def decomposed(g: Graph, x: str, count: int, width: int, mask: str) -> str:
    """Self attention from single operators, as exporters write it."""
    q, k, v = (heads(g, g.op("MatMul", x, g.weight(count * width, count * width)), count, width) for _ in range(3))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if mask == "where":
        scores = g.op("Where", causal(g, x), scores, np.array(-np.inf, np.float32))
    elif mask == "add":
        never = g.op("Where", causal(g, x), np.array(0, np.float32), np.array(-np.inf, np.float32))
        scores = g.op("Add", scores, never)
    elif mask == "trilu":
        ones = g.op("Expand", np.array(True), g.op("Concat", g.size(x, 1), g.size(x, 1), axis=0))
        seen = g.op("Unsqueeze", g.op("Trilu", g.op("Cast", ones, to=INT64), upper=0), [0, 1])
        scores = g.op("Where", g.op("Cast", seen, to=BOOL), scores, np.array(-1e9, np.float32))
    return joined(g, g.op("MatMul", g.op("Softmax", scores), v), count * width)


def recurrent(
    g: Graph, op: str, x: str, width: int, hidden: int, *more: str | None, directions: int = 1, **attributes: object
) -> list[str]:
    """[time, batch, width] to every state [time, directions, batch, hidden] and the last."""
    rows = GATES[op] * hidden
    weights = [g.weight(directions, rows, width), g.weight(directions, rows, hidden)]
    return g.ops(op, 2, x, *weights, *more, hidden_size=hidden, **attributes)


def layer(g: Graph, op: str, x: str, width: int, hidden: int, *more: str | None, **attributes: object) -> str:
    """The same from [batch, time, width] to [batch, time, hidden]."""
    states = recurrent(g, op, g.op("Transpose", x, perm=[1, 0, 2]), width, hidden, *more, **attributes)[0]
    return g.op("Transpose", g.op("Squeeze", states, [1]), perm=[1, 0, 2])


def check(
    model: ir.Model,
    select: Select = "last",
    time_axis: int = 1,
    *,
    below: Mapping[str, int] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    window: int = TIME,
) -> Reduction:
    """Reduce the model and compare: reduced is full and then selected, at every size.

    Args:
        below: what integers of an input stay below [default: 5].
    """
    before = ir.to_proto(model)
    named = {str(value.name) for value in model.graph.inputs}
    declared = Declared({name: (0, number - 1) for name, number in (below or {}).items() if name in named})
    reduction = reduce(model, select=select, time_axis=time_axis, window=window, declared=declared)
    assert ir.to_proto(model) == before, "the full model is changed"
    full, reduced = _session(before), _session(ir.to_proto(reduction.model))
    for number, (batch, time) in enumerate(sizes):
        rng = np.random.default_rng(number)
        feeds = _feeds(full, batch, time, rng, below or {})
        every = full.run(None, feeds)[0]
        rows = every if time_axis == 1 else every.swapaxes(0, 1)
        # Every second time all are short: where nobody needs the later rows, the model may leave them out.
        longest = max(1, rows.shape[1] // 4) if number % 2 else rows.shape[1]
        lengths = rng.integers(1, longest + 1, rows.shape[0]).astype(np.int32)
        index = {"row": lengths - 1} if select == "row" else {"lengths": lengths}
        answer = _run(reduced, {**feeds, **index})
        wanted = np.stack([pooled(learner[:n], select) for learner, n in zip(rows, lengths, strict=True)])
        assert answer.shape == wanted.shape, f"batch {batch}, time {time}"
        assert answer.dtype == wanted.dtype
        # Sums of large numbers round by as much as they are large.
        finite = wanted[np.isfinite(wanted)]
        scale = max(1.0, float(np.abs(finite.astype(float)).max(initial=0)))
        np.testing.assert_allclose(
            answer, wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=f"batch {batch}, time {time}, lengths {lengths}"
        )
    return reduction


def pooled(rows: np.ndarray, select: Select) -> np.ndarray:
    """What is wanted of one learner's valid rows."""
    return {"mean": lambda: rows.mean(0), "max": lambda: rows.max(0)}.get(select, lambda: rows[-1])()


def computed(
    reduction: Reduction, below: Mapping[str, int] | None = None, *, batch: int = 2
) -> list[tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]]:
    """Every node of a reduced model, with the shapes of what it reads and makes for learners of TIME rows."""
    proto = ir.to_proto(reduction.model)
    made = [name for node in proto.graph.node for name in node.output if name]
    graph_outputs = [v.name for v in proto.graph.output]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in graph_outputs)
    session = _session(proto)
    feeds = _feeds(session, batch, TIME, np.random.default_rng(0), below or {})
    whole = TIME - 1 if reduction.select == "row" else TIME  # so that nothing is trimmed
    if reduction.select != "own":
        feeds["row" if reduction.select == "row" else "lengths"] = np.full(batch, whole, np.int32)
    names = [v.name for v in session.get_outputs()]
    shapes = {name: np.shape(v) for name, v in zip(names, session.run(names, feeds), strict=True)}
    shapes |= {name: np.shape(v) for name, v in feeds.items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    return [
        (node.op_type, [shapes[name] for name in node.input if name], [shapes[name] for name in node.output if name])
        for node in proto.graph.node
    ]


def has_time(shape: Sequence[int]) -> bool:
    """Whether an axis holds rows of more than the wanted one."""
    return any(size and size % TIME == 0 for size in shape)


def assert_sank(reduction: Reduction, *op_types: str, below: Mapping[str, int] | None = None) -> None:
    """The selection is at the inputs, and these operators compute nothing but the wanted row."""
    assert all(rest.endswith(("it is an input", "it is a constant")) for rest in reduction.rests), reduction.rests
    assert_row_only(reduction, *op_types, below=below)


def assert_row_only(reduction: Reduction, *op_types: str, below: Mapping[str, int] | None = None) -> None:
    """These operators compute nothing but the wanted row."""
    nodes = computed(reduction, below)
    for op_type in op_types:
        made = [outputs for name, _, outputs in nodes if name == op_type]
        assert made, f"no {op_type} is left"
        assert not any(has_time(shape) for outputs in made for shape in outputs), f"{op_type} makes {made}"


def assert_rests(reduction: Reduction, op_type: str, reason: str) -> None:
    """The selection stays above an operator, and says why."""
    found = [rest for rest in reduction.rests if rest.startswith(f"{op_type} ")]
    assert any(reason in rest for rest in found), reduction.rests


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # graphs this small are slower with more
    # The graphs are compared, and not what ONNX Runtime makes of them: it turns a Gather by a falling Range into nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Feed what the session takes: the reduced model has INT32 where the full one has INT64."""
    taken = {
        v.name: feeds[v.name].astype(np.int32) if v.type == "tensor(int32)" else feeds[v.name]
        for v in session.get_inputs()
    }
    return session.run(None, taken)[0]


def _feeds(
    session: ort.InferenceSession, batch: int, time: int, rng: np.random.Generator, below: Mapping[str, int]
) -> dict[str, np.ndarray]:
    feeds = {}
    for value in session.get_inputs():
        shape = [{"batch": batch, "time": time}.get(size, size) for size in value.shape]
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
        feeds[value.name] = (
            rng.normal(size=shape).astype(dtype)
            if dtype.kind == "f"
            else rng.integers(0, 2 if dtype.kind == "b" else below.get(value.name, 5), shape).astype(dtype)
        )
    return feeds


FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
INT32 = TensorProto.INT32
NEVER = np.array(-np.inf, np.float32)
