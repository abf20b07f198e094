"""How a refusal is said: what Triton's core checks when it loads a model."""

from __future__ import annotations

from collections.abc import Iterable

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Model


def refused(model: Model, key: str, why: str, instead: str) -> Finding:
    """An error: this model will not load."""
    return Finding(model.file, key, why, instead, "error")


def among(names: Iterable[str]) -> str:
    """What is allowed.

    >>> among({"b", "a"})
    'one of a, b'
    """
    listed = sorted(names)
    return f"one of {', '.join(listed)}" if listed else "nothing: there is none"
