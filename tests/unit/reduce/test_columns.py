"""Some columns of an answer: exactly those of all, computed in front of the last product; and wrong ones are seen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from build.core.battery import HALF_TOLERANCE, TOLERANCE, prove_columns
from build.core.reduce import Inputs, ReductionError, reduce
from build.core.reduce.columns import columns
from build.core.reduce.file import save
from tests.nightly import served
from tests.unit.reduce.graphs import FLOAT, Graph, _session

N, WIDTH = 11, 6
Body = Callable[[Graph, str], str]


def product(g: Graph, x: str) -> str:
    return g.op("Add", g.op("MatMul", x, g.weight(WIDTH, N)), g.weight(N))


def tied(g: Graph, x: str) -> str:
    table = g.weight(N, WIDTH)
    return g.op("MatMul", g.op("Add", x, g.op("Gather", table, [3])), g.op("Transpose", table))


def gemm(turned: int, **more: float) -> Body:
    shape = (N, WIDTH) if turned else (WIDTH, N)
    return lambda g, x: g.op("Gemm", x, g.weight(*shape), g.weight(N), transB=turned, **more)


def half(g: Graph, x: str) -> str:
    matrix = g.rng.normal(size=(WIDTH, N)).astype(np.float16)
    return g.op("Cast", g.op("MatMul", g.op("Cast", x, to=10), matrix), to=FLOAT)


def moved(g: Graph, x: str) -> str:
    """The matrix on the left, and axes about."""
    made = g.op("MatMul", g.weight(N, WIDTH), g.op("Transpose", x, perm=[1, 0]))
    wide = g.op("Unsqueeze", g.op("Transpose", made, perm=[1, 0]), [1])
    return g.op("Squeeze", g.op("Mul", wide, g.weight(1, 1, N)), [1])


def shifted(g: Graph, x: str) -> str:
    own = g.op("ReduceSum", x, [1], keepdims=1)
    low = g.op("Clip", product(g, x), np.array(-1, np.float32), np.array(1, np.float32))
    return g.op("Where", g.op("Greater", g.weight(N), np.array(0, np.float32)), g.op("Mul", low, own), g.op("Neg", low))


SUNK: dict[str, Body] = {
    "product": product,
    "temperature": lambda g, x: g.op("Div", product(g, x), np.array(0.7, np.float32)),
    "sigmoid": lambda g, x: g.op("Sigmoid", product(g, x)),
    "tied": tied,
    "gemm": gemm(0),
    "gemm, turned": gemm(1, alpha=0.5, beta=2.0),
    "half": half,
    "moved": moved,
    "shifted": shifted,
}
RESTS: dict[str, tuple[Body, str]] = {
    "softmax": (lambda g, x: g.op("Softmax", product(g, x)), "works along the columns"),
    "log-softmax": (lambda g, x: g.op("Neg", g.op("LogSoftmax", product(g, x))), "works along the columns"),
    "computed": (lambda g, x: g.op("MatMul", x, g.op("Tanh", g.input("w", WIDTH, N))), "is computed"),
    "heads": (lambda g, x: g.op("Reshape", g.op("Reshape", g.op("MatMul", x, g.weight(WIDTH, 12)), [0, 3, 4]), [0, 12]),
              "makes columns of"),
}  # fmt: skip


def made(body: Body, opset: int = 18) -> ir.Model:
    g = Graph(opset)
    return g.model(g.op("Identity", body(g, g.input("x", "batch", WIDTH))))


def answers(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = _session(ir.to_proto(model))
    return session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})[0]


def compare(model: ir.Model, allowed: float = 1e-5) -> tuple[str, ...]:
    output = str(model.graph.outputs[0].name)
    taken = columns(model, output)
    rng = np.random.default_rng(0)
    for batch, count in ((1, 1), (3, 4), (2, 30), (11, 11)):
        feeds = {"x": rng.normal(size=(batch, WIDTH)), "w": rng.normal(size=(WIDTH, N))}
        feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
        every = answers(model, feeds)
        ids = rng.integers(0, every.shape[1], (batch, count)).astype(np.int32)
        ids[0, 0], ids[-1, -1] = 0, every.shape[1] - 1
        wanted = np.take_along_axis(every, ids, 1)
        np.testing.assert_allclose(answers(taken.model, {**feeds, "columns": ids}), wanted, rtol=allowed, atol=allowed)
        few = columns(model, output, fixed=ids[0].tolist())
        assert few.rests == taken.rests
        np.testing.assert_allclose(answers(few.model, feeds), every[:, ids[0]], rtol=allowed, atol=allowed)
    return taken.rests


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("case", SUNK)
def test_columns_are_taken_in_front_of_the_product(case, opset):
    assert compare(made(SUNK[case], opset), 2e-2 if case == "half" else 1e-5) == ()


@pytest.mark.parametrize("case", RESTS)
def test_what_mixes_columns_is_computed_whole_and_told(case):
    body, reason = RESTS[case]
    (rest,) = compare(made(body))
    assert reason in rest


def test_a_tied_head_keeps_one_table():
    model = made(tied)
    taken = columns(model, str(model.graph.outputs[0].name)).model
    table = [value.shape for value in taken.graph.initializers.values()]
    assert sum(shape == ir.Shape([N, WIDTH]) for shape in table) == 1
    assert ir.Shape([WIDTH, N]) not in table


@pytest.mark.parametrize(
    ("body", "how", "told"),
    [
        (product, {"output": "z"}, "no output 'z'"),
        (product, {"name": "x"}, "already"),
        (product, {"fixed": [N]}, "0 to 10"),
        (lambda g, x: g.op("ReduceSum", x, [1], keepdims=0), {}, r"\[batch, N\]"),
    ],
)
def test_what_is_not_allowed_is_refused(body, how, told):
    model = made(body)
    with pytest.raises(ReductionError, match=told):
        columns(model, **{"output": str(model.graph.outputs[0].name), **how})


@pytest.fixture
def files(tmp_path):
    """The proof of a model and of what is made of its columns, from a fault on."""

    def proven(
        model: ir.Model, fault: Callable[[ir.Model], None] = lambda _: None, allowed: float = TOLERANCE
    ) -> float:
        output = str(model.graph.outputs[0].name)
        taken = columns(model, output).model
        fault(taken)
        save(model, tmp_path / "row.onnx")
        save(taken, tmp_path / "columns.onnx")
        inputs = Inputs.find(model, output, 1, 40, own=True)
        return prove_columns(tmp_path / "row.onnx", tmp_path / "columns.onnx", inputs, output, allowed=allowed)

    return proven


def served_row(make: type[torch.nn.Module]) -> ir.Model:
    torch.manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            *(make().eval(), (torch.randint(1, 100, (2, 7)),)), dynamo=True, dynamic_shapes=({0: "batch", 1: "time"},),
            verbose=False, input_names=["ids"], output_names=["y"], opset_version=18,
        )  # fmt: skip
    assert program is not None
    return reduce(program.model, window=40).model


class Traced(torch.nn.Module):
    """An LSTM and a head with a bias, at a temperature; a probability each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(101, 8)
        self.lstm, self.head = torch.nn.LSTM(8, 8, batch_first=True), torch.nn.Linear(8, 101)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.lstm(self.rows(ids))[0]) / 0.5)


