"""The soak, for ten seconds: long enough to hold its counts and its report against what happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from build.server import Server
from tests.conftest import Served
from tests.faults import soak

SECONDS = 10.0


def test_ten_seconds_of_it(served: Served, tmp_path: Path):
    soaked(served, tmp_path, SECONDS)


def soaked(served: Served, folder: Path, seconds: float) -> None:
    """Soak a server of its own, and hold what was found against what has to be."""
    with Server(served.repository, log=folder / "log") as server:
        found = soak.soak(server, served.spec, seconds, lambda *_: None)
    print(found.requests, f"{found.growth_mb:.1f} MB", found.p99_ms)
    assert found.failed == []
    assert set(found.requests) == {"OK", "INVALID_ARGUMENT"}
    answered = sum(found.requests.values())
    assert 0.05 < found.requests["INVALID_ARGUMENT"] / answered < 0.2
    assert 0.5 < found.share < 0.8  # what came in so short a time, and the capacity of a few seconds, are chance
    assert found.growth_mb < soak.GROWTH_MB
    assert soak.draw(found, folder / "soak.svg").stat().st_size > 0


def test_what_a_soak_complains_about():
    memory = [(float(s), 100.0 + (60 if s > 50 else 0)) for s in range(100)]
    fine = soak.Soak(100.0, 100.0, {"OK": 7000}, [], memory[:50] + memory[:50], [10.0] * 10, 10.0)
    assert fine.findings() == []
    changes = {
        "memory_mb": memory,
        "p99_ms": [10.0] * 9 + [16.0],
        "failed": ["7: UNAVAILABLE"],
        "requests": {"OK": 6500},
    }
    bad = dataclasses.replace(fine, **changes)
    assert [finding.split()[0] for finding in bad.findings()] == ["1", "requests", "memory", "p99"]
