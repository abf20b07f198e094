"""Series of features, and the files that they are read from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from build.model.interactions import DataError


@dataclass(frozen=True, eq=False)
class Series:
    """One series: values FP32 [time, features], oldest first; the first feature is what is forecast."""

    name: str
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


def read(path: Path, column: str = "series") -> list[Series]:
    """Read a CSV under a header: a column a feature, the one to forecast first, rows oldest first.

    Args:
        column: which column tells several series apart; without it all rows are one series.

    Raises:
        DataError: names file, line and column: there is nothing to read, or something that is no finite number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            features = [n for n, name in enumerate(header) if name != column]
            if not features or len(set(header)) < len(header):
                raise DataError(
                    f"{path}, line 1: the header {header} needs a feature, and every column a name of its own"
                )
            found: dict[str, list[list[float]]] = {}
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{where}: {len(row)} cells under a header of {len(header)}")
                name = row[header.index(column)] if column in header else path.stem
                found.setdefault(name, []).append([_number(row[n], f"{where}, column {header[n]!r}") for n in features])
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if not found:
        raise DataError(f"{path} has no rows under its header")
    return [Series(name, np.array(values, np.float32)) for name, values in found.items()]


def _number(cell: str, where: str) -> float:
    try:
        value = np.float32(cell)
    except ValueError:
        value = np.float32(np.nan)
    if not np.isfinite(value):
        raise DataError(f"{where}: {cell!r}; a finite number is needed")
    return float(value)
