"""The parity gate: every stage between PyTorch and the core has to give the same answer for the row that is served."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from build.core.battery import times
from build.core.reduce.file import open_session
from build.model.network import Network
from ensemble.contract import narrowest
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.sample import random_request
from ensemble.spec import Core, Spec

Array = np.ndarray
INTEGERS = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}  # by ONNX Runtime's names
REFERENCE, CUT, CORE = "PyTorch full forward", "PyTorch cut", "ONNX core"
CANDIDATES = 20  # columns that a core of wanted ones is asked for
GPU_DIFFERENCE = 1e-4  # of probabilities in float32 from those of the CPU


class ParityError(LastrowError):
    """Two stages answer differently; names the stage, the lengths and the difference."""


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one stage's probabilities from the reference, over one batch of lengths."""

    stage: str
    lengths: tuple[int, ...]
    value: float


def batches(spec: KnowledgeTracing) -> list[tuple[int, ...]]:
    """Histories that parity is checked on: one learner each of the battery's lengths, all at once, a cold start.

    With buckets also the last length of each and the first of the next. Lengths that the window cannot hold are left out.
    """
    window = spec.model.window
    edges = [length for bucket in spec.model.buckets for length in (bucket, bucket + 1)]
    lengths = sorted({length for length in (*times(window), *edges) if 1 <= length <= window})
    mixed = tuple(reversed(lengths))
    return [*((length,) for length in lengths), mixed, *([(0,)] if spec.shortest_history == 0 else [])]


def windows(
    lengths: tuple[int, ...], spec: KnowledgeTracing, seed: int = 0, width: int | None = None
) -> tuple[Array, Array, Array]:
    """Random learners as the core gets them: problem ids and responses INT32 [batch, width], lengths INT32 [batch].

    What lies behind a length is noise and not zeros, so that a stage that looks there parts from the others.
    """
    request = random_request(spec.contract.inputs, lengths, spec.model.window, seed, padded=False)
    problem_ids, responses = request.values()
    return problem_ids[:, :width], responses[:, :width], np.array(lengths, np.int32)


def check(
    model: nn.Module | None,
    full: Path,
    core: Path,
    spec: KnowledgeTracing,
    sigmoid: bool = False,
    progress: Callable[[float, str], None] = lambda *_: None,
    cores: Mapping[str, Path] | None = None,
) -> list[Difference]:
    """Compare PyTorch full forward, PyTorch cut, ONNX full and ONNX core on the served row.

    Args:
        model: None where an ONNX file is all there is; its full forward is then the reference.
        full, core: ONNX files of `build.core.export` and, with reduce.where = "core", of `build.core.reduce`.
        sigmoid: whether the PyTorch model answers probabilities itself.
        cores: every core's file by its step, where the spec has others than the first, which answer some problems.

    Returns:
        Every stage's difference on every batch.

    Raises:
        ParityError: one is above parity.max_abs_difference; for a core in lower precision, its own.
    """
    reduced = spec.reduce.where == "core"
    onnx_full = open_session(full)
    onnx_core = open_session(core) if reduced else None
    others = [(each, open_session((cores or {})[each.step])) for each in spec.cores if each.columns]
    differences = []
    todo = batches(spec)
    for done, lengths in enumerate(todo):
        progress(done / len(todo), f"lengths {', '.join(map(str, lengths))}")
        reference, name = _reference(model, onnx_full, lengths, spec, sigmoid)
        stages = _answers(model, onnx_full, onnx_core, lengths, spec, sigmoid)
        held = ((stage, answer, reference) for stage, answer in stages)
        for stage, answer, wanted in itertools.chain(held, _candidates(others, lengths, spec, reference)):
            difference = Difference(stage, lengths, float(np.abs(answer - wanted).max()))
            differences.append(difference)
            key, allowed = spec.parity.of_core(spec.export.precision if stage.startswith(CORE) else "float32")
            if not difference.value <= allowed:  # a NaN fails too
                ahead = (
                    ". Does the model look ahead (a bidirectional layer, attention without a causal mask)? Then padding "
                    "changes its answer, and it cannot be served in windows"
                )
                raise ParityError(
                    f"{stage} parts from {name} by {difference.value:.2e} at lengths {list(lengths)}; allowed is "
                    f"{allowed:.0e} ({key}). Nothing was written"
                    f"{ahead if stage.startswith('ONNX full') else ''}"
                )
    return differences


def tolerance(spec: Spec) -> tuple[str, float]:
    """Which key says how far a served answer may be from PyTorch's, or from the core's on the CPU, and how far that is."""
    key, own = spec.parity.of_core(spec.export.precision)
    if spec.steps.core.device == "gpu" and own < GPU_DIFFERENCE:
        return "a GPU adds up in another order", GPU_DIFFERENCE
    return key, own


