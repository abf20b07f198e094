"""A learner's history, and the files that histories are read from."""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ensemble import contract
from ensemble.contract import PADDING
from ensemble.errors import HistoryError, VocabularyError

Number = Callable[[Any], int]
COLUMNS = ("problem_id", "response")
TRUTHS = {"true": 1, "false": 0}


@dataclass(frozen=True, eq=False)
class History:
    """What one learner answered, oldest first.

    problem_ids and responses are INT32 [time], made from any iterable of whole numbers that has an order; 3.0 is one, and
    so is True as a response. No time at all is a cold start.

    Raises:
        HistoryError: not whole numbers, not one-dimensional, beyond INT32, ending in padding, or of unequal lengths.
    """

    learner: str
    problem_ids: np.ndarray
    responses: np.ndarray

    def __post_init__(self) -> None:
        for field in ("problem_ids", "responses"):
            object.__setattr__(self, field, _int32(getattr(self, field), f"learner {self.learner!r}: {field}", field))
        if len(self.problem_ids) != len(self.responses):
            raise HistoryError(
                f"learner {self.learner!r} has {len(self.problem_ids)} problem_ids and {len(self.responses)} responses; "
                "every problem needs its response"
            )
        if len(self) and self.problem_ids[-1] == self.responses[-1] == PADDING:
            raise HistoryError(
                f"learner {self.learner!r} ends in {PADDING}, which stands for padding; leave the padding out, the client "
                "does it"
            )

    def __len__(self) -> int:
        return len(self.problem_ids)


def pad(histories: Sequence[History]) -> tuple[np.ndarray, np.ndarray]:
    """Histories of unequal length as one request: problem_ids and responses INT32 [learners, longest], -1 at the end."""
    return contract.pad([h.problem_ids for h in histories]), contract.pad([h.responses for h in histories])


