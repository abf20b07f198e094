"""The parity gate: every stage between PyTorch and the core has to give the same answer for the row that is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from build.dkt import DKT
from ensemble.errors import LastrowError
from ensemble.spec import Spec

Array = np.ndarray
REFERENCE = "PyTorch full forward"


class ParityError(LastrowError):
    """Two stages answer differently; names the stage, the lengths and the difference."""


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one stage's probabilities from the reference, over one batch of lengths."""

    stage: str
    lengths: tuple[int, ...]
    value: float


def batches(spec: Spec) -> list[tuple[int, ...]]:
    """Histories that parity is checked on: one learner each of 1, 2, 20, window - 1 and window, all at once, a cold start.

    Lengths that a small window cannot hold are left out.
    """
    window = spec.model.window
    lengths = sorted({length for length in (1, 2, 20, window - 1, window) if 1 <= length <= window})
    mixed = tuple(reversed(lengths))
    return [*((length,) for length in lengths), mixed, (0,)]


def windows(lengths: tuple[int, ...], spec: Spec, seed: int = 0) -> tuple[Array, Array, Array]:
    """Random learners as the core gets them: problem ids and responses INT32 [batch, window], lengths INT32 [batch].

    What lies behind a length is noise and not zeros, so that a stage that looks there parts from the others.
    """
    rng = np.random.default_rng(seed)
    shape = (len(lengths), spec.model.window)
    problem_ids = rng.integers(0, spec.model.problems, shape, dtype=np.int32)
    return problem_ids, rng.integers(0, 2, shape, dtype=np.int32), np.array(lengths, np.int32)


def check(
    model: DKT, full: Path, core: Path, spec: Spec, progress: Callable[[float, str], None] = lambda *_: None
) -> list[Difference]:
    """Compare PyTorch full forward, PyTorch cut, ONNX full and ONNX core on the served row.

    Args:
        full, core: ONNX files of `build.export.export` and, with reduce.where = "core", of `build.reduce.reduce`.

    Returns:
        Every stage's difference on every batch.

    Raises:
        ParityError: one is above parity.max_abs_difference.
    """
    reduced = spec.reduce.where == "core"
    onnx_full = ort.InferenceSession(str(full), providers=["CPUExecutionProvider"])
    onnx_core = ort.InferenceSession(str(core), providers=["CPUExecutionProvider"]) if reduced else None
    differences = []
    todo = batches(spec)
    for done, lengths in enumerate(todo):
        progress(done / len(todo), f"lengths {', '.join(map(str, lengths))}")
        answers = _answers(model, onnx_full, onnx_core, windows(lengths, spec), spec)
        # A cold start has no row in the full forward; the PyTorch cut stands in for it.
        reference = answers.pop(REFERENCE, None)
        if reference is None:
            reference = answers.pop("PyTorch cut")
        for stage, answer in answers.items():
            difference = Difference(stage, lengths, float(np.abs(answer - reference).max()))
            differences.append(difference)
            if not difference.value <= spec.parity.max_abs_difference:  # a NaN fails too
                raise ParityError(
                    f"{stage} parts from {REFERENCE} by {difference.value:.2e} at lengths {list(lengths)}; allowed is "
                    f"{spec.parity.max_abs_difference:.0e} (parity.max_abs_difference). Nothing was written"
                )
    return differences


def probabilities(logits: Array) -> Array:
    """The sigmoid in float64: what is compared is the stages' arithmetic, not a sigmoid's."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def _answers(
    model: DKT,
    onnx_full: ort.InferenceSession,
    onnx_core: ort.InferenceSession | None,
    inputs: tuple[Array, Array, Array],
    spec: Spec,
) -> dict[str, Array]:
    """Probabilities [batch, problems] by stage."""
    problem_ids, responses, lengths = inputs
    tensors = spec.tensors
    feeds = {tensors.recent_problem_ids.name: problem_ids, tensors.recent_responses.name: responses}
    rows = np.arange(len(lengths)), lengths - 1
    answers = {}
    with torch.inference_mode():
        torch_inputs = [torch.from_numpy(x) for x in inputs]
        if lengths.all():
            answers[REFERENCE] = model(*torch_inputs[:2]).numpy()[rows]
        answers["PyTorch cut"] = model.last(*torch_inputs).numpy()
    if lengths.all():
        answers["ONNX full"] = onnx_full.run(None, feeds)[0][rows]
    if onnx_core is not None:
        answers["ONNX core"] = onnx_core.run(None, {**feeds, tensors.lengths.name: lengths})[0]
    return {stage: probabilities(logits) for stage, logits in answers.items()}