def probabilities(logits: Array) -> Array:
    """The sigmoid in float64: what is compared is the stages' arithmetic, not a sigmoid's."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def _reference(
    model: nn.Module | None,
    onnx_full: ort.InferenceSession,
    lengths: tuple[int, ...],
    spec: KnowledgeTracing,
    sigmoid: bool,
) -> tuple[Array, str]:
    """Probabilities [batch, problems] that each learner's own history gives, alone and without padding; and whose."""
    problem_ids, responses, counted = windows(lengths, spec)
    if not counted.all():
        # A cold start has no row in the full forward; the PyTorch cut stands in for it.
        assert isinstance(model, Network)
        with torch.inference_mode():
            cold = model.last(*(torch.from_numpy(x) for x in (problem_ids, responses, counted)))
        return probabilities(cold.numpy()), CUT
    rows = []
    fixed = isinstance(onnx_full.get_inputs()[0].shape[1], int)
    for row, length in enumerate(lengths):
        history = [x[row : row + 1, :length].copy() for x in (problem_ids, responses)]
        if model is not None:
            with torch.inference_mode():
                answer = model(*(torch.from_numpy(x) for x in _typed(history, model)))[0, -1].numpy()
            rows.append(answer if sigmoid else probabilities(answer))
            continue
        if fixed:  # without padding there is nothing to hold it against but other padding
            other = windows(lengths, spec, seed=1)
            history = [
                np.concatenate([x, y[row : row + 1, length:]], axis=1) for x, y in zip(history, other, strict=False)
            ]
        rows.append(probabilities(onnx_full.run(None, _feeds(history, spec, onnx_full))[0][0, length - 1]))
    return np.stack(rows), REFERENCE if model is not None else "ONNX full without padding"


def _answers(
    model: nn.Module | None,
    onnx_full: ort.InferenceSession,
    onnx_core: ort.InferenceSession | None,
    lengths: tuple[int, ...],
    spec: KnowledgeTracing,
    sigmoid: bool,
) -> Iterator[tuple[str, Array]]:
    """Every stage's probabilities [batch, problems], at every width that such a batch may come in."""
    for width in sorted({narrowest(spec.model.widths, max(lengths)), spec.model.window}):
        at = f" at width {width}" if spec.model.buckets else ""
        problem_ids, responses, counted = windows(lengths, spec, width=width)
        rows = np.arange(len(lengths)), counted - 1
        if model is not None and counted.all():
            with torch.inference_mode():
                answer = model(*(torch.from_numpy(x) for x in _typed([problem_ids, responses], model))).numpy()[rows]
            yield f"PyTorch, padded{at}", answer if sigmoid else probabilities(answer)
        if isinstance(model, Network):
            with torch.inference_mode():
                answer = model.last(*(torch.from_numpy(x) for x in (problem_ids, responses, counted))).numpy()
            yield f"{CUT}{at}", probabilities(answer)
        given = [problem_ids, responses]
        if counted.all():
            yield f"ONNX full{at}", probabilities(onnx_full.run(None, _feeds(given, spec, onnx_full))[0][rows])
        if onnx_core is not None:
            yield f"{CORE}{at}", probabilities(onnx_core.run(None, _feeds([*given, counted], spec, onnx_core))[0])


def _candidates(
    others: list[tuple[Core, ort.InferenceSession]], lengths: tuple[int, ...], spec: KnowledgeTracing, reference: Array
) -> Iterator[tuple[str, Array, Array]]:
    """What each core of wanted problems answers of some, and what is wanted of it, [batch, candidates]."""
    rng = np.random.default_rng(sum(lengths))
    for core, session in others:
        ids = rng.integers(0, spec.model.problems, (len(lengths), CANDIDATES))
        ids[:, 0], ids[:, 1] = spec.model.problems - 1, ids[:, 2]  # the last one, and one twice
        for width in sorted({narrowest(spec.model.widths, max(lengths)), spec.model.window}):
            fed = _feeds(list(windows(lengths, spec, width=width)), spec, session)
            type_ = INTEGERS[next(each.type for each in session.get_inputs() if each.name == core.columns)]
            logits = session.run(None, {**fed, str(core.columns): ids.astype(type_)})[0]
            stage = f"{CORE} {core.step} at width {width}"
            yield stage, probabilities(logits), np.take_along_axis(reference, ids, 1)


def _typed(inputs: list[Array], model: nn.Module) -> list[Array]:
    return inputs if isinstance(model, Network) else [x.astype(np.int64) for x in inputs]


def _feeds(inputs: list[Array], spec: KnowledgeTracing, session: ort.InferenceSession) -> dict[str, Array]:
    """Problem ids, responses and, for the core, lengths by their names, as the integers that the session takes."""
    tensors = (spec.tensors.recent_problem_ids, spec.tensors.recent_responses, spec.tensors.lengths)
    types = {value.name: INTEGERS[value.type] for value in session.get_inputs()}
    return {
        tensor.name: array.astype(types[tensor.name], copy=False)
        for tensor, array in zip(tensors, inputs, strict=False)
    }
