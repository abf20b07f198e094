"""Every way in: what a checkpoint says of its model, and a repository whose parity is proven, without a number typed."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from build.core.export import ExportError, export
from build.core.parity import ParityError
from build.core.reduction import reduce_file
from build.model import checkpoint
from build.model.checkpoint import CheckpointError, digest
from build.repository import assembly as repository
from build.repository import workspace
from ensemble.errors import LastrowError, SpecError
from ensemble.spec import Spec
from tests import factories
from tests.conftest import NETWORKS, resized, untrained

PROBLEMS = factories.PROBLEMS


@pytest.fixture(autouse=True)
def artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Specs that are derived go to a folder of the test's own."""
    monkeypatch.setattr(workspace, "ARTIFACTS", tmp_path / "artifacts")
    return tmp_path / "artifacts"


def opened(path: Path, factory: str | None = None) -> workspace.Workspace:
    return workspace.open_workspace(checkpoint=path, out=path.parent / "models", factory=factory)


def built(path: Path, factory: str | None = None) -> tuple[Spec, ort.InferenceSession]:
    """A repository from the checkpoint alone; parity is checked on the way."""
    space = opened(path, factory)
    done = repository.build(space.spec, space.checkpoint, space.out)
    assert 0 <= done.parity < 1e-5
    core = ort.InferenceSession(str(done.folder / "core" / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    return space.spec, core


def pykt(folder: Path, name: str, problems: int = 40, **model_config: object) -> Path:
    """A run as pyKT leaves it."""
    folder.mkdir()
    spec = resized(Spec.read(), problems=problems, window=32)
    spec = spec.model_copy(update={"network": spec.network.model_copy(update={"hidden": 8})})
    state = untrained(spec).state_dict()
    if name == "qdkt":
        state = {f"model.{key}": value for key, value in state.items()}
    torch.save(state, folder / "qid_model.ckpt")
    numbers = {"num_q": problems, "num_c": 7} if name == "qdkt" else {"num_q": 900, "num_c": problems}
    config = {
        "train_config": {"model_name": name, "emb_type": "qid", "seq_len": 24, "batch_size": 64},
        "model_config": {"dropout": 0.1, "emb_size": 8, "use_wandb": 0, "learning_rate": 0.001, "add_uuid": 1}
        | model_config,
        "data_config": {"dpath": "data/assist2015", **numbers},
        "params": {"model_name": name, "fold": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def collection(folder: Path, hidden: int = 12) -> Path:
    """A checkpoint of knowledge-tracing-collection-pytorch; its configuration leaves the number of problems out."""
    folder.mkdir()
    torch.save(untrained(resized(Spec.read(), problems=40, window=32)).state_dict(), folder / "model.ckpt")
    (folder / "model_config.json").write_text(json.dumps({"emb_size": 8, "hidden_size": hidden}))
    return folder


@pytest.mark.parametrize("network", NETWORKS)
def test_a_state_dict_tells_its_network(spec, tmp_path, network):
    small = resized(spec, network, problems=40, window=32)
    checkpoint.save(untrained(small), tmp_path / "model.pt")
    found = opened(tmp_path / "model.pt").spec
    assert found.network == small.network
    assert found.model.problems == 40
    assert found.model.window == (32 if network == "transformer" else 512)


@pytest.mark.parametrize("name", ["dkt", "dkt+", "qdkt"])
def test_a_pykt_run_is_served_as_it_lies(tmp_path, name):
    spec, core = built(pykt(tmp_path / "run", name))
    assert (spec.model.problems, spec.model.window) == (40, 24)
    assert spec.network.model_dump() == {"type": "dkt", "embedding": 8, "hidden": 8}
    assert core.get_outputs()[0].shape[1] == 40


def test_a_collection_checkpoint_is_served_as_it_lies(tmp_path):
    spec, core = built(collection(tmp_path / "run"))
    assert spec.model.problems == core.get_outputs()[0].shape[1] == 40
    assert spec.network.model_dump() == {"type": "dkt", "embedding": 8, "hidden": 12}


def test_a_module_of_ones_own_is_served(tmp_path):
    torch.manual_seed(0)
    model = factories.attentive().eval()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt")
    spec, core = built(tmp_path / "a.pt", "tests.factories:attentive")
    assert spec.network.model_dump() == {"type": "module", "factory": "tests.factories:attentive"}
    assert (spec.model.problems, spec.shortest_history) == (PROBLEMS, 1)
    rng = np.random.default_rng(0)
    ids, responses = rng.integers(0, PROBLEMS, (1, 9)), rng.integers(0, 2, (1, 9))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(ids), torch.from_numpy(responses))[0, -1].numpy()
    feeds = {"recent_problem_ids": ids.astype(np.int32), "recent_responses": responses.astype(np.int32)}
    logits = core.run(None, {**feeds, "lengths": np.array([9], np.int32)})[0][0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), wanted, atol=1e-6)  # its sigmoid is postprocess' now


@pytest.mark.parametrize("form", ["logits", "probabilities", "int64", "fixed time", "other names"])
def test_an_onnx_file_is_served_without_python(spec, tmp_path, form):
    small = resized(spec, "gru", problems=40, window=32)
    model = export(untrained(small), small).model
    graph = model.graph
    if form == "probabilities":
        last = ir.node("Sigmoid", [graph.outputs[0]])
        last.outputs[0].name, last.outputs[0].dtype = "probabilities", ir.DataType.FLOAT
        last.outputs[0].shape = graph.outputs[0].shape
        graph.append(last)
        graph.outputs[:] = [last.outputs[0]]
    elif form == "int64":
        for value in graph.inputs:
            value.dtype = ir.DataType.INT64
            narrowed = ir.node("Cast", [value], {"to": ir.DataType.INT32})
            narrowed.outputs[0].name = f"{value.name}_32"
            value.replace_all_uses_with(narrowed.outputs[0])
            narrowed.replace_input_with(0, value)
            graph.insert_before(graph[0], narrowed)
    elif form == "fixed time":
        for value in graph.inputs:
            value.shape = ir.Shape(["batch", 24])
    elif form == "other names":
        for value, name in zip([*graph.inputs, *graph.outputs], ("q", "lengths", "logits"), strict=True):
            value.name = name
    ir.save(model, tmp_path / "model.onnx")
    found, core = built(tmp_path / "model.onnx")
    assert found.model.problems == 40
    assert found.model.window == (24 if form == "fixed time" else 512)
    assert [value.type for value in core.get_inputs()] == ["tensor(int32)"] * 3
    assert len(core.get_outputs()[0].shape) == 2


def test_weights_beside_an_onnx_file_are_read_and_watched(spec, tmp_path):
    small = resized(spec, "gru", problems=40, window=32)
    path = tmp_path / "model.onnx"
    ir.save(export(untrained(small), small).model, path, external_data="weights.bin")
    before = digest(path)
    found, _ = built(path)
    assert found.model.problems == 40
    assert reduce_file(path, tmp_path / "reduced.onnx", "last", 1)[1].difference < 1e-5
    with (tmp_path / "weights.bin").open("r+b") as weights:
        weights.write(b"other")
    assert digest(path) != before


@pytest.mark.parametrize("elsewhere", ["above", "absolute", "link"])
def test_weights_outside_an_onnx_files_folder_are_not_read(spec, tmp_path, elsewhere):
    small = resized(spec, "gru", problems=40, window=32)
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    ir.save(export(untrained(small), small).model, path, external_data="weights.bin")
    secret = (folder / "weights.bin").rename(tmp_path / "secret")
    location = {"above": "../secret", "absolute": str(secret), "link": "weights.bin"}[elsewhere]
    (folder / "weights.bin").symlink_to(secret)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LastrowError, match=rf"cannot read {path}: .*(outside|absolute|symbolic)"):
        built(path)
    with pytest.raises(LastrowError, match=rf"cannot read {path}: .*(outside|absolute|symbolic)"):
        reduce_file(path, tmp_path / "reduced.onnx", "last", 1)
    assert not (tmp_path / "reduced.onnx").exists()


def test_every_route_has_its_parity_checked(spec, tmp_path):
    torch.save(factories.bidirectional().state_dict(), tmp_path / "model.pt")
    space = opened(tmp_path / "model.pt", "tests.factories:bidirectional")
    with pytest.raises(ParityError, match="padded at width 256 parts from PyTorch full forward"):
        repository.build(space.spec, space.checkpoint, space.out)
    small = resized(spec, problems=PROBLEMS, window=32)
    full = export(factories.bidirectional().eval(), small).model
    ir.save(full, tmp_path / "ahead.onnx")
    space = opened(tmp_path / "ahead.onnx")
    with pytest.raises(ParityError, match=r"ONNX full at width 256 parts from ONNX full without padding .*look ahead"):
        repository.build(space.spec, space.checkpoint, space.out)
    assert not space.out.exists()


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("code.pt", {"out_layer.weight": Evil()}, "wants to run code when it is opened"),
        (
            "keys.pt",
            {"layer.weight": torch.zeros(2)},
            "has no 'out_layer.weight', which every reference architecture has",
        ),
        (
            "rows.pt",
            collections.OrderedDict(
                {"out_layer.weight": torch.zeros(5, 2), "interaction_emb.weight": torch.zeros(9, 2)}
            ),
            "interaction_emb.weight has 9 rows and out_layer.weight 5",
        ),
        ("text.onnx", "not ONNX", "is no ONNX model"),
    ],
)
def test_what_is_no_checkpoint_is_explained(tmp_path, name, content, message, capsys):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError) as raised:
        opened(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_run_that_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_config.emb_size = 100, its weights 8; are they of one run"):
        opened(pykt(tmp_path / "sizes", "dkt", emb_size=100))
    run = pykt(tmp_path / "numbers", "qdkt")
    config = json.loads((run / "config.json").read_text())
    config["data_config"]["num_q"] = 41
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"data_config.num_q = 41, its weights 40"):
        opened(run)
    config["params"]["model_name"] = "akt"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"a pyKT run of 'akt'; read are dkt, dkt[+], qdkt"):
        opened(run)
    with pytest.raises(CheckpointError, match="hidden_size = 99, its weights 12"):
        opened(collection(tmp_path / "collection", hidden=99))


