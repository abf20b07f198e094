"""What every change is held to a few times, as often as chance needs to find what is rare."""

from __future__ import annotations

from pathlib import Path

from ensemble.client import Client
from tests.conftest import Served
from tests.faults.test_contract import answered_or_told_why_not
from tests.faults.test_life import started_and_killed
from tests.faults.test_soak import soaked


def test_ten_thousand_requests_are_answered_or_told_why_not(served: Served, client: Client):
    answered_or_told_why_not(served, client, 500)


def test_twenty_starts_and_kills_leave_nothing(served: Served, tmp_path: Path):
    started_and_killed(served, tmp_path, 20)


def test_half_a_minute_of_the_soak(served: Served, tmp_path: Path):
    soaked(served, tmp_path, 30.0)
