"""Settings that Triton takes without a word and that do nothing, or harm: found in any model repository.

What a setting does is documented in Triton's user guide (model configuration, optimization, ensembles, response cache) and
in the ONNX Runtime backend's README. The thresholds are this project's own and are said in each finding.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup
from tritonclient.utils import triton_to_np_dtype

from ensemble.errors import LastrowError

if TYPE_CHECKING:
    import onnx

CONFIG = "config.pbtxt"
MESSAGE_BYTES = 4_000_000  # what many gRPC clients take at most unless told otherwise
DELAY_SHARE = 0.1  # of a step's own time
DELAY_UNMEASURED_US = 10_000  # above it a step would have to take 100 ms to be worth the wait
RUNS = 5
# Backends that read none of TensorRT's settings. Others may: nothing is said of a backend that is not known.
WITHOUT_TENSORRT = ("onnxruntime", "python", "pytorch", "tensorflow", "openvino")
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "ensemble",
}
# Below these operators ids are still ids, or sums of them with an offset; comparisons ask for nothing but their order.
PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Clip", "Transpose", "Expand", "Max", "Min"}
PASSING |= {"Add", "Sub", "Mul", "Where", "Concat", "Slice"}
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
DELAY = "dynamic_batching.max_queue_delay_microseconds"
Severity = Literal["warning", "error"]


class LintError(LastrowError):
    """There is no repository to read, or a file in it is no configuration."""


@dataclass(frozen=True)
class Finding:
    """A setting to change.

    Attributes:
        file: the configuration that has it.
        key: which setting.
        why: what is wrong with it.
        instead: what to write.
        severity: "error" where Triton refuses to load, or to answer as is meant; "warning" where it only costs.
    """

    file: Path
    key: str
    why: str
    instead: str
    severity: Severity = "warning"

    def __str__(self) -> str:
        return f"{self.file}: {self.severity}: {self.key}: {self.why}. Instead: {self.instead}."


@dataclass
class Model:
    """A model of the repository: its folder and its configuration."""

    folder: Path
    config: ModelConfig
    unknown: str = ""  # what a parser of this version does not know

    @property
    def file(self) -> Path:
        """Its config.pbtxt."""
        return self.folder / CONFIG

    @property
    def name(self) -> str:
        """The configuration's name; the folder's where it has none."""
        return self.config.name or self.folder.name

    @property
    def backend(self) -> str:
        """ "ensemble", the backend's name, or "" where it is not known."""
        if self.config.HasField("ensemble_scheduling"):
            return "ensemble"
        return self.config.backend or PLATFORMS.get(self.config.platform, "")

    @property
    def delay_us(self) -> int:
        """How long its batcher waits for company."""
        return self.config.dynamic_batching.max_queue_delay_microseconds

    def onnx(self) -> Path | None:
        """The newest version's ONNX file, if that is what it serves."""
        name = self.config.default_model_filename or "model.onnx"
        found = [path for path in self.folder.glob(f"*/{name}") if path.parent.name.isdigit()]
        return max(found, key=lambda path: int(path.parent.name)) if self.backend == "onnxruntime" and found else None


@dataclass
class Repository:
    """Every model with a config.pbtxt, by name; length stands for each dimension of -1, cores for the machine's."""

    folder: Path
    models: dict[str, Model] = field(default_factory=dict)
    length: int = 512
    cores: int = 1

    def ensembles(self) -> Iterator[Model]:
        """Those that are ensembles."""
        return (model for model in self.models.values() if model.backend == "ensemble")

    def steps(self, ensemble: Model) -> list[Model]:
        """The composing models that have a configuration here, each once, in their order."""
        names = dict.fromkeys(step.model_name for step in ensemble.config.ensemble_scheduling.step)
        return [self.models[name] for name in names if name in self.models]


