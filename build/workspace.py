"""Where a run reads from and writes to: the spec, the checkpoint and the repository that belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from build import ARTIFACTS, ROOT
from ensemble.history import History
from ensemble.spec import DEFAULT_SPEC, Spec

SIMULATED_LEARNERS = 3000


@dataclass(frozen=True)
class Workspace:
    """One model's files. data is None where learners are simulated; learners limits how many are read from data."""

    spec: Spec
    spec_file: Path
    checkpoint: Path
    out: Path
    data: Path | None = None
    learners: int | None = None
    checkpoint_given: bool = False

    @property
    def report(self) -> Path:
        """What the training that made the checkpoint measured, as JSON."""
        return self.checkpoint.with_name("training.json")

    def folds(self) -> list[list[History]]:
        """The learners that this model is trained and tried on, one list a fold."""
        if self.data is not None:
            from build.interactions import read_folds

            return read_folds(self.data, self.learners)
        from build.simulation import simulate

        return [simulate(self.spec.model.problems, self.learners or SIMULATED_LEARNERS)]


def open_workspace(
    spec: Path | None = None,
    checkpoint: Path | None = None,
    out: Path | None = None,
    data: Path | None = None,
    learners: int | None = None,
) -> Workspace:
    """Settle every path from the few that were given.

    With `data` and no spec of its own, the number of problems is the data's: a copy of the default spec that says so is
    kept beside the checkpoint.

    Raises:
        SpecError, DataError: a given file is missing or wrong.
    """
    spec_file = spec or DEFAULT_SPEC
    if data is not None:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", data.resolve().stem) + (f"-{learners}" if learners else "")
        folder = ARTIFACTS / name
        if spec is None:
            spec_file = _spec_for(data, learners, folder)
        default_out = folder / "models"
    else:
        default_out = ROOT / "models"
    read = Spec.read(spec_file)
    if data is None:
        size = f"{read.model.problems}x{read.network.embedding}x{read.network.hidden}"
        folder = ARTIFACTS / "simulated" / (size + (f"-{learners}" if learners else ""))
    return Workspace(
        spec=read,
        spec_file=spec_file,
        checkpoint=checkpoint or folder / "checkpoint.pt",
        out=out or default_out,
        data=data,
        learners=learners,
        checkpoint_given=checkpoint is not None,
    )


def _spec_for(data: Path, learners: int | None, folder: Path) -> Path:
    """The default spec with the data's number of problems, written only if it says something else than before."""
    from build.interactions import problems, read_folds

    table = tomlkit.parse(DEFAULT_SPEC.read_text(encoding="utf-8"))
    table["model"]["problems"] = problems([h for fold in read_folds(data, learners) for h in fold])  # type: ignore[index]
    text, path = tomlkit.dumps(table), folder / "spec.toml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    return path
