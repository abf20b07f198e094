"""More random models than a change waits for, others than those of `tests/unit/reduce/test_fuzz.py`."""

from __future__ import annotations

import pytest

from tests.unit.reduce.test_fuzz import Fuzz

ROUNDS, GRAPHS = 10, 200


@pytest.mark.timeout(7200)
def test_no_cut_of_two_thousand_random_models_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz = Fuzz()
    try:
        for number in range(1, ROUNDS + 1):
            fuzz.run(GRAPHS, number)
    finally:
        with capsys.disabled():
            print(f"\n{fuzz}")
    assert fuzz.counts["written"] + fuzz.counts["refused"] >= ROUNDS * GRAPHS
    assert fuzz.counts["wrong"] == 0
    assert fuzz.counts["written"] > ROUNDS * GRAPHS / 3
