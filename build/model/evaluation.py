"""How well a model predicts learners that it has not seen: from PyTorch, and from the running server, side by side.

Protocol: every response but a learner's first is predicted from what came before it, of which the most recent `window`
interactions count, as in serving. Learners are the test fold's; consecutive rows of one problem are collapsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from build.model.network import Network
from build.model.training import auc, next_logits, problem_means
from build.model.trial import Trial, chosen
from build.progress import answers
from ensemble.client import Client
from ensemble.contract import pad
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History

Progress = Callable[[float, str], None]
CALIBRATION_BINS = 10
# DKT at problem level on this dataset, five folds, as the pyKT-style benchmarks report it.
PUBLISHED_AUC, PUBLISHED_SPREAD = 0.7016, 0.0049
OFFLINE_INTERACTIONS = 8192  # padded, a batch


class Job(NamedTuple):
    """Responses `first` to `end` - 1 of a learner, predicted from the interactions from `start` on."""

    learner: int
    start: int
    first: int
    end: int

    @property
    def width(self) -> int:
        """Interactions in the context, the last response predicted included."""
        return self.end - self.start


@dataclass(frozen=True)
class Scores:
    """auc and accuracy (threshold 0.5); calibration_error: how far stated probabilities are from frequencies, on average.

    The calibration error is the expected one over ten equally wide bins (Guo et al., ICML 2017).
    """

    auc: float
    accuracy: float
    calibration_error: float
    predictions: int


@dataclass(frozen=True)
class Evaluation:
    """offline: PyTorch, all predictions. served and offline_same: the server and PyTorch on the sample that was served.

    largest_difference: between the two on that sample, in probability.
    """

    network: str
    problems: int
    train_learners: int
    test_learners: int
    offline: Scores
    baseline: Scores
    served: Scores
    offline_same: Scores
    largest_difference: float


def scores(labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """Score probabilities FP64 [n] of the responses [n]."""
    error = 0.0
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        if inside.any():
            error += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    return Scores(
        auc=auc(labels, probabilities),
        accuracy=float(((probabilities >= 0.5) == labels.astype(bool)).mean()),
        calibration_error=float(error),
        predictions=len(labels),
    )


def offline(
    model: Network, histories: Sequence[History], window: int, progress: Progress = lambda *_: None
) -> np.ndarray:
    """PyTorch's probability of every response but each learner's first, FP64 [n], learner by learner."""
    predicted = [np.zeros(max(len(h) - 1, 0)) for h in histories]
    jobs: list[Job] = []
    for number, history in enumerate(histories):
        if len(history) > 1:
            jobs.append(Job(number, 0, 1, min(len(history), window + 1)))
        # Behind the window every response has a context of its own.
        jobs += [Job(number, n - window, n, n + 1) for n in range(window + 1, len(history))]
    jobs.sort(key=lambda job: job.width)
    done = 0
    with torch.inference_mode():
        for group in _grouped(jobs):
            progress(done / len(jobs), "PyTorch")
            contexts = [(histories[job.learner], slice(job.start, job.end)) for job in group]
            ids = pad([history.problem_ids[part] for history, part in contexts], fill=0, dtype=np.int64)
            responses = pad([history.responses[part] for history, part in contexts], fill=0, dtype=np.int64)
            logits = next_logits(model, torch.from_numpy(ids), torch.from_numpy(responses)).double().sigmoid().numpy()
            for row, job in enumerate(group):
                predicted[job.learner][job.first - 1 : job.end - 1] = logits[row, job.first - job.start : job.width]
            done += len(group)
    return np.concatenate(predicted)


def served(
    client: Client,
    histories: Sequence[History],
    wanted: Iterable[tuple[int, int]],
    progress: Progress = lambda *_: None,
) -> np.ndarray:
    """The server's probability of each response wanted, (learner, position), from the history before it; FP64 [n]."""
    pairs = list(wanted)
    order = sorted(range(len(pairs)), key=lambda n: pairs[n][1])  # learners of like history in a request
    answers = np.zeros(len(pairs))
    size = client.spec.batching.max_batch_size
    for start in range(0, len(order), size):
        progress(start / len(order), "tritonserver")
        part = order[start : start + size]
        asked = []
        for n in part:
            history, position = histories[pairs[n][0]], pairs[n][1]
            asked.append(History(history.learner, history.problem_ids[:position], history.responses[:position]))
        for n, answer in zip(part, client.predict(asked, deadline_s=120.0), strict=True):
            number, position = pairs[n]
            assert answer.probabilities is not None
            answers[n] = answer.probabilities[histories[number].problem_ids[position]]
    return answers


