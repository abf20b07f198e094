"""Lower precision: what stays in float32, how far the answers part, and what it costs."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
import torch

from build.bench import variant
from build.core import parity
from build.core.accuracy import cost
from build.core.export import export
from build.core.parity import probabilities, windows
from build.core.precision import FLOAT32, HALF, PrecisionError, halve, lower, quantise
from build.core.recipe import cut
from build.core.reduce.file import open_session, save
from build.model import checkpoint
from build.model.evaluation import trial
from build.model.network import create
from build.model.simulation import simulate
from build.repository import assembly as repository
from build.repository.workspace import NETWORKS as DEFAULTS
from ensemble.errors import SpecError
from ensemble.spec import DEFAULT_SPEC, Spec
from tests.conftest import NETWORKS, SMALL_INT8_TOLERANCE, resized, untrained

FLOAT16_TOLERANCE, FLOAT32_TOLERANCE, INT8_TOLERANCE = 5e-3, 1e-4, 2e-2


def of_default_size(spec: Spec, network: str) -> Spec:
    table = spec.model_dump()
    table["network"] = DEFAULTS[network]["network"]
    table["model"] |= DEFAULTS[network].get("model", {})
    return Spec.model_validate(table)


def on_a_gpu(spec: Spec, whole: bool = False) -> Spec:
    table = spec.model_dump()
    table["steps"]["core"]["device"] = "gpu"
    table["export"]["precision"] = "float16"
    table["reduce"]["length_aware"] = not whole
    return Spec.model_validate(table)


def in_int8(spec: Spec, network: str = "dkt") -> Spec:
    return variant.changed(
        resized(spec, network, problems=40, window=32),
        export__precision="int8",
        reduce__length_aware=False,
        parity__int8_max_abs_difference=SMALL_INT8_TOLERANCE,
    )


@pytest.mark.parametrize("whole", [False, True], ids=["length-aware", "whole window"])
@pytest.mark.parametrize("size", ["small", "default"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_answers_are_those_of_pytorch_in_float64(spec, network, size, whole, tmp_path):
    wanted = of_default_size(spec, network) if size == "default" else resized(spec, network, problems=40, window=32)
    wanted = on_a_gpu(wanted, whole)
    torch.manual_seed(0)
    model = untrained(wanted) if size == "small" else create(wanted).eval()
    full = export(model, wanted).model
    core = cut(full, wanted).model
    save(core, tmp_path / "single.onnx")
    if whole:
        save(lower(core.clone(), "int8"), tmp_path / "eighth.onnx")
    save(lower(core, "float16"), tmp_path / "half.onnx")
    window = wanted.model.window
    ids, responses, lengths = windows((0, 1, 2, window // 2, window), wanted)
    model.double()
    with torch.inference_mode():
        exact = probabilities(model.last(*(torch.from_numpy(x) for x in (ids, responses, lengths))).numpy())
    feeds = {"recent_problem_ids": ids, "recent_responses": responses, "lengths": lengths}
    for name, tolerance in (
        ("single", FLOAT32_TOLERANCE),
        ("half", FLOAT16_TOLERANCE),
        *([("eighth", SMALL_INT8_TOLERANCE if size == "small" else INT8_TOLERANCE)] if whole else []),
    ):
        (logits,) = open_session(tmp_path / f"{name}.onnx").run(["logits"], feeds)
        assert (logits.dtype, logits.shape) == (np.float32, (5, wanted.model.problems))
        assert np.abs(probabilities(logits) - exact).max() < tolerance
    sizes = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    if size == "default":
        assert sizes["half"] < 0.6 * sizes["single"]  # all but a recurrent layer's weights
        if whole:
            assert sizes["eighth"] < 0.8 * sizes["single"]  # all but tables and a GRU's weights


@pytest.mark.parametrize("network", NETWORKS)
def test_float32_stays_where_it_matters(spec, network):
    wanted = on_a_gpu(resized(spec, network, problems=40, window=32))
    core = halve(cut(export(untrained(wanted), wanted).model, wanted).model)
    products = [node for node in core.graph if node.op_type in ("MatMul", "Gemm")]
    assert products
    assert all(value.dtype == HALF for node in products for value in node.inputs)
    for node in core.graph:
        if node.op_type in FLOAT32:
            assert not any(value.dtype == HALF for value in [*node.inputs, *node.outputs] if value is not None)
    assert [value.dtype for value in core.graph.outputs] == [ir.DataType.FLOAT]
    names = [value.name for node in core.graph for value in node.outputs if value.name]
    assert len(names) == len(set(names))


def test_numbers_beyond_the_range_end_with_it():
    big = ir.Value(name="big", const_value=ir.tensor(np.array([1e9, -1e9, -np.inf, 0.5], np.float32), name="big"))
    big.type = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Add", [x, big])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[big], opset_imports={"": 18}, name="g")
    halved = halve(ir.Model(graph, ir_version=8))
    (weight,) = halved.graph.initializers.values()
    np.testing.assert_array_equal(weight.const_value.numpy(), np.array([65504, -65504, -np.inf, 0.5], np.float16))
    assert [node.op_type for node in halved.graph] == ["Cast", "Add", "Cast"]
    assert halved.graph.outputs[0].name == "y"


def test_a_tensor_of_unknown_type_is_named():
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("Foo", [x], domain="own")
    first.outputs[0].name = "z"
    last = ir.node("Neg", [first.outputs[0]])
    last.outputs[0].name, last.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], last.outputs, nodes=[first, last], opset_imports={"": 18, "own": 1}, name="g")
    with pytest.raises(PrecisionError, match=r"what Foo z answers is not known; set export.precision = .float32"):
        halve(ir.Model(graph, ir_version=8))


def test_the_gate_holds_a_half_core_to_its_own_tolerance(spec, tmp_path):
    wanted = on_a_gpu(resized(spec, problems=40, window=32))
    checkpoint.save(untrained(wanted), tmp_path / "model.pt")
    built = repository.build(wanted, tmp_path / "model.pt", tmp_path / "models")
    assert wanted.parity.max_abs_difference < built.parity < wanted.parity.float16_max_abs_difference
    strict = wanted.model_copy(update={"parity": wanted.parity.model_copy(update={"float16_max_abs_difference": 1e-5})})
    with pytest.raises(parity.ParityError, match=r"ONNX core .*allowed is 1e-05 \(parity.float16_max_abs_difference\)"):
        repository.build(strict, tmp_path / "model.pt", tmp_path / "strict")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"precision = ": "float16"}, 'steps.core.device = "gpu" and reduce.where = "core", or precision = "float32"'),
        ({"precision = ": "int8"}, 'reduce.length_aware = false, or export.precision = "float32"'),
        (
            {"precision = ": "int8", "length_aware = ": "false", "device = ": "gpu"},
            'steps.core.device = "cpu" and reduce.where = "core", or precision = "float32"',
        ),
        (
            {"precision = ": "int8", "length_aware = ": "false", "where = ": "postprocess"},
            'steps.core.device = "cpu" and reduce.where = "core", or precision = "float32"',
        ),
    ],
)
def test_a_precision_belongs_to_a_device_and_to_a_core_of_one_row(changes, remedy, tmp_path):
    text = DEFAULT_SPEC.read_text(encoding="utf-8")
    for key, value in changes.items():
        written = value if value == "false" else f'"{value}"'
        text = re.sub(f'^{key}"?[a-z0-9]+"?', key + written, text, flags=re.MULTILINE)
    (tmp_path / "spec.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=re.escape(f"set {remedy}")):
        Spec.read(tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("network", "kept", "quantised"),
    [
        ("dkt", set(), {"DynamicQuantizeLSTM", "MatMulInteger"}),
        ("gru", {"GRU"}, {"MatMulInteger"}),
        ("transformer", {"Softmax", "LayerNormalization"}, {"MatMulInteger"}),
    ],
)
def test_int8_is_for_lstms_and_for_products_with_weights(spec, network, kept, quantised):
    wanted = in_int8(spec, network)
    core = cut(export(untrained(wanted), wanted).model, wanted).model
    core.metadata_props["own"] = "kept"
    names = [value.name for value in [*core.graph.inputs, *core.graph.outputs]]
    made = quantise(core)
    operators = {node.op_type for node in made.graph}
    assert kept | quantised <= operators
    assert not operators & {"LSTM", "Gemm"}
    assert [value.name for value in [*made.graph.inputs, *made.graph.outputs]] == names
    assert dict(made.metadata_props) == {"own": "kept"}
    weights = [v.const_value.numpy() for v in made.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    # Two of the largest products, summed in 16 bits as AVX2 does, may not overflow them, whatever this machine has.
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) * 255 * 2 <= np.iinfo(np.int16).max


def test_an_int8_core_remembers_nothing(spec, tmp_path):
    """What a run leaves in memory, long and short histories side by side, is no part of the next answer."""
    wanted = in_int8(spec)
    core = cut(export(untrained(wanted), wanted).model, wanted).model
    save(quantise(core), tmp_path / "eighth.onnx")
    names = [value.name for value in core.graph.inputs]
    rng = np.random.default_rng(0)
    batches = [
        dict(zip(names, windows(rng.integers(0, 33, n), wanted, seed), strict=True))
        for seed, n in enumerate((5, 1, 8, 3))
    ]
    fresh = [open_session(tmp_path / "eighth.onnx").run(None, batch)[0] for batch in batches]
    session = open_session(tmp_path / "eighth.onnx")
    for _ in range(3):
        for batch, answer in zip(batches, fresh, strict=True):
            np.testing.assert_array_equal(session.run(None, batch)[0], answer)


def test_a_core_without_products_is_not_called_quantised():
    x = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Neg", [x])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="g")
    with pytest.raises(PrecisionError, match=r"no LSTM, MatMul or Gemm with weights .*export.precision = .float32"):
        quantise(ir.Model(graph, ir_version=8))


def test_the_gate_holds_an_int8_core_to_its_own_tolerance(spec, tmp_path, capfd):
    wanted = in_int8(spec)
    checkpoint.save(untrained(wanted), tmp_path / "model.pt")
    built = repository.build(wanted, tmp_path / "model.pt", tmp_path / "models")
    assert wanted.parity.max_abs_difference < built.parity < wanted.parity.int8_max_abs_difference
    assert "pre-processing" not in capfd.readouterr().err
    strict = variant.changed(wanted, parity__int8_max_abs_difference=1e-6)
    with pytest.raises(parity.ParityError, match=r"ONNX core .*allowed is 1e-06 \(parity.int8_max_abs_difference\)"):
        repository.build(strict, tmp_path / "model.pt", tmp_path / "strict")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_lower_precision_costs_next_to_no_auc(spec, network, tmp_path):
    small = resized(spec, network, problems=140, window=64)
    from build.model.training import split, train

    training, test = split([simulate(140, 300)])
    model, _ = train(training, test, small, budget_s=5.0)
    checkpoint.save(model, tmp_path / "model.pt")
    found = cost(small, tmp_path / "model.pt", trial(test, 500, small))
    assert found["float32"].worth["AUC"] > 0.55  # it has learned something that could be lost
    for precision, tolerance in (("float16", FLOAT16_TOLERANCE), ("int8", INT8_TOLERANCE)):
        assert abs(found[precision].worth["AUC"] - found["float32"].worth["AUC"]) < 2e-3
        assert 0 < found[precision].largest_difference < tolerance
