import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from build import checkpoint, parity, repository
from build.checkpoint import CheckpointError
from build.export import export
from build.parity import ParityError
from build.reduce import ReductionError, reduce
from tests.conftest import resized, untrained


@pytest.fixture(scope="module")
def exported(small_spec, tmp_path_factory):
    """A small model, its full ONNX and its core, in files."""
    folder = tmp_path_factory.mktemp("onnx")
    model = untrained(small_spec)
    full = export(model, small_spec)
    ir.save(full, folder / "full.onnx")
    ir.save(reduce(full, small_spec), folder / "core.onnx")
    return model, full, folder / "full.onnx", folder / "core.onnx"


@pytest.fixture(scope="module")
def built(small_spec, small_checkpoint, tmp_path_factory):
    return repository.build(small_spec, small_checkpoint, tmp_path_factory.mktemp("repository") / "models")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_core_takes_int32_and_answers_one_row(small_spec, exported):
    core = onnx.load(exported[3])
    onnx.checker.check_model(core, full_check=True)
    assert [(i.name, i.type.tensor_type.elem_type) for i in core.graph.input] == [
        (name, onnx.TensorProto.INT32) for name in ("recent_problem_ids", "recent_responses", "lengths")
    ]
    (output,) = core.graph.output
    batch, problems = output.type.tensor_type.shape.dim
    assert batch.dim_param
    assert problems.dim_value == small_spec.model.problems
    assert core.opset_import[0].version == small_spec.export.opset
    assert core.ir_version == 8


def test_every_stage_agrees(small_spec, exported):
    model, _, full, core = exported
    differences = parity.check(model, full, core, small_spec)
    assert {d.stage for d in differences} == {"PyTorch cut", "ONNX full", "ONNX core"}
    assert {d.lengths for d in differences} == {(1,), (2,), (20,), (31,), (32,), (32, 31, 20, 2, 1), (0,)}
    assert max(d.value for d in differences) < 1e-5


def test_what_lies_behind_the_length_changes_nothing(small_spec, exported):
    session = ort.InferenceSession(str(exported[3]), providers=["CPUExecutionProvider"])
    ids, responses, lengths = parity.windows((3, 0, 20), small_spec)
    names = ("recent_problem_ids", "recent_responses", "lengths")
    before = session.run(None, dict(zip(names, (ids, responses, lengths), strict=True)))[0]
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
        responses[row, length:] = 0
    after = session.run(None, dict(zip(names, (ids, responses, lengths), strict=True)))[0]
    np.testing.assert_array_equal(before, after)


def test_the_gate_names_the_stage_that_parts(small_spec, exported, tmp_path):
    model, _, full_file, _ = exported
    other = reduce(export(untrained(small_spec, seed=1), small_spec), small_spec)
    ir.save(other, tmp_path / "core.onnx")
    with pytest.raises(ParityError, match=r"ONNX core parts from PyTorch full forward by .* at lengths \[1\]"):
        parity.check(model, full_file, tmp_path / "core.onnx", small_spec)


def test_the_cut_refuses_what_it_does_not_know(small_spec):
    class Mean(torch.nn.Module):
        def forward(self, problem_ids, responses):
            scores = (problem_ids + responses).float()[..., None].expand(-1, -1, small_spec.model.problems)
            return scores.cumsum(1)

    with pytest.raises(ReductionError, match=r"expected Add .* found CumSum.*reduce.where = \"postprocess\""):
        reduce(export(Mean(), small_spec), small_spec)


def test_build_writes_only_what_changed(small_spec, small_checkpoint, built):
    assert "core/1/model.onnx" in built.changed
    before = files(built.folder)
    again = repository.build(small_spec, small_checkpoint, built.folder)
    assert again.changed == ()
    assert files(built.folder) == before
    steps = small_spec.steps.model_copy(update={"core": small_spec.steps.core.model_copy(update={"instances": 3})})
    tuned = repository.build(small_spec.model_copy(update={"steps": steps}), small_checkpoint, built.folder)
    assert tuned.changed == ("core/config.pbtxt",)
    assert repository.build(small_spec, small_checkpoint, built.folder).changed == ("core/config.pbtxt",)


def test_other_weights_make_another_core(small_spec, built, tmp_path):
    checkpoint.save(untrained(small_spec, seed=5), tmp_path / "other.pt")
    copy = shutil.copytree(built.folder, tmp_path / "models")
    assert repository.build(small_spec, tmp_path / "other.pt", copy).changed == ("core/1/model.onnx",)


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "text", "pickle", "other dimensions", "other model", "no dict"]
)
def test_a_bad_checkpoint_leaves_the_repository_alone(small_spec, small_checkpoint, built, tmp_path, damage):
    path = tmp_path / "bad.pt"
    if damage == "truncated":
        path.write_bytes(small_checkpoint.read_bytes()[:2000])
    elif damage == "text":
        path.write_text("weights")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Path))
    elif damage == "other dimensions":
        checkpoint.save(untrained(resized(small_spec, problems=41)), path)
    elif damage == "other model":
        torch.save({"layer.weight": torch.zeros(2)}, path)
    elif damage == "no dict":
        torch.save(torch.zeros(2), path)
    before = files(built.folder)
    with pytest.raises(CheckpointError) as raised:
        repository.build(small_spec, path, built.folder)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert files(built.folder) == before
    assert not list(built.folder.parent.glob(".lastrow-*"))


def test_failed_parity_leaves_no_repository(small_spec, small_checkpoint, tmp_path):
    strict = small_spec.model_copy(
        update={"parity": small_spec.parity.model_copy(update={"max_abs_difference": 1e-30})}
    )
    with pytest.raises(ParityError):
        repository.build(strict, small_checkpoint, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []
