"""Sequence models as people serve them: a class each in models.py, and beside it a spec each, by one name."""

from __future__ import annotations

from pathlib import Path

from ensemble.sequence import Sequence
from ensemble.spec import Spec

SPECS = Path(__file__).with_name("specs")
NAMES = sorted(file.stem for file in SPECS.glob("*.toml"))


def read(name: str) -> Sequence:
    """The spec of one of them."""
    found = Spec.read(SPECS / f"{name}.toml")
    assert isinstance(found, Sequence)
    return found
