"""A learner's history, and the files that histories are read from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ensemble.errors import HistoryError

PADDING = -1
Number = Callable[[Any], int]
COLUMNS = ("problem_id", "response")


@dataclass(frozen=True, eq=False)
class History:
    """What one learner answered, oldest first.

    problem_ids and responses are INT32 [time]; lists are converted. No time at all is a cold start.

    Raises:
        HistoryError: not whole numbers, not one-dimensional, beyond INT32, or of unequal lengths.
    """

    learner: str
    problem_ids: np.ndarray
    responses: np.ndarray

    def __post_init__(self) -> None:
        for field in ("problem_ids", "responses"):
            object.__setattr__(self, field, _int32(getattr(self, field), f"learner {self.learner!r}: {field}"))
        if len(self.problem_ids) != len(self.responses):
            raise HistoryError(
                f"learner {self.learner!r} has {len(self.problem_ids)} problem_ids and {len(self.responses)} responses; "
                "every problem needs its response"
            )

    def __len__(self) -> int:
        return len(self.problem_ids)


def pad(histories: Sequence[History]) -> tuple[np.ndarray, np.ndarray]:
    """Histories of unequal length as one request: problem_ids and responses INT32 [learners, longest], -1 at the end.

    At least one column wide: a tensor without elements cannot say how many learners it is about.
    """
    if len(histories) == 1 and len(histories[0]):
        return histories[0].problem_ids[None], histories[0].responses[None]  # nothing to pad, nothing to copy
    shape = (len(histories), max((len(h) for h in histories), default=0) or 1)
    problem_ids, responses = np.full(shape, PADDING, np.int32), np.full(shape, PADDING, np.int32)
    for row, history in enumerate(histories):
        problem_ids[row, : len(history)] = history.problem_ids
        responses[row, : len(history)] = history.responses
    return problem_ids, responses


def read(path: Path, number: Number = int) -> list[History]:
    """Read a file of histories; JSON if its name ends in .json, else CSV. The formats: `read_csv`, `read_json`.

    Args:
        number: the model's number of a problem as the file has it, where that is not the number itself.

    Raises:
        HistoryError: the file cannot be read, or a line of it is wrong.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return (read_json if path.suffix == ".json" else read_csv)(file, str(path), number)
    except OSError as e:
        raise HistoryError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise HistoryError(f"{path} is not UTF-8 text: {e}") from e


def read_text(text: str, name: str, number: Number = int) -> list[History]:
    """Read histories from text whose format shows in its first character: JSON starts with { or [, all else is CSV."""
    import io

    reader = read_json if text.lstrip()[:1] in ("{", "[") else read_csv
    return reader(io.StringIO(text, newline=""), name, number)


def read_csv(file: TextIO, name: str, number: Number = int) -> list[History]:
    """Rows `problem_id, response`, oldest first, under a header; a column `learner` tells several learners apart.

    Returns:
        Learners in the order in which they first appear; without that column all rows are one learner's.
    """
    rows = csv.DictReader(file)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise HistoryError(
            f"{name}, line 1: no column {missing[0]!r} in the header {rows.fieldnames or '(empty file)'}; needed are "
            f"{' and '.join(COLUMNS)}, and learner where there are several"
        )
    learners: dict[str, tuple[list[int], list[int]]] = {}
    for row in rows:
        ids, responses = learners.setdefault(row.get("learner") or "0", ([], []))
        columns: tuple[tuple[str, list[int], Number], ...]
        columns = (("problem_id", ids, number), ("response", responses, int))
        for column, values, read_one in columns:
            try:
                values.append(read_one(row[column]))
            except (TypeError, ValueError):
                raise HistoryError(
                    f"{name}, line {rows.line_num}: {column} is {row[column]!r}; a whole number is needed"
                ) from None
    return [History(learner, np.array(i), np.array(r)) for learner, (i, r) in learners.items()]


def read_json(file: TextIO, name: str, number: Number = int) -> list[History]:
    """One object {"learner": ..., "problem_ids": [...], "responses": [...]}, or a list of them; learner may be left out."""
    try:
        content = json.load(file)
    except json.JSONDecodeError as e:
        raise HistoryError(f"{name}, line {e.lineno}: not JSON ({e.msg})") from e
    histories = []
    for place, entry in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict) or "problem_ids" not in entry or "responses" not in entry:
            raise HistoryError(f"{name}, entry {place}: needed is an object with problem_ids and responses")
        try:
            ids = entry["problem_ids"]
            if number is not int:
                ids = [number(problem) for problem in ids]
            histories.append(History(str(entry.get("learner", place)), ids, entry["responses"]))
        except HistoryError as e:
            raise HistoryError(f"{name}, entry {place}: {e}") from e
    return histories


def _int32(values: object, what: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise HistoryError(f"{what} is not a plain list of whole numbers") from None
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise HistoryError(f"{what} is {array.dtype} of shape {list(array.shape)}; needed are whole numbers, one axis")
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise HistoryError(f"{what} has values beyond INT32 ({limits.min} to {limits.max})")
    return np.ascontiguousarray(array, np.int32)
