import importlib.metadata
import math
import pickle
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from build.core import parity
from build.core.export import export
from build.core.parity import ParityError
from build.core.recipe import cut
from build.core.reduce import Inputs, ReductionError
from build.core.reduce import file as model_file
from build.core.reduce.rules import RECURRENT
from build.core.reduce.shapes import Shapes
from build.core.reduction import reduce_file
from build.model import checkpoint
from build.model.checkpoint import CheckpointError
from build.repository import assembly as repository
from build.repository import fingerprint, manifest, sources
from build.repository.assembly import RepositoryError
from ensemble.spec import Spec
from tests import factories
from tests.conftest import NETWORKS, resized, untrained


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, spec, tmp_path_factory):
    """A small spec, its model, full ONNX and core, in files; of every network."""
    small = resized(spec, request.param, problems=40, window=32)
    if request.param == "transformer":
        small = resized(spec, request.param, problems=40, window=32, buckets=(8, 16, 32))
    folder = tmp_path_factory.mktemp("onnx")
    model = untrained(small)
    full = export(model, small).model
    ir.save(full, folder / "full.onnx")
    ir.save(cut(full, small).model, folder / "core.onnx")
    return small, model, folder / "full.onnx", folder / "core.onnx"


@pytest.fixture(scope="module")
def built(small_spec, small_checkpoint, tmp_path_factory):
    return repository.build(small_spec, small_checkpoint, tmp_path_factory.mktemp("repository") / "models")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_core_takes_int32_and_answers_one_row(exported):
    spec, _, _, file = exported
    core = onnx.load(file)
    onnx.checker.check_model(core, full_check=True)
    assert [(i.name, i.type.tensor_type.elem_type) for i in core.graph.input] == [
        (name, onnx.TensorProto.INT32) for name in ("recent_problem_ids", "recent_responses", "lengths")
    ]
    (output,) = core.graph.output
    batch, problems = output.type.tensor_type.shape.dim
    assert batch.dim_param
    assert problems.dim_value == spec.model.problems
    assert core.opset_import[0].version == spec.export.opset
    assert core.ir_version == 8


def test_no_tensor_of_the_core_has_every_row_of_every_problem(exported):
    spec, _, _, file = exported
    model = ir.load(file)
    window = spec.model.window
    shapes = Shapes(model, Inputs.find(model, "logits", 1, window), full=True)
    for node in model.graph:
        for value in node.outputs:
            if value.name:
                dims = shapes.at(value, 1, spec.model.window)
                assert spec.model.problems not in dims or math.prod(dims) == spec.model.problems, (node.op_type, dims)


def test_every_stage_agrees(exported):
    spec, model, full, core = exported
    differences = parity.check(model, full, core, spec)
    assert {d.stage.partition(" at ")[0] for d in differences} == {
        "PyTorch, padded",
        "PyTorch cut",
        "ONNX full",
        "ONNX core",
    }
    assert {(1,), (2,), (17,), (31,), (32,), (0,)} <= {d.lengths for d in differences}
    assert any(len(d.lengths) > 4 for d in differences)
    assert max(d.value for d in differences) < 1e-5


@pytest.mark.parametrize("network", ["dkt", "gru"])
def test_a_core_that_computes_the_whole_window_answers_a_cold_start(spec, network, tmp_path):
    table = resized(spec, network, problems=40, window=32, buckets=(8, 32)).model_dump()
    table["reduce"]["length_aware"] = False
    small = Spec.model_validate(table)
    model = untrained(small)
    full = export(model, small).model
    ir.save(full, tmp_path / "full.onnx")
    core = cut(full, small).model
    ir.save(core, tmp_path / "core.onnx")
    # What a captured CUDA graph may repeat: nothing stops at a length, or is as large as one says.
    assert not any(node.inputs[4:5] not in ((), (None,)) for node in core.graph if node.op_type in RECURRENT)
    assert not any(node.op_type == "Slice" for node in core.graph)
    differences = parity.check(model, tmp_path / "full.onnx", tmp_path / "core.onnx", small)
    assert (0,) in {d.lengths for d in differences if d.stage.startswith("ONNX core")}


def test_what_lies_behind_the_length_changes_nothing(exported):
    spec, _, _, core = exported
    session = ort.InferenceSession(str(core), providers=["CPUExecutionProvider"])
    ids, responses, lengths = parity.windows((3, 0, 20), spec)
    names = ("recent_problem_ids", "recent_responses", "lengths")
    before = session.run(None, dict(zip(names, (ids, responses, lengths), strict=True)))[0]
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
        responses[row, length:] = 0
    after = session.run(None, dict(zip(names, (ids, responses, lengths), strict=True)))[0]
    np.testing.assert_array_equal(before, after)


