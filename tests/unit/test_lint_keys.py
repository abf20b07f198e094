"""Each finding about keys that nothing reads, and where the same keys are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.lint import lint
from tests.configurations import keys, model, write


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("cuda.graphs", "cuda { graphs: true }"),
        ("cuda.graph_spec", "cuda { graph_spec [ { batch_size: 1 } ] }"),
        ("cuda.busy_wait_events", "cuda { busy_wait_events: true }"),
        ("cuda.output_copy_stream", "cuda { output_copy_stream: true }"),
        ("eager_batching", "eager_batching: true"),
        ("gather_kernel_buffer_threshold", "gather_kernel_buffer_threshold: 4"),
    ],
)
def test_keys_that_tensorrt_alone_reads(tmp_path: Path, key: str, text: str):
    more = f"optimization {{ {text} }}"
    assert keys(lint(write(tmp_path / "a", m=model("onnxruntime", more=more)))) == {("m", f"optimization.{key}")}
    assert lint(write(tmp_path / "b", m=model("tensorrt", more=more))) == []
    assert lint(write(tmp_path / "c", m=model("somebodys_own", more=more))) == []


@pytest.mark.parametrize(
    "text",
    [
        'parameters { key: "enable_cuda_graph" value { string_value: "1" } }',
        'optimization { execution_accelerators { gpu_execution_accelerator : [ { name: "cuda" '
        'parameters { key: "enable_cuda_graph" value: "1" } } ] } }',
    ],
)
def test_cuda_graphs_through_onnx_runtime(tmp_path: Path, text: str):
    (found,) = lint(write(tmp_path / "a", m=model("onnxruntime", more=text)))
    assert (found.key, found.severity) == ("enable_cuda_graph", "error")
    accelerated = (
        'optimization { execution_accelerators { gpu_execution_accelerator : [ { name: "tensorrt" '
        'parameters { key: "trt_cuda_graph_enable" value: "true" } } ] } }'
    )
    assert lint(write(tmp_path / "b", m=model("onnxruntime", more=accelerated))) == []


def test_a_key_that_is_not_known(tmp_path: Path):
    (found,) = lint(write(tmp_path, m=model(more="some_day: 1")))
    assert "some_day" in found.why
