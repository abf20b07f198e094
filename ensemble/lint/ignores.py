"""Findings that somebody has decided to live with, each with a reason.

In a configuration: `# lint: ignore RULE: reason`, for that file. In a repository's file `.lintignore`, a line each:
`MODEL RULE: reason`, the model's name with * and ? as in a shell. `#` begins a comment there.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Repository
from ensemble.lint.rules import RULES

FILE = ".lintignore"
COMMENT = re.compile(r"#\s*lint:\s*ignore\b(.*)")
ENTRY = re.compile(r"\s*([\w-]+)\s*:\s*(\S.*)")
IGNORED, WRONG = "ignored", "ignore-without-effect"
OTHERS = ("refused-by-triton", "not-asked")  # what is no rule's, but `--load`'s


@dataclass
class _Ignore:
    file: Path
    line: int
    model: str
    rule: str
    reason: str
    used: bool = False


def applied(repository: Repository, found: list[Finding]) -> list[Finding]:
    """Findings with those that are ignored turned into notes, and a warning for each ignore that is none."""
    ignores = list(_comments(repository)) + list(_file(repository))
    known = {rule.id for rule in RULES} | set(OTHERS)
    result = []
    for finding in found:
        name = finding.file.parent.name
        own = [i for i in ignores if i.reason and i.rule == finding.rule and fnmatch.fnmatch(name, i.model)]
        for ignore in own:
            ignore.used = True
        if own:
            why = f"{finding.why} (ignored: {own[0].reason})"
            finding = replace(finding, severity="note", why=why)
        result.append(finding)
    for ignore in ignores:
        if not ignore.reason:
            why, instead = "an ignore has no rule and reason", "RULE: reason"
        elif ignore.rule not in known:
            why, instead = f"there is no rule {ignore.rule}", "one of `--explain all`"
        else:
            continue
        result.append(Finding(ignore.file, "ignore", why, instead, "warning", WRONG, ignore.line))
    return result


def _comments(repository: Repository) -> Iterator[_Ignore]:
    for model in repository.models.values():
        for number, line in enumerate(model.text.splitlines(), 1):
            found = COMMENT.search(line)
            if found:
                entry = ENTRY.fullmatch(found[1])
                rule, reason = entry.groups() if entry else ("", "")
                yield _Ignore(model.file, number, model.name, rule, reason)


def _file(repository: Repository) -> Iterator[_Ignore]:
    path = repository.folder / FILE
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            model, _, rest = line.strip().partition(" ")
            entry = ENTRY.fullmatch(rest)
            rule, reason = entry.groups() if entry else ("", "")
            yield _Ignore(path, number, model, rule, reason)
