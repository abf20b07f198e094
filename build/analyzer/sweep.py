"""One run of Model Analyzer: started, watched, interrupted and resumed; nothing of the served repository is touched."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build import server
from build.analyzer import perf_analyzer
from build.analyzer import profile as profiles
from build.analyzer.profile import Endpoints, Paths, Profile
from build.server import reaper
from ensemble.errors import LastrowError
from ensemble.spec import Spec

FREE_BYTES = 1_000_000_000  # copies of the core, checkpoints and logs of a sweep stay below
MEASURED = re.compile(r"\] Profiling (\S+): .*?concurrency=(\d+)")
FAILED = re.compile(
    r"^(?:\[Model Analyzer\] (?:ERROR: )?|[\w.]+Exception: \s*)(.*(?:rror|only|failed|annot|not |Unable).*)",
    re.MULTILINE,
)
REFUSED = re.compile(r"^[EF]\d{4} .*?\] \"?(.*failed to load.*?|.*Invalid argument.*?)\"?$", re.MULTILINE)
RESULTS = "results/results/metrics-model-inference.csv"
COMPLETE = "complete"
STOPPING_S = 20.0
Progress = Callable[[float | None, str], None]


class SweepError(LastrowError):
    """Model Analyzer cannot run, or ended without results."""


class InterruptedSweepError(LastrowError):
    """It was ended before it was complete; what it measured is kept."""

    exit_code = 130  # as a shell has it for Ctrl-C


@dataclass(frozen=True)
class Sweep:
    """A sweep's files: in `work` lie its configuration, its log, its checkpoint and its results."""

    profile: Profile
    spec: Spec
    work: Path

    @property
    def results(self) -> Path:
        """The CSV file."""
        return self.work / RESULTS

    @property
    def variants(self) -> Path:
        """Model Analyzer's repository: a folder a configuration that it tried."""
        return self.work / "models"


def prepare(profile: Profile, spec: Spec, repository: Path, folder: Path, running: Endpoints | None = None) -> Sweep:
    """Write a sweep's configuration and input. The same question finds its old folder, and with it its checkpoint.

    Raises:
        SweepError: the disk is full.
    """
    plain = profiles.render(profile, spec, Paths(repository, folder, folder))
    content = hashlib.sha256(plain.encode() + str(running).encode())
    for file in sorted(repository.rglob("*")) if running is None else ():
        if file.is_file() and "__pycache__" not in file.parts:
            content.update(str(file.relative_to(repository)).encode() + file.read_bytes())
    work = folder.resolve() / f"{profile.name}-{content.hexdigest()[:12]}"
    if (work / COMPLETE).exists():
        shutil.rmtree(work)  # asked again, it is measured again
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < FREE_BYTES:
        raise SweepError(
            f"{work} has {free / 1e6:.0f} MB left and a sweep needs {FREE_BYTES / 1e6:.0f}; make room there"
        )
    given = work / "input.json"
    given.write_text(profiles.request(spec, profile.part, profiles.histories(spec)), encoding="utf-8")
    paths = Paths(repository.resolve(), work, given)
    ports = () if running else server.free_ports()
    text = profiles.render(profile, spec, paths, ports, running)
    (work / "profile.yaml").write_text(text, encoding="utf-8")
    return Sweep(profile, spec, work)


