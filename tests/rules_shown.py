"""A repository for each rule of the linter, small and at fault in nothing else, and whether Triton loads it.

The names of models are of one case alone: all of them can lie in one repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnx import TensorProto, helper

from tests.configurations import chain, delayed, model, tensor, write


@dataclass(frozen=True)
class Shown:
    """What shows a rule.

    Attributes:
        models: config.pbtxt by name; the file lies in the first's folder.
        files: content by path below the repository.
        refused: whether Triton refuses the model; None where only another server can tell.
        broken: models whose config.pbtxt is written as it is, without a name.
    """

    models: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused: bool | None = False
    broken: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        write(folder, **self.models)
        for name, text in self.broken.items():
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "config.pbtxt").write_text(text)
        for path, content in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder


def identity(kind: int = TensorProto.FLOAT, batch: str | int = "batch", opset: int = 18) -> bytes:
    """An ONNX model that answers y = x of four numbers."""
    sides = [helper.make_tensor_value_info(name, kind, [batch, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", sides[:1], sides[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(made.SerializeToString())


def lookup() -> bytes:
    """An ONNX model that looks four INT64 ids up in a table."""
    sides = [
        helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 2]),
    ]
    table = helper.make_tensor("table", TensorProto.FLOAT, [100, 2], [0.0] * 200)
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "g", sides[:1], sides[1:], [table])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


def ort(batch: int = 8, more: str = "") -> str:
    return model("onnxruntime", batch=batch, more=more)


def one_step(step: str, more: str = "", batch: int = 8) -> str:
    """An ensemble of one step, whose x is in and whose y is out."""
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\ninput [ {tensor("in", "FP32", 4)} ]\n'
        f"output [ {tensor('out', 'FP32', 4)} ]\nensemble_scheduling {{ step [ {{ {step} }} ] }}\n{more}"
    )


def maps(name: str, version: int = -1) -> str:
    return (
        f'model_name: "{name}" model_version: {version} input_map {{ key: "x" value: "in" }} '
        'output_map { key: "y" value: "out" }'
    )


WARM = (
    'model_warmup [ {{ name: "w" batch_size: {} inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: {} {} }} }} }} ]'
)
FILE = {"default": identity()}
GPU = "optimization { execution_accelerators { gpu_execution_accelerator : [ { name: %s } ] } }"
TWO_DECOUPLED = f"""platform: "ensemble"
max_batch_size: 0
input [ {tensor("in", "FP32", 4)} ]
output [ {tensor("out", "FP32", 4)} ]
ensemble_scheduling {{ step [
 {{ model_name: "dec_a" model_version: -1 input_map {{ key: "x" value: "in" }} output_map {{ key: "y" value: "a" }} }},
 {{ model_name: "dec_b" model_version: -1 input_map {{ key: "x" value: "in" }} output_map {{ key: "y" value: "b" }} }},
 {{ model_name: "dec_c" model_version: -1 input_map {{ key: "x" value: "a" }} input_map {{ key: "z" value: "b" }}
    output_map {{ key: "y" value: "out" }} }} ] }}"""
DECOUPLED = "model_transaction_policy { decoupled: true }"

SHOWN: dict[str, Shown] = {
    "unreadable": Shown({}, broken={"unreadable": "max_batch_size: ${N}"}, refused=True),
    "unknown-key": Shown({"unknown_key": model(more="dynamic_batchin { }")}, refused=True),
    "parameter-misspelt": Shown(
        {"misspelt": ort(more='parameters { key: "intra_op_num_threads" value { string_value: "1" } }')}
    ),
    "tensorrt-only": Shown({"trt_only": ort(more="optimization { eager_batching: true }")}),
    "tensorrt-priority": Shown({"trt_priority": ort(more="optimization { priority: PRIORITY_MAX }")}),
    "cuda-graph": Shown(
        {"cuda_graph": ort(more='parameters { key: "enable_cuda_graph" value { string_value: "1" } }')}, refused=None
    ),
    "accelerator-kind": Shown({"kinds": ort(more="instance_group [ { kind: KIND_CPU } ]\n" + GPU % '"tensorrt"')}),
    "instance-gpus": Shown({"gpus": model(more="instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]")}, refused=True),
    "instance-profile": Shown(
        {"profile": ort(more='instance_group [ { kind: KIND_CPU profile: [ "1" ] } ]')}, refused=True
    ),
    "rate-limiter": Shown(
        {
            "limited": model(
                more='instance_group [ { kind: KIND_CPU rate_limiter { resources [ { name: "R" count: 1 } ] } } ]'
            )
        }
    ),
    "auto-instances": Shown({"auto": ort(more="instance_group [ { count: 64 } ]")}, refused=None),
    "threads-over-cores": Shown({"threads": ort(more="instance_group [ { count: 64 kind: KIND_CPU } ]")}, refused=None),
    "wide-integers": Shown(
        {
            "wide": 'backend: "onnxruntime" max_batch_size: 8 '
            f"input [ {tensor('x', 'INT64', 4)} ] output [ {tensor('y', 'FP32', 4, 2)} ]"
        },
        {"wide/1/model.onnx": lookup()},
    ),
    "output-too-large": Shown({"large": model(size=2_000_000)}),
    "delay-on-several-steps": Shown(
        {"late_a": model(more=delayed(1)), "late_b": model(more=delayed(1)), "late": chain("late_a", "late_b")}
    ),
    "delay-too-long": Shown({"slow": model(more=delayed(100_000))}),
    "queue-limits": Shown({"queue": model(more="dynamic_batching { default_queue_policy { max_queue_size: 8 } }")}),
    "preferred-sizes": Shown({"preferred": ort(more="dynamic_batching { preferred_batch_size: [ 4 ] }")}),
    "batcher-sizes": Shown({"sizes": model(more="dynamic_batching { preferred_batch_size: [ 16 ] }")}, refused=True),
    "batcher-without-batch": Shown({"unbatched": model(batch=0, more="dynamic_batching { }")}),
    "priority-levels": Shown(
        {"levels": model(more="dynamic_batching { priority_levels: 3 default_priority_level: 4 }")}, refused=True
    ),
    "preserve-ordering": Shown(
        {
            "ordered": model(
                more="dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }"
            )
        },
        refused=True,
    ),
    "stuck-requests": Shown(
        {
            "stuck": model(more="dynamic_batching { default_queue_policy { max_queue_size: 8 } }"),
            "stuck_whole": one_step(maps("stuck")),
        }
    ),
    "timeout-decay": Shown(
        {"decay": model(more="dynamic_batching { default_queue_policy { default_timeout_microseconds: 9 } }")}
    ),
    "openvino-lengths": Shown(
        {
            "lengths": 'backend: "onnxruntime" max_batch_size: 8 '
            f"input [ {tensor('x', 'FP32', -1)}, {tensor('lengths', 'INT32', 1)} ] output [ {tensor('y', 'FP32', 4)} ]\n"
            'optimization { execution_accelerators { cpu_execution_accelerator : [ { name: "openvino" } ] } }'
        },
        refused=None,
    ),
    "tensor-incomplete": Shown(
        {
            "incomplete": 'backend: "onnxruntime" input [ { name: "x" dims: [ 4 ] } ] output [ '
            + tensor("y", "FP32", 4)
            + " ]"
        },
        refused=True,
    ),
    "tensor-dims": Shown({"dims": model(size=0)}, refused=True),
    "tensor-reshape": Shown(
        {"reshape": model().replace("dims: [4]  }", "dims: [4] reshape { shape: [ 2, 3 ] } }", 1)}, refused=True
    ),
    "tensor-twice": Shown(
        {"twice": model().replace("output [", "input [ " + tensor("x", "FP32", 4) + " ]\noutput [")}, refused=None
    ),
    "tensor-format": Shown({"format": model().replace("dims: [4]", "format: FORMAT_NCHW dims: [4]", 1)}, refused=True),
    "sequence-control": Shown(
        {
            "control": model(
                more='sequence_batching { control_input [ { name: "S" control [ { kind: CONTROL_SEQUENCE_START } ] } ] }'
            )
        },
        refused=True,
    ),
    "sequence-strategy": Shown(
        {"strategy": model(more="sequence_batching { oldest { preferred_batch_size: [ 16 ] } }")}, refused=True
    ),
    "batch-tensors": Shown(
        {
            "batch_tensors": ort(
                more='batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "w" } ]'
            )
        },
        refused=True,
    ),
    "ragged-batch": Shown({"ragged": ort().replace("dims: [4]", "allow_ragged_batch: true dims: [4]", 1)}),
    "max-batch-size": Shown({"negative": model(batch=-1)}, refused=True),
    "name-of-folder": Shown({}, broken={"folder": 'name: "other"\n' + model()}, refused=True),
    "backend-missing": Shown(
        {"missing": f"max_batch_size: 8 input [ {tensor('x', 'FP32', 4)} ] output [ {tensor('y', 'FP32', 4)} ]"},
        refused=True,
    ),
    "backend-platform": Shown({"pair": ort(more='platform: "onnxruntim"')}, refused=True),
    "backend-misspelt": Shown({"onnxruntim": model("onnxruntim")}),
    "runtime-library": Shown({"runtime": model("identity", more='runtime: "../libtriton_x.so"')}, refused=True),
    "versions": Shown({"versioned": ort(more="version_policy { specific { versions: [ 7 ] } }")}, refused=True),
    "model-file": Shown(
        {"file_gone": ort(), "file_there": ort()}, {"file_there/1/model.onnx": identity()}, refused=None
    ),
    "labels": Shown(
        {"labels": ort().replace('name: "y"', 'name: "y" label_filename: "labels.txt"')},
        {"labels/1/model.onnx": identity()},
        refused=True,
    ),
    "warmup-batch": Shown({"warm_batch": ort(more=WARM.format(0, 4, "zero_data: true"))}),
    "warmup-data": Shown({"warm_data": ort(more=WARM.format(1, 4, ""))}, refused=True),
    "onnx-unread": Shown({"unread": ort()}, {"unread/1/model.onnx": b"version https://git-lfs"}, refused=True),
    "onnx-tensors": Shown(
        {"tensors": ort().replace("dims: [4]", "dims: [5]", 1)}, {"tensors/1/model.onnx": identity()}, refused=True
    ),
    "onnx-opset": Shown({"opset": ort()}, {"opset/1/model.onnx": identity(opset=21)}, refused=None),
    "ensemble-not-a-step": Shown(
        {
            "step_a": model(),
            "not_a_step": one_step(maps("step_a"), "instance_group [ { count: 2 kind: KIND_CPU } ]"),
        },
        refused=True,
    ),
    "ensemble-ragged": Shown(
        {
            "step_b": model(),
            "ragged_whole": one_step(maps("step_b")).replace("dims: [4]", "allow_ragged_batch: true dims: [4]", 1),
        }
    ),
    "response-cache": Shown(
        {"cached": model(more="sequence_batching { }\nresponse_cache { enable: true }")}, refused=True
    ),
    "ensemble-steps": Shown({"no_steps": one_step("").replace("step [ {  } ]", "")}, refused=True),
    "ensemble-graph": Shown(
        {"step_c": model(), "graph": one_step(maps("step_c").replace('"in"', '"nobody"'))}, refused=True
    ),
    "ensemble-cycle": Shown(
        {"cycle": one_step(maps("cycle").replace('"x"', '"in"').replace('"y"', '"out"'))}, refused=True
    ),
    "ensemble-wiring": Shown(
        {"wired_a": model(), "wired_b": model(size=5), "wired": chain("wired_a", "wired_b")}, refused=True
    ),
    "ensemble-versions": Shown({"step_d": model(), "of_version": one_step(maps("step_d", 2))}, refused=True),
    "ensemble-decoupled": Shown(
        {
            "dec_a": model(batch=0, more=DECOUPLED),
            "dec_b": model(batch=0, more=DECOUPLED),
            "dec_c": model(batch=0).replace("input [", f"input [ {tensor('z', 'FP32', 4)} ]\ninput ["),
            "decoupled": TWO_DECOUPLED,
        },
        refused=True,
    ),
}
