"""Every rule: what it finds in a repository. A file is a family."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from ensemble.lint.rule import Rule

FAMILIES = {
    name: importlib.import_module(f"{__name__}.{name}")
    for name in sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
}
RULES: tuple[Rule, ...] = tuple(
    made for family in FAMILIES.values() for made in vars(family).values() if isinstance(made, Rule)
)