def lint(folder: Path, length: int = 512, cores: int | None = None) -> list[Finding]:
    """Everything to change in a repository, by file.

    Args:
        folder: has a folder a model.
        length: assumed for each dimension of -1 when an output's size is judged.
        cores: of the machine that serves; None for this one's.

    Raises:
        LintError: there is no such folder, no config.pbtxt in it, or one that cannot be read.
    """
    repository = Repository(folder, {}, length, cores or len(os.sched_getaffinity(0)))
    if not folder.is_dir():
        raise LintError(f"there is no model repository {folder}; pass a folder that has a folder for each model")
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        model = _read(path)
        repository.models[model.name] = model
    if not repository.models:
        raise LintError(f"no {CONFIG} in the folders of {folder}; pass a model repository, e.g. models")
    found = [finding for rule in RULES for finding in rule(repository)]
    return sorted(found, key=lambda finding: (finding.file, finding.key))


def _read(path: Path) -> Model:
    config = ModelConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise LintError(f"cannot read {path}: {e}") from e
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as first:
        config.Clear()
        try:
            text_format.Parse(text, config, allow_unknown_field=True)
        except text_format.ParseError as e:
            raise LintError(f"{path} is no model configuration, line {e.GetLine()}: {e}") from e
        return Model(path.parent, config, str(first))
    return Model(path.parent, config)


def unknown_key(repository: Repository) -> Iterator[Finding]:
    """A key that this version of the protobuf does not have."""
    for model in repository.models.values():
        if model.unknown:
            yield Finding(
                model.file,
                "keys",
                f"there is one that is not known here ({model.unknown})",
                "a known key, or a newer tritonclient",
            )


def several_delays(repository: Repository) -> Iterator[Finding]:
    """A delay is paid once a step."""
    for ensemble in repository.ensembles():
        delayed = [step for step in repository.steps(ensemble) if step.delay_us]
        if len(delayed) > 1:
            total = sum(step.delay_us for step in delayed)
            names = ", ".join(step.name for step in delayed)
            for step in delayed:
                yield Finding(
                    step.file,
                    DELAY,
                    f"{names} of ensemble {ensemble.name} wait one after the other, {total:,} us for who comes alone",
                    "a delay on the slowest step alone, 0 on the others",
                )


def long_delay(repository: Repository) -> Iterator[Finding]:
    """A wait beside what it waits for."""
    for model in repository.models.values():
        if not model.delay_us:
            continue
        if model.config.max_batch_size <= 1:
            why = (
                f"with max_batch_size {model.config.max_batch_size} every batch is full at once, and nothing ever waits"
            )
            yield Finding(model.file, DELAY, why, "no delay, or a larger max_batch_size")
            continue
        took = _time_us(model)
        if took is None and model.delay_us > DELAY_UNMEASURED_US:
            worth = model.delay_us / DELAY_SHARE / 1e6
            why = f"{model.delay_us:,} us pay off only where the step itself takes {worth:.1f} s"
            yield Finding(model.file, DELAY, why, "0: what is queued while the step works is batched without any delay")
        elif took is not None and model.delay_us > DELAY_SHARE * took:
            why = f"{model.delay_us:,} us are over a tenth of the step's own time, {took:,.0f} us here for one item"
            yield Finding(model.file, DELAY, why, f"at most {int(DELAY_SHARE * took)}, or 0")


def queue_policy(repository: Repository) -> Iterator[Finding]:
    """Limits that cost more than what they guard against, for who does not need them."""
    for model in repository.models.values():
        policies = [
            model.config.dynamic_batching.default_queue_policy,
            *model.config.dynamic_batching.priority_queue_policy.values(),
        ]
        given = [
            key
            for key in ("max_queue_size", "default_timeout_microseconds", "allow_timeout_override")
            if any(getattr(policy, key) for policy in policies)
        ]
        if given:
            why = (
                "from Triton 24.04 on the batcher of a model with queue limits sleeps until a request comes or 500 ms have "
                "passed when its instances are busy: what waits at the end of a burst waits that much longer"
            )
            instead = (
                "no queue policy and deadlines set by the clients; or keep it, where an end to the queue is worth that"
            )
            yield Finding(model.file, f"dynamic_batching.default_queue_policy ({', '.join(given)})", why, instead)


