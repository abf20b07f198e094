"""What knowledge tracing alone has: calls of learners' histories, and predictions."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ensemble.contract import PADDING
from ensemble.errors import HistoryError, InvalidRequestError
from ensemble.interface import Interface
from ensemble.knowledge_tracing import NEXT_PROBLEMS, PROBABILITIES
from ensemble.learners.history import History, pad


@dataclass(frozen=True)
class Prediction:
    """One learner's answer; what was not asked for is None.

    Example:
        answer.probabilities[17]         # 0.42: the chance of answering problem 17
        answer.next_problem_ids[0]       # the problem to give next

    probabilities: FP32 [problems], P(correct) for every problem after the whole history.
    next_problem_ids, next_problem_probabilities: INT32 and FP32 [at most k], nearest to the target success rate first.
    """

    learner: str
    probabilities: np.ndarray | None
    next_problem_ids: np.ndarray | None
    next_problem_probabilities: np.ndarray | None


class Wanted(TypedDict, total=False):
    """The options of `predict` for histories of learners, as type checkers see them."""

    probabilities: bool
    next_problems: bool
    deadline_s: float | None


def is_taken(interface: Interface) -> bool:
    """Whether a model takes problem ids and responses, and answers what a Prediction has."""
    return [answer.name for answer in interface.answers] == [PROBABILITIES, NEXT_PROBLEMS] and len(
        interface.inputs
    ) == 2


def histories_of(given: object) -> list[History]:
    """What a call is given, as the histories that it is about; one alone counts as several of one.

    Raises:
        HistoryError: it is neither a History nor several of them in order.
    """
    if isinstance(given, History):
        return [given]
    if isinstance(given, (str, Mapping, Set)) or not isinstance(given, Iterable):
        raise HistoryError(
            f"a History or a list of them is needed; {reprlib.repr(given)} is of type {type(given).__name__}"
        )
    histories = list(given)
    for position, history in enumerate(histories):
        if not isinstance(history, History):
            raise HistoryError(
                f"histories at position {position} is {reprlib.repr(history)}; needed is a History, made with "
                "History(learner, problem_ids, responses)"
            )
    return histories


def outputs(interface: Interface, probabilities: bool, next_problems: bool) -> list[str]:
    """The tensors of what is wanted."""
    wanted = {PROBABILITIES: probabilities, NEXT_PROBLEMS: next_problems}
    if not any(wanted.values()):
        raise InvalidRequestError("nothing is asked for; set probabilities or next_problems", "INVALID_ARGUMENT")
    return [tensor for answer in interface.answers if wanted[answer.name] for tensor in answer.tensors]


def batches(histories: Sequence[History], interface: Interface) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """For every max_batch_size learners the number of the first, and problem ids and responses [learners, longest]."""
    names = [tensor.name for tensor in interface.inputs]
    for start in range(0, len(histories), interface.max_batch_size):
        yield start, dict(zip(names, pad(histories[start : start + interface.max_batch_size]), strict=True))


def predictions(
    histories: Sequence[History], answers: Iterable[Mapping[str, np.ndarray]], interface: Interface
) -> list[Prediction]:
    """Every learner's share of the answers' arrays, in the histories' order."""
    names = [tensor for answer in interface.answers for tensor in answer.tensors]
    shares: list[list[np.ndarray | None]] = []
    for arrays in answers:
        for number in range(len(next(iter(arrays.values())))):
            shares.append([arrays[name][number] if name in arrays else None for name in names])
    return [_prediction(history.learner, *share) for history, share in zip(histories, shares, strict=True)]


def _prediction(
    learner: str, probabilities: np.ndarray | None, ids: np.ndarray | None, chances: np.ndarray | None
) -> Prediction:
    if ids is not None and chances is not None:
        proposed = ids != PADDING  # the server fills up where fewer problems are unanswered
        ids, chances = ids[proposed], chances[proposed]
    return Prediction(learner, probabilities, ids, chances)