def windows(histories: Sequence[History], widths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories as the core gets them: problem_ids and responses INT32 [learners, width], lengths INT32 [learners].

    >>> windows([History("ada", [5, 6, 7], [1, 0, 1]), History("bob", [9], [1])], [2])[0].tolist()
    [[6, 7], [9, 0]]

    widths: as the core knows them, rising; the narrowest that holds every history is taken, or else the last, the window.
    """
    lengths = np.array([len(h) for h in histories], np.int32)
    width = contract.narrowest(widths, min(lengths.max(), widths[-1]))
    problem_ids, responses = (contract.recent(values, lengths, width) for values in pad(histories))
    return problem_ids, responses, np.minimum(lengths, width)


def read(path: Path, number: Number = int) -> list[History]:
    """Read a file of histories; JSON if its name ends in .json, else CSV. The formats: `read_csv`, `read_json`.

    Args:
        number: the model's number of a problem as the file has it, where that is not the number itself.

    Raises:
        HistoryError: the file cannot be read, or a line of it is wrong.
        VocabularyError: `number` does not know a problem.
    """
    try:
        text = decode(path.read_bytes(), str(path))
    except OSError as e:
        raise HistoryError(f"cannot read {path}: {e.strerror}") from e
    reader = read_json if path.suffix.lower() == ".json" else read_csv
    return reader(io.StringIO(text, newline=""), str(path), number)


def read_text(text: str, name: str, number: Number = int) -> list[History]:
    """Read histories from text whose format shows in its first character: JSON starts with { or [, all else is CSV."""
    reader = read_json if text.lstrip()[:1] in ("{", "[") else read_csv
    return reader(io.StringIO(text, newline=""), name, number)


def decode(content: bytes, name: str) -> str:
    """UTF-8 as text, without the mark that some programs put at its start.

    Raises:
        HistoryError: it is something else.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise HistoryError(f"{name} is not UTF-8 text: {e}") from e


def read_csv(file: TextIO, name: str, number: Number = int) -> list[History]:
    """Rows `problem_id, response`, oldest first, under a header; a column `learner` tells several learners apart.

    Returns:
        Learners in the order in which they first appear; without that column all rows are one learner's.
    """
    rows = csv.DictReader(file, restval="")
    try:
        learners = _learners(rows, name, number)
    except csv.Error as e:
        raise HistoryError(f"{name}, after line {rows.line_num}: not CSV ({e})") from e
    try:
        return [History(learner, np.array(ids), np.array(responses)) for learner, (ids, responses) in learners.items()]
    except HistoryError as e:
        raise HistoryError(f"{name}: {e}") from e


def read_json(file: TextIO, name: str, number: Number = int) -> list[History]:
    """One object {"learner": ..., "problem_ids": [...], "responses": [...]}, or a list of them; learner may be left out."""
    try:
        content = json.load(file)
    except json.JSONDecodeError as e:
        raise HistoryError(f"{name}, line {e.lineno}: not JSON ({e.msg})") from e
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, lists in lists in lists
        raise HistoryError(f"{name} cannot be read as JSON: {e}") from e
    histories = []
    for place, entry in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict) or "problem_ids" not in entry or "responses" not in entry:
            raise HistoryError(f"{name}, entry {place}: needed is an object with problem_ids and responses")
        for field in ("problem_ids", "responses"):
            if not isinstance(entry[field], list):
                raise HistoryError(f"{name}, entry {place}: {field} is {reprlib.repr(entry[field])}; needed is a list")
        learner = entry.get("learner")
        if isinstance(learner, (bool, list, dict)):
            raise HistoryError(
                f"{name}, entry {place}: learner is {reprlib.repr(learner)}; needed is a name or a number"
            )
        try:
            ids = entry["problem_ids"]
            if number is not int:
                ids = [number(problem) for problem in ids]
            histories.append(History(str(place if learner is None else learner), ids, entry["responses"]))
        except (HistoryError, VocabularyError) as e:
            raise type(e)(f"{name}, entry {place}: {e}") from e
    return histories


def _learners(rows: csv.DictReader[str], name: str, number: Number) -> dict[str, tuple[list[int], list[int]]]:
    """Problem ids and responses of every learner in the rows."""
    header = list(rows.fieldnames or ())
    for column in COLUMNS:
        if column not in header:
            raise HistoryError(
                f"{name}, line 1: no column {column!r} in the header {header or '(empty file)'}; needed are "
                f"{' and '.join(COLUMNS)}, and learner where there are several"
            )
    for column in (*COLUMNS, "learner"):
        if header.count(column) > 1:
            raise HistoryError(f"{name}, line 1: {header.count(column)} columns are named {column!r}; keep one")
    learners: dict[str, tuple[list[int], list[int]]] = {}
    for row in rows:
        if None in row:
            cells = len(header) + len(row[None])  # DictReader's name for what is too much
            raise HistoryError(f"{name}, line {rows.line_num}: {cells} cells under a header of {len(header)}")
        learner = row["learner"] if "learner" in header else "0"
        if not learner:
            raise HistoryError(
                f"{name}, line {rows.line_num}: learner is empty; every row needs one, as the header has it"
            )
        problem_ids, responses = learners.setdefault(learner, ([], []))
        columns: tuple[tuple[str, list[int], Number], ...] = (
            ("problem_id", problem_ids, _number if number is int else number),
            ("response", responses, _response),
        )
        for column, values, read_one in columns:
            try:
                values.append(read_one(row[column]))
            except (TypeError, ValueError):
                raise HistoryError(
                    f"{name}, line {rows.line_num}: {column} is {row[column]!r}; a whole number is needed"
                ) from None
            except VocabularyError as e:
                raise VocabularyError(f"{name}, line {rows.line_num}: {e}") from e
    return learners


def _number(cell: str) -> int:
    """A whole number as programs write it: 3, and 3.0 where a column has gaps elsewhere."""
    found = re.fullmatch(r"\s*([+-]?[0-9]+)(\.0*)?\s*", cell)
    if found is None:
        raise ValueError(cell)
    return int(found[1])


def _response(cell: str) -> int:
    return TRUTHS[cell.strip().lower()] if cell.strip().lower() in TRUTHS else _number(cell)


def _int32(values: object, what: str, field: str) -> np.ndarray:
    """Whole numbers, whatever they came in."""
    needed = "needed is a list of whole numbers, oldest first"
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise HistoryError(f"{what} is {reprlib.repr(values)}, of type {type(values).__name__}; {needed}")
    if np.ma.is_masked(values):
        raise HistoryError(f"{what} has masked values; {needed}, without gaps")
    if not hasattr(values, "__getitem__"):  # numpy takes a generator for one object
        values = list(values)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as e:
        raise HistoryError(f"{what} is no plain list: {e}; {needed}") from e
    other = "mM" + ("b" if field == "problem_ids" else "")  # times are whole numbers inside; flags are responses
    if array.ndim != 1 or (array.size and array.dtype.kind in other):
        raise HistoryError(f"{what} is {array.dtype} of shape {list(array.shape)}; {needed}")
    limits = np.iinfo(np.int32)
    if array.dtype.kind in "biu":
        beyond = np.flatnonzero((array < limits.min) | (array > limits.max))
        if not len(beyond):
            return np.ascontiguousarray(array, np.int32)
    numbers = []
    for position, value in enumerate(array.tolist()):
        number = _whole(value)
        if number is None:
            raise HistoryError(f"{what} at position {position} is {value!r}; a whole number is needed")
        if not limits.min <= number <= limits.max:
            raise HistoryError(
                f"{what} at position {position} is {value!r}, beyond INT32 ({limits.min} to {limits.max})"
            )
        numbers.append(number)
    return np.array(numbers, np.int32)


def _whole(value: Any) -> int | None:
    """3 of 3, 3.0 or a big integer's object; None of 3.5, nan, None or "3"."""
    try:
        return int(value) if int(value) == value else None
    except (TypeError, ValueError, OverflowError):
        return None
