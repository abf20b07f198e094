"""What knowledge tracing alone has: calls of learners' histories, and predictions."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from ensemble.contract import PADDING
from ensemble.errors import HistoryError, InvalidRequestError
from ensemble.interface import Interface
from ensemble.knowledge_tracing import CANDIDATES, NEXT_PROBLEMS, PROBABILITIES
from ensemble.learners.history import History, pad


@dataclass(frozen=True)
class Prediction:
    """One learner's answer; what was not asked for is None.

    Example:
        answer.probabilities[17]         # 0.42: the chance of answering problem 17
        answer.next_problem_ids[0]       # the problem to give next

    probabilities: FP32 [problems], P(correct) for every problem after the whole history.
    next_problem_ids, next_problem_probabilities: INT32 and FP32 [at most k], nearest to the target success rate first.
    candidate_probabilities: FP32 [candidates], of the problems that the call names, in its order.
    """

    learner: str
    probabilities: np.ndarray | None
    next_problem_ids: np.ndarray | None
    next_problem_probabilities: np.ndarray | None
    candidate_probabilities: np.ndarray | None = None


class Wanted(TypedDict, total=False):
    """The options of `predict` for histories of learners, as type checkers see them."""

    probabilities: bool | None
    next_problems: bool
    candidates: npt.ArrayLike | None
    deadline_s: float | None


class Asked(NamedTuple):
    """What a call wants of each learner; probabilities: None: yes, unless it names candidates."""

    probabilities: bool | None = None
    next_problems: bool = False
    candidates: npt.ArrayLike | None = None

    def answers(self) -> list[str]:
        """The names of what is wanted."""
        wanted = {
            PROBABILITIES: self.candidates is None if self.probabilities is None else self.probabilities,
            NEXT_PROBLEMS: self.next_problems,
            CANDIDATES: self.candidates is not None,
        }
        if not any(wanted.values()):
            raise InvalidRequestError(
                "nothing is asked for; set probabilities or next_problems, or name candidates", "INVALID_ARGUMENT"
            )
        return [name for name, asked in wanted.items() if asked]


def is_taken(interface: Interface) -> bool:
    """Whether a model takes problem ids and responses, and answers what a Prediction has."""
    names = [answer.name for answer in interface.answers]
    return names in ([PROBABILITIES, NEXT_PROBLEMS], [PROBABILITIES, NEXT_PROBLEMS, CANDIDATES])


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


def mappings(histories: Sequence[History], candidates: npt.ArrayLike, interface: Interface) -> list[dict[str, object]]:
    """Every learner's history and the problems that the call is about, by input name.

    Raises:
        InvalidRequestError: the model answers no candidates.
    """
    answer = interface.answer(CANDIDATES)
    if answer is None:
        raise InvalidRequestError(
            f"{interface.name} has no answer for candidates; write [candidates] into its spec, and run `make repo`",
            "INVALID_ARGUMENT",
        )
    names = [tensor.name for tensor in interface.inputs]
    return [dict(zip(names, (each.problem_ids, each.responses, candidates), strict=True)) for each in histories]


def batches(histories: Sequence[History], interface: Interface) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """For every max_batch_size learners the number of the first, and problem ids and responses [learners, longest]."""
    names = list(interface.contract.inputs)
    for start in range(0, len(histories), interface.max_batch_size):
        yield start, dict(zip(names, pad(histories[start : start + interface.max_batch_size]), strict=True))


def predictions(
    histories: Sequence[History], answers: Iterable[Mapping[str, np.ndarray]], interface: Interface
) -> list[Prediction]:
    """Every learner's share of the answers' arrays, in the histories' order."""
    shares = ({name: values[row] for name, values in arrays.items()} for arrays in answers for row in _rows(arrays))
    return [prediction(history, share, interface) for history, share in zip(histories, shares, strict=True)]


def prediction(history: History, share: Mapping[str, np.ndarray], interface: Interface) -> Prediction:
    """A learner's tensors by name as a Prediction; what the server filled proposals up with is left out."""
    found = [share.get(tensor) for answer in interface.answers for tensor in answer.tensors]
    ids, chances = found[1:3]
    if ids is not None and chances is not None:
        proposed = ids != PADDING  # the server fills up where fewer problems are unanswered
        found[1:3] = ids[proposed], chances[proposed]
    return Prediction(history.learner, *found)


def _rows(arrays: Mapping[str, np.ndarray]) -> range:
    return range(len(next(iter(arrays.values()))))
