"""What takes long, or measures: too long or too chancy to wait for at every change."""

from tests.integration.test_analyzer import workspace

__all__ = ["workspace"]
