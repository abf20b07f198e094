"""Where a run reads from and writes to: the spec, the checkpoint and the repository that belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from build import ARTIFACTS, ROOT
from ensemble.errors import SpecError
from ensemble.history import History
from ensemble.spec import DEFAULT_SPEC, Spec

SIMULATED_LEARNERS = 3000
# The reference architectures. Attention pays for padding, a recurrent core does not: it stops where the history ends.
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "dkt": {"network": {"type": "dkt", "embedding": 256, "hidden": 256}},
    "gru": {"network": {"type": "gru", "embedding": 256, "hidden": 256}},
    "transformer": {
        "model": {"buckets": [64, 128, 256, 512]},
        "network": {"type": "transformer", "embedding": 256, "blocks": 4, "heads": 4},
    },
}


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
    network: str | None = None,
    factory: str | None = None,
    device: str | None = None,
) -> Workspace:
    """Settle every path from the few that were given.

    Without a spec of its own, a model's numbers come from where they are known: the network's defaults, the data's number of
    problems, the checkpoint's own dimensions. A copy of the default spec that says so is kept among the artifacts.

    Args:
        network: a reference architecture, instead of the default spec's.
        factory: "package.module:function" that makes the module whose state_dict the checkpoint is.
        device: "cpu" or "gpu", what the core runs on, instead of the default spec's.

    Raises:
        SpecError, DataError, CheckpointError: a given file is missing or wrong.
    """
    _check_choice(spec, checkpoint, data, network, factory, device)
    folder = ARTIFACTS / "simulated"
    if data is not None:
        folder = ARTIFACTS / (_safe(data.resolve().stem) + (f"-{learners}" if learners else ""))
    elif checkpoint is not None:
        folder = ARTIFACTS / "brought" / _safe("-".join(checkpoint.resolve().parts[-2:]))
    spec_file = spec or DEFAULT_SPEC
    tables: list[dict[str, dict[str, Any]]] = []
    if network is not None:
        tables.append(NETWORKS[network])
        folder = folder / network
    if data is not None and spec is None:
        tables.append({"model": {"problems": _problems(data, learners)}})
    if checkpoint is not None and spec is None and (network, data) == (None, None):
        from build.checkpoint import describe

        tables.append(describe(checkpoint, factory))
    if device is not None:
        tables.append({"steps": {"core": {"device": device}}})
    if tables:
        spec_file = _derive(tables, folder / device if device else folder)
    read = Spec.read(spec_file)
    if data is None and network is None and checkpoint is None:
        folder = folder / (_size(read) + (f"-{learners}" if learners else ""))
    return Workspace(
        spec=read,
        spec_file=spec_file,
        checkpoint=checkpoint or folder / "checkpoint.pt",
        out=out or (ROOT / "models" if data is None else folder / "models"),
        data=data,
        learners=learners,
        checkpoint_given=checkpoint is not None,
    )


def _check_choice(
    spec: Path | None,
    checkpoint: Path | None,
    data: Path | None,
    network: str | None,
    factory: str | None,
    device: str | None,
) -> None:
    if device not in (None, "cpu", "gpu"):
        raise SpecError(f"there is no device {device!r}; there are cpu and gpu")
    if device is not None and spec is not None:
        raise SpecError("a spec names its device, [steps.core] device: give --spec or --device, not both")
    if network is not None and network not in NETWORKS:
        raise SpecError(f"there is no network {network!r}; there are {', '.join(NETWORKS)}")
    if network is not None and spec is not None:
        raise SpecError("a spec names its network: give --spec or --network, not both")
    if factory is not None and (checkpoint is None or spec is not None):
        raise SpecError(
            "a factory goes with a checkpoint, and with no spec (or write it into the spec, [network] factory)"
        )
    if factory is not None and (network, data) != (None, None):
        raise SpecError("a factory makes a network of your own: it goes with neither --network nor --data")


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _size(spec: Spec) -> str:
    network = spec.network.model_dump(exclude={"type", "factory"})
    kind = "" if spec.network.type == "dkt" else f"{spec.network.type}-"
    return _safe(kind + "x".join(map(str, (spec.model.problems, *network.values()))))


def _problems(data: Path, learners: int | None) -> int:
    from build.interactions import problems, read_folds

    return problems([history for fold in read_folds(data, learners) for history in fold])


def _derive(tables: list[dict[str, dict[str, Any]]], folder: Path) -> Path:
    """The default spec with these tables' values, written only if it says something else than before."""
    spec: dict[str, Any] = tomlkit.parse(DEFAULT_SPEC.read_text(encoding="utf-8"))
    for changes in tables:
        for name, values in changes.items():
            if values.get("type", spec[name].get("type")) != spec[name].get("type"):
                spec[name] = tomlkit.table()  # another network has other keys
            for key, value in values.items():
                if isinstance(value, dict):
                    spec[name][key].update(value)
                else:
                    spec[name][key] = value
    model = spec["model"]
    widths = [width for width in model["buckets"] if width < model["window"]]
    model["buckets"] = [*widths, model["window"]] if widths else []
    count = spec["next_problems"]
    count["count"] = min(count["count"], model["problems"])
    text, path = tomlkit.dumps(spec), folder / "spec.toml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    return path
