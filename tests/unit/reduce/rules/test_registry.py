"""The rules beside what the pass's README says of them."""

from __future__ import annotations

import re

from build import ROOT
from build.core.reduce.rules import RULES, Elementwise

FOLDER = ROOT / "build" / "core" / "reduce"
TABLE = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_readme_names_every_family_and_every_operator():
    files = {rule: type(rule).__module__.rpartition(".")[2] for rule in RULES.values()}
    assert set(TABLE) == set(files.values())
    for name, rule in RULES.items():
        if type(rule) is not Elementwise:
            assert f"`{name.rpartition('.')[2]}`" in TABLE[files[rule]]


def test_an_operator_has_one_rule():
    every = [name for rule in set(RULES.values()) for name in rule.op_types]
    assert len(every) == len(set(every))
