"""`make analyze` and `make tune`: sweeps, what they found as a page, and the choice among it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from rich.table import Table

from build import ARTIFACTS
from build.analyzer import page, profile, result, sweep, tuning
from build.analyzer.profile import CORE_SWEEP, ENSEMBLE_SWEEP, SEED_DELAY_US, SINGLE_SWEEP, Endpoints, Part, Profile
from build.analyzer.result import Point, Setting
from build.analyzer.sweep import Sweep, SweepError
from build.bench import contest, origin, publication
from build.bench.contest import Contender
from build.bench.question import steps
from build.bench.variant import changed
from build.progress import answers, bar, console
from build.repository import assembly
from build.repository.workspace import Workspace, named
from ensemble.spec import Spec
from ensemble.tables import Layout

BEST_ROUNDS, BEST_TURN_S = 3, 0.6
LAYOUT_SWEEPS = (ENSEMBLE_SWEEP, SINGLE_SWEEP)
TITLES: dict[Part, str] = {"ensemble": "the ensemble", "single": "all steps in one model", "core": "the core"}
BUDGET = 2.0  # times the present p99 with one caller


def analyze(workspace: Workspace, quick: bool, running: Endpoints | None = None) -> list[Path]:
    """Sweep both layouts and the core, measure the best once more, and write analysis.json, report.html and the pictures.

    Args:
        quick: the ends of each axis.
        running: a server that runs already; its ensemble is measured as it is, with several numbers of callers.

    Returns:
        What was written.

    Raises:
        SweepError, InterruptedSweepError, PerfAnalyzerError, ServerError.
    """
    folder, begun = _folder(workspace), origin.record()
    parts: dict[Part, list[Point]] = {}
    sweeps: list[Sweep] = []
    if running is not None:
        served = served_setting(running.url, workspace.spec)
        kind = SINGLE_SWEEP if served.layout == "single" else ENSEMBLE_SWEEP
        wanted = as_served(kind, served)
        sweeps.append(_run(wanted, served.applied(workspace.spec), workspace.out, folder, running))
        parts[kind.part] = result.read(sweeps[-1], served)
    else:
        sweeps += _sweep(workspace, (*LAYOUT_SWEEPS, CORE_SWEEP), quick)
        parts = {done.profile.part: result.read(done) for done in sweeps}
    report = begun | _report(workspace, parts, running)
    if running is None:
        swept = [point for kind in LAYOUT_SWEEPS for point in parts.get(kind.part, ())]
        report["best"] = _best(workspace, swept, folder)
    report["files"] = [str(path.relative_to(folder)) for done in sweeps for path in _own(done)]
    publication.save(report, folder / "analysis.json")
    written = page.write(report, folder)
    for part, points in parts.items():
        answers().print(
            _table(f"{part}: the front of {len(points)} measurements", result.front(points), workspace.spec)
        )
    return [*written, folder / "analysis.json", *(done.results for done in sweeps)]


def tune(workspace: Workspace, quick: bool, p99_ms: float | None, kinds: Sequence[Profile] = LAYOUT_SWEEPS) -> bool:
    """Sweep both layouts, choose by throughput under the budget, measure again, and write what gains.

    Model Analyzer does not vary whether threads spin: each choice is measured again with both.

    Args:
        p99_ms: the budget; None for twice the present p99 with one caller.
        kinds: what is swept.

    Returns:
        Whether the spec was changed.
    """
    points = [point for done in _sweep(workspace, kinds, quick) for point in result.read(done)]
    folder, spec = _folder(workspace) / "tuning", workspace.spec
    asked = profile.histories(spec)
    if p99_ms is None:
        with bar("measure the present one") as update:
            (present,) = contest.run([spec], workspace.checkpoint, folder, asked, 2, 1.0, update, workspace.out)
        p99_ms = BUDGET * present.one.summary()["p99_ms"]
    # Clients may send as many histories a request as they could before.
    allowed = [p for p in points if p.setting.max_batch_size >= spec.batching.max_batch_size]
    chosen = result.best(allowed, p99_ms, page.SHOWN)
    answers().print(_table(f"chosen by throughput, p99 at most {p99_ms:.1f} ms", chosen, spec))
    specs = contenders(spec, [point.setting for point in chosen])
    if not specs:
        _say("the present configuration is the best that was found: nothing is changed")
        return False
    with bar("measure again, in turns") as update:
        present, *others = contest.run(
            [spec, *specs], workspace.checkpoint, folder, asked, tuning.ROUNDS, tuning.TURN_S, update, workspace.out
        )
    found = tuning.gains(present, others, p99_ms)
    answers().print(_gains(present, found))
    real = [gain for gain in found if gain.real]
    if not real:
        _say("no gain survived the second measurement: nothing is changed")
        return False
    built = tuning.write(workspace, real[0])
    _say(f"wrote {workspace.spec_file} and {len(built.changed)} files of {built.folder} (parity {built.parity:.1e})")
    return True


def contenders(spec: Spec, settings: Sequence[Setting]) -> list[Spec]:
    """The spec with each of these settings, its threads spinning and not where it has several; without the spec itself."""
    found = {}
    for setting in settings:
        for spinning in (True, False):
            made = replace(setting, spinning=spinning).applied(spec)
            core = made.steps.core
            # A lone thread, or a GPU's host, waits for nothing beside it.
            if spinning == setting.spinning or (core.device == "cpu" and core.intra_op_threads != 1):
                found[contest.setting(made)] = made
    found.pop(contest.setting(spec), None)
    return list(found.values())


def _sweep(workspace: Workspace, kinds: Sequence[Profile], quick: bool) -> Iterator[Sweep]:
    """Sweeps, one after the other, each of the workspace's repository or of one in its own layout, built beside.

    A layout that the spec cannot have is passed over.
    """
    for kind in kinds:
        layout: Layout = "single" if kind.part == "single" else "ensemble"
        if layout == workspace.spec.serve.layout or workspace.spec.reduce.where == "core":
            yield _swept(workspace, kind, layout, quick)


def _swept(workspace: Workspace, kind: Profile, layout: Layout, quick: bool) -> Sweep:
    spec, out, folder = workspace.spec, workspace.out, _folder(workspace)
    if layout != spec.serve.layout:
        spec, out = changed(spec, serve__layout=layout), folder / f"models-{layout}"
        contest.lend(workspace.out, out, spec)
        assembly.build(spec, workspace.checkpoint, out)
    wanted = profile.fitted(kind, spec)
    return _run(profile.quick(wanted) if quick else wanted, spec, out, folder)


def _run(wanted: Profile, spec: Spec, out: Path, folder: Path, running: Endpoints | None = None) -> Sweep:
    ready = sweep.prepare(wanted, spec, out, folder, running)
    with bar(f"sweep {TITLES[wanted.part]}") as update:
        sweep.run(ready, update)
    return ready


def served_setting(url: str, spec: Spec) -> Setting:
    """What a server that runs already says of its models.

    Raises:
        SweepError: it cannot be asked, or serves others.
    """
    try:
        with grpcclient.InferenceServerClient(url) as client:
            whole = client.get_model_config(spec.model.name).config
            steps = [step.model_name for step in whole.ensemble_scheduling.step]
            return Setting.read({name: client.get_model_config(name).config for name in steps} or {whole.name: whole})
    except (grpcclient.InferenceServerException, KeyError) as e:
        said = e.message() if isinstance(e, grpcclient.InferenceServerException) else f"no step is called {e}"
        raise SweepError(f"the server at {url} does not say what it serves: {said}; check URL= and SPEC=") from e


def as_served(kind: Profile, served: Setting) -> Profile:
    """The sweep with nothing varied but the number of callers."""
    return replace(
        kind,
        fixed=served.instances,
        batches=(served.max_batch_size,),
        delays=(served.queue_delay_us,),
        concurrency=(1, 2, 4, 8, 16),
    )


def _best(workspace: Workspace, points: Sequence[Point], folder: Path) -> list[dict[str, Any]]:
    """The best settings, the present one and the 100 ms delay, taken apart."""
    spec = workspace.spec
    found = {
        contest.setting(p.setting.applied(spec)): p.setting.applied(spec)
        for p in result.best(points, np.inf, page.SHOWN)
    }
    titles = [f"{number}. {name}" for number, name in enumerate(found, 1)]
    specs, marks = list(found.values()), ["chosen"] * len(found)
    if contest.setting(spec) in found:
        titles[list(found).index(contest.setting(spec))] += " (the present one)"
    else:
        specs, titles, marks = [*specs, spec], [*titles, "the present one"], [*marks, ""]
    slow = changed(spec, steps__core__queue_delay_us=SEED_DELAY_US)
    specs, titles, marks = [*specs, slow], [*titles, "with a 100 ms delay"], [*marks, "seed"]
    with bar("measure the best again") as update:
        asked = profile.histories(spec)
        measured = contest.run(
            specs, workspace.checkpoint, folder / "best", asked, BEST_ROUNDS, BEST_TURN_S, update, workspace.out
        )
    return [
        {"title": title, "mark": mark, "one": contender.one.summary(), "many": contender.many.summary()}
        for title, mark, contender in zip(titles, marks, measured, strict=True)
    ]


def _report(workspace: Workspace, parts: dict[Part, list[Point]], running: Endpoints | None) -> dict[str, Any]:
    spec = workspace.spec
    lengths = [min(steps(asked), spec.model.window) for asked in profile.histories(spec)]
    return {
        "model": spec.model.name,
        "window": spec.model.window,
        "words": spec.contract.words._asdict(),
        "median_length": int(np.median(lengths)),
        "version": importlib.metadata.version("triton-model-analyzer"),
        "url": running.url if running else None,
        "present": {
            part: asdict(points[0].setting if running else Setting.of(spec, part))
            for part, points in parts.items()
            if running or part == spec.serve.layout or (part, spec.serve.layout) == ("core", "ensemble")
        },
        "sweeps": {part: [asdict(point) for point in points] for part, points in parts.items()},
        "best": [],
    }


def _own(done: Sweep) -> Iterable[Path]:
    """Model Analyzer's tables, plots and reports."""
    for kind in ("csv", "png", "html", "pdf"):
        yield from sorted((done.work / "results").rglob(f"*.{kind}"))


