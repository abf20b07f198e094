"""What is asked: a history with its contexts. Of knowledge tracing a History, of any other model arrays by input name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from build.bench import reply
from build.model.forecast import series
from build.model.interactions import read_folds
from build.model.next_item import histories
from build.model.simulation import LENGTH_SIGMA, LONGEST, MEDIAN_LENGTH, SHORTEST
from build.repository.workspace import Workspace
from ensemble.contract import PADDING
from ensemble.errors import LastrowError
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


def lengths_of(path: Path, spec: Spec) -> list[int]:
    """How long the histories are that lie there, of any kind of model: all but the empty ones.

    A folder of fold*.csv; a file in the format that the spec's network is trained on; or one with a length on each line.

    Raises:
        LastrowError: there are none, or they cannot be read.
    """
    kind = spec.network.type
    if path.is_file() and all(line.strip().isdecimal() for line in path.read_text(errors="replace").split()):
        found = [int(line) for line in path.read_text().split()]
    elif path.is_file() and kind in ("sasrec", "gru4rec"):
        found = [len(history) for history in histories.read(path)]
    elif path.is_file() and kind == "forecaster":
        found = [len(one) for one in series.read(path)]
    else:
        found = [len(history) for fold in read_folds(path) for history in fold]
    if not any(found):
        raise LastrowError(
            f"{path} says no length of a history: give a folder of fold*.csv, a file of histories as {kind} is trained on, "
            "or one with a whole number on each line"
        )
    return [min(length, spec.batching.longest_history) for length in found if length]


def mix(workspace: Workspace, path: Path | None) -> list[Question]:
    """Questions as long as the histories that lie at a path; without one as simulated histories are.

    Raises:
        LastrowError: as `lengths_of`.
    """
    spec = workspace.spec
    rng = np.random.default_rng(0)
    if not isinstance(spec, KnowledgeTracing):
        return drawn(spec, rng.choice(lengths_of(path, spec), MIXED).tolist() if path else lengths(MIXED))
    if path is None:
        lengths_there = [len(history) for fold in workspace.folds() for history in fold if len(history)]
    else:
        lengths_there = lengths_of(path, spec)
    found = rng.choice(lengths_there, MIXED)
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
    learners = [question for question in questions if isinstance(question, History)]
    if learners:
        return dict(zip(spec.contract.inputs, pad(learners), strict=True))
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
