"""How well the pass predicts a time: the rates of another machine still have to put models into their order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from build import ROOT
from build.bench import costs


@pytest.mark.timeout(1800)
def test_predicted_times_are_in_the_order_of_the_measured_ones(tmp_path: Path):
    """In a process of its own: it makes the foreign models of another size."""
    file = tmp_path / "costs.json"
    subprocess.run([sys.executable, "-m", "tests.nightly.costs", str(file)], cwd=ROOT, check=True)
    models = json.loads(file.read_text(encoding="utf-8"))["models"]
    assert len(models) > 80
    assert costs.correlation([m["ms"] for m in models], [costs.predicted(m) for m in models]) >= 0.9
