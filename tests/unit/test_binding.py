"""The substitute backend's buffers: bound once, padded, captured; on the CPU, where all but the graphs is the same."""

from __future__ import annotations

import itertools
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from build.bench.ladder.device import as_triton_says
from build.core.export import export
from build.core.recipe import cut
from build.core.reduce.file import save
from build.server.backends.onnxruntime.lastrow_onnxruntime import binding, settings
from build.server.backends.onnxruntime.lastrow_onnxruntime.errors import ConfigError
from ensemble.spec import Spec
from tests.conftest import resized, untrained

WIDTHS, SIZES = (8, 32), (1, 2, 4, 8)
Feeds = dict[str, np.ndarray]


def spec_of(spec: Spec, network: str, device: str = "gpu") -> Spec:
    table = resized(spec, network, problems=40, window=32, buckets=WIDTHS).model_dump()
    table["reduce"]["length_aware"] = False
    table["steps"]["core"] |= {"device": device, "graph_batch_sizes": SIZES if device == "gpu" else ()}
    return Spec.model_validate(table)


class Binding:
    """A binding of `Gpu`'s: what a node wants on the CPU is copied when it is bound, as ONNX Runtime does."""

    def __init__(self, session: ort.InferenceSession, on_cpu: Set[str]) -> None:
        self.real, self.on_cpu = session.io_binding(), on_cpu
        self.bind_output, self.bind_ortvalue_output = self.real.bind_output, self.real.bind_ortvalue_output
        self.get_outputs = self.real.get_outputs
        self.copies: dict[str, ort.OrtValue] = {}

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        if name in self.on_cpu:
            value = self.copies[name] = ort.OrtValue.ortvalue_from_numpy(value.numpy().copy())
        self.real.bind_ortvalue_input(name, value)


class Gpu:
    """A session that does on the CPU what one on a GPU does: with bindings as above, and graphs.

    A graph is what was bound in the first run under its number, whatever is bound in a later one.
    """

    def __init__(self, session: ort.InferenceSession, on_cpu: Set[str] = frozenset()) -> None:
        self.session, self.on_cpu = session, on_cpu
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.graphs: dict[str, Binding] = {}

    def io_binding(self) -> Binding:
        return Binding(self.session, self.on_cpu)

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        if graph != "-1":
            binding = self.graphs.setdefault(graph, binding)
        self.session.run_with_iobinding(binding.real)


@pytest.fixture(scope="module", params=["dkt", "transformer"])
def core(request, spec, tmp_path_factory) -> tuple[Spec, Path]:
    made = spec_of(spec, request.param)
    path = tmp_path_factory.mktemp("core") / "core.onnx"
    save(cut(export(untrained(made), made).model, made).model, path)
    return made, path


@pytest.fixture
def session(core) -> ort.InferenceSession:
    return ort.InferenceSession(str(core[1]), providers=["CPUExecutionProvider"])


def learners(count: int, width: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng([seed, count, width])
    return {
        "recent_problem_ids": rng.integers(0, 40, (count, width), dtype=np.int32),
        "recent_responses": rng.integers(0, 2, (count, width), dtype=np.int32),
        "lengths": rng.integers(0, width + 1, count, dtype=np.int32),
    }


def no_warning(message: str) -> None:
    raise AssertionError(message)


def binder_of(core: tuple[Spec, Path], session: ort.InferenceSession) -> Any:
    return binding.capture_all(as_triton_says(core[0]), session, "cpu", 0, no_warning)


def test_a_graph_is_made_for_every_size_and_every_width(core, session):
    binder = binder_of(core, session)
    shapes = {(size, dict(key)["recent_problem_ids"]) for size, key in binder.captured}
    assert shapes == set(itertools.product(SIZES, [(width,) for width in WIDTHS]))
    graphs = [bound.options.get_run_config_entry("gpu_graph_id") for bound in binder.captured.values()]
    assert sorted(graphs, key=int) == [str(n + 1) for n in range(len(graphs))]
    assert all(bound.plain.get_run_config_entry("gpu_graph_id") == "-1" for bound in binder.captured.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 20])
@pytest.mark.parametrize("width", [*WIDTHS, 16])
def test_bound_and_padded_answers_are_the_same(core, session, count, width):
    binder = binder_of(core, session)
    feeds = learners(count, width)
    (bound,) = binder.run(feeds, ["logits"])
    (plain,) = session.run(["logits"], feeds)
    assert bound.shape == (count, 40)
    np.testing.assert_allclose(bound, plain, atol=1e-5)
    padded = next((size for size in SIZES if size >= count), count) if width in WIDTHS else count
    assert len(binder.bound(feeds).staged["lengths"]) == padded


