"""Each finding about bytes and cores, none where they are well spent."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ensemble.lint import lint
from tests.configurations import keys, model, tensor, write


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
    assert lint(open_ended) == []
    (found,) = lint(open_ended, typical={"y": [512]})
    assert "28.8 MB an item, with what is typical of y" in found.why
    assert lint(open_ended, typical={"y": [50]}) == []
    (found,) = lint(
        write(tmp_path / "part", m=rows.format(tensor("x", "INT32", -1), tensor("y", "FP32", -1, 14_041_000)))
    )
    assert "at least 56.2 MB" in found.why
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
