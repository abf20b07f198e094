"""From a sweep to the spec: choose, measure again, and write only what gains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomlkit

from build import aside
from build.bench import contest, machine
from build.bench.contest import Contender
from build.bench.variant import table
from build.repository import assembly as repository
from build.repository.workspace import Workspace
from ensemble.errors import LastrowError
from ensemble.spec import Spec

ROUNDS, TURN_S = 7, 0.8
WORTH = 1.03  # a gain below is the machine's noise
LOSS = 0.97  # and so is a loss above


class TuningError(LastrowError):
    """The choice cannot be written."""


@dataclass(frozen=True)
class Gain:
    """A contender beside the present one: ratios above 1 are gains, each (median, lowest, highest) of its 95 % interval."""

    contender: Contender
    speed: tuple[float, float, float]
    throughput: tuple[float, float, float]

    @property
    def real(self) -> bool:
        """One of the two gains beyond noise, and the other does not lose."""
        gains = any(ratio[0] >= WORTH and ratio[1] > 1 for ratio in (self.speed, self.throughput))
        return gains and min(self.speed[0], self.throughput[0]) >= LOSS


def gains(present: Contender, others: Sequence[Contender], p99_ms: float) -> list[Gain]:
    """Those that keep the budget with one caller, the most throughput first."""
    found = []
    for other in others:
        if other.one.summary()["p99_ms"] <= p99_ms:
            speed = contest.gain(other.one.p50s_ms, present.one.p50s_ms)
            found.append(Gain(other, speed, contest.gain(present.many.throughputs, other.many.throughputs)))
    return sorted(found, key=lambda gain: -gain.throughput[0])


def record(gain: Gain) -> dict[str, Any]:
    """When, where and on what the spec was tuned."""
    here = machine.describe()
    return {
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "machine": machine.sentence(here),
        "speed": round(gain.speed[0], 2),
        "throughput": round(gain.throughput[0], 2),
    }


def write(workspace: Workspace, gain: Gain) -> repository.Built:
    """Write the choice into the spec and bring its repository up to date, the parity gate included; or change neither.

    Raises:
        TuningError: the spec cannot be written.
        What `repository.build` raises.
    """
    spec_file = workspace.spec_file
    try:
        document = tomlkit.parse(spec_file.read_text(encoding="utf-8"))
        for path, value in _changed(table(workspace.spec), table(gain.contender.spec)):
            _set(document, path, value)
        for key, value in record(gain).items():
            _set(document, ("tuned", key), value)
        with aside.beside(spec_file) as folder:
            tuned = folder / spec_file.name
            tuned.write_text(tomlkit.dumps(document), encoding="utf-8")
            built = repository.build(Spec.read(tuned), workspace.checkpoint, workspace.out)
            tuned.replace(spec_file)
    except OSError as e:
        raise TuningError(f"cannot write the spec {spec_file}: {e.strerror} ({e.filename})") from e
    return built


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a table has other than before, by its path of keys."""
    for key, value in after.items():
        if isinstance(value, dict):
            yield from (((key, *path), found) for path, found in _changed(before.get(key) or {}, value))
        elif key not in before or before[key] != value:
            yield (key,), value


def _set(document: Any, path: Sequence[str], value: object) -> None:
    """Set a key where it differs, and make its tables if they are missing: what was said otherwise stays as it is."""
    *tables, key = path
    for name in tables:
        if name not in document:
            document[name] = tomlkit.table()
        document = document[name]
    if key not in document or document[key] != value:
        document[key] = value
