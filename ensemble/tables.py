"""The tables of a spec, as pydantic reads them: a key that means nothing, or a value that is not allowed, is named."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dim = Annotated[int, Field(ge=-1)] | str
Count = Annotated[int, Field(ge=1)]
INTEGERS = ("INT32", "INT64")
Precision = Literal["float32", "float16", "int8"]
# The composing models, by their names in the repository.
PREPROCESS, CORE, POSTPROCESS, PROPOSE = "preprocess", "core", "postprocess", "propose"
PYTHON_STEPS = (PREPROCESS, POSTPROCESS, PROPOSE)
# A tensor or model name ends up in file names, URLs and protobuf text: keep it to what is safe in all three.
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Table(BaseModel):
    """A TOML table. A key that means nothing is an error: it is almost always a typing mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Table):
    """The served model: its name, and its window in steps of a history.

    buckets: widths that the core sees, the narrowest that holds a request's histories; none: always the window.
    cold_start: whether an empty history is answered.
    """

    name: Name
    window: Count
    buckets: tuple[Count, ...] = ()
    cold_start: bool = True

    @model_validator(mode="after")
    def _buckets_rise_to_the_window(self) -> Model:
        if self.buckets and (list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1] != self.window):
            raise ValueError(
                f"buckets are {list(self.buckets)}; they have to rise and to end in the window, {self.window}"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width that the core sees."""
        return self.buckets or (self.window,)


class RecurrentNetwork(Table):
    """Deep Knowledge Tracing, over an LSTM ("dkt") or a GRU."""

    type: Literal["dkt", "gru"]
    embedding: Count
    hidden: Count


class TransformerNetwork(Table):
    """A causal Transformer; every head sees embedding / heads numbers."""

    type: Literal["transformer"]
    embedding: Count
    blocks: Count
    heads: Count

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerNetwork:
        if self.embedding % self.heads:
            raise ValueError(f"embedding {self.embedding} is no multiple of {self.heads} heads")
        return self


class ModuleNetwork(Table):
    """Any PyTorch model: `factory` ("package.module:function") makes it, a checkpoint has its weights.

    Its forward takes problem ids and responses, INT64 [batch, time], and answers [batch, time, problems].
    """

    type: Literal["module"]
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class OnnxNetwork(Table):
    """An ONNX file, which is the checkpoint: the names of two integer inputs [batch, time] and of the output in it."""

    type: Literal["onnx"]
    problem_ids: str
    responses: str
    output: str


class OnnxModel(Table):
    """An ONNX file, which is the checkpoint; its inputs and outputs are those that the spec names."""

    type: Literal["onnx"]


class SasrecNetwork(Table):
    """The next item by causal attention over the items before (Kang and McAuley, ICDM 2018)."""

    type: Literal["sasrec"]
    embedding: Count
    blocks: Count
    heads: Count


class Gru4RecNetwork(Table):
    """The next item by a GRU over the items before (Hidasi et al., ICLR 2016)."""

    type: Literal["gru4rec"]
    embedding: Count
    hidden: Count


class ForecasterNetwork(Table):
    """Quantiles of the next values of a series by an LSTM over its past. quantiles: rising, between 0 and 1."""

    type: Literal["forecaster"]
    hidden: Count
    layers: Count
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...]


class Words(Table):
    """What messages and metrics call one history of a request, several of them, and the steps of one."""

    history: Name = "history"
    histories: Name = "histories"
    step: Name = "step"
    steps: Name = "steps"


Network = Annotated[RecurrentNetwork | TransformerNetwork | ModuleNetwork | OnnxNetwork, Field(discriminator="type")]


class Reduce(Table):
    """Where the wanted row is selected: inside the ONNX core, or in the Python postprocess step.

    length_aware: whether the core stops where the histories do, or computes the whole window.
    """

    where: Literal["core", "postprocess"] = "core"
    length_aware: bool = True


class Export(Table):
    """ONNX export. 18 is the oldest opset that PyTorch's exporter emits, and so what the most servers read.

    precision: of the core's weights and arithmetic. "float16" keeps float32 where it matters, and at both ends; "int8"
        takes LSTMs and products alone.
    """

    opset: Annotated[int, Field(ge=18, le=21)] = 18
    precision: Precision = "float32"


class Parity(Table):
    """The largest absolute difference of two stages' probabilities that still counts as the same answer.

    float16_max_abs_difference, int8_max_abs_difference: the same, of a core in this precision.
    """

    max_abs_difference: Annotated[float, Field(gt=0)]
    float16_max_abs_difference: Annotated[float, Field(gt=0)] = 5e-3
    int8_max_abs_difference: Annotated[float, Field(gt=0)] = 2e-2

    def of_core(self, precision: Precision) -> tuple[str, float]:
        """The key that a core of this precision is held to, and its value."""
        key = "max_abs_difference" if precision == "float32" else f"{precision}_max_abs_difference"
        return f"parity.{key}", getattr(self, key)


class Batching(Table):
    """Histories a request, and a batch of each step; how many requests may wait before a step, and how long.

    max_queue_size: requests; 0: any number. queue_timeout_us: microseconds; 0: any time. longest_history: steps.
    """

    max_batch_size: Count
    max_queue_size: Annotated[int, Field(ge=0)] = 0
    queue_timeout_us: Annotated[int, Field(ge=0)] = 0
    longest_history: Count = 100_000


class Step(Table):
    """A Python step. max_queue_size: instead of batching.max_queue_size."""

    instances: Count = 1
    max_queue_size: Annotated[int, Field(ge=0)] | None = None


class CoreStep(Step):
    """The ONNX step. intra_op_threads 0 leaves the choice to ONNX Runtime; queue_delay_us is in microseconds.

    spinning: whether its threads wait for their next work on a processor, ready at once, or asleep, which leaves it to
    others. This project's own ONNX Runtime backend and the single layout act on it; Triton's C++ backend always spins.

    accelerator: what computes on a GPU. graph_batch_sizes: histories a batch for which a CUDA graph is captured at load, at
    every width; a smaller batch is padded to the next size, and a larger one goes without. None: no graphs. io_binding: the
    embedded backend keeps tensors on a GPU in buffers that stay; false only to measure what that gains.
    """

    queue_delay_us: Annotated[int, Field(ge=0)] = 0
    intra_op_threads: Annotated[int, Field(ge=0)] = 0
    spinning: bool = True
    device: Literal["cpu", "gpu"] = "cpu"
    accelerator: Literal["cuda", "tensorrt"] = "cuda"
    graph_batch_sizes: tuple[Count, ...] = ()
    io_binding: bool = True

    @model_validator(mode="after")
    def _graphs_are_of_a_gpu(self) -> CoreStep:
        sizes = self.graph_batch_sizes
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"graph_batch_sizes are {list(sizes)}; they have to rise")
        if sizes and not self.io_binding:
            raise ValueError("graph_batch_sizes needs io_binding: a CUDA graph replays on buffers that stay")
        if self.device == "cpu" and (sizes or self.accelerator != "cuda"):
            raise ValueError('graph_batch_sizes and accelerator are a GPU\'s; set device = "gpu" (or DEVICE=gpu)')
        return self


class Steps(Table):
    """The settings of each composing model."""

    preprocess: Step = Step()
    core: CoreStep = CoreStep()
    postprocess: Step = Step()
    propose: Step = Step()


Layout = Literal["ensemble", "single"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class Serve(Table):
    """How steps are served.

    layout: "ensemble": a model of Triton's each, which any ONNX Runtime backend serves; "single": all in one Python model,
        which spares a request the way from process to process, and asks for onnxruntime where Triton's Python looks.
    """

    layout: Layout = "ensemble"


class Tuned(Table):
    """When and on what the steps were tuned, and what it gained: both ratios are above 1 where it is faster."""

    time: str
    machine: str
    speed: float
    throughput: float


class Tensor(Table):
    """A tensor's type and a history's shape, without the batch axis."""

    dtype: Literal["BYTES", "INT32", "INT64", "FP16", "FP32", "BOOL"]
    shape: list[Dim]
    name: Name = "_"  # replaced by where it stands
    optional: bool = False
