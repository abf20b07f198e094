"""What a lower precision costs in accuracy: the same responses predicted by the core in each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from build.core.export import adopt, export
from build.core.parity import probabilities
from build.core.precision import lower
from build.core.recipe import cut
from build.core.reduce.file import open_session, save
from build.model import checkpoint as checkpoints
from build.model.training import auc
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History, windows
from ensemble.tables import Precision

BATCH = 32


@dataclass(frozen=True)
class Cost:
    """What a precision costs: AUC of the same predictions as from float32; largest difference of a probability from it."""

    predictions: int
    auc: float
    largest_difference: float


def cost(
    spec: KnowledgeTracing,
    checkpoint: Path,
    histories: Sequence[History],
    sample: int,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> dict[Precision, Cost]:
    """Predict responses of learners by the core in each precision, on the CPU.

    Args:
        histories: of learners that the model has not seen.
        sample: how many responses are predicted, drawn at random; each from what came before it.
    """
    full = adopt(checkpoint, spec) if spec.network.type == "onnx" else export(checkpoints.load(checkpoint, spec), spec)
    pairs = [(number, position) for number, h in enumerate(histories) for position in range(1, len(h))]
    drawn = np.random.default_rng(0).choice(len(pairs), min(sample, len(pairs)), replace=False)
    chosen = sorted((pairs[n] for n in drawn), key=lambda pair: pair[1])  # learners of like history in a batch
    labels = np.array([histories[number].responses[position] for number, position in chosen])
    answers: dict[Precision, np.ndarray] = {}
    precisions: tuple[Precision, ...] = get_args(Precision)
    with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
        for part, precision in enumerate(precisions):
            progress(part / len(precisions), precision)
            path = Path(folder) / f"{precision}.onnx"
            reduce = spec.reduce.model_copy(update={"length_aware": spec.reduce.length_aware and precision != "int8"})
            core = cut(full.model.clone(), spec.model_copy(update={"reduce": reduce})).model
            save(lower(core, precision), path)
            answers[precision] = _predict(path, spec, histories, chosen)
    single = answers["float32"]
    return {
        precision: Cost(len(labels), auc(labels, answer), float(np.abs(answer - single).max()))
        for precision, answer in answers.items()
    }


def _predict(
    core: Path, spec: KnowledgeTracing, histories: Sequence[History], chosen: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Probabilities FP64 [n] of the responses `chosen`."""
    session = open_session(core)
    tensors = (spec.tensors.recent_problem_ids, spec.tensors.recent_responses, spec.tensors.lengths)
    found = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        before = [
            History(histories[n].learner, histories[n].problem_ids[:end], histories[n].responses[:end])
            for n, end in part
        ]
        values = windows(before, spec.model.widths)
        (logits,) = session.run(None, {tensor.name: value for tensor, value in zip(tensors, values, strict=True)})
        wanted = [histories[n].problem_ids[end] for n, end in part]
        found.append(probabilities(logits)[np.arange(len(part)), wanted])
    return np.concatenate(found)
