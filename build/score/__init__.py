"""Histories by the million, offline: a served repository's answers without its server."""

from build.score.scorer import Choice, Scorer

__all__ = ["Choice", "Scorer"]
