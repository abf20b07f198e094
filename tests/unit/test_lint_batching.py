"""Each finding about a batcher in a repository that has it, none in one that nearly has."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from build.bench.ladder.rung import changed
from build.repository import config
from ensemble.lint import lint
from ensemble.spec import Spec
from tests.configurations import DELAY, chain, delayed, keys, model, write


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
    for folder in list(tmp_path.iterdir()):
        (folder / "1").mkdir(exist_ok=True)
    assert lint(tmp_path) == []  # 5 ms, and there is no model to time


@pytest.mark.parametrize(
    "limit", ["max_queue_size: 8", "default_timeout_microseconds: 9", "allow_timeout_override: true"]
)
def test_limits_on_a_queue(tmp_path: Path, limit: str):
    policy = f"dynamic_batching {{ default_queue_policy {{ timeout_action: REJECT {limit} }} }}"
    found = [each for each in lint(write(tmp_path / "a", m=model(more=policy))) if each.rule == "queue-limits"]
    assert keys(found) == {("m", f"dynamic_batching.default_queue_policy ({limit.split(':')[0]})")}
    by_priority = f"priority_levels: 2 default_priority_level: 1 priority_queue_policy {{ key: 1 value {{ {limit} }} }}"
    found = lint(write(tmp_path / "b", m=model(more=f"dynamic_batching {{ {by_priority} }}")))
    assert "queue-limits" in {each.rule for each in found}
    assert lint(tmp_path / "b", triton=(24, 3)) == [each for each in found if each.rule == "timeout-decay"]
    without = "dynamic_batching { default_queue_policy { timeout_action: DELAY } }"
    assert lint(write(tmp_path / "c", m=model(more=without))) == []


def test_preferred_sizes(tmp_path: Path):
    sizes = "dynamic_batching { preferred_batch_size: [4, 8] }"
    found = lint(write(tmp_path / "a", m=model("onnxruntime", more=sizes)))
    assert keys(found) == {("m", "dynamic_batching.preferred_batch_size")}
    assert lint(write(tmp_path / "b", m=model("tensorrt", more=sizes))) == []
