"""What is asked: a history with its contexts. Of knowledge tracing a History, of any other model arrays by input name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from build.bench import reply
from build.model.interactions import read_folds
from build.model.simulation import LENGTH_SIGMA, LONGEST, MEDIAN_LENGTH, SHORTEST
from build.repository.workspace import Workspace
from ensemble.contract import PADDING
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History, pad
from ensemble.sample import draw, random_request
from ensemble.spec import Answer, Spec
from ensemble.tables import Tensor

Array = np.ndarray
MIXED = 64  # histories that are drawn for a mix of lengths
Question = History | Mapping[str, Array]  # one history: the arrays have no batch axis


def drawn(spec: Spec, lengths: Sequence[int], answers: Sequence[Answer] = ()) -> list[Question]:
    """Random questions that keep the contract, of these lengths, or of the shortest that it allows.

    An optional input is left out, unless one of the answers that are asked for is made of it.

    Args:
        answers: by default `reply.whole` alone.
    """
    if isinstance(spec, KnowledgeTracing):
        request = random_request(spec.contract.inputs, lengths)
        return [
            History(str(n), *(values[:k] for values in pair))
            for n, (k, *pair) in enumerate(zip(lengths, *request.values(), strict=True))
        ]
    contract = spec.contract
    needed = {tensor.name for answer in answers or [reply.whole(spec)] for tensor in answer.seen}
    left_out = {*contract.optional} - needed
    found: list[Question] = []
    for number, length in enumerate(lengths):
        request = draw(contract, [max(length, spec.shortest_history, 1)], seed=number)
        found.append({name: values[0] for name, values in request.items() if name not in left_out})
    return found


def lengths(count: int, seed: int = 0) -> list[int]:
    """Log-normal lengths of histories, as `build/model/simulation.py` documents them."""
    normal = np.random.default_rng(seed).normal(np.log(MEDIAN_LENGTH), LENGTH_SIGMA, count)
    return [int(length) for length in np.clip(np.exp(normal), SHORTEST, LONGEST)]


def mix(workspace: Workspace, folder: Path | None) -> list[Question]:
    """Questions as long as simulated histories; knowledge tracing's as long as those of a folder's learners, if given."""
    spec = workspace.spec
    if not isinstance(spec, KnowledgeTracing):
        return drawn(spec, lengths(MIXED))
    learners = [history for fold in (read_folds(folder) if folder else workspace.folds()) for history in fold]
    rng = np.random.default_rng(0)
    found = rng.choice([len(h) for h in learners if len(h)], MIXED)
    problems = spec.model.problems
    return [History(str(n), rng.integers(0, problems, k), rng.integers(0, 2, k)) for n, k in enumerate(found)]


def steps(question: Question) -> int:
    """Of its history."""
    return len(question if isinstance(question, History) else next(iter(question.values())))


def together(spec: Spec, questions: Sequence[Question]) -> dict[str, Array]:
    """Questions as one request: [batch, ...] by input name, what is shorter padded behind with -1, or NaN.

    >>> spec = Spec.read()
    >>> two = together(spec, [History("ada", [5, 6], [1, 0]), History("bob", [9], [1])])
    >>> two["problem_ids"].tolist()
    [[5, 6], [9, -1]]
    """
    histories = [question for question in questions if isinstance(question, History)]
    if histories:
        return dict(zip(spec.contract.inputs, pad(histories), strict=True))
    named: list[Mapping[str, Array]] = [question for question in questions if not isinstance(question, History)]
    return {name: _stacked([each[name] for each in named]) for name in named[0]}


def _stacked(values: Sequence[Array]) -> Array:
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    first = values[0]
    fill = PADDING if first.dtype.kind == "i" else np.nan
    padded = np.full((len(values), max(map(len, values)), *first.shape[1:]), fill, first.dtype)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
    return padded


def on_the_wire(tensors: Sequence[Tensor], given: Mapping[str, Array]) -> list[tuple[Tensor, Array]]:
    """Those of the tensors that are given, in their types; one number a history is [batch, 1] for Triton."""
    found = []
    for tensor in tensors:
        if tensor.name in given:
            value = given[tensor.name].astype(triton_to_np_dtype(tensor.dtype), copy=False)
            found.append((tensor, value[:, None] if value.ndim == 1 else value))
    return found
