"""The code behind a module: the files that it imports, from file to file, read and never run."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


@dataclass
class Sources:
    """files: of this project or the user's, by module name; packages: the installed ones that they import, by theirs."""

    files: dict[str, Path] = field(default_factory=dict)
    packages: set[str] = field(default_factory=set)

    def versions(self) -> dict[str, str]:
        """The version of each distribution that the packages come from."""
        known = importlib.metadata.packages_distributions()
        names = {name for package in self.packages for name in known.get(package, ())}
        return {name: importlib.metadata.version(name) for name in sorted(names)}


def find(module: str) -> Sources:
    """What `module` imports, wherever in a file it does so, with itself; nothing where there is no such module."""
    importlib.invalidate_caches()  # a file that was written a moment ago counts
    found = Sources()
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        top, above = name.partition(".")[0], name.rpartition(".")[0]
        if name in seen or top in found.packages or top in sys.stdlib_module_names:
            continue
        seen.add(name)
        if above:
            waiting.append(above)  # a package's own __init__ runs first
        at = _locate(name)
        if at is None or at.origin is None or not at.has_location:  # no module, or a namespace package
            continue
        file = Path(at.origin)
        if any(part in INSTALLED for part in file.parts):
            found.packages.add(top)
        else:
            found.files[name] = file
            if file.suffix == ".py":
                waiting += imports(file, name if at.submodule_search_locations is not None else above)
    return found


def _locate(name: str) -> ModuleSpec | None:
    """A module's place; unlike importlib's own, this runs no package on the way."""
    above = name.rpartition(".")[0]
    if not above:
        try:
            return importlib.util.find_spec(name)
        except ValueError:  # __main__, of a program that is no module
            return None
    package = _locate(above)
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, package.submodule_search_locations)


def imports(file: Path, package: str) -> Iterator[str]:
    """The modules that a file names, relative ones resolved in its package; names in modules too, which may be modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # whoever imports it says what is wrong with it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:  # beyond the top: an error of the file's own
                    continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
