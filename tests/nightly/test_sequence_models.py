"""Sequence models that no other test builds."""

from __future__ import annotations

import pytest

from build.repository import assembly
from tests import zoo
from tests.integration.test_sequence_models import ALLOWED, BUILT, SERVED


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in (*BUILT, *SERVED, "loop")])
def test_it_is_built_in_parity(name, tmp_path):
    spec = zoo.read(name)
    assert assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models").parity <= ALLOWED
