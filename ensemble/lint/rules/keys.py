"""Keys that nothing reads, or nothing that is meant."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.repository import WITHOUT_TENSORRT, Repository


def unknown_key(repository: Repository) -> Iterator[Finding]:
    """A key that this version of the protobuf does not have.

    `max_batchsize: 8`: there is one that is not known here (1:1 : ... has no field named "max_batchsize").
    """
    for model in repository.models.values():
        if model.unknown:
            yield Finding(
                model.file,
                "keys",
                f"there is one that is not known here ({model.unknown})",
                "a known key, or a newer tritonclient",
            )


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


def cuda_graph(repository: Repository) -> Iterator[Finding]:
    """A graph replays on the buffers that it was captured with.

    `parameters { key: "enable_cuda_graph" value { string_value: "1" } }`: the backend binds other buffers in every run.
    """
    key = "enable_cuda_graph"
    for model in repository.models.values():
        accelerators = model.config.optimization.execution_accelerators.gpu_execution_accelerator
        given = key in model.config.parameters or any(key in accelerator.parameters for accelerator in accelerators)
        if given and model.backend == "onnxruntime":
            why = "the backend binds other buffers in every run, on which a captured CUDA graph does not replay"
            yield Finding(
                model.file, key, why, "the TensorRT accelerator with trt_cuda_graph_enable, or nothing", "error"
            )