def run(sweep: Sweep, update: Progress) -> None:
    """Let Model Analyzer measure the sweep, to its end.

    The first Ctrl-C lets it finish the measurement at hand and keep a checkpoint, from which the next run goes on.

    Raises:
        SweepError: what went wrong, where it is said, and what to do.
        InterruptedSweepError: Ctrl-C, or SIGTERM.
    """
    executable, environment = _tools()
    shutil.rmtree(sweep.work / "results", ignore_errors=True)
    for name in profiles.FOLDERS:
        (sweep.work / name).mkdir(exist_ok=True)
    log = sweep.work / "model-analyzer.log"
    command = [str(executable), "profile", "-f", str(sweep.work / "profile.yaml")]
    start = log.stat().st_size if log.exists() else 0
    mark = reaper.new_mark()
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env=environment | {reaper.MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=sweep.work,
            start_new_session=True,  # a Ctrl-C reaches it through us, once
        )
    try:
        with _interruptible(process) as interrupted:
            _watch(process, log, start, sweep, update)
    finally:
        reaper.reap(mark, STOPPING_S)
        process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")[start:]
    if interrupted:
        kept = list((sweep.work / "checkpoints").glob("*.ckpt"))
        raise InterruptedSweepError(
            f"interrupted; what was measured is kept in {kept[0].parent}, and the same command goes on there"
            if kept
            else "interrupted before anything was measured"
        )
    if process.returncode != 0 or not sweep.results.is_file():
        raise SweepError(_explain(said, sweep, process.returncode))
    (sweep.work / COMPLETE).touch()


def _tools() -> tuple[Path, dict[str, str]]:
    """model-analyzer, and an environment in which it finds tritonserver and perf_analyzer."""
    scripts = Path(sys.prefix) / "bin"
    executable = scripts / "model-analyzer"
    if not executable.is_file():
        raise SweepError("model-analyzer is not installed here; run `make setup`")
    installation = server.find()
    perf_analyzer.find()  # now, with its own message, rather than in the middle of a sweep
    environment = dict(installation.environment)
    environment["PATH"] = os.pathsep.join((str(scripts), os.environ.get("PATH", os.defpath)))
    environment["PYTHONUNBUFFERED"] = "1"
    environment["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")  # each tool's own script adds what it needs
    return executable, environment


@contextmanager
def _interruptible(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Signals go on to Model Analyzer as the one that it understands; yields those that came."""
    came: list[int] = []

    def leave(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        process.send_signal(signal.SIGINT)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(process: subprocess.Popen[bytes], log: Path, start: int, sweep: Sweep, update: Progress) -> None:
    """Show one configuration after the other, and about how long the rest takes."""
    total = profiles.points(sweep.profile, sweep.spec) + 1  # the present configuration comes first
    began = time.monotonic()
    with log.open("rb") as said:
        said.seek(start)
        done, shown = 0, "start"
        while True:
            ended = process.poll() is not None
            for line in said.read().decode(errors="replace").splitlines():
                found = MEASURED.search(line)
                if found:
                    done += 1
                    spent = time.monotonic() - began
                    left = spent / max(done - 1, 1) * max(total - done + 1, 0)
                    rest = f", about {left / 60:.0f} min left" if done > 2 and left >= 60 else ""
                    shown = f"{found[1]} with {found[2]} callers{rest}"
            update(None if done == 0 else min((done - 1) / total, 0.99), shown)
            if ended:
                return
            time.sleep(0.5)


def _explain(said: str, sweep: Sweep, code: int) -> str:
    """One message with the cause and the remedy."""
    log = sweep.work / "model-analyzer.log"
    served = sweep.work / "tritonserver.log"
    errors = sweep.work / "results" / "perf_analyzer_error.log"
    if "No space left on device" in said:
        return f"the disk of {sweep.work} is full; make room and start again, it goes on where it stopped"
    if served.is_file():
        text = served.read_text(encoding="utf-8", errors="replace")
        causes_found = REFUSED.findall(text)
        if causes_found:
            return f"tritonserver could not serve a configuration: {causes_found[-1]} Its log: {served}"
    if errors.is_file() and errors.stat().st_size:
        last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        return f"perf_analyzer could not measure: {last} Its log: {errors}"
    errors_found = [line.strip() for line in FAILED.findall(said)]
    last = errors_found[-1] if errors_found else (said.strip().splitlines() or ["it said nothing"])[-1]
    return f"Model Analyzer ended with exit code {code}: {last} Its log: {log}"
