"""Model Analyzer's configurations, made from the spec through one template, and perf_analyzer's input."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jinja2

from build import ROOT, aside
from build.bench import question
from build.bench.question import Question
from build.core.served import types
from build.model.simulation import simulate
from build.progress import console
from build.repository import config, manifest
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History
from ensemble.spec import Spec
from ensemble.tables import CORE, POSTPROCESS, PREPROCESS, Step

CONFIGS = ROOT / "analyzer_configs"
WORK = Path("build/artifacts/analyzer")  # as the tracked configurations name it, from the root
FOLDERS = ("models", "checkpoints", "results")
TEMPLATE = "template.yaml.j2"
LEARNERS = 32  # histories that perf_analyzer asks for in turns
SEED_DELAY_US = 100_000  # where reports of a slow Triton start
Part = Literal["ensemble", "single", "core"]


@dataclass(frozen=True)
class Profile:
    """One sweep: what is varied, how the points are found, and what counts.

    Attributes:
        name: of the file in analyzer_configs/.
        title: its first line, in which {histories} are what the model calls them.
        part: the model that is asked: the ensemble, the one that does all steps, or the core alone.
        search: Model Analyzer's run_config_search_mode.
        instances: of each step that is varied, processes or sessions.
        steps_varied: the Python steps whose instances are varied too.
        batches: the core's max_batch_size.
        delays: the core's queue delays in microseconds.
        preferred: preferred batch sizes that the core is tried with, at a delay of 1 ms.
        concurrency: requests in flight.
        objectives: metrics by weight; constraints: bounds, e.g. {"perf_latency_p99": ("max", 50)} in milliseconds.
        requests: perf_analyzer's measurement window, in requests.
        stability: by how many percent three windows may differ.
        fixed: each step's instances, where they are not to be varied.
    """

    name: str
    title: str
    part: Part
    search: Literal["optuna", "quick", "brute"]
    instances: tuple[int, ...] = (1, 2)
    steps_varied: tuple[str, ...] = (PREPROCESS, POSTPROCESS)
    batches: tuple[int, ...] = (8, 32)
    delays: tuple[int, ...] = (0, 100, SEED_DELAY_US)
    preferred: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = (2, 16)
    gpu: bool = False
    objectives: dict[str, int] = field(default_factory=dict)
    constraints: dict[str, tuple[str, int]] = field(default_factory=dict)
    requests: int = 50
    stability: int = 10
    fixed: tuple[tuple[str, int], ...] = ()


ENSEMBLE_SWEEP = Profile(
    "ensemble-sweep",
    "Every step's instances, the core's batch size and queue delay, and the number of callers.",
    "ensemble",
    "optuna",
)
CORE_SWEEP = Profile(
    "core-sweep",
    "The core alone: instances, queue delay, batch size, preferred sizes, and the number of callers.",
    "core",
    "brute",
    delays=(0, 100, 500, 1000, SEED_DELAY_US),
    preferred=(4, 8),
    concurrency=(1, 4, 16),
)
SINGLE_SWEEP = replace(
    ENSEMBLE_SWEEP,
    name="single-sweep",
    title="All steps in one model: its instances, batch size and queue delay, and the number of callers.",
    part="single",
    search="brute",
)
ENSEMBLE_LATENCY = replace(
    ENSEMBLE_SWEEP,
    name="ensemble-latency",
    title="The lowest p99 that still answers a hundred {histories} a second.",
    delays=(0, 100, 1000),
    concurrency=(1, 2, 4),
    objectives={"perf_latency_p99": 1},
    constraints={"perf_throughput": ("min", 100)},
)
PROFILES = (
    ENSEMBLE_SWEEP,
    Profile(
        "ensemble-quick",
        "Quick search over the ensemble and all its steps: a few minutes.",
        "ensemble",
        "quick",
        concurrency=(8,),
    ),
    CORE_SWEEP,
    ENSEMBLE_LATENCY,
    replace(
        ENSEMBLE_LATENCY,
        name="ensemble-throughput",
        title="The most {histories} a second with a p99 of 100 ms at most.",
        concurrency=(4, 16, 32),
        objectives={"perf_throughput": 1},
        constraints={"perf_latency_p99": ("max", 100)},
    ),
    replace(
        ENSEMBLE_SWEEP,
        name="gpu-ensemble",
        title="As ensemble-sweep, with the core on a GPU and the Python steps on the CPU.",
        gpu=True,
    ),
    replace(CORE_SWEEP, name="gpu-core", title="As core-sweep, with the core on a GPU.", gpu=True),
)


@dataclass(frozen=True)
class Paths:
    """Where a sweep reads and writes; as they are written into the configuration."""

    repository: Path
    work: Path
    input: Path


@dataclass(frozen=True)
class Endpoints:
    """Where a server listens: gRPC as host:port, HTTP likewise, and the whole address of its metrics."""

    url: str
    http_url: str
    metrics_url: str

    @classmethod
    def of(cls, url: str, http_url: str = "", metrics_url: str = "") -> Endpoints:
        """Triton's own ports on the same host for what is not given."""
        host = url.rpartition(":")[0] or url
        return cls(url, http_url or f"{host}:8000", metrics_url or f"http://{host}:8002/metrics")


