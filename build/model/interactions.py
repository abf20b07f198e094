"""Interaction files of real learners: four lines a learner, as the AKT repository publishes ASSISTments 2009.

row number, learner id
problem ids, 1-based, oldest first
skill ids
responses, 1 for correct
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble.errors import LastrowError
from ensemble.learners.history import History

LINES = 4  # a learner


class DataError(LastrowError):
    """An interaction file is missing or malformed; names file, line and what is allowed."""


def read_folds(folder: Path, learners: int | None = None) -> list[list[History]]:
    """Read every *.csv of a folder, or one file, as disjoint folds of learners in the order of their names.

    Args:
        learners: read so many at most, as evenly over the folds as it goes, from the top of each.

    Raises:
        DataError: nothing to read, or a malformed line.
    """
    found = files(folder)
    shares: list[int | None] = [None] * len(found)
    if learners is not None:
        shares = [learners // len(found) + (number < learners % len(found)) for number in range(len(found))]
    return [_read(file, share) for file, share in zip(found, shares, strict=True)]


def files(folder: Path) -> list[Path]:
    """Every *.csv of a folder, or the one file, in the order of their names.

    Raises:
        DataError: there are none.
    """
    found = [folder] if folder.is_file() else sorted(folder.glob("*.csv"))
    if not found:
        what = "has no *.csv files" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {what}; DATA= takes a folder of interaction files, four lines a learner")
    return found


def problems(histories: Sequence[History]) -> int:
    """How many problems a model of these learners has: one more than the largest id."""
    return 1 + max((int(h.problem_ids.max()) for h in histories if len(h)), default=0)


def collapse(problem_ids: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first of consecutive rows of one problem.

    A problem with several skills stands there once a skill, with the same answer: a model would read the label off
    its own input. INT32 [time] each, in and out.
    """
    first = np.ones(len(problem_ids), bool)
    first[1:] = problem_ids[1:] != problem_ids[:-1]
    return problem_ids[first], responses[first]


def _read(file: Path, learners: int | None) -> list[History]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read {file}: {e}") from e
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or len(lines) % LINES:
        raise DataError(
            f"{file} has {len(lines)} lines; it takes {LINES} a learner (who, problem ids, skill ids, responses), so the "
            "last learner is cut off: copy the file again"
        )
    histories = []
    for start in range(0, len(lines) if learners is None else min(len(lines), learners * LINES), LINES):
        learner = lines[start].split(",")[-1].strip()
        problem_ids, responses = _numbers(file, lines, start + 1), _numbers(file, lines, start + 3)
        if len(problem_ids) != len(responses):
            raise DataError(
                f"{file}, line {start + 4}: {len(responses)} responses for {len(problem_ids)} problem ids in line "
                f"{start + 2}; every problem needs its response"
            )
        if problem_ids.size and problem_ids.min() < 1:
            raise DataError(f"{file}, line {start + 2}: problem id {problem_ids.min()}; ids start at 1")
        wrong = responses[(responses != 0) & (responses != 1)]
        if wrong.size:
            raise DataError(f"{file}, line {start + 4}: response {wrong[0]}; allowed are 0 (wrong) and 1 (correct)")
        histories.append(History(learner, *collapse(problem_ids - 1, responses)))
    return histories


def _numbers(file: Path, lines: list[str], index: int) -> np.ndarray:
    try:
        return np.array([int(field) for field in lines[index].split(",") if field.strip()], np.int32)
    except (ValueError, OverflowError) as e:
        raise DataError(f"{file}, line {index + 1}: {e}; needed are whole numbers with commas between them") from None
