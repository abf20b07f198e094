"""Every reference architecture, and models that people bring, through a real tritonserver."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import tritonclient.grpc as grpcclient

from build.bench import variant
from build.core.export import export
from build.model import checkpoint
from build.repository import assembly as repository
from build.repository import workspace
from build.server import Server
from ensemble.client import Client
from ensemble.errors import InvalidRequestError
from tests import factories
from tests.conftest import SMALL_INT8_TOLERANCE, answer_of, learner, resized, untrained
from tests.integration.test_cli import run

PROBLEMS, WINDOW = 40, 32


@pytest.mark.parametrize(
    ("network", "buckets", "precision"),
    [
        ("gru", (), "float32"),
        ("transformer", (8, 16, 32), "float32"),
        ("dkt", (8, 32), "int8"),
        ("transformer", (8, 32), "int8"),
    ],
)
def test_a_network_answers_as_pytorch_does(spec, tmp_path, network, buckets, precision):
    small = resized(spec, network, problems=PROBLEMS, window=WINDOW, buckets=buckets)
    small = variant.changed(
        small,
        export__precision=precision,
        reduce__length_aware=precision != "int8",
        parity__int8_max_abs_difference=SMALL_INT8_TOLERANCE,
    )
    _, allowed = small.parity.of_core(precision)
    model = untrained(small)
    checkpoint.save(model, tmp_path / "model.pt")
    built = repository.build(small, tmp_path / "model.pt", tmp_path / "models")

    histories = [learner(n, problems=PROBLEMS) for n in (0, 1, 7, 8, 9, 16, 17, 31, 32, 33, 50)]
    with (
        Server(built.folder, log=tmp_path / "server.log") as server,
        Client(server.grpc_url, spec=small) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        together = client.predict(histories)
        # Several widths are under way at once: a batch has one width, and nobody's answer depends on it.
        alone = [list(pool.map(client.predict, histories)) for _ in range(3)]
        for n, history in enumerate(histories):
            for answer in (together[n], *(answers[n] for answers in alone)):
                assert np.abs(answer.probabilities - answer_of(model, history, WINDOW)).max() < allowed


def test_requests_of_one_width_share_a_batch(spec, tmp_path):
    small = resized(spec, "transformer", problems=PROBLEMS, window=WINDOW, buckets=(8, 32))
    core = small.steps.core.model_copy(update={"queue_delay_us": 200_000})  # long enough to be met by the others
    small = small.model_copy(update={"steps": small.steps.model_copy(update={"core": core})})
    checkpoint.save(untrained(small), tmp_path / "model.pt")
    built = repository.build(small, tmp_path / "model.pt", tmp_path / "models")
    with (
        Server(built.folder, log=tmp_path / "server.log") as server,
        Client(server.grpc_url, spec=small) as client,
        ThreadPoolExecutor(8) as pool,
        grpcclient.InferenceServerClient(server.grpc_url) as plain,
    ):
        list(pool.map(client.predict, [learner(n, problems=PROBLEMS) for n in (1, 2, 3, 4, 5, 6, 7, 8)]))
        time.sleep(0.5)  # Triton counts a moment after it has answered
        (statistics,) = plain.get_inference_statistics("core", as_json=True)["model_stats"]
    assert max(int(batch["batch_size"]) for batch in statistics["batch_stats"]) >= 4


def test_a_module_of_ones_own_is_served_from_the_command_line(tmp_path: Path):
    torch.manual_seed(0)
    model = factories.attentive().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    arguments = ["--checkpoint", str(tmp_path / "model.pt"), "--factory", "tests.factories:attentive"]
    made = run("repo", *arguments, "--out", str(tmp_path / "models"), module="build")
    assert made.returncode == 0, made.stderr
    space = workspace.open_workspace(checkpoint=tmp_path / "model.pt", factory="tests.factories:attentive")
    history = learner(20, problems=factories.PROBLEMS)
    with torch.inference_mode():
        wanted = model(*(torch.from_numpy(x.astype(np.int64))[None] for x in (history.problem_ids, history.responses)))
    with Server(tmp_path / "models", log=tmp_path / "server.log") as server:
        with Client(server.grpc_url, spec=space.spec) as client:
            assert np.abs(client.predict(history).probabilities - wanted[0, -1].numpy()).max() < 1e-5
            with pytest.raises(InvalidRequestError, match="learner 0 has 0 interactions; this model answers from 1 on"):
                client.predict(learner(0))
        (tmp_path / "names.json").write_text(json.dumps({f"P{n}": n for n in range(factories.PROBLEMS)}))
        (tmp_path / "ada.csv").write_text("problem_id,response\nP3,1\nP29,0\n")
        asked = run(
            *("predict", str(tmp_path / "ada.csv"), "--vocabulary", str(tmp_path / "names.json"), "--json"),
            *("--spec", str(space.spec_file), "--url", server.grpc_url),
        )
    assert asked.returncode == 0, asked.stderr
    (answer,) = json.loads(asked.stdout)
    assert all(proposal["problem_id"].startswith("P") for proposal in answer["next_problems"])
    assert not {"P3", "P29"} & {proposal["problem_id"] for proposal in answer["next_problems"]}


def test_an_onnx_file_is_reduced_from_the_command_line(spec, tmp_path: Path):
    small = resized(spec, "transformer", problems=PROBLEMS, window=WINDOW)
    ir.save(export(untrained(small), small).model, tmp_path / "model.onnx")
    files = [str(tmp_path / "model.onnx"), "--out", str(tmp_path / "core.onnx")]
    longer = run("reduce", *files, module="build")
    assert longer.returncode == 1
    hint = "It takes histories of up to 32 rows: give that as the window (--window 32)"
    assert hint in " ".join(longer.stderr.split())
    reduced = run("reduce", *files, "--window", "32", "--explain", module="build")
    assert reduced.returncode == 0, reduced.stderr
    assert "Softmax" in reduced.stdout
    assert "needs more of it than the row" in reduced.stdout
    assert (tmp_path / "core.onnx").is_file()
    (tmp_path / "text.onnx").write_text("no model")
    for wrong, message in (
        (["text.onnx", "--out", "x.onnx"], "cannot read"),
        (["model.onnx", "--out", "x.onnx", "--select", "first"], "--select first: allowed are last, row, mean, max"),
        (["model.onnx", "--out", "x.onnx", "--output", "y"], "there is no output 'y'; there are all_logits"),
    ):
        failed = run("reduce", *(str(tmp_path / a) if a.endswith(".onnx") else a for a in wrong), module="build")
        assert failed.returncode == 1
        assert message in " ".join(failed.stderr.split())
        assert "Traceback" not in failed.stderr
        assert not (tmp_path / "x.onnx").exists()
