"""Keys that nothing reads, or nothing that is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ensemble.lint.finding import Finding
from ensemble.lint.repository import WITHOUT_TENSORRT, Repository
from ensemble.lint.rule import CONFIGURATION, GUIDE, rule

ON = ("", "1", "true", "yes", "on")  # an accelerator's parameter without a value is on
ONNXRUNTIME = "https://github.com/triton-inference-server/onnxruntime_backend/blob/main/README.md"
# What each backend reads of a model's `parameters`. Others are the model's own, unless they nearly are one of these.
PARAMETERS = {
    "onnxruntime": (
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "session.use_device_allocator_for_initializers",
    ),
    "pytorch": (
        "DISABLE_OPTIMIZED_EXECUTION",
        "ENABLE_CACHE_CLEANING",
        "ENABLE_WEIGHT_SHARING",
        "ENABLE_JIT_EXECUTOR",
        "ENABLE_JIT_PROFILING",
        "ENABLE_TENSOR_FUSER",
        "DISABLE_CUDNN",
        "INFERENCE_MODE",
        "INTER_OP_THREAD_COUNT",
        "INTRA_OP_THREAD_COUNT",
    ),
    "openvino": (
        "CPU_EXTENSION_PATH",
        "INFERENCE_NUM_THREADS",
        "COMPILATION_NUM_THREADS",
        "PERFORMANCE_HINT",
        "NUM_STREAMS",
        "SKIP_OV_DYNAMIC_BATCHSIZE",
        "ENABLE_BATCH_PADDING",
        "RESHAPE_IO_LAYERS",
        "TARGET_DEVICE",
    ),
    "python": ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS"),
}
ALIASES = {
    "intra_op_num_threads": "intra_op_thread_count",
    "inter_op_num_threads": "inter_op_thread_count",
}  # its own API's
NEAR = 0.82


@rule("unreadable", "https://protobuf.dev/reference/protobuf/textformat-spec")
def unreadable(repository: Repository) -> Iterator[Finding]:
    """A configuration that is none: a template, another encoding, a bracket too few.

    Triton refuses that model; the others are looked at all the same.
    """
    yield from repository.unreadable


@rule("unknown-key", CONFIGURATION)
def unknown_key(repository: Repository) -> Iterator[Finding]:
    """A key that the protobuf message does not have.

    `max_batchsize: 8`: Triton refuses a file with a key that it does not know. An error where there is one that is
    nearly so named; else a warning, because a newer Triton may know it.
    """
    known = _fields(ModelConfig.DESCRIPTOR, set())
    for model in repository.models.values():
        if model.unknown:
            named = re.search(r'named "(\w+)"', model.unknown)
            near = difflib.get_close_matches(named[1], known, 1) if named else []
            why = f"there is one that is not known here ({model.unknown})"
            key = f"keys ({named[1]})" if named else "keys"
            if near:
                yield Finding(model.file, key, why, near[0], "error")
            else:
                yield Finding(model.file, key, why, "a known key, or a newer tritonclient")


def _fields(message: Descriptor, seen: set[str]) -> set[str]:
    """Names of every field of a message and of those within it."""
    names: set[str] = set()
    if message.full_name in seen:
        return names
    seen.add(message.full_name)
    for field in message.fields:
        names.add(field.name)
        if field.message_type is not None:
            names |= _fields(field.message_type, seen)
    return names


@rule("parameter-misspelt", ONNXRUNTIME)
def misspelt(repository: Repository) -> Iterator[Finding]:
    """A parameter that the backend does not read, and that nearly is one that it does.

    `parameters { key: "intra_op_num_threads" ... }`: the ONNX Runtime backend reads intra_op_thread_count, and takes
    any other key without a word.
    """
    for model in repository.singles():
        known = PARAMETERS.get(model.backend, ())
        for key in model.config.parameters:
            if key in known:
                continue
            near = [ALIASES[key]] if ALIASES.get(key) in known else difflib.get_close_matches(key, known, 1, NEAR)
            near = near or [name for name in known if name.lower() == key.lower()]
            if near:
                why = f"the {model.backend} backend reads no such parameter"
                yield Finding(model.file, f"parameters ({key})", why, f'"{near[0]}"')


@rule("tensorrt-only", f"{GUIDE}/optimization.html")
def tensorrt_only(repository: Repository) -> Iterator[Finding]:
    """Keys that no other backend reads.

    `backend: "onnxruntime" optimization { eager_batching: true }`: the TensorRT backend alone reads it.
    """
    for model in repository.models.values():
        if model.backend not in WITHOUT_TENSORRT:
            continue
        optimization = model.config.optimization
        for key, given in (
            ("cuda.graphs", optimization.cuda.graphs),
            ("cuda.graph_spec", len(optimization.cuda.graph_spec)),
            ("cuda.busy_wait_events", optimization.cuda.busy_wait_events),
            ("cuda.output_copy_stream", optimization.cuda.output_copy_stream),
            ("eager_batching", optimization.eager_batching),
            ("gather_kernel_buffer_threshold", optimization.gather_kernel_buffer_threshold),
        ):
            if given:
                why = f"the TensorRT backend alone reads it, and this model runs on {model.backend}"
                yield Finding(model.file, f"optimization.{key}", why, "nothing")


@rule("cuda-graph", ONNXRUNTIME)
def cuda_graph(repository: Repository) -> Iterator[Finding]:
    """A graph replays on the buffers that it was captured with.

    `gpu_execution_accelerator : [ { name: "cuda" parameters { key: "enable_cuda_graph" value: "1" } } ]`: the backend
    binds other buffers in every run. Use the TensorRT accelerator with trt_cuda_graph_enable, or none. A value of "0"
    is off.
    """
    key = "enable_cuda_graph"
    for model in repository.models.values():
        accelerators = model.config.optimization.execution_accelerators.gpu_execution_accelerator
        given = [model.parameter(key), *(_value(accelerator, key) for accelerator in accelerators)]
        if model.backend == "onnxruntime" and any(value is not None and value.lower() in ON for value in given):
            why = "the backend binds other buffers in every run, on which a captured CUDA graph does not replay"
            yield Finding(
                model.file, key, why, "the TensorRT accelerator with trt_cuda_graph_enable, or nothing", "error"
            )


def _value(accelerator: Any, key: str) -> str | None:
    found: str | None = accelerator.parameters.get(key)
    return found
