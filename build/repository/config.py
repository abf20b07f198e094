"""Triton's config.pbtxt for every model of the repository, built from the spec as protobuf messages.

Field reference: `model_config.proto` of triton-inference-server/common. Step parameters are Triton's only channel from
the configuration to a Python step, which is why numbers such as the target success rate travel there as strings.
"""

from __future__ import annotations

import json
import math

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DataType as TritonDataType
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelInstanceGroup, ModelOutput
from tritonclient.utils import triton_to_np_dtype

from build.repository import rehearsal
from ensemble.client.raw import as_sent
from ensemble.interface import Interface
from ensemble.spec import Answer, Core, Spec
from ensemble.tables import PREPROCESS, Step, Tensor

# The first line of every configuration: it keeps people from editing what the next build writes again.
GENERATED = "# Generated from the spec by `make repo`: change the spec, not this file.\n"
SPINNING = "session.intra_op.allow_spinning"
EXAMPLE = "example_"  # a sample of a step's warm-up is called so that asks what a function is asked
LENGTH_FILE = "length"  # a file in a step's warmup/ folder begins so, ends in a number, and has that number inside


def repository(spec: Spec) -> dict[str, ModelConfig]:
    """Every model's configuration by its folder name: the steps and the ensemble over them, or the one that does it all."""
    made = (_single(spec),) if spec.serve.layout == "single" else (*_steps(spec), _ensemble(spec))
    return {config.name: config for config in made}


def files(spec: Spec) -> dict[str, bytes]:
    """Every file of the repository that follows from the spec alone, by its path relative to the repository.

    These are the config.pbtxt files and what warm-up reads from disk.
    """
    derived = {}
    for name, config in repository(spec).items():
        derived[f"{name}/config.pbtxt"] = to_text(config).encode()
        for sample in config.model_warmup:
            for tensor, data in sample.inputs.items():
                if data.input_data_file and sample.name.startswith(EXAMPLE):
                    asked = rehearsal.examples(spec)[int(sample.name.rpartition("_")[2])]
                    derived[f"{name}/warmup/{data.input_data_file}"] = as_sent(asked[tensor])
                elif data.input_data_file:
                    size = int(data.input_data_file.rpartition("_")[2])
                    value, count = _warming(spec, tensor, list(data.dims), size) or (0, 0)
                    type_ = triton_to_np_dtype(TritonDataType.Name(data.data_type).removeprefix("TYPE_"))
                    derived[f"{name}/warmup/{data.input_data_file}"] = np.full(count, value, type_).tobytes()
    return derived


def to_text(config: ModelConfig) -> str:
    """The message as protobuf text, below a first line that says where it comes from."""
    return GENERATED + text_format.MessageToString(config, use_index_order=True)


def spinning(model: ModelConfig) -> bool:
    """Whether idle threads of a core, or of the one model that does it all, are told to spin."""
    parameters = {key: value.string_value for key, value in model.parameters.items()}
    if "steps" in parameters:
        first, *_ = json.loads(parameters["steps"])["cores"]
        parameters = {key: value["string_value"] for key, value in first["parameters"].items()}
    return parameters.get(SPINNING) != "0"


def _preprocess(spec: Spec) -> ModelConfig:
    config = _python_step(spec, PREPROCESS, spec.steps.preprocess)
    config.input.extend(_requested(spec, tensor) for tensor in spec.requested)
    config.output.extend(_output(spec, tensor) for tensor in spec.windows)
    _parameters(config, contract=spec.contract.dumps())
    if spec.function is not None:
        # Last steps see what the function makes, where they else see the request.
        seen = {tensor.name: tensor for answer in spec.answers for tensor in answer.seen}
        config.output.extend(_output(spec, tensor) for tensor in seen.values())
        _parameters(config, function=spec.function.dumps())
    _warmup(spec, config)
    return config


def _core(spec: Spec, core: Core) -> ModelConfig:
    step = spec.steps.core
    config = ModelConfig(name=core.step, platform="onnxruntime_onnx", max_batch_size=spec.batching.max_batch_size)
    config.input.extend(_input(spec, tensor) for tensor in core.inputs)
    for tensor in core.outputs:
        message = _output(spec, tensor)
        if not tensor.shape:
            message.reshape.SetInParent()  # as _input's
        config.output.append(message)
    kind = ModelInstanceGroup.KIND_CPU if step.device == "cpu" else ModelInstanceGroup.KIND_GPU
    config.instance_group.add(count=step.instances, kind=kind)
    config.dynamic_batching.max_queue_delay_microseconds = step.queue_delay_us
    _queue(spec, config, step)
    _parameters(config, intra_op_thread_count=step.intra_op_threads)
    if not step.spinning:
        # As ONNX Runtime calls it. The native backend hands no such entry on; this project's own and the single layout do.
        _parameters(config, **{SPINNING: 0})
    if step.device == "gpu":
        _accelerate(spec, config)
    _warmup(spec, config)
    return config


