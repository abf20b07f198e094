import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from build.model.simulation import simulate
from build.model.training import auc, next_logits, problem_means, split, train
from ensemble.errors import LastrowError
from ensemble.learners.history import History
from ensemble.tables import ModuleNetwork
from tests.conftest import NETWORKS, resized, untrained


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(samples):
    labels = np.array([label for label, _ in samples])
    scores = np.array([score for _, score in samples], float)
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        with pytest.raises(LastrowError, match="there is no AUC"):
            auc(labels, scores)
        return
    wins = (positive[:, None] > negative).sum() + (positive[:, None] == negative).sum() / 2
    assert auc(labels, scores) == pytest.approx(wins / (len(positive) * len(negative)))


@pytest.mark.parametrize("network", NETWORKS)
def test_next_logits_are_entries_of_the_full_forward_and_never_all_of_it(spec, network):
    model = untrained(resized(spec, network, problems=40, window=32))
    ids, responses = torch.randint(0, 40, (3, 9)), torch.randint(0, 2, (3, 9))
    with torch.inference_mode():
        after = model(ids, responses)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        cold = model.last(ids, responses, torch.zeros(3, dtype=torch.int32)).gather(-1, ids[:, :1])
        wanted = torch.cat([cold, after], dim=1)
        called = []
        model.out_layer.register_forward_hook(lambda *_: called.append(1))
        torch.testing.assert_close(next_logits(model, ids, responses), wanted, atol=1e-4, rtol=1e-4)
    assert called == []


def test_training_beats_the_problem_means(spec):
    spec = resized(spec, problems=60)
    spec = spec.model_copy(update={"network": spec.network.model_copy(update={"embedding": 32, "hidden": 32})})
    training, test = split([simulate(60, 250)])
    model, report = train(training, test, spec, budget_s=60, max_epochs=30)
    assert report.auc > report.baseline_auc + 0.02
    assert not model.training
    assert report.test_learners == len(test) == 50


def test_simulated_learners_are_reproducible_and_in_range():
    first, again, other = simulate(300, 200), simulate(300, 200), simulate(300, 200, seed=1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.problem_ids, b.problem_ids)
        np.testing.assert_array_equal(a.responses, b.responses)
    assert any(len(a) != len(b) for a, b in zip(first, other, strict=True))
    ids = np.concatenate([h.problem_ids for h in first])
    assert ids.min() >= 0
    assert ids.max() < 300
    assert 10 <= np.median([len(h) for h in first]) <= 40
    assert 0.4 < np.concatenate([h.responses for h in first]).mean() < 0.7


def test_split_keeps_learners_apart():
    folds = [simulate(50, 10, seed) for seed in range(3)]
    training, test = split(folds)
    assert test == folds[2]
    assert len(training) == 20
    training, test = split(folds[:1])
    assert len(test) == 2
    assert not {h.learner for h in training} & {h.learner for h in test}


def test_problem_means_lean_on_the_overall_mean():
    means = problem_means([History("a", [0] * 95 + [1], [1] * 95 + [0])], 3)
    assert means[0] > 0.98
    assert 0.5 < means[1] < means[0]
    assert means[2] == pytest.approx(95 / 96)


def test_what_cannot_be_trained_on_is_explained(small_spec):
    with pytest.raises(LastrowError, match="learner a has problem ids 1 to 40; the spec allows 0 to 39"):
        train([History("a", [1, 40], [0, 1])], [], small_spec)
    with pytest.raises(LastrowError, match="no learner has two interactions"):
        train([History("a", [1], [0])], [History("b", [1], [0])], small_spec)


def test_somebodys_own_network_is_not_trained_here(small_spec):
    network = ModuleNetwork(type="module", factory="package:make")
    with pytest.raises(LastrowError, match="a network of type 'module' is not trained here; trained are dkt, gru"):
        train([], [], small_spec.model_copy(update={"network": network}))
