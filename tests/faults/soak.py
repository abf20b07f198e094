"""A long time of good and bad requests at 70 % of what the machine answers, and what that did to memory and latency."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from build import ARTIFACTS
from build.bench import machine
from build.model import checkpoint
from build.progress import bar, console
from build.repository import assembly as repository
from build.server import Server
from ensemble.command import end_on_signals
from ensemble.errors import LastrowError
from ensemble.learners.history import History
from ensemble.spec import Spec
from tests.conftest import learner, untrained
from tests.faults.traffic import Known, Outcome, Traffic

LENGTHS = (0, 1, 3, 8, 15, 20, 20, 20, 37, 64, 100, 200, 512, 700)  # as learners have them: half have 20 or fewer
CALLERS = 16  # that capacity is measured with
# The share of capacity is asked for by more: a rate has to be kept up while some wait.
STRANGERS = 64
SHARE, SHARE_WITHIN, BAD_SHARE = 0.7, 0.03, 0.1
REQUESTS_A_CONNECTION = 50
FILLING = 10  # requests of every stranger before anything is measured
SETTLED_S = 600.0  # until then buffers and caches may grow; a shorter soak takes a sixth of its time
GROWTH_MB, SLOWER = 50.0, 1.5
PARTS = 10


@dataclass(frozen=True)
class Soak:
    """What a soak found.

    Attributes:
        seconds: how long it took.
        capacity: requests a second that CALLERS get answered or refused, each one after the other.
        requests: by status: "OK", or gRPC's.
        failed: messages of good requests that were not answered rightly, and of bad ones that were not refused.
        memory_mb: [seconds, megabytes] of the server and its stubs, what they share counted once.
        p99_ms: of good requests, by tenth of the time.
        settled_s: from when memory may not grow any more.
    """

    seconds: float
    capacity: float
    requests: dict[str, int]
    failed: list[str]
    memory_mb: list[tuple[float, float]]
    p99_ms: list[float]
    settled_s: float

    @property
    def share(self) -> float:
        """Of the capacity, at which requests came."""
        return sum(self.requests.values()) / self.seconds / self.capacity

    @property
    def growth_mb(self) -> float:
        """From the settled minute's median to the last one's: a sample alone is noise."""
        settled = [mb for s, mb in self.memory_mb if s >= self.settled_s]
        few = max(len(settled) // 10, 1)
        return float(np.median(settled[-few:]) - np.median(settled[:few]))

    @property
    def slower(self) -> float:
        """p99 of the last tenth over that of the first."""
        return self.p99_ms[-1] / self.p99_ms[0]

    def findings(self) -> list[str]:
        """What is not as it has to be."""
        found = [f"{len(self.failed)} requests failed, e.g. {self.failed[0]}"] if self.failed else []
        if abs(self.share - SHARE) > SHARE_WITHIN:
            found.append(f"requests came at {self.share:.0%} of the capacity, not at {SHARE:.0%}")
        if self.growth_mb >= GROWTH_MB:
            found.append(f"memory grew by {self.growth_mb:.0f} MB; allowed are {GROWTH_MB:.0f}")
        if self.slower > SLOWER:
            found.append(f"p99 of the last tenth is {self.slower:.2f} times that of the first; allowed is {SLOWER}")
        return found


def bad(spec: Spec) -> list[History]:
    """Learners that have to be refused, each for another reason."""
    problems = spec.model.problems
    return [
        History("problem", [1, problems, 2], [0, 1, 0]),
        History("response", [1, 2, 3], [0, 2, 0]),
        History("padding", [1, -1, 3], [0, -1, 0]),
        History("negative", [-2], [1]),
    ]


def soak(server: Server, spec: Spec, seconds: float, update: Callable[[float | None, str], None]) -> Soak:
    """Load a server that is ready, and idle."""
    known = Known.ask(
        server.grpc_url, spec, [learner(length, seed, spec.model.problems) for seed, length in enumerate(LENGTHS)]
    )
    update(None, "fill the largest batches")
    with Traffic(server.grpc_url, spec, known, callers=STRANGERS) as traffic:
        # A pause of the machine queues as much later on. What that allocates is allocated here, and is no leak.
        traffic.wait_for(FILLING * STRANGERS)
    update(None, "measure the capacity")
    with Traffic(server.grpc_url, spec, known, callers=CALLERS, bad=bad(spec), bad_share=BAD_SHARE) as traffic:
        traffic.wait_for(100)  # the first ones open connections
        start, before = time.monotonic(), len(traffic.outcomes)
        time.sleep(min(max(seconds / 60, 3.0), 30.0))
        capacity = (len(traffic.outcomes) - before) / (time.monotonic() - start)
    memory, settled_s = [], min(SETTLED_S, seconds / 6)
    with Traffic(
        server.grpc_url,
        spec,
        known,
        callers=STRANGERS,
        bad=bad(spec),
        rate=SHARE * capacity,
        bad_share=BAD_SHARE,
        requests_a_connection=REQUESTS_A_CONNECTION,
    ) as traffic:
        start = time.monotonic()
        assert server.processes is not None
        while (now := time.monotonic() - start) < seconds:
            memory.append((now, sum(p.memory_full_info().pss for p in server.processes.tree()) / 2**20))
            update(now / seconds, f"{len(traffic.outcomes):,} requests, {memory[-1][1]:.0f} MB")
            time.sleep(min(max(seconds / 600, 0.2), 5.0))
    return Soak(
        seconds,
        capacity,
        dict(traffic.statuses()),
        [f"{o.learner}: {o.status} {o.message}" for o in traffic.outcomes if not right(o, known)],
        memory,
        p99s(traffic.outcomes, start, seconds),
        settled_s,
    )


def right(outcome: Outcome, known: Known) -> bool:
    """A good request has its known answer, a bad one is refused."""
    if outcome.learner in known.answers:
        return outcome.status == "OK" and outcome.same
    return outcome.status == "INVALID_ARGUMENT"


def p99s(outcomes: list[Outcome], start: float, seconds: float) -> list[float]:
    """Milliseconds of the answered requests, by the tenth in which they began."""
    edges = start + np.linspace(0, seconds, PARTS + 1)
    return [
        1000 * float(np.percentile([o.took_s for o in outcomes if o.status == "OK" and a <= o.begun < b], 99))
        for a, b in pairwise(edges)
    ]


def draw(found: Soak, path: Path) -> Path:
    """Memory over time, and p99 by tenth."""
    figure, (memory, latency) = plt.subplots(2, 1, figsize=(9, 6), layout="constrained")
    memory.plot(*zip(*found.memory_mb, strict=True), color="#2f6f9f")
    memory.axvline(found.settled_s, color="#999999", linestyle=":")
    memory.set(
        title=f"Resident memory of the server and its steps: {found.growth_mb:+.1f} MB since the dotted line",
        xlabel="seconds",
        ylabel="MB",
        ylim=(0, None),
    )
    latency.bar(range(1, PARTS + 1), found.p99_ms, color="#2f6f9f")
    latency.axhline(SLOWER * found.p99_ms[0], color="#b5482e", linestyle=":")
    count, failed = sum(found.requests.values()), len(found.failed)
    latency.set(
        title=f"p99 at {found.share:.0%} of {found.capacity:.0f} requests/s: {count:,} requests, {failed} failed",
        xlabel="tenth of the time",
        ylabel="ms",
    )
    figure.savefig(path)
    plt.close(figure)
    return path


def main() -> int:
    """Soak the reference model, untrained: its numbers are as hard to come by."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "soak")
    options = parser.parse_args()
    if options.seconds < PARTS:
        parser.error(f"--seconds is {options.seconds:g}: give at least {PARTS}, and 3600 to say something about memory")
    spec = Spec.read()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lastrow-soak-") as folder, bar("soak") as update:
        update(None, "build")
        checkpoint.save(untrained(spec), Path(folder) / "model.pt")
        built = repository.build(spec, Path(folder) / "model.pt", Path(folder) / "models")
        with Server(built.folder, log=options.out / "server.log") as server:
            found = soak(server, spec, options.seconds, update)
    report = asdict(found) | {
        "share": found.share,
        "growth_mb": found.growth_mb,
        "slower": found.slower,
        "machine": machine.describe(),
    }
    (options.out / "soak.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    picture = draw(found, options.out / "soak.svg")
    console.print(f"wrote {options.out / 'soak.json'} and {picture}", highlight=False, soft_wrap=True)
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(found.requests.items()))
    print(
        f"{counts}; memory {found.growth_mb:+.1f} MB; "
        f"p99 {found.p99_ms[0]:.1f} ms at first, {found.p99_ms[-1]:.1f} ms at last"
    )
    for finding in found.findings():
        print(f"FAILED: {finding}")
    return 1 if found.findings() else 0


if __name__ == "__main__":
    end_on_signals()
    try:
        sys.exit(main())
    except LastrowError as e:
        sys.exit(f"soak: {e}")
