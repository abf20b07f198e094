"""Histories of items, the files that they are read from, and which items are held out of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from build.model.interactions import DataError


@dataclass(frozen=True, eq=False)
class History:
    """What one user took, oldest first: item_ids INT32 [time], from 1."""

    user: str
    item_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Held:
    """An item that was held out, and what its user took before it."""

    history: History
    item_id: int


def read(path: Path) -> list[History]:
    """Read histories: lines `user:286,655,...`, or where the name ends in .jsonl {"user": ..., "item_ids": [...]} a line.

    Raises:
        DataError: names file, line and value: there is nothing to read, or something that is no item id.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    parse = _object if path.suffix.lower() == ".jsonl" else _line
    histories = [parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not histories:
        raise DataError(f"{path} has no histories; needed is a line `user:286,655,...` a user, item ids oldest first")
    return histories


def items(histories: Sequence[History]) -> int:
    """How many items a model of these users has: the largest id."""
    return max((int(h.item_ids.max()) for h in histories if len(h)), default=0)


def leave_one_out(histories: Sequence[History]) -> tuple[list[History], list[Held], list[Held]]:
    """Training histories, and for validation and test each user's last but one and last item with all before it.

    Who has fewer than three items is for training alone.

    >>> training, validation, test = leave_one_out([History("ada", np.array([5, 6, 7], np.int32))])
    >>> training[0].item_ids.tolist(), validation[0].item_id, test[0].history.item_ids.tolist(), test[0].item_id
    ([5], 6, [5, 6], 7)
    """
    training, held = [], []
    for h in histories:
        enough = len(h) > 2
        training.append(History(h.user, h.item_ids[:-2]) if enough else h)
        if enough:
            held.append([Held(History(h.user, h.item_ids[:end]), int(h.item_ids[end])) for end in (-2, -1)])
    return training, [both[0] for both in held], [both[1] for both in held]


def _line(line: str, where: str) -> History:
    user, colon, ids = line.partition(":")
    if not colon:
        raise DataError(f"{where}: {line[:40]!r} has no colon; needed is `user:286,655,...`")
    return History(user.strip(), _ids(ids.split(",") if ids.strip() else [], where))


def _object(line: str, where: str) -> History:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not JSON ({e})") from e
    if not isinstance(entry, dict) or "user" not in entry or not isinstance(entry.get("item_ids"), list):
        raise DataError(f'{where}: needed is {{"user": ..., "item_ids": [...]}}')
    return History(str(entry["user"]), _ids(entry["item_ids"], where))


def _ids(values: list[Any], where: str) -> np.ndarray:
    ids = []
    for place, value in enumerate(values):
        try:
            number = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else 0
        except ValueError:
            number = 0
        if not 1 <= number <= np.iinfo(np.int32).max:
            raise DataError(f"{where}: item {value!r} at position {place}; item ids are whole numbers from 1")
        ids.append(number)
    return np.array(ids, np.int32)
