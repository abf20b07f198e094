"""Climbing: every rung measured in turns, round by round, so that whatever the machine does hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
import tritonclient.grpc as grpcclient

from build.bench import contest, load, origin
from build.bench.caller import Caller, CoreClient, EnsembleClient, EnsembleHttp, NaiveHttp, answers_of, full_windows
from build.bench.cell import Cell
from build.bench.ladder.local import BATCHES, Local, LocalError
from build.bench.ladder.rung import Rung, candidates, in_int8, names, on_a_gpu, variants
from build.bench.variant import NAIVE, Variant, build
from build.core.parity import ParityError, probabilities, tolerance
from build.core.precision import PrecisionError
from build.model.interactions import read_folds
from build.repository import config
from build.repository.workspace import Workspace
from build.server import Server, find
from ensemble.errors import LastrowError
from ensemble.learners.history import History
from ensemble.spec import Spec
from ensemble.tables import CORE, POSTPROCESS, PREPROCESS

MIX = "mix"
MIXED = 64  # learners that are drawn for the mix of lengths
TUNING_ROUNDS = 3
Progress = Callable[[float | None, str], None]


class LadderError(LastrowError):
    """A rung answers something else than the others."""


@dataclass(frozen=True)
class Settings:
    """How long is measured: rounds, seconds a turn, concurrencies, seconds a turn when tuning."""

    rounds: int = 4
    turn_s: float = 0.6
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16)
    tuning_s: float = 0.7

    @classmethod
    def quick(cls) -> Settings:
        """For about two minutes, builds and server starts included once they are cached."""
        return cls(rounds=3, turn_s=0.3, concurrencies=(1, 16), tuning_s=0.3)


class Climb:
    """One run: servers and processes that stand ready, and what was measured of them so far."""

    def __init__(
        self,
        workspace: Workspace,
        rungs: Sequence[Rung],
        settings: Settings,
        folder: Path,
        lengths: Path | None = None,
        device: str | None = None,
    ) -> None:
        """lengths: a folder of real learners, as long as whom the mix's are. device: "cpu" leaves out rung 11."""
        self.workspace = workspace
        self.settings = settings
        self.origin = origin.record()
        self.folder = folder
        self.rungs = [_possible(rung, workspace, device) for rung in rungs]
        self.tuning: list[dict[str, Any]] = []
        self.batches: dict[int, list[float]] = {}
        self.cells: dict[tuple[str, str, int], Cell] = {}
        self._servers: dict[str, Server] = {}
        self._specs: dict[str, Spec] = {}
        self._statistics: dict[str, grpcclient.InferenceServerClient] = {}
        self._locals: dict[str, Local] = {}
        self._callers: dict[str, list[Caller]] = {}
        self.loads = {
            str(workspace.spec.model.window): full_windows(workspace.spec),
            MIX: mix(workspace, lengths or workspace.data),
        }
        self._real = (lengths or workspace.data) is not None

    @contextmanager
    def ready(self, progress: Progress) -> Iterator[None]:
        """Everything built, tuned and started."""
        with ExitStack() as stack:
            wanted = names(self.rungs)
            made = variants(self.workspace.spec)
            if "tuned" in wanted:
                progress(None, "tune instances and threads")
                made["tuned"] = Variant(self._tune(progress))
            below = made.get("tuned", made["widths"]).spec
            made |= on_a_gpu(below) | {"int8": in_int8(below)}
            for name in wanted:
                progress(None, f"build and start: {name}")
                try:
                    repository = build(made[name], self.workspace.checkpoint, self.folder / name)
                except (ParityError, PrecisionError) as e:
                    if made[name].spec.export.precision == "float32":
                        raise
                    self.rungs = [replace(r, skipped=str(e)) if r.variant == name else r for r in self.rungs]
                    continue
                log = self.folder / f"{name}.log"
                shares = any(rung.variant == name and rung.transport == "shared memory" for rung in self.rungs)
                arguments = find().client_shared_memory() if shares else []
                server = stack.enter_context(
                    Server(repository, arguments=arguments, log=log, waiting=lambda: progress(None, ""))
                )
                stack.callback(server.wake)  # only who is awake can be told to end
                self._servers[name], self._specs[name] = server, made[name].spec
                self._statistics[name] = grpcclient.InferenceServerClient(server.grpc_url)
                stack.callback(self._statistics[name].close)
            core = build(made["widths"], self.workspace.checkpoint, self.folder / "widths")
            for rung in [rung for rung in self.rungs if rung.local and rung.skipped is None]:
                assert rung.local is not None
                progress(None, f"start: {rung.name}")
                spec_file, repository = self.workspace.spec_file, core
                if rung.variant:
                    repository = build(made[rung.variant], self.workspace.checkpoint, self.folder / rung.variant)
                    spec_file = self.folder / f"{rung.variant}.toml"
                    table = made[rung.variant].spec.model_dump(mode="json", exclude_none=True)
                    spec_file.write_text(tomlkit.dumps(table), encoding="utf-8")
                model = repository / CORE / "1" / "model.onnx"
                try:
                    local = Local(rung.local, spec_file, self.workspace.checkpoint, model)
                except LocalError as e:
                    self.rungs[self.rungs.index(rung)] = replace(rung, skipped=str(e))
                    continue
                stack.callback(local.close)
                self._locals[rung.name] = local
            stack.callback(self._disconnect)
            for server in self._servers.values():
                stack.callback(server.wake)  # a client's end waits for its server
            progress(None, "compare answers")
            self._compare(core / CORE / "1" / "model.onnx")
            for server in self._servers.values():
                server.rest()
            yield

    def climb(self, progress: Progress, shown: Callable[[], None] = lambda: None) -> None:
        """Measure, round by round; `shown` is called whenever a round is complete."""
        cells = [
            (rung, kind, concurrency)
            for kind in self.loads
            for concurrency in self.settings.concurrencies
            for rung in self.rungs
            if rung.skipped is None and (rung.local is None or concurrency == 1)
        ]
        floor = next((rung for rung in self.rungs if rung.local == "onnxruntime" and rung.skipped is None), None)
        for number in range(self.settings.rounds):
            # Another one goes first in every round: none is always measured behind the same neighbour's heat.
            shift = number * len(cells) // self.settings.rounds
            for done, (rung, kind, concurrency) in enumerate(cells[shift:] + cells[:shift]):
                progress((number + done / len(cells)) / self.settings.rounds, f"{rung.name}, {kind} x {concurrency}")
                cell = self.cells.setdefault((rung.name, kind, concurrency), Cell())
                if rung.local:
                    self._time_local(rung, kind, cell)
                else:
                    self._time_served(rung, kind, concurrency, cell, first=number == 0)
            if floor is not None:
                self._time_batches(floor)
            shown()

    def report(self) -> dict[str, Any]:
        """Everything measured, as it goes into the JSON file."""
        spec = self.workspace.spec
        return {
            **self.origin,
            "model": {
                "network": spec.network.type,
                "problems": spec.model.problems,
                "window": spec.model.window,
                "learners": "real" if self._real else "simulated",
                "mix_median": int(np.median([len(h) for h in self.loads[MIX]])),
            },
            "settings": {
                "rounds": self.settings.rounds,
                "turn_s": self.settings.turn_s,
                "concurrencies": list(self.settings.concurrencies),
            },
            "tuning": self.tuning,
            "onnxruntime_batches_ms": {str(size): statistics.median(times) for size, times in self.batches.items()},
            "rungs": [self._reported(rung) for rung in self.rungs],
        }

    def _reported(self, rung: Rung) -> dict[str, Any]:
        loads: dict[str, dict[str, Any]] = {}
        for (name, kind, concurrency), cell in self.cells.items():
            if name == rung.name and cell.latencies_ms:
                loads.setdefault(kind, {})[str(concurrency)] = cell.summary()
        found: dict[str, Any] = {
            "number": rung.number,
            "name": rung.name,
            "change": rung.change,
            "transport": None if rung.local else rung.transport,
            "skipped": rung.skipped,
            "loads": loads,
        }
        if rung.local is None and rung.variant in self._specs:
            found["hops_bytes"] = hops(self._specs[rung.variant], rung)
        return found

    def _tune(self, progress: Progress) -> Spec:
        """The candidate of the highest throughput among those whose p50 is within a tenth of the lowest; all in turns."""
        specs = candidates(self.workspace.spec, quick=self.settings.rounds < Settings().rounds)
        full, folder = self.loads[str(self.workspace.spec.model.window)], self.folder / "candidates"
        seconds = self.settings.tuning_s
        found = contest.run(specs, self.workspace.checkpoint, folder, full, TUNING_ROUNDS, seconds, progress)
        lowest = min(contender.p50_ms for contender in found)
        best = max((c for c in found if c.p50_ms <= 1.1 * lowest), key=lambda contender: contender.throughput)
        self.tuning = [
            {
                "setting": contest.setting(contender.spec),
                "p50_ms": contender.p50_ms,
                f"throughput_{contest.BUSY}": contender.throughput,
                "chosen": contender is best,
            }
            for contender in found
        ]
        return best.spec

    def _compare(self, core: Path) -> None:
        """Every rung answers the same, or there is nothing to compare.

        Raises:
            LadderError: one does not.
        """
        learners = [h for histories in self.loads.values() for h in histories[:4]]
        expected = answers_of(core, self.workspace.spec, learners)
        for rung in [rung for rung in self.rungs if rung.local is None and rung.skipped is None]:
            key, allowed = tolerance(self._specs[rung.variant])
            (caller,) = self._connected(rung, 1)
            for history, answer in zip(learners, expected, strict=True):
                (served,) = caller.ask([history])
                difference = np.abs((probabilities(served) if rung.part == "core" else served) - answer).max()
                if not difference <= allowed:
                    raise LadderError(
                        f"rung {rung.number}, {rung.name}, is {difference:.1e} off ONNX Runtime's answer; allowed is "
                        f"{allowed:.0e} ({key})"
                    )

    def _time_local(self, rung: Rung, kind: str, cell: Cell) -> None:
        local = self._locals[rung.name]
        before = cell.latencies_ms[-1] if cell.latencies_ms else local.times(self.loads[kind], 1, 2)
        calls = max(3, int(self.settings.turn_s * 1e3 / statistics.median(before)))
        times = local.times(self.loads[kind], 1, calls)
        cell.latencies_ms.append(times)
        cell.device_ms += local.device_ms
        cell.throughputs.append(len(times) / sum(times) * 1e3)

    def _time_batches(self, floor: Rung) -> None:
        full = self.loads[str(self.workspace.spec.model.window)]
        for size in BATCHES:
            times = self._locals[floor.name].times(full, size, 3 if size > 4 else 8)
            self.batches.setdefault(size, []).append(statistics.median(times))

    def _time_served(self, rung: Rung, kind: str, concurrency: int, cell: Cell, first: bool) -> None:
        most = self._specs[rung.variant].batching.max_batch_size
        size = min(rung.learners_a_request, most) if concurrency > 1 else 1
        learners = self.loads[kind]
        if rung.part != "ensemble" or self._specs[rung.variant].shortest_history:
            learners = [h for h in learners if len(h)]
        server = self._servers[rung.variant]
        server.wake()  # a connection over shared memory is registered there
        callers = self._connected(rung, concurrency)
        if first:
            load.run(callers, learners, size, 0.0, warm_up=2)
        asked = {"naive": NAIVE, "core": CORE, "ensemble": self.workspace.spec.model.name}[rung.part]
        connection = self._statistics[rung.variant]
        cell.measure(server, connection, callers, learners, self.settings.turn_s, asked, size)

    def _connected(self, rung: Rung, count: int) -> list[Caller]:
        callers = self._callers.setdefault(rung.name, [])
        while len(callers) < count:
            callers.append(connect(rung, self._servers[rung.variant], self._specs[rung.variant]))
        return callers[:count]

    def _disconnect(self) -> None:
        for callers in self._callers.values():
            for caller in callers:
                caller.close()


