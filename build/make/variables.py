"""Whether the variables of a `make` command line are any, and its goals take them; the help lines of the Makefile say so.

Runs by the Python that is there before .venv is: the standard library alone.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

HELP = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)
VARIABLE = re.compile(r"\b([A-Z][A-Z0-9_]*)=")
MAKES_OWN = {"MAKE", "MAKEFLAGS", "GNUMAKEFLAGS", "SHELL", ".SHELLFLAGS"}
EVERYWHERE = "setup"  # which is behind every target, and so are its variables


def taken(makefile: str) -> dict[str, list[str]]:
    """The variables that each target takes, in the order of its help line: "serve: ... ## serve [TLS= OPEN=]"."""
    return {target: VARIABLE.findall(said) for target, said in HELP.findall(makefile)}


def refuse(makefile: str, goals: list[str], given: list[str]) -> list[str]:
    """What is wrong with these variables, a clause each; nothing if one of the goals takes each of them.

    A goal that has no help line is a file, or make's to refuse.
    """
    targets = taken(makefile)
    known = {name for names in targets.values() for name in names}
    everywhere = {*MAKES_OWN, *targets.get(EVERYWHERE, [])}
    said = []
    for name in sorted(set(given) - everywhere):
        takers = [target for target, names in targets.items() if name in names]
        if not takers:
            near = difflib.get_close_matches(name.upper(), sorted(known), 1)
            said.append(f"there is no {name}=; " + (f"the nearest is {near[0]}=" if near else "`make help` lists all"))
        elif all(goal in targets and goal not in takers for goal in goals):
            said.append(f"`make {' '.join(goals)}` takes no {name}=; it goes with {', '.join(takers)}")
    return said


if __name__ == "__main__":
    file, goals, given = sys.argv[1:]
    print("; ".join(refuse(Path(file).read_text(encoding="utf-8"), goals.split(), given.split())))
