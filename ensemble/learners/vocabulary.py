"""The vocabulary of problems: what a platform calls a problem, and the model's number for it.

Training libraries number the problems that they meet and keep the numbering beside the data: pyKT in keyid2idx.json, others
in a pickle (q2idx.pkl), which is not read here, since opening one runs whatever it holds. In the environment that made it:
    json.dump({str(k): int(v) for k, v in pickle.load(open("q2idx.pkl", "rb")).items()}, open("q2idx.json", "w"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ensemble.errors import VocabularyError
from ensemble.learners.history import History

SECTIONS = ("questions", "concepts")  # of keyid2idx.json; which of them the model counts, its number of problems tells


class Vocabulary:
    """Names of problems by number and numbers by name.

    Example:
        vocabulary = Vocabulary.read(Path("keyid2idx.json"), problems=14041)
        with Client() as client:
            answer = client.predict(vocabulary.history("ada", ["P51", "P7"], [1, 0]), next_problems=True)
        vocabulary.names(answer.next_problem_ids)
    """

    def __init__(self, numbers: dict[str, int], source: str = "vocabulary") -> None:
        """numbers: the model's number of every name; each number once.

        Raises:
            VocabularyError: two names have one number.
        """
        self.source = source
        self._numbers = numbers
        self._names: dict[int, str] = {}
        for name, number in numbers.items():
            if number in self._names:
                raise VocabularyError(f"{source}: {self._names[number]!r} and {name!r} both have number {number}")
            self._names[number] = name

    @classmethod
    def read(cls, path: Path, problems: int) -> Vocabulary:
        """Read {"name": number, ...}, or the section of keyid2idx.json that has as many entries as the model problems.

        Raises:
            VocabularyError: the file cannot be read, or its numbers are not 0 to problems - 1.
        """
        if path.suffix in (".pkl", ".pickle"):
            raise VocabularyError(
                f"{path} is a pickle, and opening one runs what it holds; turn it into JSON where it was made: "
                'json.dump({str(k): int(v) for k, v in numbers.items()}, open("q2idx.json", "w"))'
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise VocabularyError(f"cannot read {path}: {e}") from e
        sections = [content.get(name) for name in SECTIONS] if isinstance(content, dict) else []
        found = [section for section in sections if isinstance(section, dict)]
        if found:
            fitting = [section for section in found if len(section) == problems]
            if not fitting:
                sizes = ", ".join(f"{len(content[s])} {s}" for s in SECTIONS if isinstance(content.get(s), dict))
                raise VocabularyError(
                    f"{path} has {sizes}; the model has {problems} problems. Is it another data set's?"
                )
            content = fitting[0]
        if not isinstance(content, dict) or not content:
            raise VocabularyError(f"{path} is no object of names and numbers")
        for name, number in content.items():
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < problems:
                raise VocabularyError(f"{path}: {name!r} has number {number!r}; allowed are 0 to {problems - 1}")
        return cls(content, str(path))

    def number(self, name: object) -> int:
        """The model's number of a problem.

        Raises:
            VocabularyError: the model has never seen it.
        """
        try:
            return self._numbers[str(name)]
        except KeyError:
            raise VocabularyError(
                f"problem {name!r} is not among the {len(self._numbers)} of {self.source}: the model has never seen it"
            ) from None

    def history(self, learner: str, names: Sequence[object], responses: Sequence[int]) -> History:
        """A history in the platform's own names."""
        return History(learner, np.array([self.number(name) for name in names], np.int32), np.array(responses))

    def names(self, numbers: Iterable[int]) -> list[str]:
        """What the platform calls these problems; a number that it has no name for stays one."""
        return [self._names.get(int(number), str(int(number))) for number in numbers]
