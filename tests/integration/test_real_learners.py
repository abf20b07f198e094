"""The main job on real learners: training, export, parity, serving and answers, with N taken from the data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from build import ROOT
from build.model.interactions import read_folds
from build.repository.workspace import open_workspace
from tests.integration.test_cli import run

DATA = Path(os.environ.get("LASTROW_DATA", ROOT.parent / "shared" / "data" / "assist2009_pid"))
LEARNERS = 400

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no learners at {DATA}; set LASTROW_DATA to their folder")


def test_collapsing_leaves_the_published_numbers():
    histories = [h for fold in read_folds(DATA) for h in fold]
    assert len(histories) == 3320
    assert sorted(len(h) for h in histories)[len(histories) // 2] == pytest.approx(20, abs=3)
    assert all((h.problem_ids[1:] != h.problem_ids[:-1]).all() for h in histories)


def test_from_training_to_grpc_answers():
    workspace = open_workspace(data=DATA, learners=LEARNERS).checkpoint.parent
    if workspace.exists():
        shutil.rmtree(workspace)
    choice = ["--data", str(DATA), "--learners", str(LEARNERS)]
    trained = run("train", *choice, "--budget", "20", module="build")
    assert trained.returncode == 0, trained.stderr
    report = json.loads((workspace / "training.json").read_text())
    problems = 1 + max(int(h.problem_ids.max()) for fold in read_folds(DATA, LEARNERS) for h in fold if len(h))
    assert report["problems"] == problems
    assert report["baseline_auc"] < report["auc"] < 0.78  # far above 0.75 would mean that labels leak
    shown = run("demo", *choice, module="build")
    assert shown.returncode == 0, shown.stderr
    assert f"{problems:,} problems" in shown.stdout


def test_served_and_offline_scores_are_the_same():
    folder = open_workspace(data=DATA, learners=200).checkpoint.parent
    if folder.exists():
        shutil.rmtree(folder)
    choice = ["--data", str(DATA), "--learners", "200", "--networks", "gru", "--budget", "10", "--sample", "300"]
    done = run("evaluate", *choice, module="build")
    assert done.returncode == 0, done.stderr
    (evaluation,) = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["network"] == "gru"
    assert evaluation["served"]["predictions"] == evaluation["offline_same"]["predictions"] == 300
    assert evaluation["served"]["auc"] == pytest.approx(evaluation["offline_same"]["auc"], abs=1e-6)
    assert evaluation["largest_difference"] < 1e-5
    assert evaluation["offline"]["predictions"] > 300
    assert (folder / "calibration.svg").is_file()
    assert "mean of the problem" in done.stdout
