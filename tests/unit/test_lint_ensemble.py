"""Each finding about an ensemble itself, none about one that leaves it to its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.lint import lint
from tests.configurations import chain, keys, model, write


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("instance_group", "instance_group [ { count: 2 kind: KIND_CPU } ]"),
        (
            "model_warmup",
            'model_warmup [ { name: "w" batch_size: 1 '
            'inputs { key: "in" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } } ]',
        ),
    ],
)
def test_what_an_ensemble_has_not(tmp_path: Path, key: str, text: str):
    found = lint(write(tmp_path, first=model(), second=model(), whole=chain(more=text)))
    assert keys(found) == {("whole", key)}


def test_a_ragged_input_of_an_ensemble(tmp_path: Path):
    ragged = chain().replace("dims: [4]  }", "dims: [4] allow_ragged_batch: true }", 1)
    assert "allow_ragged_batch" in ragged
    found = lint(write(tmp_path, first=model(), second=model(), whole=ragged))
    assert keys(found) == {("whole", "input.allow_ragged_batch (in)")}


@pytest.mark.parametrize("reason", ["model_transaction_policy { decoupled: true }", "sequence_batching { }"])
def test_answers_that_the_cache_does_not_keep(tmp_path: Path, reason: str):
    cached = "response_cache { enable: true }"
    (found,) = lint(write(tmp_path / "model", m=model(more=f"{reason}\n{cached}")))
    assert (found.key, found.severity) == ("response_cache.enable", "error")
    whole = write(tmp_path / "whole", first=model(more=reason), second=model(), whole=chain(more=cached))
    (found,) = lint(whole)
    assert (found.file.parent.name, found.key, found.severity) == ("whole", "response_cache.enable", "error")
    (found,) = lint(write(tmp_path / "plain", first=model(), second=model(), whole=chain(more=cached)))
    assert found.severity == "warning"
    assert lint(write(tmp_path / "step", m=model(more=cached))) == []
