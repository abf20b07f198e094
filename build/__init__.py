"""How the served model is made: reference model, training, export, reduction, parity, repository and server.

This package imports `ensemble`, never the other way round.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "build" / "artifacts"  # everything this package makes that is not tracked