def quick(profile: Profile) -> Profile:
    """The same sweep over the ends of its axes, for a few minutes on two cores."""
    if profile.part == "core":
        return replace(
            profile, batches=profile.batches[-1:], preferred=(), concurrency=profile.concurrency[-1:], stability=30
        )
    return replace(
        profile,
        steps_varied=profile.steps_varied[:1],
        batches=profile.batches[-1:],
        delays=(profile.delays[0], profile.delays[-1]),
        concurrency=profile.concurrency[:1],  # starting a configuration takes longer than measuring it
        stability=30,
    )


def fitted(profile: Profile, spec: Spec) -> Profile:
    """On the spec's device, with its own batch size among the others and instances up to this machine's cores, doubled."""
    cores = len(os.sched_getaffinity(0))
    return replace(
        profile,
        gpu=spec.steps.core.device == "gpu",
        instances=tuple(count for count in (1, 2, 4, 8, 16) if count <= cores),
        batches=tuple(sorted({*profile.batches, spec.batching.max_batch_size})),
    )


def counts(profile: Profile, spec: Spec) -> dict[str, list[int]]:
    """The instance counts that each step is tried with. A step that is not varied keeps the spec's."""
    if profile.fixed:
        return {step: [count] for step, count in profile.fixed}
    varied = (*profile.steps_varied, CORE) if profile.part == "ensemble" else (CORE,)
    return {
        step: list(profile.instances) if step in varied else [settings(spec, step).instances] for step in steps(spec)
    }


def settings(spec: Spec, step: str) -> Step:
    """A step's own, or those that it has in common: all cores have one core's, and answers without any the first one's."""
    if step in [core.step for core in spec.cores]:
        return spec.steps.core
    own: Step = getattr(spec.steps, step, spec.steps.postprocess)
    return own


def steps(spec: Spec) -> list[str]:
    """The ensemble's composing models, in their order; the core alone where one model, with its settings, does it all."""
    if spec.serve.layout == "single":
        return [CORE]
    return [step.model_name for step in config.repository(spec)[spec.model.name].ensemble_scheduling.step]


def points(profile: Profile, spec: Spec) -> int:
    """Measurements in the whole grid."""
    grid = len(profile.concurrency) * len(profile.batches)
    for values in counts(profile, spec).values():
        grid *= len(values)
    if profile.part != "ensemble":
        grid = len(profile.concurrency) * len(profile.batches) * len(profile.instances)
    return grid * (len(profile.delays) + len(profile.preferred))


