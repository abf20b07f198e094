"""A served repository's answers in this process: by the served contract, core and chains, without the server."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from build.score.repository import Core, Cores, Made, ScoringError, Served
from ensemble.chain import answer
from ensemble.client.batch import Batch, batches
from ensemble.errors import InvalidRequestError
from ensemble.interface import Answered, Interface

TOGETHER = 128  # histories of alike length that are computed at once: what a core on one thread does most of a second
NEAR = 8  # rows of which a chain's arrays fit into a core's own cache


@dataclass(frozen=True)
class Choice:
    """What is asked of every history. Nothing chosen: the answers that pick columns, as many as they are served with.

    top: of each answer that picks columns so many; where the model has none, the columns of the largest numbers.
    candidates: columns whose numbers are wanted. everything: every column of the first answer, as FP16.
    """

    top: int | None = None
    candidates: tuple[int, ...] | None = None
    everything: bool = False


class Wanted(NamedTuple):
    """One answer to be made.

    width: numbers of each tensor. columns: those of the row that are kept. at: the input that tells a core to compute these
    alone. half: as FP16.
    """

    tensors: tuple[str, ...]
    made: Made
    chain: list[list[Any]]
    width: int
    columns: np.ndarray | None = None
    at: str | None = None
    half: bool = False

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """The tensors of so many histories that have no answer."""
        kinds: list[Any] = [np.float16 if self.half else np.float32]
        kinds[:0] = [np.int32] * (len(self.tensors) - 1)
        return {
            name: np.full((count, self.width), -1 if kind is np.int32 else 0, kind)
            for name, kind in zip(self.tensors, kinds, strict=True)
        }


class Scorer:
    """Answers histories of any number, given as columns. Picklable: sessions are opened where it is called first.

    The inputs of a call are one dict, as Ray Data's map_batches hands it, or arrays in the model's order, as Spark's
    predict_batch_udf does. A column is an array of histories, [n, time] with the contract's padding behind them, or one of
    arrays of their own lengths. Columns that are no inputs are handed on.

    Args:
        repository: what `make repo` wrote.
        top, candidates, everything: as those of Choice.
        threads: that a session computes with; one process a core, each of one thread, answers most of a second.
        together: histories that are computed at once, at most.

    Example:
        scorer = Scorer("models", top=5)
        scorer({"problem_ids": [[17, 4, 4], [96]], "responses": [[1, 0, 1], [1]]})["next_problem_ids"]  # INT32 [2, 5]

    Raises, from a call:
        InvalidRequestError: a history breaks the contract; names it.
        ScoringError: a column is missing, or what is asked for is not among what the model answers.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        top: int | None = None,
        candidates: Sequence[int] | None = None,
        everything: bool = False,
        threads: int = 1,
        together: int = TOGETHER,
    ) -> None:
        self.repository = Path(repository).resolve()
        numbers = None if candidates is None else tuple(int(each) for each in candidates)
        self.choice = Choice(top, numbers, everything)
        self.threads, self.together = threads, together
        self._served = Served.read(self.repository)
        self.wanted = wanted(self._served, self.choice)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_cores"}

    def __repr__(self) -> str:
        return f"Scorer({str(self.repository)!r}, {self.choice})"

    @property
    def interface(self) -> Interface:
        """What the model takes and answers."""
        return self._served.interface

    @property
    def cores(self) -> tuple[Core, ...]:
        """The models that compute, by their files."""
        return self._served.cores

    @functools.cached_property
    def _cores(self) -> Cores:
        return Cores(self._served, self.threads)

    def __call__(self, *columns: Any) -> dict[str, Any]:
        given = columns[0] if len(columns) == 1 and isinstance(columns[0], Mapping) else self._named(columns)
        names = [tensor.name for tensor in self.interface.inputs]
        missing = [t.name for t in self.interface.inputs if not t.optional and t.name not in given]
        if missing:
            raise ScoringError(f"there is no column {missing[0]}; {self.interface.name} takes {', '.join(names)}")
        taken = {name: given[name] for name in names if name in given}
        rows = [dict(zip(taken, row, strict=True)) for row in zip(*taken.values(), strict=True)]
        rows = [self._unpadded(row) for row in rows]
        answers, refused = self.answer(rows)
        if refused:
            raise InvalidRequestError(refused[min(refused)], "INVALID_ARGUMENT")
        return {**{name: value for name, value in given.items() if name not in names}, **answers}

    def answer(self, histories: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Of mappings by input name the answers' tensors, [n, ...], and why which histories were refused.

        What was refused has 0, or -1 for a column's number, in its place.
        """
        found = {name: values for each in self.wanted for name, values in each.empty(len(histories)).items()}
        leading = next(iter(self.interface.contract.inputs))
        order = sorted(range(len(histories)), key=lambda number: _length(histories[number].get(leading)))
        refused: dict[int, str] = {}
        interface = replace(self.interface, max_batch_size=self.together)
        for start in range(0, len(order), self.together):
            numbers = order[start : start + self.together]
            for batch in _sound(numbers, histories, interface, refused):
                for name, values in self._batch(batch.arrays).items():
                    found[name][np.asarray(batch.numbers)] = values
        return found, refused

    def _batch(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of one batch the answers' tensors."""
        contract, found = self.interface.contract, dict[str, np.ndarray]()
        count = len(next(iter(arrays.values())))
        given = dict(arrays)
        for each in self.wanted:
            if each.at is not None and each.columns is not None:
                kind = np.dtype(np.int32)
                given[each.at] = np.broadcast_to(each.columns.astype(kind), (count, len(each.columns)))
        fed = contract.feed(given, contract.check(given), self._served.types)
        rows = self._cores.rows([each.made for each in self.wanted], fed)
        for each in self.wanted:
            row = rows[each.made.rows]
            made = _answers(each.chain, row if row.ndim > 1 else row[:, None], given)
            if each.columns is not None and each.at is None:
                made = [values[:, each.columns] for values in made]
            if each.half:
                made = [values.astype(np.float16) for values in made]
            found.update(zip(each.tensors, made, strict=True))
        return found

    def _named(self, columns: Sequence[Any]) -> dict[str, Any]:
        names = [tensor.name for tensor in self.interface.inputs]
        if len(columns) > len(names) or not columns:
            raise ScoringError(f"{len(columns)} columns were given; {self.interface.name} takes {', '.join(names)}")
        return dict(zip(names, columns, strict=False))

    def _unpadded(self, row: dict[str, Any]) -> dict[str, Any]:
        """Without the padding behind a history, which columns of one width have."""
        contract = self.interface.contract
        first = np.asarray(row[next(iter(contract.inputs))])
        if first.dtype.kind not in "if" or not first.ndim:
            return row  # the contract says what is wrong
        padding = first == -1 if first.dtype.kind == "i" else np.isnan(first).reshape(len(first), -1).all(axis=1)
        kept = len(first) - int(np.argmin(padding[::-1])) if len(first) and not padding.all() else 0
        return row if kept == len(first) else {n: v[:kept] if n in contract.inputs else v for n, v in row.items()}


def wanted(served: Served, choice: Choice) -> tuple[Wanted, ...]:
    """The answers to be made.

    Raises:
        ScoringError: the model has no such columns, or nothing is chosen of a model that answers whole rows alone.
    """
    whole = next(each for each in served.interface.answers if not each.picks and each.at is None)
    picking = [each for each in served.interface.answers if each.picks]
    columns = _columns(served, whole)
    found = []
    if choice.top is not None or choice == Choice():
        if not picking and choice.top is None:
            raise ScoringError(
                f"{served.interface.name} answers {columns} columns a history; choose --top K, --candidates FILE, or --all"
            )
        if choice.top is not None and not 1 <= choice.top <= columns:
            raise ScoringError(f"top is {choice.top}; {served.interface.name} has 1 to {columns} columns")
        for each in picking:
            made = served.of(each.tensors)
            chain = [_cut(link, choice.top) for link in made.chain]
            found.append(Wanted(each.tensors, made, chain, chain[-1][-1]))
        if not picking:
            made, (name,) = served.of(whole.tensors), whole.tensors
            found.append(Wanted((f"{name}_ids", name), made, [*made.chain, ["top", choice.top]], int(choice.top or 0)))
    if choice.candidates is not None:
        found.append(_at(served, whole, choice.candidates, columns))
    if choice.everything:
        made = served.of(whole.tensors)
        found.append(Wanted(whole.tensors, made, made.chain, columns, half=True))
    return tuple(found)


def _at(served: Served, whole: Answered, candidates: Sequence[int], columns: int) -> Wanted:
    """These columns' numbers: by the core that computes them alone, where there is one."""
    numbers = np.asarray(candidates, np.int64)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= columns))
    if not len(numbers) or len(wrong):
        said = f"candidate {wrong[0]} is {numbers[wrong[0]]}" if len(wrong) else "there is no candidate"
        raise ScoringError(f"{said}; allowed are columns, 0 to {columns - 1}")
    alone = next((each for each in served.interface.answers if each.at is not None), None)
    if alone is not None:
        made = served.of(alone.tensors)
        return Wanted(alone.tensors, made, made.chain, len(numbers), numbers, alone.at)
    made = served.of(whole.tensors)
    return Wanted(tuple(f"{name}_at_candidates" for name in whole.tensors), made, made.chain, len(numbers), numbers)


