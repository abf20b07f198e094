"""No alarm over plain valid repositories and our own; what is no repository; the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from build.bench.variant import changed
from build.repository import config
from ensemble.lint import LintError, lint
from ensemble.spec import Spec
from tests.configurations import DELAY, chain, delayed, model, write


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__buckets": []},
        {"model__buckets": [64, 512]},
        {"steps__core__queue_delay_us": 100},
        {"steps__core__instances": 2, "steps__core__intra_op_threads": 1},
        {"steps__core__device": "gpu", "steps__core__instances": 4},
        {"model__cold_start": False},
    ],
)
def test_nothing_in_our_own(spec: Spec, tmp_path: Path, changes: dict[str, object]):
    for name, content in config.files(changed(spec, **changes)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert lint(tmp_path, cores=2) == []


PLAIN = {
    "classifier": """platform: "onnxruntime_onnx" max_batch_size: 8
        input [ { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW
                  dims: [ 3, 224, 224 ] reshape { shape: [ 1, 3, 224, 224 ] } } ]
        output [ { name: "prob_1" data_type: TYPE_FP32 dims: [ 1000 ] reshape { shape: [ 1, 1000, 1, 1 ] }
                   label_filename: "labels.txt" } ]""",
    "adder": """backend: "python"
        input [ { name: "A" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "B" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output [ { name: "SUM" data_type: TYPE_FP32 dims: [ 4 ] } ]
        instance_group [ { kind: KIND_CPU } ]""",
    "simple": """platform: "tensorflow_graphdef" max_batch_size: 8
        input [ { name: "IN" data_type: TYPE_INT32 dims: [ 16 ] } ]
        output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 16 ] } ]
        version_policy: { latest { num_versions: 1 } }""",
    "torch": """platform: "pytorch_libtorch" max_batch_size: 16
        input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] } ]
        output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1 ] } ]
        dynamic_batching { max_queue_delay_microseconds: 100 }
        instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]""",
    "engine": """platform: "tensorrt_plan" max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP16 dims: [ 3, 224, 224 ] } ]
        output [ { name: "y" data_type: TYPE_FP16 dims: [ 1000 ] } ]
        dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
        optimization { cuda { graphs: true } }""",
    "speaker": """backend: "python" max_batch_size: 0
        input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
        output [ { name: "sound" data_type: TYPE_FP32 dims: [ -1 ] } ]
        model_transaction_policy { decoupled: true }""",
    "listener": """backend: "onnxruntime" max_batch_size: 4
        sequence_batching { max_sequence_idle_microseconds: 5000000
          control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ] }
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]""",
    "decode": """backend: "python" max_batch_size: 8
        input [ { name: "bytes" data_type: TYPE_UINT8 dims: [ -1 ] } ]
        output [ { name: "image" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]""",
    "pipeline": """platform: "ensemble" max_batch_size: 8
        input [ { name: "file" data_type: TYPE_UINT8 dims: [ -1 ] } ]
        output [ { name: "classes" data_type: TYPE_FP32 dims: [ 1000 ] } ]
        ensemble_scheduling { step [
          { model_name: "decode" model_version: -1
            input_map { key: "bytes" value: "file" } output_map { key: "image" value: "picture" } },
          { model_name: "classifier" model_version: -1
            input_map { key: "data_0" value: "picture" } output_map { key: "prob_1" value: "classes" } } ] }""",
}


def test_no_alarm_over_plain_repositories(tmp_path: Path):
    assert [str(finding) for finding in lint(write(tmp_path, **PLAIN))] == []


def test_what_is_no_repository(tmp_path: Path):
    with pytest.raises(LintError, match="there is no model repository"):
        lint(tmp_path / "none")
    with pytest.raises(LintError, match=r"no config\.pbtxt"):
        lint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"input [ {", b"max_batch_size: ${N}", b"\xff\xfe", b"max_batch_size: 99999999999"]
)
def test_one_that_cannot_be_read_is_one_finding_and_the_rest_is_looked_at(tmp_path: Path, content: bytes):
    write(tmp_path, broken="", costly=model(more=delayed(100_000)))
    (tmp_path / "broken" / "config.pbtxt").write_bytes(content)
    assert [(finding.rule, finding.severity) for finding in lint(tmp_path)] == [
        ("unreadable", "error"),
        ("delay-too-long", "warning"),
    ]


def test_the_command(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ensemble", "lint", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    clean = write(tmp_path / "clean", m=model())
    assert (run(str(clean)).returncode, run(str(clean), "--strict").returncode) == (0, 0)
    costly = write(tmp_path / "costly", m=model(more=delayed(100_000)))
    assert (run(str(costly)).returncode, run(str(costly), "--strict").returncode) == (0, 1)
    assert f"{costly / 'm' / 'config.pbtxt'}: warning: {DELAY}: " in run(str(costly)).stdout
    broken = write(tmp_path / "broken", first=model(), second=model(size=5), whole=chain())
    assert run(str(broken)).returncode == 1
    missing = run(str(tmp_path / "none"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: there is no model repository")
    assert missing.stderr.count("\n") == 1
