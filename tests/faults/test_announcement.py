"""What the health port says while a server lives, breaks and stops, and that nobody is refused before it has said so."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.conftest import Served
from tests.faults.conftest import supervised, wait_until
from tests.faults.traffic import Known, Traffic

ANNOUNCED_S = 3.0
SEEN_WITHIN_S = 0.5


def test_health_follows_what_lives(served: Served, tmp_path: Path):
    with supervised(served, tmp_path) as serving:
        wait_until(lambda: serving.healthy() == 200, 5, "healthy")
        for step in ("preprocess", "core"):
            serving.stubs(step)[0].kill()
            wait_until(lambda: serving.healthy() == 503, 2, f"{step} is missed")
            wait_until(lambda: serving.healthy() == 200, 15, f"{step} is back")
        server = serving.server()
        server.suspend()
        try:
            assert serving.healthy() == 503  # it hangs
        finally:
            server.resume()
        wait_until(lambda: serving.healthy() == 200, 5, "it goes on")


def test_a_stop_is_said_before_anybody_is_refused(served: Served, known: Known, tmp_path: Path):
    with supervised(served, tmp_path, announce_s=ANNOUNCED_S) as serving:
        with Traffic(serving.url, served.spec, known, callers=6) as traffic:
            traffic.wait_for(50)
            asked = time.monotonic()
            serving.process.send_signal(signal.SIGTERM)
            wait_until(lambda: serving.healthy() == 404, SEEN_WITHIN_S, "the stop is said")
            told = time.monotonic()
            while time.monotonic() < asked + ANNOUNCED_S - 0.2:
                assert serving.healthy() == 404
                time.sleep(0.1)
            assert serving.process.wait(30) == 0
        early = [outcome for outcome in traffic.outcomes if outcome.begun < asked + ANNOUNCED_S - 0.2]
        assert len([outcome for outcome in early if outcome.begun > told]) > 10
        assert {outcome.status for outcome in early} == {"OK"}
        assert {outcome.status for outcome in traffic.outcomes} > {"OK"}  # later ones were refused
        assert traffic.wrong() == []


def test_who_waits_at_a_terminal_waits_for_no_balancer(served: Served, tmp_path: Path):
    with supervised(served, tmp_path, announce_s=60.0) as serving:
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(30) == 0
        assert serving.said("not ready any more") == 0
