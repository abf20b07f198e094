"""The substitute backend's pure part: what it reads from a configuration and what it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from build.server.backends.onnxruntime.lastrow_onnxruntime import settings, tensors
from build.server.backends.onnxruntime.lastrow_onnxruntime.errors import ConfigError

INPUTS = [
    SimpleNamespace(name="ids", type="tensor(int32)", shape=["batch", "time"]),
    SimpleNamespace(name="lengths", type="tensor(int32)", shape=["batch"]),
]
OUTPUTS = [SimpleNamespace(name="logits", type="tensor(float)", shape=["batch", 40])]
CONFIG: dict[str, Any] = {
    "name": "core",
    "max_batch_size": 8,
    "input": [
        {"name": "ids", "data_type": "TYPE_INT32", "dims": ["32"]},
        {"name": "lengths", "data_type": "TYPE_INT32", "dims": ["1"], "reshape": {"shape": []}},
    ],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["40"]}],
}


def changed(**values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **values}


def with_parameters(**values: str) -> dict[str, Any]:
    return changed(parameters={key: {"string_value": value} for key, value in values.items()})


def test_a_matching_configuration_is_accepted():
    tensors.validate(CONFIG, INPUTS, OUTPUTS)


def no_reshape(config):
    del config["input"][1]["reshape"]


def fewer_inputs(config):
    del config["input"][1]


def set_input(**values):
    return lambda config: config["input"][0].update(values)


def set_output(**values):
    return lambda config: config["output"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_reshape, "tensor 'lengths': the model expects 1 dimensions"),
        (fewer_inputs, "configuration expects 1 inputs, model provides 2"),
        (set_input(name="id"), "unexpected inference input 'id'"),
        (set_input(data_type="TYPE_INT64"), "expects datatype TYPE_INT64 for input 'ids', model provides TYPE_INT32"),
        (set_input(dims=["32", "1"]), "tensor 'ids': the model expects 2 dimensions"),
        (set_output(dims=["41"]), "tensor 'logits': the model expects 2 dimensions (shape [-1, 40])"),
        (set_output(dims=["-1"]), "tensor 'logits'"),
        (set_output(name="out"), "unexpected inference output 'out'"),
        (set_output(data_type="TYPE_FP16"), "model provides TYPE_FP32"),
    ],
)
def test_what_the_native_backend_refuses_is_refused(change, message):
    config = changed()
    change(config)
    with pytest.raises(ConfigError) as raised:
        tensors.validate(config, INPUTS, OUTPUTS)
    assert message in str(raised.value)


def test_a_model_of_fixed_batch_cannot_batch():
    fixed = [SimpleNamespace(name="logits", type="tensor(float)", shape=[1, 40])]
    with pytest.raises(ConfigError, match="first dimension must be -1"):
        tensors.validate(CONFIG, INPUTS, fixed)


def test_session_options_follow_the_configuration():
    config = with_parameters(
        intra_op_thread_count="3", inter_op_thread_count="2", execution_mode="1", enable_mem_arena="0"
    )
    config["optimization"] = {"graph": {"level": -1}}
    options = settings.session_options(config)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    default = settings.session_options(with_parameters(intra_op_thread_count="0"))
    assert default.intra_op_num_threads == ort.SessionOptions().intra_op_num_threads


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("intra_op_thread_count", "many", "intra_op_thread_count is 'many'"),
        ("execution_mode", "2", "execution_mode is 2: allowed are 0"),
        ("enable_mem_pattern", "perhaps", "enable_mem_pattern is 'perhaps'"),
    ],
)
def test_a_wrong_parameter_is_named(parameter, value, message):
    with pytest.raises(ConfigError, match=message):
        settings.session_options(with_parameters(**{parameter: value}))


def accelerated(**accelerators: Any) -> dict[str, Any]:
    return changed(optimization={"execution_accelerators": accelerators})


def test_providers():
    providers = settings.providers
    assert [name for name, _ in providers(CONFIG, "CPU", 0)] == ["CPUExecutionProvider"]
    assert providers(CONFIG, "GPU", 2)[0] == ("CUDAExecutionProvider", {"device_id": "2"})
    cuda = accelerated(
        gpu_execution_accelerator=[{"name": "cuda", "parameters": {"cudnn_conv_use_max_workspace": "0"}}]
    )
    assert providers(cuda, "GPU", 1)[0][1] == {"device_id": "1", "cudnn_conv_use_max_workspace": "0"}
    assert len(providers(cuda, "CPU", 0)) == 1  # an accelerator of the GPU means nothing to an instance on the CPU
    tensorrt = accelerated(
        gpu_execution_accelerator=[
            {"name": "tensorrt", "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "1024"}}
        ]
    )
    name, options = providers(tensorrt, "GPU", 0)[0]
    assert name == "TensorrtExecutionProvider"
    assert options == {"device_id": "0", "trt_fp16_enable": "1", "trt_max_workspace_size": "1024"}


@pytest.mark.parametrize(
    ("accelerators", "message"),
    [
        ({"cpu_execution_accelerator": [{"name": "openvino"}]}, "unknown Execution Accelerator 'openvino' on the CPU"),
        ({"gpu_execution_accelerator": [{"name": "rocm"}]}, "unknown Execution Accelerator 'rocm' on the GPU"),
        (
            {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"fast": "1"}}]},
            "unknown parameter 'fast' for the TensorRT",
        ),
    ],
)
def test_unknown_accelerators_are_refused(accelerators, message):
    with pytest.raises(ConfigError, match=message):
        settings.providers(accelerated(**accelerators), "GPU", 0)


def test_unknown_keys_are_named():
    config = with_parameters(intra_op_thread_count="1", turbo="1")
    config["optimization"] = {"graph": {"level": 1}, "cuda": {"graphs": True}}
    assert settings.unknown_keys(config) == ["optimization.cuda", "parameters.turbo"]


def test_an_empty_configuration_is_completed_from_the_model():
    config = {"name": "core", "max_batch_size": 0, "input": [], "output": []}
    tensors.complete(config, INPUTS, OUTPUTS)
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    assert config["input"][0] == {"name": "ids", "data_type": "TYPE_INT32", "dims": [-1]}
    assert config["input"][1]["reshape"] == {"shape": []}
    tensors.validate(config, INPUTS, OUTPUTS)


def rows(ids: tuple[int, ...] = (2, 5), lengths: tuple[int, ...] = (2,), dtype: type = np.int32) -> dict[str, Any]:
    return {"ids": np.zeros(ids, dtype), "lengths": np.zeros(lengths, np.int32)}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"ids": np.zeros((2, 5), np.int32)}, "input 'lengths' is missing; the model takes ids, lengths"),
        (rows(dtype=np.int64), "input 'ids' is int64; allowed is int32"),
        (rows(ids=(5,)), "input 'ids' has shape [5]; allowed is [-1, -1], -1 for any size"),
        (rows(ids=(2, 5, 1)), "input 'ids' has shape [2, 5, 1]; allowed is [-1, -1]"),
        (rows(lengths=(1,)), "input 'lengths' has 1 rows and 'ids' 2; allowed is one number for all, from 1 on"),
        (
            rows(ids=(0, 5), lengths=(0,)),
            "input 'ids' has 0 rows and 'ids' 0; allowed is one number for all, from 1 on",
        ),
    ],
)
def test_what_would_be_others_rows_is_refused(feeds, message):
    allowed = tensors.allowed_inputs(INPUTS)
    tensors.check_rows(rows(), allowed)
    with pytest.raises(ValueError, match=r".") as raised:
        tensors.check_rows(feeds, allowed)
    assert message in str(raised.value)


def test_a_fixed_axis_is_named():
    allowed = tensors.allowed_inputs(OUTPUTS)
    tensors.check_rows({"logits": np.zeros((1, 40), np.float32)}, allowed)
    with pytest.raises(ValueError, match=r"'logits' has shape \[1, 39\]; allowed is \[-1, 40\]"):
        tensors.check_rows({"logits": np.zeros((1, 39), np.float32)}, allowed)


def test_a_tensor_in_a_message():
    assert tensors.text("ids", np.array([[3, -7]], np.int32)) == "ids int32 [1, 2] from -7 to 3"
    assert tensors.text("ids", np.zeros((2, 0), np.int32)) == "ids int32 [2, 0]"


@pytest.mark.parametrize(("given", "entry"), [("0", "0"), ("false", "0"), ("1", "1")])
def test_idle_threads_sleep_where_the_configuration_says_so(given: str, entry: str):
    key = "session.intra_op.allow_spinning"
    config = with_parameters(**{key: given})
    assert settings.session_options(config).get_session_config_entry(key) == entry
    assert settings.unknown_keys(config) == []
    with pytest.raises(ConfigError, match="allow_spinning is 'maybe'"):
        settings.session_options(with_parameters(**{key: "maybe"}))
