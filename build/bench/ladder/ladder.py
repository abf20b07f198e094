"""Climbing: every rung measured in turns, round by round, so that whatever the machine does hits all of them alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
import tritonclient.grpc as grpcclient

from build.bench import contest, load, origin, question, reply
from build.bench.caller import (
    Caller,
    EnsembleClient,
    answers_of,
    difference,
    full_windows,
    of_ensemble,
    of_part,
)
from build.bench.cell import Cell
from build.bench.ladder.local import BATCHES, Local, LocalError
from build.bench.ladder.rung import Rung, candidates, in_int8, in_one_model, names, on_a_gpu, variants
from build.bench.question import Question
from build.bench.reply import Expected
from build.bench.variant import NAIVE, Variant, build, naive_tensors, table
from build.core.inference import Inference
from build.core.parity import ParityError, probabilities, tolerance
from build.core.precision import PrecisionError
from build.core.reduce.file import load as load_model
from build.repository.workspace import Workspace
from build.server import Server, find
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Answer, Spec
from ensemble.tables import CORE, Tensor

MIX = "mix"
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
        """lengths: what `question.lengths_of` reads for the mix. device: "cpu" leaves out rung 11."""
        self.workspace = workspace
        self._spec = workspace.spec
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
            MIX: question.mix(workspace, lengths or workspace.data),
        }
        self._real = (lengths or workspace.data) is not None

    @contextmanager
    def ready(self, progress: Progress) -> Iterator[None]:
        """Everything built, tuned and started."""
        with ExitStack() as stack:
            wanted = names(self.rungs)
            made = variants(self.workspace.spec)
            core = build(made["widths"], self.workspace.checkpoint, self.folder / "widths")
            if "tuned" in wanted:
                progress(None, "tune instances and threads")
                made["tuned"] = Variant(self._tune(core, progress))
                contest.lend(core, self.folder / "tuned", made["tuned"].spec)
            below = made.get("tuned", made["widths"]).spec
            made |= on_a_gpu(below) | {"int8": in_int8(below)}
            if "single" in wanted:
                made["single"] = in_one_model(below)
                contest.lend(core, self.folder / "single", made["single"].spec)
            if isinstance(below, SequenceSpec) and not _has_lstm(core):
                self.rungs = [_skipped(r, "the core has no LSTM") if r.variant == "int8" else r for r in self.rungs]
            for name in names(self.rungs):
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
            for rung in [rung for rung in self.rungs if rung.local and rung.skipped is None]:
                assert rung.local is not None
                progress(None, f"start: {rung.name}")
                spec_file, repository = self.workspace.spec_file, core
                if rung.variant:
                    repository = build(made[rung.variant], self.workspace.checkpoint, self.folder / rung.variant)
                    spec_file = self.folder / f"{rung.variant}.toml"
                    spec_file.write_text(tomlkit.dumps(table(made[rung.variant].spec)), encoding="utf-8")
                model = repository / reply.core_of(self._spec, reply.whole(self._spec)).step / "1" / "model.onnx"
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
            self._compare(core)
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
                "title": reply.title(spec),
                "window": spec.model.window,
                "padded": not isinstance(spec, SequenceSpec) or spec.contract.left,  # whether local PyTorch is
                "words": spec.contract.words._asdict(),
                "lengths": "real" if self._real else "simulated",
                "mix_median": int(np.median([question.steps(asked) for asked in self.loads[MIX]])),
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

    def _tune(self, core: Path, progress: Progress) -> Spec:
        """The candidate of the highest throughput among those whose p50 is within a tenth of the lowest; all in turns."""
        specs = candidates(self.workspace.spec, quick=self.settings.rounds < Settings().rounds)
        full, folder = self.loads[str(self.workspace.spec.model.window)], self.folder / "candidates"
        seconds = self.settings.tuning_s
        found = contest.run(specs, self.workspace.checkpoint, folder, full, TUNING_ROUNDS, seconds, progress, core)
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
        spec = self._spec
        asked = [one for questions in self.loads.values() for one in questions[:4]]
        author = self._author() if isinstance(spec, SequenceSpec) else None
        whose = "ONNX Runtime's answer" if author is None else f"what {author.name} answers as its author asks it"
        for rung in [rung for rung in self.rungs if rung.local is None and rung.skipped is None]:
            key, allowed = tolerance(self._specs[rung.variant])
            answer = self._answer(rung)
            expected = answers_of(core, spec, asked) if author is None else _by_author(author, answer, asked)
            (caller,) = self._connected(rung, 1)
            for one, wanted in zip(asked, expected, strict=True):
                (served,) = caller.ask([one])
                if author is None and rung.part == "core":
                    served = probabilities(served)
                off = difference(spec, served, wanted, answer)
                if not off <= allowed:
                    raise LadderError(
                        f"rung {rung.number}, {rung.name}, is {off:.1e} off {whose}; allowed is {allowed:.0e} ({key})"
                    )

    def _author(self) -> Inference:
        from build.model import checkpoint as checkpoints

        spec, checkpoint = reply.sequence(self._spec), self.workspace.checkpoint
        own = spec.network.type == "onnx"
        return Inference.of(None if own else checkpoints.load(checkpoint, spec), checkpoint, spec)

    def _answer(self, rung: Rung) -> Answer:
        """Which answer a rung is asked for."""
        return (reply.picked(self._spec) if rung.picked else None) or reply.whole(self._spec)

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
        size = min(rung.together, most) if concurrency > 1 else 1
        asked_for = self.loads[kind]
        if rung.part != "ensemble" or self._specs[rung.variant].shortest_history:
            asked_for = [one for one in asked_for if question.steps(one)]
        server = self._servers[rung.variant]
        server.wake()  # a connection over shared memory is registered there
        callers = self._connected(rung, concurrency)
        if first:
            load.run(callers, asked_for, size, 0.0, warm_up=2)
        core = reply.core_of(self._spec, self._answer(rung)).step
        asked = {"naive": NAIVE, "core": core, "ensemble": self._spec.model.name}[rung.part]
        connection = self._statistics[rung.variant]
        cell.measure(server, connection, callers, asked_for, self.settings.turn_s, asked, size)

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
    answer = reply.picked(spec) if rung.picked else None
    if rung.transport == "shared memory":
        return EnsembleClient(server.grpc_url, spec, shared_memory=True)
    if rung.part == "ensemble" and rung.transport == "grpc":
        return of_ensemble(server.grpc_url, spec, answer)
    http = rung.transport == "http"
    return of_part(server.http_url if http else server.grpc_url, spec, rung.part, http, answer)


def hops(spec: Spec, rung: Rung) -> dict[str, int]:
    """Bytes of the tensors on each way, for one history of a full window."""
    window = spec.model.window
    sizes = {"INT64": 8, "INT32": 4, "FP32": 4, "FP16": 2, "BOOL": 1}
    answer = (reply.picked(spec) if rung.picked else None) or reply.whole(spec)
    core = reply.core_of(spec, answer)

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(
            sizes[t.dtype] * math.prod(window if dim == -1 else dim for dim in spec.dims(t))
            for t in tensors
            if not t.optional
        )

    if rung.part == "naive" and isinstance(spec, SequenceSpec):
        taken, answered = naive_tensors(spec)
        return {"request": size(taken), "reply": size(answered)}
    if rung.part != "ensemble":
        return {"request": size(core.inputs), "reply": size([answer.of])}
    if spec.serve.layout == "single":
        return {"request": size(spec.requested), "reply": size(answer.tensors)}
    return {
        "request": size(spec.requested),
        "preprocess to core": size(core.inputs),
        "core to postprocess": size([answer.of]),
        "reply": size(answer.tensors),
    }


def _by_author(author: Inference, answer: Answer, asked: Sequence[Question]) -> list[Expected]:
    return [reply.by_author(author, answer, question.together(author.spec, [one]))[0] for one in asked]


def _has_lstm(repository: Path) -> bool:
    return any(node.op_type == "LSTM" for node in load_model(repository / CORE / "1" / "model.onnx").graph)


def _skipped(rung: Rung, why: str) -> Rung:
    """The rung, with this reason where it has none of its own."""
    return replace(rung, skipped=rung.skipped or why)


def _possible(rung: Rung, workspace: Workspace, device: str | None) -> Rung:
    """The rung, skipped by name where it cannot be climbed."""
    if rung.skipped is not None:
        return rung
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
