"""Training of the reference model, and what it is worth.

A learner's next response is known for one problem, so one logit a step is computed: the state times that problem's row
of the head. The full [batch, time, problems] would be 14,041 times the arithmetic for nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from build.model.network import Network, create
from ensemble.contract import pad
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History

BATCH_INTERACTIONS = 4096  # padded, a batch
# A row of the embedding or the head is seen a few times an epoch; at a recurrent layer's pace it learns those by heart.
# Simulated test learners, on whom dkt's were chosen out of five settings: AUC 0.697 after ten epochs at one pace, 0.725
# after three, 0.735 after five at these two. The Transformer's own pace is an attention layer's usual one.
LEARNING_RATES = {"dkt": 2e-3, "gru": 2e-3, "transformer": 5e-4}
TABLE_LEARNING_RATE = 3e-4
MAX_EPOCHS = 5
TEST_SHARE = 0.2  # of the learners, where there are no folds
PRIOR = 5.0  # a problem's mean counts as much as the overall mean after so many responses


@dataclass(frozen=True)
class Report:
    """What a training measured, on learners that it did not see. auc: the model's; baseline_auc: the problem means'."""

    auc: float
    baseline_auc: float
    problems: int
    train_learners: int
    test_learners: int
    test_interactions: int
    epochs: float
    seconds: float

    def to_json(self, data: str | None = None) -> str:
        """The report as JSON text; data: the digest of what it was trained on."""
        return json.dumps({**asdict(self), "data": data}, indent=1) + "\n"


def split(folds: list[list[History]], seed: int = 0) -> tuple[list[History], list[History]]:
    """Training and test learners: the last fold is the test where there are several, else every fifth at random."""
    if len(folds) > 1:
        return [h for fold in folds[:-1] for h in fold], folds[-1]
    order = np.random.default_rng(seed).permutation(len(folds[0]))
    test = set(order[: max(int(len(order) * TEST_SHARE), 1)].tolist())
    return [h for i, h in enumerate(folds[0]) if i not in test], [folds[0][i] for i in sorted(test)]


def train(
    training: Sequence[History],
    test: Sequence[History],
    spec: KnowledgeTracing,
    *,
    seed: int = 0,
    budget_s: float = 60.0,
    max_epochs: int = MAX_EPOCHS,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> tuple[Network, Report]:
    """Train the spec's model until the time or the epochs are used up.

    Args:
        budget_s: seconds of training; reading and testing are not in it.

    Raises:
        LastrowError: a problem id is not the spec's, or there is too little to learn from or test on.
    """
    _check(training, test, spec)
    torch.manual_seed(seed)
    means = problem_means(training, spec.model.problems)
    model = _initialise(create(spec), means)
    windows = _windows(training, spec.model.window)
    tables = {"interaction_emb.weight", "out_layer.weight"}
    named = list(model.named_parameters())
    optimiser = torch.optim.Adam(
        [
            {"params": [p for name, p in named if name not in tables], "peak": LEARNING_RATES[spec.network.type]},
            {"params": [p for name, p in named if name in tables], "peak": TABLE_LEARNING_RATE},
        ]
    )
    rng = np.random.default_rng(seed)
    start, steps, batches_an_epoch = time.monotonic(), 0, len(list(_batches(windows, rng)))
    used = 0.0
    model.train()
    for _ in range(max_epochs):
        for problem_ids, responses, valid in _batches(windows, rng):
            used = max((time.monotonic() - start) / budget_s, steps / (max_epochs * batches_an_epoch))
            if used >= 1.0:
                break
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * (1.0 - used)  # down to nothing when the time is over
            logits = next_logits(model, problem_ids, responses)
            loss = nn.functional.binary_cross_entropy_with_logits(logits[valid], responses[valid].float())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            steps += 1
            progress(used, f"loss {loss.item():.3f}")
        if used >= 1.0:
            break
    seconds = time.monotonic() - start
    model.eval()
    labels, scores, baseline = _score(model, test, means, spec.model.window)
    report = Report(
        auc=auc(labels, scores),
        baseline_auc=auc(labels, baseline),
        problems=spec.model.problems,
        train_learners=len(training),
        test_learners=len(test),
        test_interactions=len(labels),
        epochs=round(steps / batches_an_epoch, 2),
        seconds=round(seconds, 1),
    )
    progress(1.0, f"{report.epochs:.1f} epochs")
    return model, report


def next_logits(model: Network, problem_ids: Tensor, responses: Tensor) -> Tensor:
    """For every interaction, the logit that the ones before it give: [batch, time] to [batch, time]."""
    weights = nn.functional.embedding(problem_ids, model.out_layer.weight)
    return (model.before(problem_ids, responses) * weights).sum(-1) + model.out_layer.bias[problem_ids]


def problem_means(histories: Sequence[History], problems: int) -> np.ndarray:
    """Share of correct responses by problem, FP64 [problems], drawn to the overall mean where there are few."""
    ids = np.concatenate([h.problem_ids for h in histories])
    responses = np.concatenate([h.responses for h in histories])
    overall = responses.mean()
    correct = np.bincount(ids, weights=responses, minlength=problems)
    return (correct + PRIOR * overall) / (np.bincount(ids, minlength=problems) + PRIOR)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a correct response scores above a wrong one, a tie counting half.

    Raises:
        LastrowError: only one kind of response is there.
    """
    positive = labels.astype(bool)
    count = int(positive.sum())
    if count in (0, len(labels)):
        raise LastrowError("the test learners' responses are all the same, so there is no AUC; use more learners")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of each distinct score, from 1
    ranks = mean_rank[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def _check(training: Sequence[History], test: Sequence[History], spec: KnowledgeTracing) -> None:
    if spec.network.type not in LEARNING_RATES:
        raise LastrowError(
            f"a network of type {spec.network.type!r} is not trained here; trained are {', '.join(LEARNING_RATES)}. Give "
            "its weights with CHECKPOINT="
        )
    for history in (*training, *test):
        if len(history) and not 0 <= history.problem_ids.min() <= history.problem_ids.max() < spec.model.problems:
            raise LastrowError(
                f"learner {history.learner} has problem ids {history.problem_ids.min()} to {history.problem_ids.max()}; the "
                f"spec allows 0 to {spec.model.problems - 1} (model.problems)"
            )
    if not any(len(h) > 1 for h in training) or not any(len(h) > 1 for h in test):
        raise LastrowError("no learner has two interactions to learn or test a next response on; use more learners")


def _initialise(model: Network, means: np.ndarray) -> Network:
    """Start where the problem means leave off, with right and wrong answers apart from the first step on.

    Most of 2 x 14,041 interactions occur a handful of times. Without a direction in common, each would have to learn
    by itself that a right answer speaks for the learner and a wrong one against.
    """
    problems, embedding = model.problems, model.interaction_emb.embedding_dim
    with torch.no_grad():
        nn.init.normal_(model.interaction_emb.weight, std=0.1)
        direction = torch.randn(embedding) / 2
        model.interaction_emb.weight[:problems] -= direction
        model.interaction_emb.weight[problems:] += direction
        nn.init.normal_(model.out_layer.weight, std=0.02)
        model.out_layer.bias.copy_(torch.from_numpy(np.log(means / (1 - means))))
    return model


def _windows(histories: Sequence[History], window: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Histories cut into pieces of at most `window` interactions; pieces of one have no next response and are left out."""
    return [
        (h.problem_ids[start : start + window], h.responses[start : start + window])
        for h in histories
        for start in range(0, len(h), window)
        if len(h) - start > 1
    ]


def _batches(
    windows: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of windows of like length, in random order: ids, responses INT64 [batch, time], valid [batch, time]."""
    order = sorted(range(len(windows)), key=lambda i: (len(windows[i][0]), rng.random()))
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(windows[i][0]) > BATCH_INTERACTIONS:
            groups.append([])
        groups[-1].append(i)
    for number in rng.permutation(len(groups)):
        members = [windows[i] for i in groups[number]]
        problem_ids, responses = (pad(values, fill=0, dtype=np.int64) for values in zip(*members, strict=True))
        valid = np.arange(problem_ids.shape[1]) < np.array([[len(ids)] for ids, _ in members])
        yield torch.from_numpy(problem_ids), torch.from_numpy(responses), torch.from_numpy(valid)


def _score(
    model: Network, histories: Sequence[History], means: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses, the model's logits for them and their problems' means, for all but every window's first interaction."""
    labels, scores, baseline = [], [], []
    with torch.inference_mode():
        for problem_ids, responses, valid in _batches(_windows(histories, window), np.random.default_rng(0)):
            valid[:, 0] = False
            labels.append(responses[valid].numpy())
            scores.append(next_logits(model, problem_ids, responses)[valid].numpy())
            baseline.append(means[problem_ids[valid].numpy()])
    return np.concatenate(labels), np.concatenate(scores), np.concatenate(baseline)
