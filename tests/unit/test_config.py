import ast
import sys

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from build import ROOT
from build.repository import assembly as repository
from build.repository import config, manifest
from ensemble.contract import Contract
from ensemble.spec import Spec
from ensemble.tables import PYTHON_STEPS

COPIES = tuple(f"/{name}" for name in (*repository.COPIED, repository.FIRST, repository.LAST))


def test_tracked_repository_is_what_the_spec_says(spec):
    files = repository.derived(spec)
    for name, content in {**files, manifest.NAME: manifest.of(files)}.items():
        if name.endswith(COPIES):  # untracked; the manifest says of what
            continue
        assert (ROOT / "models" / name).read_bytes() == content, f"models/{name} differs from the spec: run `make repo`"


@pytest.mark.parametrize("where", ["core", "postprocess"])
def test_every_step_gets_what_another_gives(spec, where):
    spec = spec.model_copy(update={"reduce": spec.reduce.model_copy(update={"where": where})})
    configs = config.repository(spec)
    ensemble = configs[spec.model.name]
    there = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        for tensor in configs[step.model_name].input:
            assert there[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        for tensor in configs[step.model_name].output:
            there[step.output_map[tensor.name]] = (tensor.data_type, list(tensor.dims))
    for tensor in ensemble.output:
        assert there[tensor.name] == (tensor.data_type, list(tensor.dims))


def test_text_reads_back_as_the_same_message(spec):
    for message in config.repository(spec).values():
        assert text_format.Parse(config.to_text(message), ModelConfig()) == message


def test_the_ensemble_has_none_of_what_triton_ignores_there(spec):
    ensemble = config.repository(spec)[spec.model.name]
    assert not ensemble.instance_group
    assert not ensemble.model_warmup
    assert not any(tensor.allow_ragged_batch for tensor in ensemble.input)


def test_the_queue_delay_is_the_cores_alone(spec):
    core = spec.steps.core.model_copy(update={"queue_delay_us": 700, "instances": 2, "device": "gpu"})
    spec = spec.model_copy(update={"steps": spec.steps.model_copy(update={"core": core})})
    configs = config.repository(spec)
    assert configs["core"].dynamic_batching.max_queue_delay_microseconds == 700
    assert configs["core"].instance_group[0].count == 2
    assert configs["core"].instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    for step in PYTHON_STEPS:
        assert configs[step].dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize("where", ["core", "postprocess"])
def test_no_learners_are_no_number_of_columns(spec, where):
    # The first axis that Triton's Python backend sees is what it takes for learners, batch axis or not.
    spec = spec.model_copy(update={"reduce": spec.reduce.model_copy(update={"where": where})})
    for name in PYTHON_STEPS:
        for tensor in config.repository(spec)[name].input:
            assert list(tensor.reshape.shape) == [1, *tensor.dims], (name, tensor.name)


@pytest.mark.parametrize("step", PYTHON_STEPS)
def test_steps_import_what_a_stock_container_has(step):
    tree = ast.parse((ROOT / "models" / step / "1" / "model.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {
        *sys.stdlib_module_names,
        "numpy",
        "triton_python_backend_utils",
        "contract",
        "function",
        "chain",
    }


def test_buckets_leave_the_cores_width_open_and_warm_every_one(spec):
    model = spec.model.model_copy(update={"buckets": (64, 512)})
    configs = config.repository(spec.model_copy(update={"model": model}))
    assert Contract.loads(configs["preprocess"].parameters["contract"].string_value).widths == (64, 512)
    for tensors in (configs["preprocess"].output[:2], configs["core"].input[:2]):
        assert [list(tensor.dims) for tensor in tensors] == [[-1], [-1]]
    warmed = [list(s.inputs["recent_problem_ids"].dims) for s in configs["core"].model_warmup]
    assert warmed == [[64], [512]]
    assert [s.name for s in configs["postprocess"].model_warmup] == ["window_512"]  # what it gets has one width
    files = config.files(spec.model_copy(update={"model": model}))
    assert files["core/warmup/length_64"] == (64).to_bytes(4, "little")


def on_a_gpu(spec, precision="float32", **core):
    table = spec.model_dump()
    table["steps"]["core"] |= {"device": "gpu", **core}
    table["reduce"]["length_aware"] = False
    table["export"]["precision"] = precision
    return Spec.model_validate(table)


def accelerators(spec):
    core = config.repository(spec)["core"]
    chosen = core.optimization.execution_accelerators.gpu_execution_accelerator
    return [(accelerator.name, dict(accelerator.parameters)) for accelerator in chosen]


def test_a_gpu_is_the_cores_alone(spec):
    configs = config.repository(on_a_gpu(spec))
    assert configs["core"].instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    for step in PYTHON_STEPS:
        assert configs[step].instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    assert accelerators(on_a_gpu(spec)) == [("cuda", {"use_tf32": "0"})]
    assert accelerators(spec) == []
    assert "cuda_graph_batch_sizes" not in configs["core"].parameters


def test_cuda_graphs_are_asked_for_by_a_key_that_the_native_backend_leaves_alone(spec):
    graphs = on_a_gpu(spec, graph_batch_sizes=[1, 2, 4, 8])
    assert config.repository(graphs)["core"].parameters["cuda_graph_batch_sizes"].string_value == "1,2,4,8"
    assert accelerators(graphs) == [("cuda", {"use_tf32": "0"})]


def test_tensorrt_has_one_profile_for_every_width_and_batch(spec):
    table = on_a_gpu(spec, "float16", accelerator="tensorrt", graph_batch_sizes=[1, 8]).model_dump()
    table["model"]["buckets"] = (64, 512)
    (tensorrt, options), (cuda, _) = accelerators(Spec.model_validate(table))
    assert (tensorrt, cuda) == ("tensorrt", "cuda")
    ids, responses = "recent_problem_ids", "recent_responses"
    assert options == {
        "precision_mode": "FP16",
        "trt_cuda_graph_enable": "1",
        "trt_profile_min_shapes": f"{ids}:1x64,{responses}:1x64,lengths:1",
        "trt_profile_opt_shapes": f"{ids}:8x512,{responses}:8x512,lengths:8",
        "trt_profile_max_shapes": f"{ids}:32x512,{responses}:32x512,lengths:32",
    }
