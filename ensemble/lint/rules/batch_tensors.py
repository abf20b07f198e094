"""Tensors that Triton makes of a batch, and inputs that may differ within one."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import BatchInput, BatchOutput, DataType

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import among, refused
from ensemble.lint.repository import Repository
from ensemble.lint.rule import CORE, GUIDE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateBatchIO)"


@rule("batch-tensors", CHECKED)
def batch_tensors(repository: Repository) -> Iterator[Finding]:
    """Batch inputs or outputs that name what is not there.

    `batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 source_input: "x" } ]`: each has
    one source, which is an input; types are INT32 or FP32; a batch output's targets are outputs, each once.
    """
    for model in repository.models.values():
        inputs = {tensor.name for tensor in model.config.input}
        outputs = {tensor.name for tensor in model.config.output}
        both = (
            *(("batch_input", one, BatchInput.Kind.Name(one.kind)) for one in model.config.batch_input),
            *(("batch_output", one, BatchOutput.Kind.Name(one.kind)) for one in model.config.batch_output),
        )
        for side, one, kind in both:
            targets = list(one.target_name)
            key = f"{side} ({', '.join(targets)})" if targets else side
            if len(one.source_input) != 1:
                yield refused(model, key, f"{kind} has {len(one.source_input)} source_input", "one")
            for name in one.source_input:
                if inputs and name not in inputs:
                    yield refused(model, key, f"there is no input {name}", among(inputs))
            if side == "batch_input" and one.data_type not in (DataType.TYPE_INT32, DataType.TYPE_FP32):
                yield refused(model, key, f"it is {DataType.Name(one.data_type)}", "TYPE_INT32 or TYPE_FP32")
            if side == "batch_output":
                for name in sorted(set(targets)):
                    if outputs and name not in outputs:
                        yield refused(model, key, f"there is no output {name}", among(outputs))
                    if targets.count(name) > 1:
                        yield refused(model, key, f"{name} is there {targets.count(name)} times", "once")


@rule("ragged-batch", f"{GUIDE}/ragged_batching.html")
def ragged(repository: Repository) -> Iterator[Finding]:
    """Inputs of unequal shapes in one batch, with nothing that says where one ends.

    `input [ { name: "x" dims: [ -1 ] allow_ragged_batch: true } ]`: the batcher joins requests end to end, and without
    a batch_input the model cannot tell them apart. Add one, e.g. BATCH_ACCUMULATED_ELEMENT_COUNT; or none of both.
    Python models get each request by itself: of those nothing is said.
    """
    for model in repository.singles():
        names = [tensor.name for tensor in model.config.input if tensor.allow_ragged_batch]
        if (
            names
            and not model.config.batch_input
            and model.backend in ("onnxruntime", "tensorrt", "tensorflow", "pytorch")
        ):
            why = "requests of unequal shapes are joined end to end, and no batch_input says where one ends"
            key = f"input.allow_ragged_batch ({', '.join(names)})"
            yield Finding(model.file, key, why, "a batch_input beside it, or neither")
        elif names and model.config.max_batch_size == 0:
            key = f"input.allow_ragged_batch ({', '.join(names)})"
            yield Finding(model.file, key, "with max_batch_size 0 nothing is batched", "nothing, or a max_batch_size")
