"""Tables of histories, read a window of rows at a time: Parquet, JSON lines and CSV, as ensemble.requests has them."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from build.score.repository import ScoringError
from ensemble import requests
from ensemble.errors import HistoryError
from ensemble.interface import Interface

LONGEST_CELL = 2**31 - 1  # bytes: a history of a hundred thousand steps is one cell
FORMATS = (".parquet", ".jsonl", ".csv")


class Window(NamedTuple):
    """Rows of one file, as they stand there: a record batch, or lines of text under a header.

    first: the number of the first, in the file. rows: how many. done: how much of the file is read behind them, 0 to 1.
    """

    file: Path
    first: int
    rows: int
    done: float
    content: Any


class Row(NamedTuple):
    """A history by input name, or why it cannot be read; name: what the file calls it, else its number."""

    name: str
    inputs: dict[str, Any]
    refused: str = ""


def windows(file: Path, interface: Interface, size: int) -> Iterator[Window]:
    """A file's rows in order, `size` at a time.

    Raises:
        ScoringError: it cannot be read, is of no known format, or has not the columns that the model needs.
    """
    read: dict[str, Callable[[Path, Interface, int], Iterator[Window]]] = dict(
        zip(FORMATS, (_parquet, _json, _csv), strict=True)
    )
    if file.suffix not in read:
        raise ScoringError(f"{file} is of no format that is read; give {', '.join(FORMATS)} (a folder: those in it)")
    try:
        yield from read[file.suffix](file, interface, size)
    except OSError as e:
        raise ScoringError(f"cannot read {file}: {e.strerror or e}") from e
    except (pa.ArrowException, csv.Error) as e:
        raise ScoringError(f"{file} cannot be read as {file.suffix[1:]}: {e}") from e


def rows(window: Window, interface: Interface) -> list[Row]:
    """A window's histories; columns that are no inputs of the model are left out."""
    if isinstance(window.content, pa.RecordBatch):
        return _of_batch(window, interface)
    header, lines = window.content
    return [_of_line(header, line, window.first + number, interface) for number, line in enumerate(lines)]


def _check(columns: list[str], file: Path, interface: Interface) -> list[str]:
    """The columns that are read."""
    missing = [t.name for t in interface.inputs if not t.optional and t.name not in columns]
    if missing:
        raise ScoringError(
            f"{file} has no column {missing[0]}; {interface.name} takes {', '.join(t.name for t in interface.inputs)}, and "
            f"the file has {', '.join(columns)}"
        )
    known = {requests.label(interface), *(tensor.name for tensor in interface.inputs)}
    return [name for name in columns if name in known]


def _parquet(file: Path, interface: Interface, size: int) -> Iterator[Window]:
    with pq.ParquetFile(file) as table:
        columns, whole, first = _check(table.schema_arrow.names, file, interface), table.metadata.num_rows, 0
        for batch in _even(table.iter_batches(size, columns=columns), size):
            yield Window(file, first, len(batch), (first + len(batch)) / whole, batch)
            first += len(batch)


def _even(found: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Batches of exactly `size` rows: a row group ends where it likes."""
    kept: list[pa.RecordBatch] = []
    for batch in found:
        kept.append(batch)
        while sum(map(len, kept)) >= size:
            table = pa.Table.from_batches(kept)
            yield table.slice(0, size).combine_chunks().to_batches()[0]
            kept = table.slice(size).to_batches()
    if sum(map(len, kept)):
        yield pa.Table.from_batches(kept).combine_chunks().to_batches()[0]


def _json(file: Path, _: Interface, size: int) -> Iterator[Window]:
    with file.open("rb") as content:
        yield from _lines(file, content, (line for line in content if line.strip()), b"", size)


def _csv(file: Path, interface: Interface, size: int) -> Iterator[Window]:
    with file.open("rb") as content, _long_cells():
        # Whole records: a cell in quotes may have line ends in it.
        text = csv.reader(line.decode("utf-8", "replace") for line in content)  # what is replaced is no number
        header = next(text, [])
        header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]
        _check(header, file, interface)
        yield from _lines(file, content, (_record(record) for record in text if record), _record(header), size)


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let CSV have cells of any length, and then again what it may have elsewhere in this process."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _record(cells: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _lines(file: Path, content: IO[bytes], lines: Iterator[bytes], header: bytes, size: int) -> Iterator[Window]:
    whole, first = max(file.stat().st_size, 1), 0
    while taken := list(itertools.islice(lines, size)):
        # A file that is read ahead of does not say where it is: the buffer's own place is near enough.
        yield Window(file, first, len(taken), min(_place(content) / whole, 1.0), (header, taken))
        first += len(taken)


def _place(content: IO[bytes]) -> int:
    return content.raw.tell() if isinstance(content, io.BufferedReader) else 0


def _of_line(header: bytes, line: bytes, number: int, interface: Interface) -> Row:
    if not header and not line.lstrip().startswith(b"{"):
        return Row(str(number), {}, f"row {number} is not a JSON object")
    try:
        with _long_cells():
            found = requests.read(header + line, f"row {number}", interface, number)
    except HistoryError as e:
        return Row(str(number), {}, str(e))
    if len(found) != 1:
        return Row(str(number), {}, f"row {number} has {len(found)} histories; needed is one a line")
    (request,) = found
    known = {tensor.name for tensor in interface.inputs}
    return Row(request.name, {each: value for each, value in request.inputs.items() if each in known})


def _of_batch(window: Window, interface: Interface) -> list[Row]:
    batch, known = window.content, {tensor.name for tensor in interface.inputs}
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    names = columns.pop(str(requests.label(interface)), None)
    found = []
    for number in range(window.rows):
        called = None if names is None else names[number]
        inputs = {
            name: values[number] for name, values in columns.items() if values[number] is not None and name in known
        }
        found.append(Row(str(window.first + number if called in (None, "") else called), inputs))
    return found


def _values(column: pa.Array) -> list[Any]:
    """A column's cells: lists of numbers as arrays over one buffer, all else as Python has it."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    numbers = lists and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    if not numbers or column.flatten().null_count:
        made: list[Any] = column.to_pylist()
        return made
    values, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [values[start:end] if there else None for start, end, there in zip(ends[:-1], ends[1:], valid, strict=True)]
