"""How findings are said: to a person, a program, a code host, a build."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ensemble.lint.finding import Finding
from ensemble.lint.repository import LintError
from ensemble.lint.rules import RULES

UNASKED = "not asked: whether Triton loads it; --load asks the tritonserver at hand"
LEVELS = {"error": "error", "warning": "warning", "note": "note"}
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
REFUSED = "refused-by-triton: what the tritonserver that --load started says of a model that it does not load."
NOT_ASKED = "not-asked: what --load could not ask, for want of a backend, a GPU or time."
IGNORE = "ignore-without-effect: an ignore without a rule's id and a reason: `# lint: ignore RULE: reason`."


def text(repository: Path, found: Sequence[Finding], asked: bool) -> str:
    """A line each, what was counted, and what was not asked."""
    count = Counter(finding.severity for finding in found)
    lines = [str(finding) for finding in found]
    if count["error"] or count["warning"]:
        lines.append(f"{repository}: {count['error']} errors, {count['warning']} warnings; a rule's page: --explain ID")
    else:
        lines.append(f"{repository}: nothing to change")
    return "\n".join(lines if asked else [*lines, UNASKED])


def as_json(repository: Path, found: Sequence[Finding], asked: bool) -> str:
    """One object: the repository, whether Triton was asked, and each finding."""
    findings = [{**asdict(finding), "file": str(finding.file)} for finding in found]
    return json.dumps({"repository": str(repository), "triton_asked": asked, "findings": findings}, indent=1)


def sarif(repository: Path, found: Sequence[Finding], asked: bool) -> str:
    """SARIF 2.1.0, as code hosts take it."""
    rules = [
        {"id": rule.id, "shortDescription": {"text": rule.title}, "fullDescription": {"text": rule.page()}}
        for rule in RULES
    ]
    results = [
        {
            "ruleId": finding.rule,
            "level": LEVELS[finding.severity],
            "message": {"text": f"{finding.key}: {finding.why}. Instead: {finding.instead}."},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": finding.file.as_posix()},
                        "region": {"startLine": finding.line},
                    }
                }
            ],
        }
        for finding in found
    ]
    driver = {"name": "ensemble lint", "rules": rules}
    properties = {"repository": str(repository), "tritonAsked": asked}
    run = {"tool": {"driver": driver}, "results": results, "properties": properties}
    return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1)


def github(repository: Path, found: Sequence[Finding], asked: bool) -> str:
    """Annotations of a workflow's log."""
    levels = {"error": "error", "warning": "warning", "note": "notice"}
    lines = [
        f"::{levels[finding.severity]} file={_escaped(str(finding.file), ',:')},line={finding.line},"
        f"title={_escaped(finding.rule, ',:')}::"
        + _escaped(f"{finding.key}: {finding.why}. Instead: {finding.instead}.", "")
        for finding in found
    ]
    return "\n".join(lines or [f"{repository}: nothing to change"]) + ("" if asked else f"\n{UNASKED}")


def _escaped(words: str, also: str) -> str:
    """As a workflow's commands want it: %, line ends, and in a property : and , too."""
    for character in f"%\r\n{also}":
        words = words.replace(character, f"%{ord(character):02X}")
    return words


FORMATS: dict[str, Callable[[Path, Sequence[Finding], bool], str]] = {
    "text": text,
    "json": as_json,
    "sarif": sarif,
    "github": github,
}


def explain(name: str) -> str:
    """A rule's page, or a line for each rule.

    Raises:
        LintError: there is no such rule; names the nearest.
    """
    others = {page.partition(":")[0]: page for page in (REFUSED, NOT_ASKED, IGNORE)}
    pages = {rule.id: rule.page() for rule in RULES} | others
    if name == "all":
        return "\n".join(sorted([*(f"{rule.id}: {rule.title}" for rule in RULES), *others.values()]))
    if name not in pages:
        near = difflib.get_close_matches(name, pages, 1)
        meant = f"; is it {near[0]}?" if near else ""
        raise LintError(f"there is no rule {name}{meant} `--explain all` lists them")
    return pages[name]
