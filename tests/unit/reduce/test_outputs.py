"""Several outputs of one model: each cut, by one index, and each held against the full model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from build.__main__ import app
from build.core.reduce import ReductionError, Select, reduce
from build.core.reduce.file import open_session
from build.core.reduction import reduce_file
from tests.unit.reduce.graphs import SELECTS, TIME, Graph, causal, decomposed, layer
from tests.unit.reduce.mutations import edited
from tests.unit.reduce.test_fuzz import apart


def forecaster() -> ir.Model:
    """A mean and a spread of one LSTM, [batch, time] and [batch, time, 3]."""
    g = Graph()
    h = layer(g, "LSTM", g.sequence(2), 2, 4)
    mean = g.op("Squeeze", g.op("MatMul", h, g.weight(4, 1)), [2])
    return g.model(mean, g.op("Softplus", g.op("MatMul", h, g.weight(4, 3))))


def rows() -> ir.Model:
    """Rows that know nothing of each other."""
    g = Graph()
    x = g.sequence(2)
    return g.model(g.op("MatMul", x, g.weight(2, 3)), g.op("Mul", x, g.weight(2)))


def chained() -> ir.Model:
    """The second is made of the first."""
    g = Graph()
    first = g.op("MatMul", decomposed(g, g.sequence(4), 2, 2, "where"), g.weight(4, 3))
    return g.model(first, g.op("Sigmoid", first))


def equal() -> ir.Model:
    """Two outputs of one expression: a pass that shares it may leave one name."""
    g = Graph()
    x = g.sequence(2)
    return g.model(g.op("Sin", x), g.op("Sin", x))


def renamed() -> ir.Model:
    """One is the other, by another name."""
    g = Graph()
    made = g.op("Sin", g.sequence(2))
    return g.model(g.op("Identity", made), made)


def parts() -> ir.Model:
    """Both of one operator."""
    g = Graph()
    made = g.op("MatMul", g.sequence(2), g.weight(2, 6))
    return g.model(*g.ops("Split", 2, made, axis=2, num_outputs=2))


def moved() -> ir.Model:
    """Each asks another row of the same states: the second the one before."""
    g = Graph()
    h = layer(g, "GRU", g.sequence(2), 2, 4)
    first = g.op("Expand", g.weight(1, 1, 4), g.op("Concat", g.size("x", 0), [1, 4], axis=0))
    before = g.op("Slice", g.op("Concat", first, h, axis=1), [0], [-1], [1])
    return g.model(h, before)


def scores() -> ir.Model:
    """The attention and its weights: [batch, time, 4] and [batch, time, time]."""
    g = Graph()
    x = g.sequence(4)
    seen = g.op("Where", causal(g, x), g.op("MatMul", x, g.op("Transpose", x, perm=[0, 2, 1])), np.float32([-1e9]))
    weights = g.op("Softmax", seen, axis=2)
    return g.model(g.op("MatMul", weights, x), weights)


def names(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.outputs]


CASES = [
    *((make, select) for make in (rows, equal, renamed, parts) for select in SELECTS),
    *((make, select) for make in (forecaster, chained, moved) for select in ("last", "row")),
]


@pytest.mark.parametrize(("make", "select"), CASES)
def test_each_output_is_the_full_models_row(make, select: Select, tmp_path: Path):
    full = make()
    ir.save(full, tmp_path / "full.onnx")
    for wanted in (names(full), names(full)[::-1]):
        found, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "cut.onnx", select, output=wanted, window=33)
        cut = onnx.load(tmp_path / "cut.onnx")
        assert [value.name for value in cut.graph.output] == wanted
        assert [value.name for value in cut.graph.input] == ["x", "row" if select == "row" else "lengths"]
        assert len(found.rests) == len(found.worths)
        whole, one = (open_session(tmp_path / f"{name}.onnx", optimised=False) for name in ("full", "cut"))
        x = np.random.default_rng(1).normal(size=(3, 9, whole.get_inputs()[0].shape[2])).astype(np.float32)
        lengths = np.array([9, 1, 4], np.int32)
        index = {"row": lengths - 1} if select == "row" else {"lengths": lengths}
        answers = one.run(wanted, {"x": x, **index})
        for answer, every in zip(answers, whole.run(wanted, {"x": x}), strict=True):
            pick = {"mean": lambda r: r.mean(0), "max": lambda r: r.max(0)}.get(select, lambda r: r[-1])
            assert apart(answer, np.stack([pick(r[:n]) for r, n in zip(every, lengths, strict=True)])) < 1e-5


def test_what_both_need_is_computed_once():
    full = forecaster()
    found = reduce(full, output=names(full), window=TIME)
    assert [node.op_type for node in found.model.graph].count("LSTM") == 1
    assert [len(value.shape) for value in found.model.graph.outputs] == [1, 2]
    assert found.trimmed
    assert not found.model.graph.outputs[1].shape.is_dynamic(1)


def test_the_first_alone_is_the_default():
    full = forecaster()
    assert names(reduce(full).model) == names(full)[:1]


def test_one_that_needs_every_row_keeps_the_other_from_being_trimmed():
    """Its attention weights have time behind the row, and are as many as the columns."""
    full = scores()
    found = reduce(full, output=names(full), select="row", window=TIME)
    assert not found.trimmed
    assert [len(value.shape) for value in found.model.graph.outputs] == [2, 2]


@pytest.mark.parametrize("wrong", [["y"], ["first", "second", "third"], []])
def test_a_name_that_is_not_there_is_refused(wrong: list[str]):
    with pytest.raises(ReductionError, match=r"there is no output .* there are matmul"):
        reduce(rows(), output=wrong)


def test_a_name_given_twice_is_refused():
    full = rows()
    with pytest.raises(ReductionError, match="named twice"):
        reduce(full, output=names(full)[:1] * 2)


def test_one_without_time_is_refused_by_its_name():
    g = Graph()
    x = g.sequence(2)
    full = g.model(g.op("Sin", x), g.op("ReduceMean", x, [1], keepdims=0))
    with pytest.raises(ReductionError, match=f"output '{names(full)[1]}' is"):
        reduce(full, output=names(full))


def test_a_mean_of_which_one_is_of_integers_is_refused():
    g = Graph()
    x = g.sequence(2)
    full = g.model(g.op("Sin", x), g.op("Cast", x, to=onnx.TensorProto.INT32))
    full.graph.outputs[1].dtype = ir.DataType.INT32
    with pytest.raises(ReductionError, match="is of integers"):
        reduce(full, output=names(full), select="mean")


def swap(proto: onnx.ModelProto) -> None:
    """The answers under each other's names."""
    one, other = (value.name for value in proto.graph.output)
    turned = {one: other, other: one}
    for node in proto.graph.node:
        for side in (node.input, node.output):
            side[:] = [turned.get(name, name) for name in side]