def evaluate(
    model: Network,
    client: Client,
    training: Sequence[History],
    test: Sequence[History],
    spec: KnowledgeTracing,
    sample: int | None,
    progress: Progress = lambda *_: None,
) -> tuple[Evaluation, np.ndarray, np.ndarray]:
    """Score the model offline and through the server.

    Args:
        sample: how many predictions are asked of the server, at random; None: all.

    Returns:
        The evaluation, and labels and offline probabilities [n] for a picture.
    """
    labels = np.concatenate([h.responses[1:] for h in test])
    ids = np.concatenate([h.problem_ids[1:] for h in test])
    pairs = [(number, position) for number, h in enumerate(test) for position in range(1, len(h))]
    alone = offline(model, test, spec.model.window, lambda part, what: progress(part / 2, what))
    chosen = np.arange(len(pairs))
    if sample is not None and sample < len(pairs):
        chosen = np.sort(np.random.default_rng(0).choice(len(pairs), sample, replace=False))
    answered = served(client, test, (pairs[n] for n in chosen), lambda part, what: progress(0.5 + part / 2, what))
    means = problem_means(training, spec.model.problems)
    evaluation = Evaluation(
        network=spec.network.type,
        problems=spec.model.problems,
        train_learners=len(training),
        test_learners=len(test),
        offline=scores(labels, alone),
        baseline=scores(labels, means[ids]),
        served=scores(labels[chosen], answered),
        offline_same=scores(labels[chosen], alone[chosen]),
        largest_difference=float(np.abs(answered - alone[chosen]).max()),
    )
    return evaluation, labels, alone


def trial(histories: Sequence[History], sample: int | None, spec: KnowledgeTracing) -> Trial:
    """Responses of learners that the model has not seen, each from what came before it, judged by their AUC."""
    pairs = [(number, position) for number, h in enumerate(histories) for position in range(1, len(h))]
    pairs = [pairs[n] for n in chosen(len(pairs), sample)]
    labels = np.array([histories[number].responses[position] for number, position in pairs])
    wanted = [histories[number].problem_ids[position] for number, position in pairs]
    names = spec.tensors.problem_ids.name, spec.tensors.responses.name
    requests = []
    for number, end in pairs:
        history = histories[number]
        requests.append(dict(zip(names, (history.problem_ids[:end], history.responses[:end]), strict=True)))
    return Trial(
        f"{len(pairs):,} responses of {len(histories):,} learners",
        requests,
        spec.tensors.probabilities.name,
        lambda number, row: row[wanted[number]],  # a logit ranks as its probability does
        lambda answers: {"AUC": auc(labels, np.array(answers))},
        {},
    )


def show(evaluations: Sequence[Evaluation]) -> None:
    """Print the scores as a table on stdout."""
    first = evaluations[0]
    table = Table(title=f"{first.test_learners:,} learners unseen in training, {first.problems:,} problems")
    for column in ("", "predictions", "AUC", "accuracy", "calibration error"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, found: Scores) -> None:
        table.add_row(
            name,
            f"{found.predictions:,}",
            f"{found.auc:.4f}",
            f"{found.accuracy:.4f}",
            f"{found.calibration_error:.4f}",
        )

    row("mean of the problem", first.baseline)
    for evaluation in evaluations:
        row(f"{evaluation.network}, PyTorch", evaluation.offline)
        row(f"{evaluation.network}, served", evaluation.served)
        if evaluation.served.predictions != evaluation.offline.predictions:
            row(f"{evaluation.network}, PyTorch on the same", evaluation.offline_same)
    console = answers()
    console.print(table)
    for evaluation in evaluations:
        console.print(
            f"{evaluation.network}: served and PyTorch's AUC differ by "
            f"{abs(evaluation.served.auc - evaluation.offline_same.auc):.1e}, probabilities by at most "
            f"{evaluation.largest_difference:.1e}",
            highlight=False,
        )
    console.print(
        f"published for DKT on ASSISTments 2009 problems: AUC {PUBLISHED_AUC} ± {PUBLISHED_SPREAD}", highlight=False
    )


def save(
    evaluations: Sequence[Evaluation], curves: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path
) -> list[Path]:
    """Write evaluation.json and the picture calibration.svg: frequency of correct responses by stated probability."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "evaluation.json"
    report.write_text(json.dumps([asdict(e) for e in evaluations], indent=1) + "\n", encoding="utf-8")
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfect")
    for name, (labels, probabilities) in curves.items():
        edges = np.quantile(probabilities, np.linspace(0, 1, 21))
        bins = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, 19)
        filled = [n for n in range(20) if (bins == n).any()]
        axes.plot(
            [probabilities[bins == n].mean() for n in filled],
            [labels[bins == n].mean() for n in filled],
            marker="o",
            markersize=4,
            label=name,
        )
    axes.set(
        xlabel="stated probability of a correct response", ylabel="share of correct responses", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend()
    picture = folder / "calibration.svg"
    figure.savefig(picture)
    plt.close(figure)
    return [report, picture]


def _grouped(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Jobs of rising width in batches of about OFFLINE_INTERACTIONS."""
    group: list[Job] = []
    for job in jobs:
        if group and (len(group) + 1) * job.width > OFFLINE_INTERACTIONS:
            yield group
            group = []
        group.append(job)
    if group:
        yield group
