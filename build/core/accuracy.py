"""What a lower precision costs: the same held-out requests answered by the core in each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from build.core.export import Full, adopt, export, widen
from build.core.inference import run
from build.core.parity import probabilities
from build.core.precision import PrecisionError, lower
from build.core.recipe import cut, cut_sequence
from build.core.reduce.file import open_session, save
from build.core.served import types
from build.model import checkpoint as checkpoints
from build.model.trial import Trial, Worth
from ensemble.client.batch import batches
from ensemble.interface import Interface
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import Precision

Array = np.ndarray


@dataclass(frozen=True)
class Cost:
    """What a precision costs.

    worth: as the trial has it. largest_difference: from what float32 answers, as parity takes it: of a probability, or for
    any other model a part of the largest number. refused: why a build with it would fail; None: it would not by this.
    """

    worth: Worth
    largest_difference: float
    refused: str | None = None


def cost(
    spec: Spec, checkpoint: Path, trial: Trial, progress: Callable[[float, str], None] = lambda *_: None
) -> dict[Precision, Cost]:
    """Answer what was held out by the core in each precision, on the CPU.

    Returns:
        What each one costs; without worth, and the reason, where the core cannot be brought to it.
    """
    full = adopt(checkpoint, spec) if spec.network.type == "onnx" else export(checkpoints.load(checkpoint, spec), spec)
    found: dict[Precision, Cost] = {}
    sessions: dict[Precision, ort.InferenceSession] = {}
    with tempfile.TemporaryDirectory(prefix="lastrow-") as folder:
        for precision in get_args(Precision):
            progress(0.0, precision)
            try:
                core = widen(lower(_cut(full, spec, precision), precision), spec)
            except PrecisionError as e:
                found[precision] = Cost({}, float("nan"), str(e))
                continue
            save(core, Path(folder) / f"{precision}.onnx")
            sessions[precision] = open_session(Path(folder) / f"{precision}.onnx")
        answers, apart = _answers(spec, sessions, trial, progress)
    for precision in sessions:
        key, allowed = spec.parity.of_core(precision)
        reason = None
        if not apart[precision] <= allowed:
            reason = f"{apart[precision]:.1e} off float32 at most, and {allowed:.0e} is allowed ({key})"
        found[precision] = Cost(trial.worth(answers[precision]), apart[precision], reason)
    return {precision: found[precision] for precision in get_args(Precision)}


def _cut(full: Full, spec: Spec, precision: Precision) -> ir.Model:
    """The core in float32, as it would be made for this precision."""
    reduce = spec.reduce.model_copy(update={"length_aware": spec.reduce.length_aware and precision != "int8"})
    wanted = spec.model_copy(update={"reduce": reduce})
    if isinstance(wanted, Sequence):
        _, core = cut_sequence(full, wanted)
        return core
    return cut(full.model.clone(), narrowed(wanted)).model


def _answers(
    spec: Spec,
    sessions: dict[Precision, ort.InferenceSession],
    trial: Trial,
    progress: Callable[[float, str], None],
) -> tuple[dict[Precision, list[Array]], dict[Precision, float]]:
    """The judged tensor of every request by precision, and how far each is from float32's at most."""
    output = spec.cores[0].outputs[_output(spec, trial)].name
    answers: dict[Precision, list[Array]] = {each: [np.zeros(0)] * len(trial.requests) for each in sessions}
    apart = dict.fromkeys(sessions, 0.0)
    # Histories of like length in a batch: a core with several widths sees each in its own.
    order = sorted(range(len(trial.requests)), key=lambda n: len(next(iter(trial.requests[n].values()))))
    done = 0
    for batch in batches([trial.requests[n] for n in order], Interface.of(spec)):
        progress(done / len(order), f"{done:,} of {len(order):,}")
        fed = spec.contract.feed(batch.arrays, spec.contract.check(batch.arrays), types(spec))
        reference: Array | None = None
        for precision, session in sessions.items():
            (rows,) = run(session, fed, [output])
            for number, row in zip(batch.numbers, rows, strict=True):
                answers[precision][order[number]] = trial.answered(order[number], row)
            reference = rows if reference is None else reference
            apart[precision] = max(apart[precision], _apart(spec, rows, reference))
        done += len(batch.numbers)
    return answers, apart


def _output(spec: Spec, trial: Trial) -> int:
    """Which of the core's outputs the judged answer is made of."""
    if not isinstance(spec, Sequence):
        return 0
    made = next(each for each in spec.answer if each.name == trial.answer)
    return list(spec.outputs).index(made.of) if made.of else 0


def _apart(spec: Spec, rows: Array, reference: Array) -> float:
    if isinstance(spec, KnowledgeTracing):
        return float(np.abs(probabilities(rows) - probabilities(reference)).max())
    return float(np.abs(rows - reference).max() / max(float(np.abs(reference).max()), 1e-6))
