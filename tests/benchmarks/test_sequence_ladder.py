"""The ladder and the peers' core of any sequence model, for real on a small one: every rung answers as its author asks."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tomlkit
import torch

from build.bench import caller, question, transport
from build.bench.ladder import figures, ladder, report, rung, waterfall
from build.bench.peers import comparison, peer, process
from build.bench.peers.caller import HttpPeer
from build.bench.variant import Variant, build, changed, table
from build.model import checkpoint
from build.model.next_item import network
from build.repository.workspace import PRESETS, Workspace
from ensemble.spec import Spec
from ensemble.tables import Tensor

SHORT = ladder.Settings(rounds=2, turn_s=0.05, concurrencies=(1, 4), tuning_s=0.05)
MEASURED = {"0", "1", "2", "4", "5", "6", "7b", "8", "9", "13", "14", "floor"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("sequence")
    spec = changed(
        Spec.read(PRESETS["sasrec"]),
        sizes={"items": 30, "columns": 31},
        model={"name": "sasrec", "window": 32, "buckets": [16, 32], "padding": "left"},
        network={"type": "sasrec", "embedding": 8, "blocks": 1, "heads": 2},
    )
    (folder / "spec.toml").write_text(tomlkit.dumps(table(spec)), encoding="utf-8")
    assert Spec.read(folder / "spec.toml") == spec
    torch.manual_seed(0)
    model = network.create("sasrec", items=30, window=32, embedding=8, blocks=1, heads=2)
    with torch.no_grad():
        model.item_emb.weight *= 50  # items whose scores are apart
    checkpoint.save(model, folder / "model.pt")
    return Workspace(spec, folder / "spec.toml", folder / "model.pt", folder / "models")


def climb(workspace: Workspace, rungs: str | None, folder: Path) -> ladder.Climb:
    made = ladder.Climb(workspace, rung.select(rungs, rung.rungs(workspace.spec)), SHORT, folder, device="cpu")
    with made.ready(lambda *_: None):
        made.climb(lambda *_: None)
    return made


@pytest.fixture(scope="module")
def climbed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return json.loads(json.dumps(climb(workspace, None, tmp_path_factory.mktemp("ladder")).report()))


def test_every_rung_is_climbed_or_left_out_with_why(climbed):
    for found in climbed["rungs"]:
        if found["skipped"]:
            assert found["loads"] == {}
            assert len(found["skipped"]) > 8
        else:
            assert found["number"] in MEASURED
            assert set(found["loads"]) == {"32", "mix"}
    measured = {found["number"] for found in climbed["rungs"] if not found["skipped"]}
    assert measured == MEASURED
    assert {r["skipped"] for r in climbed["rungs"] if r["number"] == "12"} == {"the core has no LSTM"}


def test_it_is_shown_in_the_models_own_words(climbed, tmp_path: Path):
    said = "\n".join([report.section(climbed), *report.lines(climbed)])
    assert "users/s at 4" in said
    assert "8 users a request" in said
    assert "sasrec, 31 numbers a row, history of 32; the mix is simulated users' lengths" in said
    assert not any(word in said.lower() for word in ("learner", "problem", "{"))
    assert [path.stat().st_size > 10_000 for path in waterfall.draw(climbed, tmp_path)] == [True, True]
    assert "naive over local PyTorch" in figures.Figures(climbed).summary()


def test_picked_columns_make_a_small_reply(climbed):
    sizes = {r["number"]: r["hops_bytes"]["reply"] for r in climbed["rungs"] if r.get("hops_bytes")}
    assert sizes["8"] == 31 * 4
    assert sizes["13"] == 31 * 4
    assert sizes["14"] == 10 * 8
    assert sizes["1"] == 32 * 31 * 4


def an_earlier_row(_, output: np.ndarray, __) -> np.ndarray:
    return output[:, -2]


def test_a_wrong_row_is_named(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caller, "_row", an_earlier_row)
    with pytest.raises(
        ladder.LadderError, match=r"rung 1, naive Triton, .* off what PyTorch answers as its author asks"
    ):
        climb(workspace, "1", tmp_path)


def test_a_wrong_column_is_named(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    infer = transport.Grpc.infer

    def next_to_it(
        self: transport.Grpc, model: str, inputs: transport.Given, outputs: list[Tensor]
    ) -> list[np.ndarray]:
        ids, *others = infer(self, model, inputs, outputs)
        return [ids if others == [] else ids % 30 + 1, *others]

    monkeypatch.setattr(transport.Grpc, "infer", next_to_it)
    with pytest.raises(ladder.LadderError, match="rung 14, picked columns, "):
        climb(workspace, "14", tmp_path)


@pytest.fixture
def peer_module() -> ModuleType:
    """What all peers serve the core with; they live in an environment of their own."""
    found = importlib.util.spec_from_file_location("peer_core", process.SERVERS / "core.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def peer_port(workspace: Workspace, peer_module: ModuleType, tmp_path: Path) -> Iterator[int]:
    """A server of the peers' core, as plain as one can be."""
    spec = workspace.spec
    repository = build(Variant(spec), workspace.checkpoint, workspace.out)
    about = tmp_path / "sequence.json"
    about.write_text(json.dumps(process.described(spec, repository / "core" / "1" / "model.onnx")))
    core = peer_module.Core(str(about), 1)

    class Plain(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "json" in self.headers["Content-Type"]:
                content = json.dumps(core.to_lists(core.answer([core.from_lists(json.loads(body))])[0])).encode()
            else:
                content = core.to_bytes(core.answer([core.from_bytes(body)])[0])
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("encoding", ["JSON", "bytes"])
def test_a_peer_answers_what_the_core_does(workspace: Workspace, peer_port: int, encoding: peer.Encoding):
    spec = workspace.spec
    asked = question.drawn(spec, [1, 7, 16, 17, 32, 40])
    connected = HttpPeer(peer_port, encoding, "/predict", spec)
    expected = caller.answers_of(workspace.out, spec, asked)
    comparison.check(connected, spec, asked, expected)
    with pytest.raises(peer.PeerError, match=r"off ONNX Runtime's; allowed is 1e-04"):
        comparison.check(connected, spec, asked[:1], expected[1:2])
    connected.close()


def test_a_batch_of_a_peer_answers_as_each_alone(workspace: Workspace, peer_module: ModuleType, tmp_path: Path):
    repository = build(Variant(workspace.spec), workspace.checkpoint, workspace.out)
    (tmp_path / "about.json").write_text(
        json.dumps(process.described(workspace.spec, repository / "core" / "1" / "model.onnx"))
    )
    core = peer_module.Core(str(tmp_path / "about.json"), 1)
    asked = [dict(one) for one in question.drawn(workspace.spec, [1, 40, 7, 20])]  # of two widths
    for together, one in zip(core.answer(asked), asked, strict=True):
        np.testing.assert_allclose(together[0], core.answer([one])[0][0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="item_ids"):
        core.answer([{"item_ids": np.array([31], np.int32)}])


def test_a_wrong_answer_of_one_model_is_named(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    infer = transport.Grpc.infer

    def doubled(self: transport.Grpc, model: str, inputs: transport.Given, outputs: list[Tensor]) -> list[np.ndarray]:
        return [2 * value for value in infer(self, model, inputs, outputs)]

    monkeypatch.setattr(transport.Grpc, "infer", doubled)
    with pytest.raises(ladder.LadderError, match="rung 13, one model, "):
        climb(workspace, "13", tmp_path)


@pytest.mark.skipif(not process.PYTHON.exists(), reason="`make bench-peers` makes the peers' environment")
def test_a_peer_serves_knowledge_tracing_too(small_spec: Spec, small_checkpoint: Path, tmp_path: Path):
    repository = build(Variant(small_spec), small_checkpoint, tmp_path / "models")
    asked = question.drawn(small_spec, [40, 3])
    expected = caller.answers_of(repository, small_spec, asked)
    core = repository / "core" / "1" / "model.onnx"
    with process.serving(peer.PEERS[0], "bytes", 1, core, small_spec, tmp_path) as running:
        connected = running.connect()
        comparison.check(connected, small_spec, asked, expected)
        connected.close()
