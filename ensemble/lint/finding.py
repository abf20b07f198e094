"""What is found: a setting to change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A setting to change.

    Attributes:
        file: the configuration that has it.
        key: which setting.
        why: what is wrong with it.
        instead: what to write.
        severity: "error" where Triton refuses to load, or to answer as is meant; "warning" where it only costs.
    """

    file: Path
    key: str
    why: str
    instead: str
    severity: Severity = "warning"

    def __str__(self) -> str:
        return f"{self.file}: {self.severity}: {self.key}: {self.why}. Instead: {self.instead}."
