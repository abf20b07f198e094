"""What a sweep measured: one point a configuration and a number of callers."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build.analyzer.profile import Part
from build.analyzer.sweep import Sweep, SweepError
from build.bench.variant import table
from build.repository import config
from ensemble.spec import Spec
from ensemble.tables import CORE, Layout

# The columns by Model Analyzer's headers; times are in milliseconds.
CONCURRENCY, VARIANTS = "Concurrency", "Model Config Path"
THROUGHPUT = "Throughput (infer/sec)"
MEAN, P99 = "Avg Latency (ms)", "p99 Latency (ms)"


@dataclass(frozen=True)
class Setting:
    """What a sweep varies.

    Attributes:
        instances: of each step, in the spec's names.
        queue_delay_us: of the core.
        max_batch_size: of the core, and so of the ensemble.
        preferred: batch sizes that the core sends at once.
        layout: of steps; of one model for all of them, instances are the core's.
        spinning: whether the core's idle threads spin.
    """

    instances: tuple[tuple[str, int], ...]
    queue_delay_us: int
    max_batch_size: int
    preferred: tuple[int, ...] = ()
    layout: Layout = "ensemble"
    spinning: bool = True

    @classmethod
    def of(cls, spec: Spec, part: Part = "ensemble") -> Setting:
        """The spec's own."""
        models = config.repository(spec)
        return cls.read({CORE: models[CORE]} if part == "core" else models)

    @classmethod
    def read(cls, models: dict[str, ModelConfig]) -> Setting:
        """From configurations by step, an ensemble among them is passed over; or of the one model that does it all."""
        layout: Layout = "ensemble" if CORE in models else "single"
        if layout == "single":
            ((_, model),) = models.items()
            models = {CORE: model}
        core = models[CORE]
        counted = [
            (name, sum(group.count for group in model.instance_group) or 1)
            for name, model in models.items()
            if not model.HasField("ensemble_scheduling")
        ]
        batching = core.dynamic_batching
        # A server that is asked names the largest batch as preferred where nothing is.
        preferred = tuple(size for size in batching.preferred_batch_size if size != core.max_batch_size)
        spinning = config.spinning(core)
        return cls(
            tuple(counted), batching.max_queue_delay_microseconds, core.max_batch_size, preferred, layout, spinning
        )

    def applied(self, spec: Spec) -> Spec:
        """The spec with these values. Sessions side by side share the machine's cores out: together they have no more."""
        changed = table(spec)
        for name, count in self.instances:
            if name in changed["steps"]:  # others have their instances from one of these: see `profile.settings`
                changed["steps"][name]["instances"] = count
        core = changed["steps"][CORE]
        core |= {"queue_delay_us": self.queue_delay_us, "spinning": self.spinning}
        if core["device"] == "cpu":
            cores = len(os.sched_getaffinity(0))
            core["intra_op_threads"] = 0 if core["instances"] == 1 else max(cores // core["instances"], 1)
        changed["batching"]["max_batch_size"] = self.max_batch_size
        changed["serve"]["layout"] = self.layout
        return Spec.model_validate(changed)

    def __str__(self) -> str:
        steps = ", ".join(f"{name} x {count}" for name, count in self.instances)
        batch = f"batch {self.max_batch_size}" + (f", {self.preferred[0]} preferred" if self.preferred else "")
        if self.layout == "single":
            steps = f"one model x {dict(self.instances)[CORE]}"
        if not self.spinning:
            steps += ", threads that do not spin"
        return f"{steps}, delay {self.queue_delay_us / 1e3:g} ms, {batch}"


@dataclass(frozen=True)
class Point:
    """One measurement: histories a second and latencies in milliseconds of `setting` under `concurrency` callers."""

    setting: Setting
    concurrency: int
    throughput: float
    mean_ms: float
    p99_ms: float


def read(sweep: Sweep, served: Setting | None = None) -> list[Point]:
    """Every measurement of a finished sweep.

    Args:
        served: the one setting of a server that was measured as it is; None reads each variant's own.

    Raises:
        SweepError: the results are not there or not Model Analyzer's.
    """
    try:
        with sweep.results.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [_point(row, served or _variant(row, sweep)) for row in rows]
    except (OSError, KeyError, ValueError, text_format.ParseError) as e:
        raise SweepError(f"cannot read the results in {sweep.work}: {e!r}; remove that folder and measure again") from e


def _point(row: dict[str, str], setting: Setting) -> Point:
    return Point(setting, int(row[CONCURRENCY]), float(row[THROUGHPUT]), float(row[MEAN]), float(row[P99]))


def _variant(row: dict[str, str], sweep: Sweep) -> Setting:
    """The setting that a row names: its variants' own configurations lie in Model Analyzer's repository."""
    _, _, named = row[VARIANTS].partition(": ")
    variants = (named or row[VARIANTS]).split(", ")
    models = {}
    for variant in variants:
        message = ModelConfig()
        text_format.Parse((sweep.variants / variant / "config.pbtxt").read_text(encoding="utf-8"), message)
        models[variant.rpartition("_config_")[0]] = message
    return Setting.read(models)


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both throughput and p99, by rising p99."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.p99_ms, -p.throughput)):
        if not found or point.throughput > found[-1].throughput:
            found.append(point)
    return found


def best(points: Sequence[Point], p99_ms: float, count: int = 1) -> list[Point]:
    """Of each setting its point of the highest throughput whose p99 is within the budget; the best settings first."""
    allowed: dict[Setting, Point] = {}
    for point in sorted(points, key=lambda p: p.throughput):
        if point.p99_ms <= p99_ms:
            allowed[point.setting] = point
    return sorted(allowed.values(), key=lambda p: -p.throughput)[:count]