def test_buffers_stay_where_they_are(core, session):
    binder = binder_of(core, session)
    addresses = set()
    for seed, count in enumerate((3, 4, 3, 4)):
        feeds = learners(count, 32, seed)
        bound = binder.bound(feeds)
        np.testing.assert_allclose(binder.run(feeds, ["logits"])[0], session.run(None, feeds)[0], atol=1e-5)
        values = [*bound.inputs.values(), *bound.outputs.values(), *bound.graph_binding.get_outputs()]
        addresses.add(tuple(value.data_ptr() for value in values))
    assert len(addresses) == 1
    assert len(binder.others) == 0
    first, again = (binder.bound(learners(20, 32, seed)) for seed in (0, 1))
    assert first is again


@pytest.fixture(scope="module")
def length_aware(spec, tmp_path_factory) -> ort.InferenceSession:
    """A core whose LSTM reads its sequence_lens, the lengths, on the CPU."""
    table = spec_of(spec, "dkt", "cpu").model_dump()
    table["reduce"]["length_aware"] = True
    made = Spec.model_validate(table)
    path = tmp_path_factory.mktemp("length-aware") / "core.onnx"
    save(cut(export(untrained(made), made).model, made).model, path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_what_a_node_wants_on_the_cpu_is_todays(length_aware):
    binder = binding.Binder(Gpu(length_aware, {"lengths"}), "cpu")
    for seed in range(4):
        feeds = learners(3, 32, seed)
        (expected,) = length_aware.run(["logits"], feeds)
        np.testing.assert_allclose(binder.run(feeds, ["logits"])[0], expected, atol=1e-6)


def test_no_graph_is_kept_of_what_a_node_wants_on_the_cpu(core, length_aware):
    said: list[str] = []
    session = Gpu(length_aware, {"lengths"})
    binder = binding.capture_all(as_triton_says(core[0]), session, "cpu", 0, said.append)
    assert not binder.captured
    assert len(said) == len(WIDTHS)
    assert all("batch of 1: replayed, it answers otherwise than computed anew" in line for line in said)
    feeds = learners(2, 32)
    np.testing.assert_allclose(binder.run(feeds, ["logits"])[0], length_aware.run(None, feeds)[0], atol=1e-6)


def test_a_graph_reads_what_is_in_its_buffers(core, session):
    gpu = Gpu(session)
    binder = binding.capture_all(as_triton_says(core[0]), gpu, "cpu", 0, no_warning)
    assert len(gpu.graphs) == len(binder.captured) == len(SIZES) * len(WIDTHS)
    for seed, (count, width) in enumerate(itertools.product((1, 3, 4), WIDTHS)):
        feeds = learners(count, width, seed)
        np.testing.assert_allclose(binder.run(feeds, ["logits"])[0], session.run(None, feeds)[0], atol=1e-5)
    assert len(binder.others) == 0


def test_a_refused_graph_keeps_its_number(tmp_path):
    # Behind its fourth column the model adds noise: of 5 columns a graph is refused, of 3 it is captured.
    edges = {"starts": [4], "ends": [99], "axes": [1]}
    nodes = [
        helper.make_node("Slice", ["x", *edges], ["tail"]),
        helper.make_node("RandomUniformLike", ["tail"], ["random"], dtype=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["random", "axes"], ["noise"]),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "time"]) for name in ("x", "y")]
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in edges.items()]
    graph = helper.make_graph(nodes, "tail", tensors[:1], tensors[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    said: list[str] = []
    binder = binding.capture_all(
        {
            "name": "tail",
            "max_batch_size": 8,
            "parameters": {"cuda_graph_batch_sizes": {"string_value": "1,2"}},
            "input": [{"name": "x"}],
            "model_warmup": [{"inputs": {"x": {"dims": [width]}}} for width in (5, 3)],
        },
        Gpu(session),
        "cpu",
        0,
        said.append,
    )
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [" no CUDA graph for x [5]"]
    assert list(binder.captured) == [(size, (("x", (3,)),)) for size in (1, 2)]
    for value in (2, 7):
        x = np.full((2, 3), value, np.float32)
        np.testing.assert_array_equal(binder.run({"x": x}, ["y"])[0], x)


def test_every_batch_of_every_width_keeps_its_buffers(spec, length_aware):
    made = spec_of(spec, "dkt", "cpu")
    widths = (4, 8, 16, 32)
    made = made.model_copy(update={"model": made.model.model_copy(update={"buckets": widths})})
    binder = binding.capture_all(as_triton_says(made), length_aware, "cpu", 0, no_warning)
    batches = range(1, made.batching.max_batch_size + 1)
    first = [binder.bound(learners(count, width)) for width in widths for count in batches]
    assert len(first) == 128
    assert [binder.bound(learners(count, width)) for width in widths for count in batches] == first


def test_an_answer_is_the_callers_own(core, session):
    binder = binder_of(core, session)
    (first,) = binder.run(learners(3, 32, 0), ["logits"])
    kept = first.copy()
    binder.run(learners(4, 32, 1), ["logits"])
    np.testing.assert_array_equal(first, kept)


def test_no_row_of_another_batch_is_left(core, session):
    binder = binder_of(core, session)
    full, one = learners(4, 32, 0), learners(3, 32, 1)
    binder.run(full, ["logits"])
    bound = binder.bound(one)
    binder.run(one, ["logits"])
    for name, staged in bound.staged.items():
        held = bound.inputs[name].numpy()
        np.testing.assert_array_equal(held, staged)
        np.testing.assert_array_equal(held[:3], one[name])
        np.testing.assert_array_equal(held[3], one[name][0])
    after = bound.outputs["logits"].numpy()
    np.testing.assert_allclose(after[3], after[0], atol=1e-6)


def test_shapes_without_a_graph_are_not_kept_forever(core, session):
    binder = binding.Binder(session, "cpu", kept=3)
    for width in (3, 4, 5, 3, 6):
        binder.run(learners(1, width), ["logits"])
    assert [dict(key)["recent_problem_ids"] for _, key in binder.others] == [(5,), (3,), (6,)]


def test_a_model_that_a_graph_would_not_repeat_goes_without(tmp_path):
    # Its answer changes from run to run, as a length that was captured does against one that is read.
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["noise"], dtype=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "noisy", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    said: list[str] = []
    binder = binding.capture_all(
        {
            "name": "noisy",
            "max_batch_size": 8,
            "parameters": {"cuda_graph_batch_sizes": {"string_value": "1,2"}},
            "input": [{"name": "x"}],
            "model_warmup": [{"inputs": {"x": {"dims": [5]}}}],
        },
        session,
        "cpu",
        0,
        said.append,
    )
    assert not binder.captured
    assert said == [
        "model 'noisy': no CUDA graph for x [5]: batch of 1: replayed, it answers otherwise than computed anew. Such "
        "batches are computed without"
    ]
    (answer,) = binder.run({"x": np.ones((1, 5), np.float32)}, ["y"])
    assert ((answer >= 1) & (answer <= 2)).all()


def test_what_cannot_be_captured_is_told(core, session):
    said: list[str] = []
    wrong = as_triton_says(core[0])
    for sample in wrong["model_warmup"]:
        sample["inputs"]["recent_responses"]["dims"] = [3]
    binder = binding.capture_all(wrong, session, "cpu", 0, said.append)
    assert not binder.captured
    assert len(said) == len(WIDTHS)
    assert all("no CUDA graph for" in line and "batch of 1: " in line for line in said)


@pytest.mark.parametrize("given", ["0,1", "2,1", "1,1", "one", "1,64", "1,"])
def test_wrong_sizes_are_named(given):
    wrong = {"max_batch_size": 32, "parameters": {"cuda_graph_batch_sizes": {"string_value": given}}}
    with pytest.raises(ConfigError, match=r"rising numbers from 1 to max_batch_size, 32"):
        settings.graph_batch_sizes(wrong)


def test_what_is_not_bound(core, session):
    binder = binding.Binder(session, "cpu")
    feeds = learners(2, 8)
    assert binder.takes(feeds)
    assert not binder.takes({name: feeds[name] for name in ("recent_problem_ids", "lengths")})
    assert not binder.takes({**feeds, "lengths": feeds["lengths"].astype(np.int64)})
    assert not binder.takes({name: value[:0] for name, value in feeds.items()})


def test_graphs_are_the_first_providers_matter(core):
    made = as_triton_says(core[0])
    names = settings.providers(made, "GPU", 1, graphs=True)
    assert names[0] == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"})
    assert "enable_cuda_graph" not in settings.providers(made, "GPU", 1)[0][1]
    table = core[0].model_dump()
    table["steps"]["core"]["accelerator"] = "tensorrt"
    (tensorrt, options), (_, cuda), _ = settings.providers(
        as_triton_says(Spec.model_validate(table)), "GPU", 0, graphs=True
    )
    assert tensorrt == "TensorrtExecutionProvider"
    assert options["trt_cuda_graph_enable"] == "1"
    assert "enable_cuda_graph" not in cuda
    assert settings.unknown_keys(made) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("accelerator", "provider", "libraries"),
    [("cuda", "CUDAExecutionProvider", "CUDA"), ("tensorrt", "TensorrtExecutionProvider", "TensorRT")],
)
def test_a_gpu_that_is_not_there_is_named(core, accelerator, provider, libraries):
    table = core[0].model_dump()
    table["steps"]["core"]["accelerator"] = accelerator
    made = as_triton_says(Spec.model_validate(table))
    with pytest.raises(ConfigError) as raised:
        settings.open_session(made, core[1], "GPU", 0, graphs=True)
    for part in ("KIND_GPU on device 0", provider, f"{libraries} libraries installed? Otherwise use KIND_CPU"):
        assert part in str(raised.value)