def test_a_folder_without_a_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has neither config.json .* nor model_config.json"):
        opened(tmp_path / "empty")
    run = pykt(tmp_path / "run", "dkt")
    (run / "other_model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has to have one \*.ckpt file; it has other_model.ckpt, qid_model.ckpt"):
        opened(run)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests.nowhere:make", "there is no factory 'tests.nowhere:make'"),
        ("tests.factories:nothing", "has no attribute 'nothing'"),
        ("tests.factories", "there is no factory 'tests.factories'"),
        ("tests.factories:number", "made a int; needed is an nn.Module"),
        ("tests.factories:last_row", r"for inputs \[2, 7\] the model answers \[2, 7\]; needed is \[2, 7, problems\]"),
        ("tests.factories:attentive", "has no 'problems.weight'; a tests.factories:attentive checkpoint has"),
    ],
)
def test_a_factory_that_does_not_fit_is_explained(tmp_path, factory, message):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path / "model.pt", factory)


def onnx_file(path: Path, inputs: dict[str, tuple[int, list[object]]], output: list[object]) -> Path:
    """A file with these inputs and output; what is between them does not matter."""
    graph = onnx.helper.make_graph(
        [],
        "graph",
        [onnx.helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output)],
    )
    onnx.save(onnx.helper.make_model(graph), path)
    return path


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ({"x": (7, ["b", "t"])}, ["b", "t", 9], r"has the inputs x \[b, t\]; needed are two of integers"),
        ({"q": (7, ["b", "t"]), "r": (1, ["b", "t"])}, ["b", "t", 9], "needed are two of integers"),
        ({"q": (7, [1, "t"]), "r": (7, [1, "t"])}, [1, "t", 9], "has a fixed batch; export it with that axis dynamic"),
        ({"q": (7, ["b", "t"]), "r": (7, ["b", "t"])}, ["b", "t"], r"has the outputs y \[b, t\]; needed is"),
        ({"q": (7, ["b", "t"]), "r": (7, ["b", "t"])}, ["b", "t", "n"], "the number of problems fixed"),
    ],
)
def test_an_onnx_file_of_another_form_is_explained(tmp_path, inputs, output, message):
    with pytest.raises(CheckpointError, match=message):
        opened(onnx_file(tmp_path / "model.onnx", inputs, output))