def test_a_traced_learner_is_proven(files):
    row = served_row(Traced)
    assert columns(row, "y").rests == ()
    assert files(row) <= TOLERANCE


def test_what_another_output_needs_whole_is_not_computed_again():
    g = Graph(18)
    z = product(g, g.input("x", "batch", WIDTH))
    y = g.op("Sigmoid", z)
    taken = columns(g.model(y, z), y)
    assert "needed elsewhere" in taken.rests[0]
    assert [node.op_type for node in taken.model.graph].count("MatMul") == 1


def test_a_softmax_written_out_computes_its_product_once():
    g = Graph(18)
    z = product(g, g.input("x", "batch", WIDTH))
    model = g.model(g.op("Div", g.op("Exp", z), g.op("ReduceSum", g.op("Exp", z), [1], keepdims=1)))
    assert len(compare(model)) == 1
    taken = columns(model, str(model.graph.outputs[0].name)).model
    assert [node.op_type for node in taken.graph].count("MatMul") == 1


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_a_served_model_reads_its_own_table_and_is_proven(name, files, monkeypatch):
    monkeypatch.setattr(served, "ITEMS", 100)
    row = served_row(served.MODELS[name][0])
    taken = columns(row, "y")
    assert taken.rests == ()
    assert sum(v.shape == ir.Shape([101, 64]) for v in taken.model.graph.initializers.values()) == 1
    assert files(row) <= TOLERANCE


def gathers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.inputs[-1] is model.graph.inputs[-1]]


def neighbour(model: ir.Model) -> None:
    """Of the matrix the next column."""
    table = gathers(model)[0].inputs[0]
    table.const_value = ir.tensor(np.roll(table.const_value.numpy(), 1, 0), name=table.name)


def without_bias(model: ir.Model) -> None:
    table = next(node.inputs[0] for node in gathers(model) if len(node.inputs[0].const_value.shape) == 1)
    table.const_value = ir.tensor(
        np.full_like(table.const_value.numpy(), table.const_value.numpy()[0]), name=table.name
    )


def another_history(model: ir.Model) -> None:
    """The ids of the neighbour in the batch."""
    graph, ids = model.graph, model.graph.inputs[-1]
    axis, back = (ir.Value(name=n, const_value=ir.tensor([k], name=n)) for n, k in (("zero", 0), ("back", -1)))
    end = ir.Value(name="end", const_value=ir.tensor([-(1 << 30)], name="end"))
    for value in (axis, back, end):
        graph.register_initializer(value)
    node = ir.node("Slice", [ids, back, end, axis, back])
    node.outputs[0].name = "turned"
    for reader, number in list(ids.uses()):
        if reader is not node:
            reader.replace_input_with(number, node.outputs[0])
    graph.insert_before(graph[0], node)


@pytest.fixture
def head() -> ir.Model:
    """A row that is looked up and summed, and a head with a bias."""
    g = Graph(18)
    x = g.op(
        "ReduceSum",
        g.op("Gather", g.weight(9, WIDTH), g.input("ids", "batch", "time", dtype=np.int64)),
        [1],
        keepdims=0,
    )
    return g.model(product(g, x))


def test_the_proof_takes_what_is_right(files, head):
    assert files(head) <= TOLERANCE
    assert files(head, allowed=HALF_TOLERANCE) <= TOLERANCE


@pytest.mark.parametrize("fault", [neighbour, without_bias, another_history])
def test_the_proof_sees_a_wrong_column(fault, files, head):
    with pytest.raises(ReductionError, match="columns part"):
        files(head, fault)