def connect(rung: Rung, server: Server, spec: Spec) -> Caller:
    """A caller of the rung's kind."""
    if rung.part == "core":
        return CoreClient(server.grpc_url, spec)
    if rung.transport == "http":
        return (NaiveHttp if rung.part == "naive" else EnsembleHttp)(server.http_url, spec)
    return EnsembleClient(server.grpc_url, spec, shared_memory=rung.transport == "shared memory")


def hops(spec: Spec, rung: Rung) -> dict[str, int]:
    """Bytes of the tensors on each way, for one learner of a full window."""
    configs = config.repository(spec)
    window = spec.model.window
    sizes = {"TYPE_INT64": 8, "TYPE_INT32": 4, "TYPE_FP32": 4, "TYPE_FP16": 2}

    def size(tensors: Sequence[Any]) -> int:
        return sum(
            sizes[type(t).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[t.data_type].name]
            * int(np.prod([window if dim == -1 else dim for dim in t.dims]))
            for t in tensors
        )

    core = configs[CORE]
    if rung.part != "ensemble":
        return {"request": size(core.input), "reply": size(core.output)}
    return {
        "request": size(configs[PREPROCESS].input),
        "preprocess to core": size(core.input),
        "core to postprocess": size(core.output),
        "reply": size(configs[POSTPROCESS].output),
    }


def _possible(rung: Rung, workspace: Workspace, device: str | None) -> Rung:
    """The rung, skipped by name where it cannot be climbed."""
    if rung.number.startswith("11"):
        import torch

        if device == "cpu":
            return replace(rung, skipped="DEVICE=cpu")
        if not torch.cuda.is_available():
            return replace(rung, skipped="no GPU on this machine")
    needs_torch = rung.local is not None and "onnxruntime" not in rung.local
    if needs_torch and workspace.spec.network.type == "onnx":
        return replace(rung, skipped="an ONNX file is all there is of this model")
    return rung


def mix(workspace: Workspace, lengths: Path | None) -> list[History]:
    """Learners whose histories are as long as those of a folder's learners; without one, as the simulated ones'."""
    learners = [history for fold in (read_folds(lengths) if lengths else workspace.folds()) for history in fold]
    rng = np.random.default_rng(0)
    drawn = rng.choice([len(h) for h in learners if len(h)], MIXED)
    problems = workspace.spec.model.problems
    return [History(str(n), rng.integers(0, problems, k), rng.integers(0, 2, k)) for n, k in enumerate(drawn)]