def _accelerate(spec: Spec, config: ModelConfig) -> None:
    """What computes on the GPU, in the options that the ONNX Runtime backend hands to its execution providers."""
    step = spec.steps.core
    accelerators = config.optimization.execution_accelerators
    if step.accelerator == "tensorrt":
        tensorrt = accelerators.gpu_execution_accelerator.add(name="tensorrt").parameters
        if spec.export.precision == "float16":
            tensorrt["precision_mode"] = "FP16"
        # One engine for every batch and width: without a profile TensorRT builds another whenever a shape grows.
        widths = spec.model.widths
        for end, batch, width in (
            ("min", 1, widths[0]),
            ("opt", max(step.graph_batch_sizes, default=1), widths[-1]),
            ("max", config.max_batch_size, widths[-1]),
        ):
            shapes = (
                [batch, *(width for _ in tensor.dims if not tensor.HasField("reshape"))] for tensor in config.input
            )
            tensorrt[f"trt_profile_{end}_shapes"] = ",".join(
                f"{tensor.name}:{'x'.join(map(str, shape))}" for tensor, shape in zip(config.input, shapes, strict=True)
            )
        if step.graph_batch_sizes:
            tensorrt["trt_cuda_graph_enable"] = "1"
    if not step.io_binding:
        _parameters(config, io_binding=0)
    if step.graph_batch_sizes:
        # The native backend binds other buffers in every run and leaves this key alone; this project's own captures.
        _parameters(config, cuda_graph_batch_sizes=",".join(map(str, step.graph_batch_sizes)))
    # TensorRT leaves what it cannot do to CUDA. TF32 rounds products to 10 bits: off for an answer in float32.
    cuda = accelerators.gpu_execution_accelerator.add(name="cuda").parameters
    cuda["use_tf32"] = "0"


def _answer(spec: Spec, answer: Answer) -> ModelConfig:
    """A step behind the core. It reads what the core answers and no other step's output: an ensemble drops a wanted output
    whose only reader is left out."""
    config = _python_step(spec, answer.step, getattr(spec.steps, answer.step, spec.steps.postprocess))
    config.input.append(_step_input(spec, answer.of))
    config.input.extend(_ragged_input(spec, tensor) for tensor in answer.seen)
    config.output.extend(_output(spec, tensor) for tensor in answer.tensors)
    _parameters(config, chain=json.dumps(answer.chain), contract=spec.contract.dumps())
    if spec.reduce.where == "postprocess":
        _parameters(config, select="last")
        config.input.append(_step_input(spec, spec.windows[-1]))
    _warmup(spec, config)
    return config


def _steps(spec: Spec) -> tuple[ModelConfig, ...]:
    cores = (_core(spec, core) for core in spec.cores)
    return _preprocess(spec), *cores, *(_answer(spec, answer) for answer in spec.answers)


def _ensemble(spec: Spec) -> ModelConfig:
    config = ModelConfig(name=spec.model.name, platform="ensemble", max_batch_size=spec.batching.max_batch_size)
    config.input.extend(_input(spec, tensor) for tensor in spec.requested)
    config.output.extend(_output(spec, tensor) for tensor in spec.answered)
    _parameters(config, **Interface.of(spec).parameters)  # for clients, whom Triton tells of it
    for step in _steps(spec):
        # Every tensor has one name in the whole repository, so the wiring is the identity.
        config.ensemble_scheduling.step.add(
            model_name=step.name,
            model_version=-1,
            input_map={x.name: x.name for x in step.input},
            output_map={x.name: x.name for x in step.output},
        )
    return config


def _single(spec: Spec) -> ModelConfig:
    """All steps in one model. Its parameter `steps` has what their configurations would say, of the cores all of it."""
    step = spec.steps.core
    config = _python_step(spec, spec.model.name, step)
    if step.device == "gpu":
        config.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    config.dynamic_batching.max_queue_delay_microseconds = step.queue_delay_us
    config.input.extend(_requested(spec, tensor) for tensor in spec.requested)
    config.output.extend(_output(spec, tensor) for tensor in spec.answered)
    cores = [json_format.MessageToDict(_core(spec, core), preserving_proto_field_name=True) for core in spec.cores]
    answers = [[[t.name for t in answer.tensors], answer.of.name, answer.chain] for answer in spec.answers]
    _parameters(config, **Interface.of(spec).parameters, steps=json.dumps({"cores": cores, "answers": answers}))
    _warmup(spec, config)
    return config


def _python_step(spec: Spec, name: str, step: Step) -> ModelConfig:
    config = ModelConfig(name=name, backend="python", max_batch_size=spec.batching.max_batch_size)
    config.instance_group.add(count=step.instances, kind=ModelInstanceGroup.KIND_CPU)
    # Waiting here would be paid a second time: a step that batches without a delay takes what is queued already.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    _queue(spec, config, step)
    return config


