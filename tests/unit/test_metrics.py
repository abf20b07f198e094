"""What the first step counts and logs, without a server; tests/faults reads it off a running one."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from ensemble.spec import Spec

OF = Spec.read().contract


class Metric:
    def __init__(self) -> None:
        self.value = 0.0

    def increment(self, by: float) -> None:
        assert by >= 0  # a Prometheus counter never falls
        self.value += by


class MetricFamily:
    """Triton's, as far as the step uses it: counters by name and labels."""

    COUNTER = "counter"
    made: dict[tuple[str, str], Metric]

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        assert kind == self.COUNTER
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Metric:
        return self.made.setdefault((self.name, ",".join(labels.values())), Metric())


@pytest.fixture
def counted(preprocess: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """counted(note) is every metric above zero by name and label, after note(metrics) and a stop; the window is 10."""

    def run(note) -> dict[tuple[str, str], float]:
        MetricFamily.made = {}
        monkeypatch.setattr(preprocess.pb_utils, "MetricFamily", MetricFamily, raising=False)
        metrics = preprocess.Metrics(OF._replace(widths=(10,)), OF.reasons)
        note(metrics)
        metrics.stop()
        return {key: metric.value for key, metric in MetricFamily.made.items() if metric.value}

    return run


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_learners_lengths_and_cold_starts(counted):
    def note(metrics):
        metrics.accepted(lengths(0, 1, 11))
        metrics.accepted(lengths(10, 6000))

    found = counted(note)
    assert found["lastrow_learners_total", ""] == found["lastrow_history_length_count", ""] == 5
    assert found["lastrow_cold_starts_total", ""] == 1
    assert found["lastrow_truncated_total", ""] == 2  # of 11 and 6000 some is left out; of 10 nothing
    assert found["lastrow_history_length_sum", ""] == 6022
    buckets = {label: count for (name, label), count in found.items() if name == "lastrow_history_length_bucket"}
    assert buckets == {
        **{"0": 1, "1": 2, "2": 2, "5": 2, "10": 3, "20": 4, "50": 4, "100": 4},
        **{"200": 4, "500": 4, "1000": 4, "2000": 4, "5000": 4, "+Inf": 5},
    }


def test_refusals_by_reason(counted):
    def note(metrics):
        for reason in ("padding", "response", "padding"):
            metrics.refused(reason)

    assert counted(note) == {("lastrow_refusals_total", "padding"): 2, ("lastrow_refusals_total", "response"): 1}


def test_every_series_is_there_before_anything_happens(counted, preprocess):
    assert counted(lambda _: None) == {}
    refusals = {label for name, label in MetricFamily.made if name == "lastrow_refusals_total"}
    assert refusals == set(OF.reasons)
    assert ("lastrow_history_length_bucket", "+Inf") in MetricFamily.made


def test_many_refusals_are_few_lines_that_say_so(preprocess):
    log = preprocess.RefusalLog(a_second=2)
    assert log.line("r1", "why", 10.0) == "refused request r1: why"
    assert log.line("", "why", 10.5) == "refused request without id: why"
    assert [log.line(f"r{number}", "why", 10.9) for number in range(3)] == [None] * 3
    assert log.line("r9", "why", 11.0) == "refused request r9: why (3 refusals before it were not logged)"
    assert log.line("r10", "why", 11.1) == "refused request r10: why"
    assert log.line("r11", "why", 11.1) is None
