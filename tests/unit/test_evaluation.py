import json

import numpy as np
import pytest
import torch

from build.core.parity import probabilities
from build.model.evaluation import Evaluation, Scores, offline, save, scores, show
from ensemble.learners.history import History
from tests.conftest import NETWORKS, resized, untrained


def test_scores_of_known_predictions():
    labels = np.array([1, 1, 0, 0, 1])
    found = scores(labels, np.array([0.95, 0.65, 0.65, 0.05, 0.35]))
    # Correct responses outrank wrong ones in 4.5 of 6 pairs; bins of 0.65 and 0.35 are off by 0.15 and 0.65.
    assert found.auc == pytest.approx(4.5 / 6)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.calibration_error == pytest.approx((0.05 + 2 * 0.15 + 0.05 + 0.65) / 5)
    assert found.predictions == 5


@pytest.mark.parametrize("network", NETWORKS)
def test_offline_predictions_are_those_of_each_history_by_itself(spec, network):
    window = 8
    model = untrained(resized(spec, network, problems=40, window=window))
    rng = np.random.default_rng(0)
    histories = [History(str(n), rng.integers(0, 40, n), rng.integers(0, 2, n)) for n in (1, 2, 8, 9, 10, 13)]
    found = iter(offline(model, histories, window))
    for history in histories:
        for position in range(1, len(history)):
            past = slice(max(position - window, 0), position)
            ids, responses = (torch.from_numpy(x[past])[None] for x in (history.problem_ids, history.responses))
            with torch.inference_mode():
                logits = model(ids, responses)[0, -1].numpy()
            assert next(found) == pytest.approx(probabilities(logits)[history.problem_ids[position]], abs=1e-6)
    assert next(found, None) is None


def test_the_report_is_json_and_a_picture(tmp_path, capsys):
    some = Scores(0.71, 0.68, 0.02, 100)
    evaluation = Evaluation("dkt", 40, 10, 5, some, some, some, some, 1e-7)
    labels, stated = np.random.default_rng(0).integers(0, 2, 100), np.linspace(0.01, 0.99, 100)
    report, picture = save([evaluation], {"dkt": (labels, stated)}, tmp_path / "report")
    assert json.loads(report.read_text())[0]["served"]["auc"] == 0.71
    assert picture.read_text().startswith("<?xml")
    show([evaluation])
    assert "dkt, served" in capsys.readouterr().out