def test_the_gate_names_the_stage_that_parts(exported, tmp_path):
    spec, model, full_file, _ = exported
    other = cut(export(untrained(spec, seed=1), spec).model, spec).model
    ir.save(other, tmp_path / "core.onnx")
    with pytest.raises(ParityError, match=r"ONNX core.* parts from PyTorch full forward by .* at lengths \[1\]"):
        parity.check(model, full_file, tmp_path / "core.onnx", spec)


def test_the_cut_refuses_a_cold_start_that_the_model_cannot_give(small_spec):
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(2, small_spec.model.problems)

        def forward(self, problem_ids, responses):
            return self.embedding(responses) + problem_ids[..., None]

    full = export(Residual(), small_spec).model
    with pytest.raises(ReductionError, match=r"no row before the first interaction.*model.cold_start = false"):
        cut(full, small_spec)
    warm = small_spec.model_copy(update={"model": small_spec.model.model_copy(update={"cold_start": False})})
    assert [value.name for value in cut(full, warm).model.graph.outputs] == ["logits"]


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


def test_weights_that_protobuf_cannot_hold_lie_beside_the_model(small_spec, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 0)  # everything is too much
    done = repository.build(small_spec, small_checkpoint, tmp_path / "models")
    assert {"core/1/model.onnx", "core/1/model.onnx.data"} <= set(done.changed)
    again = repository.build(small_spec, small_checkpoint, tmp_path / "models")
    assert again.changed == ()
    core = tmp_path / "models" / "core" / "1" / "model.onnx"
    assert core.stat().st_size < (core.parent / "model.onnx.data").stat().st_size
    session = ort.InferenceSession(str(core), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape[1] == small_spec.model.problems
    reduced, proof = reduce_file(_full(small_spec, tmp_path), tmp_path / "out" / "core.onnx", "last", window=32)
    assert proof.difference < 1e-5
    assert reduced.empty
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"core.onnx", "core.onnx.data"}


def _full(spec, folder: Path) -> Path:
    model_file.save(export(untrained(spec), spec).model, folder / "full.onnx")
    return folder / "full.onnx"


def named(spec: Spec, name: str) -> Spec:
    return spec.model_copy(update={"model": spec.model.model_copy(update={"name": name})})


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return shutil.copytree(built.folder, tmp_path / "models")


def test_another_name_leaves_no_old_ensemble_and_touches_nobodys_model(small_spec, small_checkpoint, copy):
    own = copy / "mine"
    shutil.copytree(copy / small_spec.model.name, own)  # somebody's variant, with lastrow's first line in it
    (copy / "README").write_text("mine")
    before = files(own)
    repository.build(named(small_spec, "renamed"), small_checkpoint, copy)
    assert not (copy / small_spec.model.name).exists()
    assert files(own) == before
    assert (copy / "README").read_text() == "mine"
    assert {path.name for path in copy.iterdir()} == {
        "preprocess",
        "core",
        "postprocess",
        "propose",
        "renamed",
        "mine",
        "README",
        manifest.NAME,
    }
    repository.build(small_spec, small_checkpoint, copy)
    assert not (copy / "renamed").exists()
    assert (copy / small_spec.model.name / "config.pbtxt").is_file()


def test_an_old_ensemble_that_somebody_changed_is_named(small_spec, small_checkpoint, copy):
    own = copy / small_spec.model.name / "config.pbtxt"
    own.write_text(own.read_text().replace("max_batch_size: 32", "max_batch_size: 4"))
    before = files(copy)
    with pytest.raises(RepositoryError, match=rf"{own} was changed since .* move {own.parent} away"):
        repository.build(named(small_spec, "renamed"), small_checkpoint, copy)
    assert files(copy) == before


def test_an_old_ensemble_with_somebodys_files_keeps_them(small_spec, small_checkpoint, copy):
    (copy / small_spec.model.name / "notes.txt").write_text("mine")
    repository.build(named(small_spec, "renamed"), small_checkpoint, copy)
    assert files(copy / small_spec.model.name) == {"notes.txt": b"mine"}


def test_warmup_of_an_earlier_build_goes(small_spec, small_checkpoint, tmp_path):
    wide = small_spec.model_copy(update={"model": small_spec.model.model_copy(update={"buckets": (8, 32)})})
    out = tmp_path / "models"
    repository.build(wide, small_checkpoint, out)
    assert (out / "core" / "warmup" / "length_8").is_file()
    (out / "core" / "warmup" / "length_9").write_bytes(b"mine")
    repository.build(small_spec, small_checkpoint, out)
    assert {path.name for path in (out / "core" / "warmup").iterdir()} == {"length_32", "length_9"}


