"""What takes long, or measures: too long or too chancy to wait for at every change."""

from tests.benchmarks.test_ladder import climbed
from tests.integration.test_analyzer import workspace

__all__ = ["climbed", "workspace"]
