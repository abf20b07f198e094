"""The substitute backend inside a real server: what loads, what is refused, and why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
from tritonclient.utils import InferenceServerException

from build.repository import assembly as repository
from build.repository import config
from build.server import Server, find

pytestmark = pytest.mark.skipif(not find().embedded, reason="a tritonserver with its own backends is on the PATH")


@pytest.fixture(scope="module")
def core(small_spec, small_checkpoint, tmp_path_factory) -> Path:
    return repository.build(small_spec, small_checkpoint, tmp_path_factory.mktemp("small") / "models").folder / "core"


@pytest.fixture(scope="module")
def explicit(tmp_path_factory) -> Iterator[tuple[Path, grpcclient.InferenceServerClient]]:
    """A server that loads models when told to, and the repository it looks into."""
    folder = tmp_path_factory.mktemp("explicit")
    (folder / "models").mkdir()
    arguments = ["--model-control-mode=explicit"]
    with (
        Server(folder / "models", arguments=arguments, log=folder / "server.log") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        yield folder / "models", client


def add(models: Path, core: Path, name: str, change: Callable[[ModelConfig], object] | None = None) -> Path:
    folder = shutil.copytree(core, models / name)
    message = text_format.Parse((core / "config.pbtxt").read_text(), ModelConfig())
    message.name = name
    if change is not None:
        change(message)
    (folder / "config.pbtxt").write_text(config.to_text(message))
    return folder


def drop_reshape(c):
    c.input[2].ClearField("reshape")


def drop_input(c):
    del c.input[2]
    del c.model_warmup[:]


def wrong_dtype(c):
    c.input[0].data_type = 9  # TYPE_INT64
    del c.model_warmup[:]


def wrong_dims(c):
    c.output[0].dims[:] = [39]


def free_dims(c):
    c.output[0].dims[:] = [-1]


def wrong_name(c):
    c.output[0].name = "answers"


def no_number(c):
    c.parameters["intra_op_thread_count"].string_value = "many"


def wrong_mode(c):
    c.parameters["execution_mode"].string_value = "7"


def on_gpu(c):
    c.instance_group[0].kind = ModelInstanceGroup.KIND_GPU


def accelerator(c):
    c.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")


def other_file(c):
    c.default_model_filename = "absent.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_reshape, "the model expects 1 dimensions"),
        (drop_input, "configuration expects 2 inputs, model provides 3"),
        (wrong_dtype, "expects datatype TYPE_INT64"),
        (wrong_dims, "the model expects 2 dimensions (shape [-1, 40])"),
        (free_dims, "the model expects 2 dimensions (shape [-1, 40])"),
        (wrong_name, "unexpected inference output 'answers'"),
        (no_number, "intra_op_thread_count is 'many'"),
        (wrong_mode, "execution_mode is 7"),
        (on_gpu, "GPU"),
        (accelerator, "unknown Execution Accelerator 'openvino'"),
        (other_file, "absent.onnx"),
    ],
)
def test_refused_at_load(explicit, core, change, message):
    models, client = explicit
    name = change.__name__
    add(models, core, name, change)
    with pytest.raises(InferenceServerException) as raised:
        client.load_model(name)
    assert message in raised.value.message()
    assert not client.is_model_ready(name)


def test_a_damaged_model_is_refused(explicit, core):
    models, client = explicit
    folder = add(models, core, "damaged")
    (folder / "1" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InferenceServerException, match=r"damaged/1/model\.onnx"):
        client.load_model("damaged")


def ask(client, name: str, learners: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = {
        "recent_problem_ids": rng.integers(0, 40, (learners, 32), dtype=np.int32),
        "recent_responses": rng.integers(0, 2, (learners, 32), dtype=np.int32),
        "lengths": rng.integers(0, 33, (learners, 1), dtype=np.int32),
    }
    inputs = []
    for tensor, value in values.items():
        inputs.append(grpcclient.InferInput(tensor, list(value.shape), "INT32"))
        inputs[-1].set_data_from_numpy(value)
    return client.infer(name, inputs).as_numpy("logits")


def test_settings_change_how_it_runs_and_not_what_it_answers(explicit, core):
    def tuned(c):
        for key, value in (("intra_op_thread_count", "1"), ("execution_mode", "1"), ("inter_op_thread_count", "2")):
            c.parameters[key].string_value = value
        c.parameters["enable_mem_arena"].string_value = "0"
        c.parameters["turbo"].string_value = "yes"  # unknown: warned of, not refused
        c.optimization.graph.level = -1
        c.instance_group[0].count = 2
        c.default_model_filename = "renamed.onnx"

    models, client = explicit
    add(models, core, "plain")
    folder = add(models, core, "tuned", tuned)
    (folder / "1" / "model.onnx").rename(folder / "1" / "renamed.onnx")
    for name in ("plain", "tuned"):
        client.load_model(name)
    np.testing.assert_allclose(ask(client, "plain"), ask(client, "tuned"), atol=1e-5)
    assert "parameters.turbo has no effect" in (models.parent / "server.log").read_text()


@pytest.mark.parametrize("written", ["nothing", "no tensors"])
def test_an_incomplete_configuration_is_completed(explicit, core, written):
    models, client = explicit
    name = written.replace(" ", "_")
    folder = add(models, core, name)
    if written == "nothing":
        (folder / "config.pbtxt").unlink()
    else:
        (folder / "config.pbtxt").write_text(f'name: "{name}" platform: "onnxruntime_onnx"')
    client.load_model(name)
    completed = client.get_model_config(name, as_json=True)["config"]
    assert completed["max_batch_size"] == 4
    assert "dynamic_batching" in completed
    assert [tensor["name"] for tensor in completed["input"]] == ["recent_problem_ids", "recent_responses", "lengths"]
    assert ask(client, name).shape == (3, 40)
