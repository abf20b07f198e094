"""A rule: what it finds in a repository, by what name, and the page that explains it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Repository

Check = Callable[[Repository], Iterator[Finding]]
GUIDE = "https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide"
CORE = "https://github.com/triton-inference-server/core/blob/main/src"
CONFIGURATION = f"{GUIDE}/model_configuration.html"


@dataclass(frozen=True)
class Rule:
    """A check with a name.

    Attributes:
        id: stable, as ignores and `--explain` take it.
        check: yields what it finds.
        text: its page, whose first line is its title.
        written: where what it says is written: an address.
        since: the versions of Triton that it holds for, e.g. "24.04 and later"; empty for every one.
    """

    id: str
    check: Check
    text: str
    written: str
    since: str = ""

    @property
    def title(self) -> str:
        """The first line of its page."""
        return self.text.splitlines()[0]

    def find(self, repository: Repository) -> list[Finding]:
        """What is found in a repository, under this rule's id."""
        return [replace(finding, rule=self.id) for finding in self.check(repository)]

    def page(self) -> str:
        """Why, what to write, since which version, and where it is written."""
        held = f"\n\nHolds for Triton {self.since}." if self.since else ""
        return f"{self.id}: {self.text}{held}\n\nWritten in {self.written}"


def rule(name: str, written: str = CONFIGURATION, since: str = "") -> Callable[[Check], Rule]:
    """Make a rule of a function, whose docstring is its page.

    >>> @rule("no-models", written="https://example.org")
    ... def no_models(repository):
    ...     '''A repository without models.'''
    ...     yield from ()
    >>> print(no_models.page())
    no-models: A repository without models.
    <BLANKLINE>
    Written in https://example.org
    """

    def made(check: Check) -> Rule:
        text = inspect.getdoc(check)
        if not text:
            raise TypeError(f"rule {name} has no docstring, which is its page")
        return Rule(name, check, text, written, since)

    return made