def _columns(served: Served, whole: Answered) -> int:
    """Of the first answer's row."""
    (tensor,) = [tensor for tensor in served.interface.outputs if tensor.name == whole.tensors[0]]
    return int(np.prod([int(dim) for dim in tensor.shape]))


def _cut(link: list[Any], top: int | None) -> list[Any]:
    """A link of a chain that picks columns, so many of them."""
    return [*link[:-1], top] if top is not None and link[0] in ("top", "nearest") else link


def _answers(chain: list[list[Any]], rows: np.ndarray, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a chain makes of the rows, a few at a time: these stay near the processor from link to link."""
    names = [link[1] for link in chain if link[0] in ("at", "leave_out") and link[1] in given]
    parts = [
        answer(chain, rows[start : start + NEAR], {name: given[name][start : start + NEAR] for name in names})
        for start in range(0, len(rows), NEAR)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _sound(
    numbers: Sequence[int], histories: Sequence[Mapping[str, Any]], interface: Interface, refused: dict[int, str]
) -> Iterator[Batch]:
    """Batches of those of the histories that keep to the contract; why the others do not goes to `refused`."""
    try:
        found = batches([histories[number] for number in numbers], interface)
    except InvalidRequestError:
        numbers = [number for number in numbers if not _wrong(number, histories[number], interface, refused)]
        found = batches([histories[number] for number in numbers], interface)
    for batch in found:
        yield batch._replace(numbers=[numbers[position] for position in batch.numbers])


def _wrong(number: int, history: Mapping[str, Any], interface: Interface, refused: dict[int, str]) -> bool:
    try:
        batches([history], interface)
    except InvalidRequestError as e:
        refused[number] = str(e)
    return number in refused


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0
