"""Where a run reads from and writes to: the spec, the checkpoint and the repository that belong together."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from build import ARTIFACTS, ROOT, aside
from build.progress import console
from ensemble.errors import SpecError
from ensemble.knowledge_tracing import narrowed
from ensemble.learners.history import History
from ensemble.sequence import Sequence
from ensemble.spec import DEFAULT_SPEC, Spec

SIMULATED_LEARNERS = 3000
# The first lines of a derived spec. By the second one, a file that somebody has changed since is known.
INTRODUCTION = (
    "# Derived from ensemble/presets/{}. Change what you like: a changed file is used as it is, and is kept.\n"
)
STAMP = "# lastrow: "
# The reference architectures. Attention pays for padding, a recurrent core does not: it stops where the history ends.
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "dkt": {"network": {"type": "dkt", "embedding": 256, "hidden": 256}},
    "gru": {"network": {"type": "gru", "embedding": 256, "hidden": 256}},
    "transformer": {
        "model": {"buckets": [64, 128, 256, 512]},
        "network": {"type": "transformer", "embedding": 256, "blocks": 4, "heads": 4},
    },
}


# Of these the spec is a file of its own; knowledge tracing's architectures are values in one.
PRESETS = {name: DEFAULT_SPEC.with_name(f"{name}.toml") for name in ("sasrec", "gru4rec", "forecaster")}


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

    def data_digest(self) -> str | None:
        """SHA-256 of the files in data; none where learners are simulated."""
        if self.data is None:
            return None
        if self.data.is_file() and isinstance(self.spec, Sequence):
            return hashlib.sha256(self.data.read_bytes()).hexdigest()
        from build.model.interactions import files

        return _digest("".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files(self.data)))

    def folds(self) -> list[list[History]]:
        """The learners that this model is trained and tried on, one list a fold.

        Raises:
            SpecError: it is of another kind than knowledge tracing.
        """
        spec = narrowed(self.spec)
        if self.data is not None:
            from build.model.interactions import read_folds

            return read_folds(self.data, self.learners)
        from build.model.simulation import simulate

        return [simulate(spec.model.problems, self.learners or SIMULATED_LEARNERS)]


def open_workspace(
    spec: Path | None = None,
    checkpoint: Path | None = None,
    out: Path | None = None,
    data: Path | None = None,
    learners: int | None = None,
    network: str | None = None,
    factory: str | None = None,
    device: str | None = None,
    layout: str | None = None,
) -> Workspace:
    """Settle every path from the few that were given.

    Without a spec of its own, a model's numbers come from where they are known: the network's defaults, the data's number of
    problems, the checkpoint's own dimensions. A copy of the default spec that says so is kept among the artifacts; once
    somebody has changed it, it is theirs. models/ is the default's alone: every other repository is an artifact too.

    Args:
        network: a reference architecture, instead of the default spec's.
        factory: "package.module:function" that makes the module whose state_dict the checkpoint is.
        device: "cpu" or "gpu", what the core runs on, instead of the default spec's.
        layout: "ensemble" or "single", how steps are served, instead of the default spec's.

    Raises:
        SpecError, DataError, CheckpointError: a given file is missing or wrong.
    """
    _check_choice(spec, checkpoint, data, network, factory, device, layout)
    folder = ARTIFACTS / "simulated"
    if data is not None:
        folder = ARTIFACTS / (named(data.resolve().stem, data) + (f"-{learners}" if learners else ""))
    elif checkpoint is not None:
        folder = ARTIFACTS / "brought" / named("-".join(checkpoint.resolve().parts[-2:]), checkpoint)
    base = PRESETS.get(str(network), DEFAULT_SPEC)
    spec_file = base if spec is None or spec.resolve() == DEFAULT_SPEC.resolve() else spec
    tables: list[dict[str, dict[str, Any]]] = []
    if network is not None:
        tables += [NETWORKS[network]] if network in NETWORKS else []
        folder = folder / (f"{network}-{learners}" if learners and data is None else network)
    if data is not None and spec is None:
        tables.append(_sizes(base, data, learners))
    if checkpoint is not None and spec is None and (network, data) == (None, None):
        from build.model.checkpoint import describe

        tables.append(describe(checkpoint, factory))
    if device is not None:
        tables.append({"steps": {"core": {"device": device}}})
    if layout is not None:
        tables.append({"serve": {"layout": layout}})
    if tables:
        spec_file = _derive(tables, folder / (device or "") / (layout or ""), base)
    read = Spec.read(spec_file)
    if data is None and network is None and checkpoint is None:
        folder = folder / (_size(read) + (f"-{learners}" if learners else ""))
    if spec_file == DEFAULT_SPEC and (checkpoint, data, learners) == (None, None, None):
        built = ROOT / "models"
    else:
        built = (spec_file.parent if tables else folder / named(spec_file.stem, spec_file)) / "models"
    workspace = Workspace(
        spec=read,
        spec_file=spec_file,
        checkpoint=checkpoint or folder / "checkpoint.pt",
        out=out or built,
        data=data,
        learners=learners,
        checkpoint_given=checkpoint is not None,
    )
    if data is not None and checkpoint is None and _trained_on(workspace.report) not in (None, workspace.data_digest()):
        said = f"{workspace.checkpoint} was trained on other learners than {data} has now: `make train` trains it anew"
        console.print(said, highlight=False, soft_wrap=True)
    return workspace


def _trained_on(report: Path) -> str | None:
    """The digest of the data that a training's report names; none where there is no report."""
    try:
        return str(json.loads(report.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_choice(
    spec: Path | None,
    checkpoint: Path | None,
    data: Path | None,
    network: str | None,
    factory: str | None,
    device: str | None,
    layout: str | None,
) -> None:
    for name, given, allowed, table in (
        ("device", device, ("cpu", "gpu"), "steps.core"),
        ("layout", layout, ("ensemble", "single"), "serve"),
    ):
        if given not in (None, *allowed):
            raise SpecError(f"there is no {name} {given!r}; there are {' and '.join(allowed)}")
        if given is not None and spec is not None:
            raise SpecError(f"a spec names its {name}, [{table}] {name}: give --spec or --{name}, not both")
    if network is not None and network not in (*NETWORKS, *PRESETS):
        raise SpecError(f"there is no network {network!r}; there are {', '.join((*NETWORKS, *PRESETS))}")
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


def named(name: str, path: Path) -> str:
    """A folder's name for what lies at `path`: what is called the same elsewhere has another."""
    return f"{_safe(name)}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def _size(spec: Spec) -> str:
    network = spec.network.model_dump(exclude={"type", "factory"})
    kind = "" if spec.network.type == "dkt" else f"{spec.network.type}-"
    sizes = spec.sizes.values() if isinstance(spec, Sequence) else [narrowed(spec).model.problems]
    return _safe(kind + "x".join(map(str, (*sizes, *network.values()))))


def _sizes(base: Path, data: Path, count: int | None) -> dict[str, dict[str, Any]]:
    """What the data say of the model, as tables of a spec."""
    if base != DEFAULT_SPEC:
        from build.model import preset

        read = Spec.read(base)
        assert isinstance(read, Sequence)
        return {"sizes": preset.of(read, data, count).sizes()}
    from build.model.interactions import problems, read_folds

    return {"model": {"problems": problems([history for fold in read_folds(data, count) for history in fold])}}


def _derive(tables: list[dict[str, dict[str, Any]]], folder: Path, base: Path) -> Path:
    """A preset's spec with these tables' values, written only if it says something else than before.

    Raises:
        SpecError: somebody changed the file that is there, and it is not of what is asked for now.
    """
    spec: dict[str, Any] = tomlkit.parse(base.read_text(encoding="utf-8"))
    for changes in tables:
        for name, values in changes.items():
            spec.setdefault(name, tomlkit.table())
            if values.get("type", spec[name].get("type")) != spec[name].get("type"):
                spec[name] = tomlkit.table()  # another network has other keys
            for key, value in values.items():
                if isinstance(value, dict):
                    spec[name].setdefault(key, tomlkit.table()).update(value)
                else:
                    spec[name][key] = value
    if base == DEFAULT_SPEC:
        model, count = spec["model"], spec["next_problems"]
        widths = [width for width in model["buckets"] if width < model["window"]]
        model["buckets"] = [*widths, model["window"]] if widths else []
        count["count"] = min(count["count"], model["problems"])
    text, path = tomlkit.dumps(spec), folder / "spec.toml"
    wanted = _facts(text)
    if path.is_file():
        try:
            stamp, found = _split(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as e:
            raise SpecError(f"{path} was changed since it was derived, and is no text now: {e}") from e
        if found == text and stamp.get("facts") == wanted:
            return path
        if found != text and stamp.get("sha256") != _digest(found):
            _check_facts(path, found, stamp.get("facts", {}), wanted)
            console.print(f"{path} was changed since it was derived: used as it is", highlight=False, soft_wrap=True)
            return path
    stamp = {"sha256": _digest(text), "facts": wanted}
    introduction = INTRODUCTION.format(base.name)
    aside.write(path, f"{introduction}{STAMP}{json.dumps(stamp)}\n{text}")
    return path


def _facts(text: str) -> dict[str, Any]:
    """What a derived spec owes to its checkpoint, data or network, by key: all else in it is a choice."""
    spec = tomlkit.parse(text).unwrap()
    model = {f"model.{key}": spec["model"][key] for key in ("problems", "window") if key in spec["model"]}
    model |= {f"sizes.{key}": value for key, value in spec.get("sizes", {}).items()}
    network = {f"network.{key}": value for key, value in spec["network"].items()}
    return {
        **model,
        **network,
        "steps.core.device": spec.get("steps", {}).get("core", {}).get("device", "cpu"),
        "serve.layout": spec.get("serve", {}).get("layout", "ensemble"),
    }


def _split(text: str) -> tuple[dict[str, Any], str]:
    """What a derived spec says of itself, the digest of what was written and of which facts, and the spec."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2 or not lines[1].startswith(STAMP):
        return {}, text
    try:
        stamp = json.loads(lines[1].removeprefix(STAMP))
    except ValueError:
        stamp = None
    return (stamp, "".join(lines[2:])) if isinstance(stamp, dict) else ({}, text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_facts(path: Path, text: str, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """A changed spec may say what it likes, as long as nothing that it was derived from has become something else."""
    try:
        said = _facts(text)
    except (TOMLKitError, KeyError, TypeError, AttributeError) as e:
        raise SpecError(
            f"{path} was changed since it was derived, and is no whole spec now ({e}): mend it, or remove it"
        ) from e
    others = [
        f"{key} is {said.get(key)} in it and {value} now"
        for key, value in wanted.items()
        if said.get(key) != value and before.get(key) != value
    ]
    if others:
        raise SpecError(
            f"{path} was changed since it was derived, and does not fit any more: {', '.join(others)}. Move it away to have "
            "one derived anew, or give a spec as SPEC="
        )