def test_a_module_that_cannot_be_exported_is_explained(spec):
    class Short(torch.nn.Module):
        def forward(self, problem_ids, responses):
            assert problem_ids.shape[1] < 10
            return (problem_ids + responses)[..., None] * torch.ones(7, 40)

    with pytest.raises(ExportError, match="PyTorch cannot export Short with batch and time dynamic"):
        export(Short(), resized(spec, problems=40, window=32))


def test_a_loop_over_time_is_told_from_its_trace_before_anything_is_exported(spec, monkeypatch):
    class Looping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell = torch.nn.Embedding(80, 8), torch.nn.GRUCell(8, 40)

        def forward(self, problem_ids, responses):
            x, state, states = self.embed(problem_ids + 40 * responses), torch.zeros(len(problem_ids), 40), []
            for row in range(x.shape[1]):
                state = self.cell(x[:, row], state)
                states.append(state)
            return torch.stack(states, 1)

    monkeypatch.setattr("build.core.export._export", None)
    with pytest.raises(ExportError, match=r"Looping loops over time in Python: .* model\.buckets = \[\]"):
        export(Looping(), resized(spec, problems=40, window=32))


def test_choices_that_exclude_each_other_are_refused(tmp_path):
    with pytest.raises(SpecError, match="there is no network 'rnn'; there are dkt, gru, transformer"):
        workspace.open_workspace(network="rnn")
    with pytest.raises(SpecError, match="give --spec or --network, not both"):
        workspace.open_workspace(network="gru", spec=tmp_path / "spec.toml")
    with pytest.raises(SpecError, match="a factory goes with a checkpoint"):
        workspace.open_workspace(factory="a:b")


def test_a_network_by_name_is_the_default_spec_with_that_network():
    space = workspace.open_workspace(network="transformer")
    assert space.spec.model.buckets == (64, 128, 256, 512)
    assert space.spec.network.type == "transformer"
    assert space.spec.tensors == Spec.read().tensors


def test_a_device_changes_the_spec_and_shares_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(workspace, "ARTIFACTS", tmp_path)
    plain, gpu = workspace.open_workspace(), workspace.open_workspace(device="gpu")
    assert (plain.spec.steps.core.device, gpu.spec.steps.core.device) == ("cpu", "gpu")
    assert plain.checkpoint == gpu.checkpoint
    assert gpu.spec.steps.core.model_copy(update={"device": "cpu"}) == plain.spec.steps.core
    with pytest.raises(SpecError, match="a spec names its device"):
        workspace.open_workspace(device="gpu", spec=tmp_path / "spec.toml")
    with pytest.raises(SpecError, match="there is no device 'tpu'; there are cpu and gpu"):
        workspace.open_workspace(device="tpu")
