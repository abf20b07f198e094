"""Each finding in a repository that has it, none in one that nearly has; no alarm over plain valid repositories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from build.bench.ladder.rung import changed
from build.repository import config
from ensemble.lint import Finding, LintError, lint
from ensemble.spec import Spec

DELAY = "dynamic_batching.max_queue_delay_microseconds"


def write(folder: Path, **models: str) -> Path:
    for name, text in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}\n', encoding="utf-8")
    return folder


def keys(found: list[Finding]) -> set[tuple[str, str]]:
    assert all(finding.why and finding.instead for finding in found)
    return {(finding.file.parent.name, finding.key) for finding in found}


def tensor(name: str, kind: str, *dims: int, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{", ".join(map(str, dims))}] {more} }}'


def model(backend: str = "python", batch: int = 8, size: int = 4, kind: str = "FP32", more: str = "") -> str:
    """A step with an input x and an output y."""
    given = 'platform: "tensorrt_plan"' if backend == "tensorrt" else f'backend: "{backend}"'
    return (
        f"{given}\nmax_batch_size: {batch}\n"
        f"input [ {tensor('x', kind, size)} ]\noutput [ {tensor('y', kind, size)} ]\n{more}"
    )


def chain(first: str = "first", second: str = "second", batch: int = 8, size: int = 4, more: str = "") -> str:
    """An ensemble of two steps."""
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\n'
        f"input [ {tensor('in', 'FP32', size)} ]\noutput [ {tensor('out', 'FP32', size)} ]\n"
        f"""ensemble_scheduling {{ step [
            {{ model_name: "{first}" model_version: -1
               input_map {{ key: "x" value: "in" }} output_map {{ key: "y" value: "between" }} }},
            {{ model_name: "{second}" model_version: -1
               input_map {{ key: "x" value: "between" }} output_map {{ key: "y" value: "out" }} }} ] }}\n{more}"""
    )


def delayed(us: int) -> str:
    return f"dynamic_batching {{ max_queue_delay_microseconds: {us} }}"


def test_a_delay_on_several_steps(tmp_path: Path):
    both = write(tmp_path / "both", first=model(more=delayed(100)), second=model(more=delayed(100)), whole=chain())
    assert keys(lint(both)) == {("first", DELAY), ("second", DELAY)}
    one = write(tmp_path / "one", first=model(more=delayed(100)), second=model(), whole=chain())
    assert lint(one) == []


def test_a_delay_whose_step_cannot_be_timed(tmp_path: Path):
    (found,) = lint(write(tmp_path / "long", slow=model(more=delayed(100_000))))
    assert found.key == DELAY
    assert "1.0 s" in found.why
    assert lint(write(tmp_path / "short", quick=model(more=delayed(10_000)))) == []


def test_a_delay_that_never_acts(tmp_path: Path):
    (found,) = lint(write(tmp_path, m=model(batch=1, more=delayed(100))))
    assert found.key == DELAY
    assert "full at once" in found.why


def onnx_model(folder: Path, repeat: int, kind: int = TensorProto.FLOAT) -> None:
    nodes = [helper.make_node("MatMul", ["x" if n == 0 else f"h{n - 1}", "w"], [f"h{n}"]) for n in range(repeat)]
    nodes.append(helper.make_node("Identity", [f"h{repeat - 1}"], ["y"]))
    weights = helper.make_tensor("w", kind, [512, 512], [0.001] * 512 * 512)
    sides = [helper.make_tensor_value_info(name, kind, ["batch", 512]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, folder / "1" / "model.onnx")


def test_a_delay_beside_the_steps_own_time(tmp_path: Path):
    folder = write(tmp_path, core=model("onnxruntime", size=512, more=delayed(5000)))
    onnx_model(folder / "core", 2)
    (found,) = lint(folder)
    assert found.key == DELAY
    assert "a tenth of the step's own time" in found.why
    (folder / "core" / "config.pbtxt").write_text(model("onnxruntime", size=512, more=delayed(1)))
    onnx_model(folder / "core", 60)
    assert lint(folder) == []


def test_the_time_is_that_of_the_warm_up(spec: Spec, tmp_path: Path):
    for name, content in config.files(changed(spec, steps__core__queue_delay_us=5000)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "core" / "1").mkdir()
    assert lint(tmp_path) == []  # 5 ms, and there is no model to time


@pytest.mark.parametrize(
    "limit", ["max_queue_size: 8", "default_timeout_microseconds: 9", "allow_timeout_override: true"]
)
def test_limits_on_a_queue(tmp_path: Path, limit: str):
    policy = f"dynamic_batching {{ default_queue_policy {{ timeout_action: REJECT {limit} }} }}"
    found = lint(write(tmp_path / "a", m=model(more=policy)))
    assert keys(found) == {("m", f"dynamic_batching.default_queue_policy ({limit.split(':')[0]})")}
    by_priority = f"dynamic_batching {{ priority_levels: 2 priority_queue_policy {{ key: 1 value {{ {limit} }} }} }}"
    assert len(lint(write(tmp_path / "b", m=model(more=by_priority)))) == 1
    without = "dynamic_batching { default_queue_policy { timeout_action: DELAY } }"
    assert lint(write(tmp_path / "c", m=model(more=without))) == []


def test_preferred_sizes(tmp_path: Path):
    sizes = "dynamic_batching { preferred_batch_size: [4, 8] }"
    found = lint(write(tmp_path / "a", m=model("onnxruntime", more=sizes)))
    assert keys(found) == {("m", "dynamic_batching.preferred_batch_size")}
    assert lint(write(tmp_path / "b", m=model("tensorrt", more=sizes))) == []


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("instance_group", "instance_group [ { count: 2 kind: KIND_CPU } ]"),
        (
            "model_warmup",
            'model_warmup [ { name: "w" batch_size: 1 '
            'inputs { key: "in" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } } ]',
        ),
    ],
)
def test_what_an_ensemble_has_not(tmp_path: Path, key: str, text: str):
    found = lint(write(tmp_path, first=model(), second=model(), whole=chain(more=text)))
    assert keys(found) == {("whole", key)}


def test_a_ragged_input_of_an_ensemble(tmp_path: Path):
    ragged = chain().replace("dims: [4]  }", "dims: [4] allow_ragged_batch: true }", 1)
    assert "allow_ragged_batch" in ragged
    found = lint(write(tmp_path, first=model(), second=model(), whole=ragged))
    assert keys(found) == {("whole", "input.allow_ragged_batch (in)")}


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


def lookup(folder: Path, arithmetic: bool, elsewhere: bool) -> None:
    """INT64 ids that are looked up in a table of 100 rows, after an offset is added, and maybe also put out."""
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 4])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 2])
    nodes = [helper.make_node("Gather", ["table", "sum" if arithmetic else "x"], ["y"])]
    if arithmetic:
        nodes.insert(0, helper.make_node("Add", ["x", "offset"], ["sum"]))
    outputs = [rows]
    if elsewhere:
        nodes.append(helper.make_node("Mod", ["x", "offset"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.INT64, ["batch", 4]))
    table = helper.make_tensor("table", TensorProto.FLOAT, [100, 2], [0.0] * 200)
    offset = helper.make_tensor("offset", TensorProto.INT64, [1], [1])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [ids], outputs, [table, offset]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(made)
    onnx.save(made, folder / "1" / "model.onnx")


@pytest.mark.parametrize("arithmetic", [False, True])
def test_ids_in_twice_the_bytes(tmp_path: Path, arithmetic: bool):
    sides = f"input [ {tensor('x', 'INT64', 4)} ] output [ {tensor('y', 'FP32', 4, 2)} ]"
    wide = f'backend: "onnxruntime" max_batch_size: 8 {sides}'
    folder = write(tmp_path, m=wide)
    lookup(folder / "m", arithmetic, elsewhere=False)
    (found,) = lint(folder)
    assert found.key == "input.data_type (x)"
    assert "100 rows" in found.why
    lookup(folder / "m", arithmetic, elsewhere=True)
    assert lint(folder) == []


def test_an_output_too_large_for_a_message(tmp_path: Path):
    rows = 'backend: "python"\ninput [ {} ]\noutput [ {} ]'
    folder = write(tmp_path, m=rows.format(tensor("x", "INT32", 512), tensor("y", "FP32", 512, 14041)))
    (found,) = lint(folder)
    assert found.key == "output.dims (y)"
    assert "28.8 MB" in found.why
    open_ended = write(tmp_path / "open", m=rows.format(tensor("x", "INT32", -1), tensor("y", "FP32", -1, 14041)))
    assert "with 512 for each -1" in lint(open_ended)[0].why
    assert lint(open_ended, length=50) == []
    assert lint(write(tmp_path / "row", m=rows.format(tensor("x", "INT32", -1), tensor("y", "FP32", 14041)))) == []


@pytest.mark.parametrize(
    ("count", "given", "kind", "found"),
    [
        (2, 4, "CPU", True),
        (2, 0, "CPU", True),
        (4, 1, "CPU", False),
        (1, 0, "CPU", False),
        (2, 2, "CPU", False),
        (1, 8, "CPU", True),
        (4, 0, "GPU", False),
    ],
)
def test_sessions_that_take_each_others_cores(tmp_path: Path, count: int, given: int, kind: str, found: bool):
    more = f"instance_group [ {{ count: {count} kind: KIND_{kind} }} ]\n"
    more += f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{given}" }} }}'
    folder = write(tmp_path, m=model("onnxruntime", more=more))
    expected = {("m", "parameters.intra_op_thread_count")} if found else set()
    assert keys(lint(folder, cores=4)) == expected


def test_steps_that_do_not_fit(tmp_path: Path):
    def of(name: str, **models: str) -> set[tuple[str, str]]:
        found = lint(write(tmp_path / name, **models))
        assert all(finding.severity == "error" for finding in found)
        return keys(found)

    assert of("fits", first=model(), second=model(), whole=chain()) == set()
    assert of("any", first=model(size=-1), second=model(size=-1), whole=chain()) == set()
    assert of("dims", first=model(), second=model(size=5), whole=chain()) == {
        ("whole", "input_map (between)"),
        ("whole", "output (out)"),
    }
    assert of("types", first=model(kind="FP16"), second=model(), whole=chain()) == {
        ("whole", "input_map (in)"),
        ("whole", "input_map (between)"),
    }
    assert of("batch", first=model(batch=4), second=model(), whole=chain()) == {("whole", "max_batch_size")}
    assert ("whole", "ensemble_scheduling.step (second)") in of("missing", first=model(), whole=chain())
    renamed = chain().replace('value: "between"', 'value: "elsewhere"', 1)
    assert of("nobody", first=model(), second=model(), whole=renamed) == {("whole", "input_map (between)")}
    other = chain().replace('key: "y" value: "out"', 'key: "z" value: "out"')
    assert ("whole", "output_map (z)") in of("output", first=model(), second=model(), whole=other)


def test_a_step_without_a_configuration_is_not_judged(tmp_path: Path):
    folder = write(tmp_path, first=model(), whole=chain())
    (folder / "second" / "1").mkdir(parents=True)
    assert lint(folder) == []


@pytest.mark.parametrize("reason", ["model_transaction_policy { decoupled: true }", "sequence_batching { }"])
def test_answers_that_the_cache_does_not_keep(tmp_path: Path, reason: str):
    cached = "response_cache { enable: true }"
    (found,) = lint(write(tmp_path / "model", m=model(more=f"{reason}\n{cached}")))
    assert (found.key, found.severity) == ("response_cache.enable", "error")
    whole = write(tmp_path / "whole", first=model(more=reason), second=model(), whole=chain(more=cached))
    (found,) = lint(whole)
    assert (found.file.parent.name, found.key, found.severity) == ("whole", "response_cache.enable", "error")
    (found,) = lint(write(tmp_path / "plain", first=model(), second=model(), whole=chain(more=cached)))
    assert found.severity == "warning"
    assert lint(write(tmp_path / "step", m=model(more=cached))) == []


def test_a_key_that_is_not_known(tmp_path: Path):
    (found,) = lint(write(tmp_path, m=model(more="some_day: 1")))
    assert "some_day" in found.why


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
    write(tmp_path, m="input [ {")
    with pytest.raises(LintError, match="line "):
        lint(tmp_path)


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
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: there is no model repository")
    assert missing.stderr.count("\n") == 1