def preferred_sizes(repository: Repository) -> Iterator[Finding]:
    """They hold a batch back for a size that means something to TensorRT's profiles alone."""
    for model in repository.models.values():
        sizes = list(model.config.dynamic_batching.preferred_batch_size)
        if sizes and model.backend in WITHOUT_TENSORRT:
            why = f"{sizes} are of use where the model has a profile for each size, which {model.backend} has not"
            yield Finding(model.file, "dynamic_batching.preferred_batch_size", why, "dynamic_batching { }")


def on_the_ensemble(repository: Repository) -> Iterator[Finding]:
    """What only a step has."""
    for model in repository.ensembles():
        ragged = [tensor.name for tensor in model.config.input if tensor.allow_ragged_batch]
        for key, given in (
            ("instance_group", len(model.config.instance_group)),
            ("model_warmup", len(model.config.model_warmup)),
            (f"input.allow_ragged_batch ({', '.join(ragged)})", len(ragged)),
        ):
            if given:
                why = "an ensemble runs nothing itself: it is without effect, or keeps the ensemble from loading"
                yield Finding(model.file, key, why, "the same in the configuration of the step that it is meant for")


def tensorrt_only(repository: Repository) -> Iterator[Finding]:
    """Keys that no other backend reads."""
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


def cuda_graph(repository: Repository) -> Iterator[Finding]:
    """A graph replays on the buffers that it was captured with."""
    key = "enable_cuda_graph"
    for model in repository.models.values():
        accelerators = model.config.optimization.execution_accelerators.gpu_execution_accelerator
        given = key in model.config.parameters or any(key in accelerator.parameters for accelerator in accelerators)
        if given and model.backend == "onnxruntime":
            why = "the backend binds other buffers in every run, on which a captured CUDA graph does not replay"
            yield Finding(
                model.file, key, why, "the TensorRT accelerator with trt_cuda_graph_enable, or nothing", "error"
            )


def wide_integers(repository: Repository) -> Iterator[Finding]:
    """Ids in twice the bytes that they need, on every hop."""
    for model in repository.models.values():
        path = model.onnx()
        wide = [tensor.name for tensor in model.config.input if tensor.data_type == DataType.TYPE_INT64]
        if path is None or not wide:
            continue
        if importlib.util.find_spec("onnx") is None:
            why = "whether 4 bytes would hold them is in the ONNX file, which nothing here can read"
            instead = (
                "TYPE_INT32 where they number a table's rows; where the package onnx is installed, lint looks itself"
            )
            yield Finding(model.file, f"input.data_type ({', '.join(wide)})", why, instead)
            continue
        for name, rows in _looked_up(path, wide).items():
            why = f"all it does is to look up one of {rows:,} rows: 4 bytes hold that number, and 8 are sent"
            yield Finding(
                model.file,
                f"input.data_type ({name})",
                why,
                "TYPE_INT32, and a Cast inside the model where it wants one",
            )


def large_outputs(repository: Repository) -> Iterator[Finding]:
    """Answers that clients' defaults refuse, and that cost more to carry than to compute."""
    for model in repository.models.values():
        for tensor in model.config.output:
            if tensor.data_type == DataType.TYPE_STRING:
                continue
            dims = [repository.length if dim == -1 else dim for dim in tensor.dims]
            size = int(np.prod(dims, dtype=np.int64)) * _item_bytes(tensor.data_type)
            if size > MESSAGE_BYTES:
                assumed = f", with {repository.length} for each -1" if -1 in tensor.dims else ""
                why = f"{size / 1e6:.1f} MB an item{assumed}: over the 4 MB that many gRPC clients take, and slow to carry"
                yield Finding(
                    model.file, f"output.dims ({tensor.name})", why, "an output with what the client needs of it"
                )


