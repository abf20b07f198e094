"""What is found: a setting to change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A setting to change.

    Attributes: file: the configuration that has it. key: which setting. why: what is wrong with it. instead: what to
    write. severity: "error" where Triton refuses to load, or answers otherwise than is meant; "warning" where it only
    costs; "note" where something could not be looked at, or was ignored with a reason. rule: the id of the rule that
    found it, as `--explain` takes it. line: of the file, from 1.
    """

    file: Path
    key: str
    why: str
    instead: str
    severity: Severity = "warning"
    rule: str = ""
    line: int = 1

    def __str__(self) -> str:
        return f"{self.file}: {self.severity}: {self.key}: {self.why}. Instead: {self.instead}. [{self.rule}]"


def line_of(text: str, key: str) -> int:
    """Where in a configuration a key is, as well as its words say: the name in brackets, else the last word that is there.

    >>> line_of('name: "m"\\ninput [ { name: "x" } ]', "input.dims (x)")
    2
    """
    quoted = re.findall(r"\(([^()]+)\)", key)
    words = [f'"{name}"' for group in quoted for name in group.split(", ")]
    words += reversed(re.findall(r"\w+", key.partition(" (")[0]))
    for word in words:
        found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)
        if found:
            return text.count("\n", 0, found.start()) + 1
    return 1