@pytest.mark.parametrize("model", ["core", "preprocess", "renamed"])
@pytest.mark.parametrize("configured", [True, False])
def test_somebodys_model_of_that_name_is_not_overwritten(small_spec, small_checkpoint, tmp_path, model, configured):
    own = tmp_path / "models" / model
    (own / "1").mkdir(parents=True)
    (own / "1" / ("model.onnx" if model == "core" else "model.py")).write_bytes(b"mine")
    if configured:
        (own / "config.pbtxt").write_text(f'name: "{model}"\nbackend: "python"\n')
    before = files(tmp_path / "models")
    with pytest.raises(RepositoryError, match=rf"{own} holds a model that lastrow did not write.*OUT="):
        repository.build(named(small_spec, "renamed"), small_checkpoint, tmp_path / "models")
    assert files(tmp_path / "models") == before


def test_weights_beside_a_core_are_missed_when_gone_and_go_with_it(small_spec, small_checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "models"
    with monkeypatch.context() as little:
        little.setattr(model_file, "PROTOBUF_LIMIT", 0)
        repository.build(small_spec, small_checkpoint, out)
        weights = out / "core" / "1" / "model.onnx.data"
        weights.unlink()
        assert "core/1/model.onnx.data" in repository.build(small_spec, small_checkpoint, out).changed
    checkpoint.save(untrained(small_spec, seed=5), tmp_path / "other.pt")
    repository.build(small_spec, tmp_path / "other.pt", out)
    assert not weights.exists()


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "onnx-ir", "numpy", "onnxruntime-gpu"])
def test_another_version_of_what_makes_a_core_makes_another(small_spec, small_checkpoint, monkeypatch, package):
    before = fingerprint.of(small_spec, small_checkpoint)
    assert fingerprint.of(small_spec, small_checkpoint) == before
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == package else version(name))
    assert fingerprint.of(small_spec, small_checkpoint) != before


@pytest.mark.parametrize(
    "module",
    [
        "build.core.recipe",
        "build.core.battery",
        "build.core.export",
        "build.model.checkpoint",
        "build.core.reduce.file",
        "ensemble.spec",
    ],
)
def test_other_code_makes_another_core(small_spec, small_checkpoint, monkeypatch, tmp_path, module):
    before = fingerprint.of(small_spec, small_checkpoint)
    found = sources.find(fingerprint.MAKER)
    assert {
        "build.model.network",
        "build.core.parity",
        "build.core.precision",
        "build.core.reduce",
        "build.core.reduce.rules",
    } < set(found.files)
    changed = tmp_path / "changed.py"
    changed.write_text(found.files[module].read_text() + "\n# changed\n")
    found.files[module] = changed
    monkeypatch.setattr(sources, "find", lambda _: found)
    assert fingerprint.of(small_spec, small_checkpoint) != before


def test_another_helper_of_a_factory_makes_another_core(spec, monkeypatch, tmp_path):
    package = tmp_path / "mine"
    (package / "layers").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layers" / "__init__.py").write_text("from .attention import attentive\n")
    (package / "layers" / "attention.py").write_text("from tests.factories import attentive\nfrom ..size import SIZE\n")
    (package / "size.py").write_text("SIZE = 1\n")
    (package / "model.py").write_text("def make():\n    from mine import layers\n    return layers.attentive()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    torch.save(factories.attentive().state_dict(), tmp_path / "model.pt")
    table = resized(spec, problems=factories.PROBLEMS, window=32, cold_start=False).model_dump()
    table["network"] = {"type": "module", "factory": "mine.model:make"}
    own = Spec.model_validate(table)
    out = tmp_path / "models"
    assert "core/1/model.onnx" in repository.build(own, tmp_path / "model.pt", out).changed
    assert repository.build(own, tmp_path / "model.pt", out).changed == ()
    (package / "aside.py").write_text("")
    assert repository.build(own, tmp_path / "model.pt", out).changed == ()
    for name in ("layers/attention.py", "layers/__init__.py", "__init__.py", "model.py", "size.py"):
        before = fingerprint.of(own, tmp_path / "model.pt")
        (package / name).write_text((package / name).read_text() + "# changed\n")
        assert fingerprint.of(own, tmp_path / "model.pt") != before, name
    assert repository.build(own, tmp_path / "model.pt", out).changed == ("core/1/model.onnx",)


def test_a_factorys_packages_count_with_their_versions(spec, monkeypatch, tmp_path):
    (tmp_path / "quoting.py").write_text("import jinja2\nimport json\n\ndef make():\n    pass\n")
    (tmp_path / "broken.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = sources.find("quoting")
    assert {name.lower(): version for name, version in found.versions().items()} == {"jinja2": version("jinja2")}
    assert list(found.files) == ["quoting"]
    assert list(sources.find("broken").files) == ["broken"]
    assert sources.find("nowhere.at.all").files == {}
    assert "quoting" not in sys.modules


def test_the_device_counts_since_parity_goes_by_it(small_spec, small_checkpoint):
    core = small_spec.steps.core.model_copy(update={"device": "gpu"})
    gpu = small_spec.model_copy(update={"steps": small_spec.steps.model_copy(update={"core": core})})
    assert fingerprint.of(gpu, small_checkpoint) != fingerprint.of(small_spec, small_checkpoint)