def threads(repository: Repository) -> Iterator[Finding]:
    """Sessions that take each other's cores."""
    for model in repository.models.values():
        groups = model.config.instance_group
        count = sum(max(group.count, 1) for group in groups if group.kind == ModelInstanceGroup.KIND_CPU)
        if model.backend != "onnxruntime" or not count:
            continue
        given = (
            model.config.parameters["intra_op_thread_count"].string_value
            if "intra_op_thread_count" in model.config.parameters
            else "0"
        )
        own = int(given) if given.isdigit() and int(given) else repository.cores
        if count * own > repository.cores and (count > 1 or own > repository.cores):
            why = f"{count} sessions of {own} threads each share {repository.cores} cores"
            fair = max(repository.cores // count, 1)
            yield Finding(model.file, "parameters.intra_op_thread_count", why, f'"{fair}", or fewer instances')


def wiring(repository: Repository) -> Iterator[Finding]:
    """Tensors that do not fit from step to step."""
    for ensemble in repository.ensembles():
        made: dict[str, tuple[str, Any, int]] = {
            tensor.name: (f"the request's {tensor.name}", tensor, ensemble.config.max_batch_size)
            for tensor in ensemble.config.input
        }
        complete = True
        steps = ensemble.config.ensemble_scheduling.step
        for step in steps:
            model = repository.models.get(step.model_name)
            if model is None:
                complete = False
                if not (repository.folder / step.model_name).is_dir():
                    why = f"there is no model {step.model_name} in {repository.folder}"
                    yield Finding(
                        ensemble.file,
                        f"ensemble_scheduling.step ({step.model_name})",
                        why,
                        "one that is there",
                        "error",
                    )
                continue
            if model.config.max_batch_size < ensemble.config.max_batch_size:
                why = f"{ensemble.config.max_batch_size} is more than {model.name} takes, {model.config.max_batch_size}"
                yield Finding(ensemble.file, "max_batch_size", why, f"{model.config.max_batch_size} at most", "error")
            outputs = {tensor.name: tensor for tensor in model.config.output}
            for own, name in step.output_map.items():
                if own in outputs:
                    made[name] = (f"{model.name}'s {own}", outputs[own], model.config.max_batch_size)
                elif outputs:
                    yield _missing(ensemble, f"output_map ({own})", f"{model.name} has no output {own}", outputs)
        for step in steps:
            model = repository.models.get(step.model_name)
            inputs = {tensor.name: tensor for tensor in model.config.input} if model else {}
            for own, name in step.input_map.items():
                if name not in made and complete:
                    yield _missing(
                        ensemble, f"input_map ({name})", "no step and no input of the ensemble makes it", made
                    )
                if not inputs or model is None:
                    continue
                if own not in inputs:
                    yield _missing(ensemble, f"input_map ({own})", f"{model.name} has no input {own}", inputs)
                elif name in made:
                    wanted = (f"{model.name}'s {own}", inputs[own], model.config.max_batch_size)
                    yield from _fits(ensemble, f"input_map ({name})", made[name], wanted)
        for tensor in ensemble.config.output:
            if tensor.name in made:
                wanted = (f"the answer's {tensor.name}", tensor, ensemble.config.max_batch_size)
                yield from _fits(ensemble, f"output ({tensor.name})", made[tensor.name], wanted)
            elif complete:
                yield _missing(ensemble, f"output ({tensor.name})", "no step makes it", made)


def _missing(ensemble: Model, key: str, why: str, there: Any) -> Finding:
    return Finding(ensemble.file, key, why, f"one of {', '.join(sorted(there))}", "error")


def _fits(ensemble: Model, key: str, made: tuple[str, Any, int], wanted: tuple[str, Any, int]) -> Iterator[Finding]:
    shapes = [([-1] if batch else []) + list(tensor.dims) for _, tensor, batch in (made, wanted)]
    same = len(shapes[0]) == len(shapes[1]) and all(a == b or -1 in (a, b) for a, b in zip(*shapes, strict=True))
    types = [DataType.Name(tensor.data_type).removeprefix("TYPE_") for _, tensor, _ in (made, wanted)]
    if not same or types[0] != types[1]:
        why = f"{made[0]} is {types[0]} {shapes[0]} and {wanted[0]} is {types[1]} {shapes[1]}"
        yield Finding(ensemble.file, key, why, "the same type and dims on both sides", "error")


def response_cache(repository: Repository) -> Iterator[Finding]:
    """Answers that the cache cannot keep."""
    for model in repository.models.values():
        if not model.config.response_cache.enable:
            continue
        asked = repository.steps(model) if model.backend == "ensemble" else [model]
        reasons = [
            f"{step.name} {reason}"
            for step in asked
            for reason, holds in (
                ("is decoupled", step.config.model_transaction_policy.decoupled),
                ("batches by sequence", step.config.HasField("sequence_batching")),
            )
            if holds
        ]
        if reasons:
            why = f"{' and '.join(reasons)}, whose answers Triton's cache does not keep"
            yield Finding(model.file, "response_cache.enable", why, "nothing", "error")
        elif model.backend == "ensemble":
            why = "many versions of Triton do not keep the answers of an ensemble"
            yield Finding(model.file, "response_cache.enable", why, "the same in the configuration of its slowest step")


RULES: tuple[Callable[[Repository], Iterator[Finding]], ...] = (
    unknown_key,
    several_delays,
    long_delay,
    queue_policy,
    preferred_sizes,
    on_the_ensemble,
    tensorrt_only,
    cuda_graph,
    wide_integers,
    large_outputs,
    threads,
    wiring,
    response_cache,
)


def _item_bytes(data_type: int) -> int:
    name = DataType.Name(data_type).removeprefix("TYPE_")  # type: ignore[arg-type]
    return 2 if name in ("FP16", "BF16") else np.dtype(triton_to_np_dtype(name) or np.uint8).itemsize


def _time_us(model: Model) -> float | None:
    """What the step takes for one item here, in microseconds: of its warm-up's, else of zeros; None if that is not known."""
    path = model.onnx()
    elsewhere = any(group.kind == ModelInstanceGroup.KIND_GPU for group in model.config.instance_group)
    if path is None or elsewhere or any(-1 in tensor.dims for tensor in model.config.input):
        return None
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    feeds = _feeds(model)
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ranks = {entry.name: len(entry.shape) for entry in session.get_inputs()}
        shaped = {name: value.reshape(value.shape[: ranks[name]]) for name, value in feeds.items()}
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(None, shaped)
            times.append(time.perf_counter() - start)
    except Exception:  # whatever keeps it from running here, its time is not known
        return None
    return statistics.median(times) * 1e6


def _feeds(model: Model) -> dict[str, np.ndarray]:
    batch = [1] if model.config.max_batch_size else []
    warm = model.config.model_warmup[0].inputs if model.config.model_warmup else {}
    feeds = {}
    for tensor in model.config.input:
        dtype = triton_to_np_dtype(DataType.Name(tensor.data_type).removeprefix("TYPE_"))
        shape = [*batch, *tensor.dims]
        given = warm[tensor.name].input_data_file if tensor.name in warm else ""
        if given and (model.folder / "warmup" / given).is_file():
            feeds[tensor.name] = np.fromfile(model.folder / "warmup" / given, dtype).reshape(shape)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype)
    return feeds


def _looked_up(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Inputs that are used as indices of known tables alone, and the rows of the largest one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError):
        return {}
    tables = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name in names:
        rows = _rows(name, readers, tables, {output.name for output in graph.output})
        if rows and max(rows) < 2**31:
            found[name] = max(rows)
    return found


def _rows(
    name: str, readers: dict[str, list[onnx.NodeProto]], tables: dict[str, list[int]], outputs: set[str]
) -> list[int] | None:
    """Rows of every table that a tensor is looked up in; None where it is used for anything else."""
    if name in outputs or name not in readers:
        return None
    rows: list[int] = []
    for node in readers[name]:
        if node.op_type in COMPARISONS:
            continue
        if node.op_type in PASSING:
            below = _rows(node.output[0], readers, tables, outputs)
            if below is None:
                return None
            rows += below
        elif node.op_type == "Gather" and node.input[1] == name and node.input[0] in tables:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            rows.append(tables[node.input[0]][axis])
        else:
            return None
    return rows
