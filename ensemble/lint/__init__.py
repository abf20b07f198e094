"""Settings that Triton takes without a word and that do nothing, or harm, and those it refuses: in any model repository.

What a setting does is documented in Triton's user guide (model configuration, optimization, ensembles, response cache),
in the backends' READMEs and in the core's own checks; each rule says where. The thresholds are this project's own and
are said in each finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.lint.finding import Finding, Severity, line_of
from ensemble.lint.repository import LintError, Repository, read
from ensemble.lint.rules import RULES

__all__ = ["Finding", "LintError", "Severity", "found_in", "lint"]


def lint(
    folder: Path,
    *,
    cores: int | None = None,
    typical: Mapping[str, Sequence[int]] | None = None,
    triton: tuple[int, int] | None = None,
    flags: Sequence[str] = (),
) -> list[Finding]:
    """Everything to change in a repository, by file.

    Args:
        folder: has a folder a model.
        cores: of the machine that serves; None for this one's.
        typical: what each free axis (-1) of a tensor is mostly, by its name; one that nothing says is not sized.
        triton: the version that serves, e.g. (24, 10); None for any.
        flags: of the tritonserver that serves, where they are known.

    Raises:
        LintError: there is no such folder, or no config.pbtxt in it.
    """
    return found_in(read(folder, cores, typical, triton, flags))


def found_in(repository: Repository) -> list[Finding]:
    """Everything to change in a repository that was read, by file, each with its line."""
    found = [finding for rule in RULES for finding in rule.find(repository)]
    texts = {model.file: model.text for model in repository.models.values()}
    placed = [
        replace(finding, line=line_of(texts[finding.file], finding.key)) if finding.file in texts else finding
        for finding in found
    ]
    return sorted(placed, key=lambda finding: (finding.file, finding.key))