def render(
    profile: Profile,
    spec: Spec,
    paths: Paths,
    ports: Sequence[int] = (),
    running: Endpoints | None = None,
) -> str:
    """The YAML file.

    Args:
        ports: for HTTP, gRPC and metrics of the server that Model Analyzer starts; empty for Triton's own.
        running: a server that runs already, instead of one that is started.
    """
    environment = jinja2.Environment(  # noqa: S701 YAML, not HTML
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    values: dict[str, Any] = {**vars(profile)}
    values["batches"] = list(profile.batches)
    values["delays"] = list(profile.delays)
    values["concurrency"] = list(profile.concurrency)
    values["preferred"] = [[size] for size in profile.preferred]
    words = spec.contract.words._asdict()
    values["title"] = profile.title.format(**words)
    return environment.get_template(TEMPLATE).render(
        values,
        model=CORE if profile.part == "core" else spec.model.name,
        steps=steps(spec),
        core=CORE,
        cores=[core.step for core in spec.cores],
        words=words,
        counts=counts(profile, spec),
        max_batch=max(profile.batches),
        trials=6 * points(profile, spec),
        paths=paths,
        ports=list(ports),
        **(vars(running) if running else {"url": ""}),
    )


def histories(spec: Spec) -> Sequence[Question]:
    """What is asked, of the lengths that `build/model/simulation.py` documents.

    perf_analyzer asks for every answer, so that an optional input which an answer is made of is there; others are left out.
    """
    if isinstance(spec, KnowledgeTracing):
        return [h for h in simulate(spec.model.problems, 2 * LEARNERS) if len(h)][:LEARNERS]
    return question.drawn(spec, [min(n, spec.model.window) for n in question.lengths(LEARNERS)], spec.answers)


def request(spec: Spec, part: Part, questions: Sequence[Question]) -> str:
    """perf_analyzer's input: one request a question, in its JSON format."""
    data, window = [], spec.model.window
    for one in questions:
        if isinstance(one, History):
            one = History(one.learner, one.problem_ids[-window:], one.responses[-window:])
        given = question.together(spec, [one])
        named = spec.requested
        if part == "core":
            # As the first step feeds it.
            given = spec.contract.feed(given, spec.contract.check(given), types(spec))
            named = spec.cores[0].inputs
        data.append(
            {
                tensor.name: {"content": value[0].reshape(-1).tolist(), "shape": list(value.shape[1:])}
                for tensor, value in question.on_the_wire(named, given)
            }
        )
    return json.dumps({"data": data}, separators=(",", ":")) + "\n"


def of_layout(spec: Spec) -> Sequence[Profile]:
    """The sweeps that a repository of the spec's layout can be asked for."""
    return (SINGLE_SWEEP,) if spec.serve.layout == "single" else PROFILES


def files(spec: Spec) -> dict[str, str]:
    """Everything in analyzer_configs/, by file name: what works from the repository's root as it is."""
    kinds = of_layout(spec)
    parts = dict.fromkeys(profile.part for profile in kinds)
    found = {f"input-{part}.json": request(spec, part, histories(spec)) for part in parts}
    for profile in kinds:
        paths = Paths(
            Path("models"),
            WORK / profile.name,
            Path("analyzer_configs") / f"input-{profile.part}.json",
        )
        found[f"{profile.name}.yaml"] = render(profile, spec, paths)
    return found


def write(spec: Spec) -> None:
    """Bring analyzer_configs/ to what the spec asks for, and make the folders that Model Analyzer wants to find.

    What somebody put there or changed there stays as it is.
    """
    for profile in of_layout(spec):
        for folder in FOLDERS:
            (ROOT / WORK / profile.name / folder).mkdir(parents=True, exist_ok=True)
    CONFIGS.mkdir(exist_ok=True)
    wanted = {name: text.encode() for name, text in files(spec).items()}
    written = manifest.read(CONFIGS)
    for name, content in wanted.items():
        path = CONFIGS / name
        if path.exists() and not manifest.is_written(CONFIGS, name, written):
            if not path.is_file() or path.read_bytes() != content:
                said = f"{path} is not what `make repo` wrote: left as it is; move it away to have it made anew"
                console.print(said, highlight=False, soft_wrap=True)
        elif written.get(name) != manifest.digest(content) or not path.exists():
            aside.write(path, content)
    manifest.update(CONFIGS, written, wanted)
