"""A scoring run: windows of rows in, parts out, each moved into place when whole; a run that was killed goes on there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from build import aside
from build.score import table
from build.score.repository import ScoringError
from build.score.scorer import Scorer
from build.score.table import FORMATS, Window
from ensemble import requests

WINDOW = 4096  # rows that are sorted by length together, and that a part has
RUN = "run.json"
LEFT_BEHIND = ".lastrow-*"  # of build.aside, by a run that was killed
PARENT_LOOK_S = 0.5

_scorer: Scorer  # a worker's own


@dataclass
class Count:
    """What became of the rows so far; of them `now` in this run and not in one before."""

    scored: int = 0
    refused: int = 0
    now: int = 0


def score(
    files: Sequence[Path],
    out: Path,
    scorer: Scorer,
    workers: int,
    window: int = WINDOW,
    progress: Callable[[float | None, str], None] = lambda *_: None,
) -> Count:
    """Score every row of the files into parts in the folder `out`.

    A part is <file>-<number of its window>.parquet: the row's name and its answers, in the file's order. Rows that break the
    contract stand in <the same>.refused.jsonl, with the reason.

    Args:
        files: tables, or folders of them.
        workers: processes, each with a session of its own.
        window: rows of a part.

    Raises:
        ScoringError: a file cannot be read, or the folder has the parts of another run.
    """
    listed = _listed(files)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _same_run(out, scorer, listed, window)
        for path in out.glob(LEFT_BEHIND):
            shutil.rmtree(path, ignore_errors=True)
        return _run(listed, out, scorer, workers, window, progress)


def _listed(files: Sequence[Path]) -> list[Path]:
    """Folders as the tables in them, by name."""
    found = []
    for file in files:
        inside = sorted(path for path in file.iterdir() if path.suffix in FORMATS) if file.is_dir() else [file]
        if not inside:
            raise ScoringError(f"{file} has no table in it; there are {', '.join(FORMATS)}")
        found += inside
    twice = next((file for file in found if [other.stem for other in found].count(file.stem) > 1), None)
    if twice is not None:
        raise ScoringError(f"two tables are called {twice.stem}, and their parts would be; score them one by one")
    missing = next((file for file in found if not file.is_file()), None)
    if missing is not None:
        raise ScoringError(f"cannot read {missing}: there is no such file")
    return found


class _alone:
    """One run at a time in a folder."""

    def __init__(self, out: Path) -> None:
        self._file = (out / f".{RUN}.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ScoringError(f"another run writes into {out} now; wait for it, or choose another --out") from None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _same_run(out: Path, scorer: Scorer, files: Sequence[Path], window: int) -> None:
    """Parts of one folder are all of one run: what it is about is written down by the first, and compared by the next."""
    cores = {core.file.parent.parent.name: core.file for core in scorer.cores}
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in sorted(cores.items())}
    about = {
        "files": {file.name: file.stat().st_size for file in files},
        "model": {scorer.interface.name: digests},
        "choice": [*vars(scorer.choice).values()],
        "window": window,
        "together": scorer.together,
    }
    text = json.dumps(about, indent=1)
    if (out / RUN).exists():
        before = json.loads((out / RUN).read_text(encoding="utf-8"))
        other = next((key for key, value in json.loads(text).items() if before.get(key) != value), None)
        if other is not None:
            raise ScoringError(
                f"{out} has the parts of another run: its {other} is {before.get(other)}, and now {about[other]}; choose "
                "another --out, or remove that folder"
            )
    else:
        aside.write(out / RUN, text)


def _run(
    files: Sequence[Path],
    out: Path,
    scorer: Scorer,
    workers: int,
    window: int,
    progress: Callable[[float | None, str], None],
) -> Count:
    count, begun, waiting = Count(), time.monotonic(), dict[Future[tuple[int, int]], float]()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare, (scorer, os.getpid()))

    def take(done: Sequence[Future[tuple[int, int]]]) -> None:
        for future in done:
            share, (scored, refused) = waiting.pop(future), future.result()
            count.scored, count.refused, count.now = count.scored + scored, count.refused + refused, count.now + scored
            progress(share, _said(count, begun, share))

    try:
        for share, found, part in _parts(files, out, scorer, window):
            if part.exists():  # by a run before
                count.scored += pq.read_metadata(part).num_rows
                count.refused += _lines(_refused(part))
                continue
            while len(waiting) >= 2 * workers:
                take([*wait(waiting, return_when=FIRST_COMPLETED).done])
            waiting[pool.submit(_score, found, part)] = share
        while waiting:
            take([*wait(waiting, return_when=FIRST_COMPLETED).done])
    except BrokenProcessPool as e:
        raise ScoringError(
            "a worker died (out of memory?); the same command goes on where this one stopped, with --workers fewer at once"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return count


def _parts(files: Sequence[Path], out: Path, scorer: Scorer, window: int) -> Iterator[tuple[float, Window, Path]]:
    """Every window, how far through all files it ends, and where its part goes."""
    sizes = [max(file.stat().st_size, 1) for file in files]
    for number, file in enumerate(files):
        for place, found in enumerate(table.windows(file, scorer.interface, window)):
            share = (sum(sizes[:number]) + sizes[number] * found.done) / sum(sizes)
            yield share, found, out / f"{file.stem}-{place:05d}.parquet"


def _said(count: Count, begun: float, share: float) -> str:
    """Rate and end, of what this run has done."""
    took = time.monotonic() - begun
    left = took * (1 - share) / share if share else 0.0
    ends = time.strftime("%H:%M", time.localtime(time.time() + left))
    return f"{count.scored:,} scored, {count.refused:,} refused, {count.now / took:,.0f}/s, until {ends}"


def _refused(part: Path) -> Path:
    return part.with_suffix(".refused.jsonl")


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _prepare(scorer: Scorer, parent: int) -> None:
    """In a worker, before its first window."""
    global _scorer
    _scorer = scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, who ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """An executor's workers wait for their next task for ever when who gave them the last one was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_S)
    os._exit(1)


def _score(window: Window, part: Path) -> tuple[int, int]:
    """One window's part; how many rows were scored and how many refused."""
    rows = table.rows(window, _scorer.interface)
    refused = {number: row.refused for number, row in enumerate(rows) if row.refused}
    readable = [number for number in range(len(rows)) if number not in refused]
    answers, wrong = _scorer.answer([rows[number].inputs for number in readable])
    refused.update({readable[position]: reason for position, reason in wrong.items()})
    kept = [position for position, number in enumerate(readable) if number not in refused]
    names = [rows[readable[position]].name for position in kept]
    columns = {requests.label(_scorer.interface) or "row": pa.array(names, pa.string())}
    columns.update({name: _column(values[kept]) for name, values in answers.items()})
    with aside.beside(part) as folder:
        if refused:
            lines = [
                json.dumps({"row": window.first + number, "name": rows[number].name, "reason": refused[number]})
                for number in sorted(refused)
            ]
            (folder / "refused").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            (folder / "refused").replace(_refused(part))  # first: a part that is there is whole
        pq.write_table(pa.table(columns), folder / "part", compression="zstd")
        (folder / "part").replace(part)
    return len(kept), len(refused)


def _column(values: np.ndarray) -> pa.Array:
    """One number a row, or a list of one length."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim > 1 else flat
