"""Files of histories for any model, by the names of its inputs: JSON, JSON lines, CSV and Parquet.

A history may have a name, under what the model's messages call one, e.g. "user"; else it is called by its number.

JSON: an object a history, one of them, a list, or one a line: {"user": "ada", "item_ids": [5, 9, 3], "age": 30}.
CSV: a row a history, under a header: the steps of a cell are separated by blanks, and those of several numbers by ;

    user,item_ids,prices,age
    ada,5 9 3,1 0.5; 2 0.5; 1 1,30

Where a function of one's own stands in front of a model, the inputs are what that takes; a cell of text is as it stands.

Parquet: a row a history, lists in its cells; needs pyarrow. What is null, or an empty cell of a context, is left out.
"""

from __future__ import annotations

import csv
import io
import json
import reprlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from ensemble.errors import HistoryError
from ensemble.function import Part
from ensemble.interface import Interface


class Request(NamedTuple):
    """One history of a file: what it is called, and its inputs by name, as they stand there."""

    name: str
    inputs: dict[str, Any]


def read(content: bytes, name: str, interface: Interface, first: int = 0) -> list[Request]:
    """Read a file's content, whose format shows at its start.

    Args:
        name: the file's, for messages.
        first: the number of the first history, by which one without a name is called.

    Raises:
        HistoryError: it is in none of the formats, or a line of it is wrong.
    """
    if content.startswith(b"PAR1"):
        return _named(_parquet(content, name), name, interface, first)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise HistoryError(f"{name} is neither UTF-8 text nor Parquet: {e}") from e
    if text.lstrip()[:1] in ("{", "["):
        return _named(_json(text, name), name, interface, first)
    return _named(_csv(text, name, interface), name, interface, first)


def label(interface: Interface) -> str | None:
    """Under what a file has the names of histories; None: an input is called so."""
    word = interface.contract.words.history
    return None if word in (tensor.name for tensor in interface.inputs) else word


def _named(entries: Iterable[Any], name: str, interface: Interface, first: int) -> list[Request]:
    requests, key = [], label(interface)
    for number, entry in enumerate(entries, first):
        if not isinstance(entry, dict):
            raise HistoryError(
                f"{name}, entry {number} is {reprlib.repr(entry)}; needed is an object with "
                f"{', '.join(tensor.name for tensor in interface.inputs)}"
            )
        called = None if key is None else entry.pop(key, None)
        if isinstance(called, (bool, list, dict)):
            raise HistoryError(f"{name}, entry {number}: {key} is {called!r}; needed is a name or a number")
        inputs = {each: value for each, value in entry.items() if value is not None}
        requests.append(Request(str(number if called in (None, "") else called), inputs))
    return requests


def _json(text: str, name: str) -> list[Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = []
        for number, line in lines:
            try:
                found.append(json.loads(line))
            except ValueError as e:
                # A first line that is no JSON by itself: the text is one document, and its own error says where.
                wrong, place = (whole, whole.lineno) if number == lines[0][0] else (e, number)
                raise HistoryError(f"{name}, line {place}: not JSON ({getattr(wrong, 'msg', wrong)})") from e
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, lists in lists in lists
        raise HistoryError(f"{name} cannot be read as JSON: {e}") from e
    return found if isinstance(found, list) else [found]


def _csv(text: str, name: str, interface: Interface) -> Iterable[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = list(rows.fieldnames or ())
        twice = next((column for column in header if header.count(column) > 1), None)
        if not header or twice is not None:
            said = "no header" if twice is None else f"{header.count(twice)} columns are named {twice!r}"
            raise HistoryError(
                f"{name}, line 1: {said}; needed are columns named {', '.join(t.name for t in interface.inputs)}"
            )
        for row in rows:
            cells = len([value for value in row.values() if value is not None])
            if None in row or cells != len(
                header
            ):  # DictReader's name for what is too much, and its value for too little
                cells += len(row[None]) - 1 if None in row else 0
                raise HistoryError(f"{name}, line {rows.line_num}: {cells} cells under a header of {len(header)}")
            yield {
                column: _cell(cell, column, f"{name}, line {rows.line_num}: {column}", interface)
                for column, cell in row.items()
            }
    except csv.Error as e:
        raise HistoryError(f"{name}, after line {rows.line_num}: not CSV ({e})") from e


def _cell(cell: str, column: str, where: str, interface: Interface) -> Any:
    """What stands in a cell, nested as the input is; a text is all of it, and of several texts each a word."""
    contract, function = interface.contract, interface.function
    history = function is None and column in contract.inputs
    takes = {**contract.inputs, **contract.contexts} if function is None else function.takes
    allowed = takes.get(column)
    if allowed is None:  # a name, or no input at all, which the client refuses
        return cell
    axes = len(allowed.shape) + history
    if isinstance(allowed, Part) and allowed.dtype == "BYTES":
        if allowed.optional and not cell:
            return None
        return cell.split() if allowed.shape not in ((), (1,)) else cell
    if axes > 2:
        raise HistoryError(f"{where} has {axes} axes, and a cell of CSV two at most; write JSON")
    if not cell.strip():
        return [] if history else None
    try:
        if axes == 2:
            return [list(map(_number, part.split())) for part in cell.split(";")]
        return _number(cell) if axes == 0 else list(map(_number, cell.split()))
    except ValueError as e:
        raise HistoryError(f"{where} is {reprlib.repr(cell)}; {e} is no number") from None


def _number(word: str) -> int | float:
    """A number as programs write it; whether it may be a fraction is the input's business."""
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        raise ValueError(repr(word)) from None


def _parquet(content: bytes, name: str) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise HistoryError(
            f"{name} is a Parquet file, which pyarrow reads: install it with `pip install 'pyarrow<23'`, or the extra "
            f"parquet ({e})"
        ) from e
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as e:
        raise HistoryError(f"{name} cannot be read as Parquet: {e}") from e
    return rows