def _table(title: str, points: Sequence[Point], spec: Spec) -> Table:
    shown = Table(title=title)
    for name in ("configuration", "callers", f"{spec.contract.words.histories}/s", "mean ms", "p99 ms"):
        shown.add_column(name, justify="left" if name == "configuration" else "right")
    for p in points:
        shown.add_row(str(p.setting), str(p.concurrency), f"{p.throughput:.0f}", f"{p.mean_ms:.1f}", f"{p.p99_ms:.1f}")
    return shown


def _gains(present: Contender, gains: Sequence[tuning.Gain]) -> Table:
    many = present.spec.contract.words.histories
    shown = Table(title=f"measured again, in turns: one caller, and {many} a second with 16")
    for name in ("configuration", "p50 ms", "p99 ms", "times faster", f"{many}/s", "times the throughput"):
        shown.add_column(name, justify="left" if name == "configuration" else "right")

    def row(contender: Contender, *ratios: str) -> list[str]:
        one = contender.one.summary()
        numbers = [f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{contender.throughput:.0f}"]
        return [contest.setting(contender.spec), *numbers[:2], ratios[0], numbers[2], ratios[1]]

    shown.add_row(*row(present, "the present one", ""))
    for gain in gains:
        shown.add_row(
            *row(
                gain.contender,
                *(f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in (gain.speed, gain.throughput)),
            )
        )
    return shown


def _folder(workspace: Workspace) -> Path:
    spec_file = workspace.spec_file
    return ARTIFACTS / "analyzer" / spec_file.parent.name / named(spec_file.stem, spec_file)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