def late(proto: onnx.ModelProto) -> None:
    """The second, a thousandth off."""
    name = proto.graph.output[1].name
    maker = next(node for node in proto.graph.node if name in node.output)
    maker.output[:] = ["right"]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.002), "factor"))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [name]))


@pytest.mark.parametrize("fault", [swap, late])
def test_a_fault_of_the_second_output_is_seen(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    g = Graph()
    x = g.sequence(2)
    full = g.model(g.op("MatMul", x, g.weight(2, 3)), g.op("MatMul", x, g.weight(2, 3)))
    ir.save(full, tmp_path / "full.onnx")
    edited(fault)(monkeypatch)
    with pytest.raises(ReductionError, match="parts from the full one by"):
        reduce_file(tmp_path / "full.onnx", tmp_path / "cut.onnx", "last", output=names(full), window=33)
    assert not (tmp_path / "cut.onnx").exists()


def test_an_output_that_never_changes_says_nothing_and_is_named(tmp_path: Path):
    g = Graph()
    x = g.sequence(2)
    silent = g.op("Mul", x, np.zeros(2, np.float32))
    full = g.model(g.op("Sin", x), silent)
    ir.save(full, tmp_path / "full.onnx")
    with pytest.raises(ReductionError, match=f"model's answer {silent} are the same"):
        reduce_file(tmp_path / "full.onnx", tmp_path / "cut.onnx", "last", output=names(full), window=33)


def test_the_command_takes_several(tmp_path: Path):
    full = forecaster()
    ir.save(full, tmp_path / "full.onnx")
    asked = [part for name in names(full) for part in ("--output", name)]
    told = CliRunner().invoke(
        app, ["reduce", str(tmp_path / "full.onnx"), "--out", str(tmp_path / "cut.onnx"), "--window", "33", *asked]
    )
    assert told.exit_code == 0, told.output
    assert [value.name for value in onnx.load(tmp_path / "cut.onnx").graph.output] == names(full)
