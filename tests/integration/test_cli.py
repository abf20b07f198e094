"""The command lines, as a person and as a machine use them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from build import ROOT
from tests.conftest import Served


def run(*arguments: str, stdin: str = "", module: str = "ensemble") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )


def test_predict_csv_as_a_table(served: Served, tmp_path: Path):
    path = tmp_path / "history.csv"
    path.write_text("learner,problem_id,response\nada,17,1\nada,4,0\nben,9,1\n")
    done = run("predict", str(path), "--top", "3", "--url", served.server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert "ada" in done.stdout
    assert "ben" in done.stdout
    assert done.stdout.count("0.7") >= 6  # three problems each, all near the target


def test_predict_json_from_stdin_for_machines(served: Served):
    histories = [{"learner": "ada", "problem_ids": [17, 4], "responses": [1, 0]}, {"problem_ids": [], "responses": []}]
    done = run(
        "predict", "-", "--json", "--probabilities", "--url", served.server.grpc_url, stdin=json.dumps(histories)
    )
    assert done.returncode == 0, done.stderr
    ada, cold = json.loads(done.stdout)
    assert (ada["learner"], ada["history"], cold["history"]) == ("ada", 2, 0)
    assert len(ada["next_problems"]) == served.spec.next_problems.count
    best = ada["next_problems"][0]
    assert ada["probabilities"][best["problem_id"]] == pytest.approx(best["probability"])
    assert np.shape(cold["probabilities"]) == (served.spec.model.problems,)


def test_names_are_printed_as_they_are(served: Served, tmp_path: Path):
    """Also where they look like rich's markup."""
    path = tmp_path / "histories.json"
    path.write_text(
        json.dumps([{"learner": name, "problem_ids": [1], "responses": [1]} for name in ("[red]", "[/b]x")])
    )
    done = run("predict", str(path), "--top", "1", "--url", served.server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert "[red]" in done.stdout
    assert "[/b]x" in done.stdout


def test_stdin_with_a_mark_is_read_and_other_text_is_one_line(served: Served):
    text = "problem_id,response\r\n17,1\r\n4,0\r\n"
    for encoding, code, message in (("utf-8-sig", 0, ""), ("utf-16", 1, "error: stdin is not UTF-8 text")):
        done = subprocess.run(
            [sys.executable, "-m", "ensemble", "predict", "-", "--url", served.server.grpc_url],
            input=text.encode(encoding),
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == code, done.stderr
        assert message in done.stderr.decode()
        assert done.stderr.count(b"\n") == code


def test_a_refusal_is_one_line(served: Served):
    done = run("predict", "-", "--url", served.server.grpc_url, stdin="problem_id,response\n14041,1\n")
    assert done.returncode == 1
    assert "problem_ids: learner 0, position 0 is 14041; allowed are 0 to 14040" in done.stderr
    assert done.stderr.count("\n") == 1


def test_status(served: Served):
    done = run("status", "--url", served.server.grpc_url)
    assert done.returncode == 0
    assert "knowledge_tracing: ready, version 1" in done.stdout
    assert json.loads(run("status", "--json", "--url", served.server.grpc_url).stdout)["model_ready"] is True


def test_training_writes_over_nobodys_weights(tmp_path: Path):
    own = tmp_path / "mine.pt"
    own.write_bytes(b"mine")
    done = run("train", "--checkpoint", str(own), "--budget", "1", module="build")
    assert done.returncode == 1
    assert f"{own} is there already" in " ".join(done.stderr.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"mine.pt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repo", "--spec", "absent.toml"], "cannot read the spec absent.toml"),
        (["repo", "--checkpoint", "absent.pt"], "cannot read the checkpoint absent.pt"),
        (["train", "--data", "absent"], "absent does not exist"),
        (["serve", "--checkpoint", "absent.pt"], "cannot read the checkpoint absent.pt"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(arguments, message, tmp_path):
    out = ["--out", str(tmp_path / "models")] if arguments[0] != "train" else []
    done = run(*arguments, *out, module="build")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "models").exists()
