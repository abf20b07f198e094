"""Settings that Triton takes without a word and that do nothing, or harm: found in any model repository.

What a setting does is documented in Triton's user guide (model configuration, optimization, ensembles, response cache) and
in the ONNX Runtime backend's README. The thresholds are this project's own and are said in each finding.
"""

from __future__ import annotations

from pathlib import Path

from ensemble.lint.finding import Finding, Severity
from ensemble.lint.repository import LintError, read
from ensemble.lint.rules import RULES

__all__ = ["Finding", "LintError", "Severity", "lint"]


def lint(folder: Path, length: int = 512, cores: int | None = None) -> list[Finding]:
    """Everything to change in a repository, by file.

    Args:
        folder: has a folder a model.
        length: assumed for each dimension of -1 when an output's size is judged.
        cores: of the machine that serves; None for this one's.

    Raises:
        LintError: there is no such folder, no config.pbtxt in it, or one that cannot be read.
    """
    repository = read(folder, length, cores)
    found = [finding for rule in RULES for finding in rule(repository)]
    return sorted(found, key=lambda finding: (finding.file, finding.key))