def _queue(spec: Spec, config: ModelConfig, step: Step) -> None:
    """Limits on the step's queue, where the spec has some.

    Only there: with any of these fields set, Triton's batcher sleeps for up to 0.5 s over a waiting request when an
    instance gets free and no new request comes in (core, dynamic_batch_scheduler.cc, WaitForPayloadSlotAvailable).
    """
    size = spec.batching.max_queue_size if step.max_queue_size is None else step.max_queue_size
    timeout = spec.batching.queue_timeout_us
    if size:
        config.dynamic_batching.default_queue_policy.max_queue_size = size
    if timeout:
        config.dynamic_batching.default_queue_policy.default_timeout_microseconds = timeout
        # A client that waits less than this may say so.
        config.dynamic_batching.default_queue_policy.allow_timeout_override = True


def _input(spec: Spec, tensor: Tensor) -> ModelInput:
    message = ModelInput(name=tensor.name, data_type=_dtype(tensor), dims=spec.dims(tensor) or [1])
    message.optional = tensor.optional
    if not tensor.shape:
        # Triton knows no scalar a learner: [1] on the outside, and the model gets [batch] instead of [batch, 1].
        message.reshape.SetInParent()
    return message


def _step_input(spec: Spec, tensor: Tensor) -> ModelInput:
    """An input of a Python step, which gets [batch, 1, ...].

    Triton 2.51 hands a request of no learners on without its batch axis, and the Python backend takes the first axis that
    is left for the learners: it fails the whole batch for their number, answers never, or crashes the server. An axis of 1
    in front of the others is that axis, and the step itself tells who sent the request.
    """
    message = _input(spec, tensor)
    message.reshape.shape[:] = [1, *message.dims]
    return message


def _ragged_input(spec: Spec, tensor: Tensor) -> ModelInput:
    """A step's input whose length may differ between the requests of one batch; the step takes them one by one."""
    message = _step_input(spec, tensor)
    message.allow_ragged_batch = True
    return message


def _requested(spec: Spec, tensor: Tensor) -> ModelInput:
    """A tensor of a request, as the first step gets it."""
    return _ragged_input(spec, tensor) if -1 in spec.dims(tensor) else _step_input(spec, tensor)


def _output(spec: Spec, tensor: Tensor) -> ModelOutput:
    return ModelOutput(name=tensor.name, data_type=_dtype(tensor), dims=spec.dims(tensor) or [1])


def _dtype(tensor: Tensor) -> TritonDataType.ValueType:
    return TritonDataType.Value(f"TYPE_{'STRING' if tensor.dtype == 'BYTES' else tensor.dtype}")


def _parameters(config: ModelConfig, **values: object) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = str(value)


def _warmup(spec: Spec, config: ModelConfig) -> None:
    """A full window of every width: memory arenas, thread pools and code paths are warm before the first request."""
    if any(tensor.name in (spec.function.takes if spec.function else ()) for tensor in config.input):
        _rehearsed(spec, config)
        return
    varies = any(-1 in tensor.dims for tensor in config.input)
    for width in spec.model.widths if varies else spec.model.widths[-1:]:
        sample = config.model_warmup.add(name=f"window_{width}", batch_size=1)
        for tensor in config.input:
            data = sample.inputs[tensor.name]
            data.data_type = tensor.data_type
            data.dims.extend(width if dim == -1 else dim for dim in tensor.dims)
            # What Triton can make up by itself is zeros, and a length of zero would warm up the cold start alone.
            if _warming(spec, tensor.name, list(data.dims), width) is None:
                data.zero_data = True
            else:
                counted = next((x.of for x in spec.contract.core if x.name == tensor.name), "") == "lengths"
                dtype = TritonDataType.Name(data.data_type).removeprefix("TYPE_").lower()
                words = (LENGTH_FILE if counted else tensor.name, *([] if dtype == "int32" else [dtype]), str(width))
                data.input_data_file = "_".join(words)


def _rehearsed(spec: Spec, config: ModelConfig) -> None:
    """The examples of a function, which nothing else tells what to be warmed up with."""
    for number, example in enumerate(rehearsal.examples(spec)):
        sample = config.model_warmup.add(name=f"{EXAMPLE}{number}", batch_size=1)
        for tensor in config.input:
            if tensor.name in example:
                data = sample.inputs[tensor.name]
                data.data_type = tensor.data_type
                data.dims.extend(example[tensor.name].shape[1:] or [1])
                data.input_data_file = f"{EXAMPLE}{number}_{tensor.name}"


def _warming(spec: Spec, name: str, dims: list[int], width: int) -> tuple[int, int] | None:
    """The number that a tensor is warmed up with, and how many of it; None: zeros will do."""
    count = math.prod(dims)
    of = {source.name: source.of for source in spec.contract.core}.get(name, "")
    held = {**spec.contract.inputs, **spec.contract.contexts}.get(of or name)
    if of == "lengths":
        return width, count
    if of in ("mask", "row"):
        return (1 if of == "mask" else width - 1), count
    return (held.start, count) if held is not None and held.start else None
