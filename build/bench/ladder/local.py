"""Answers without a server, in a process of its own that rests (SIGSTOP) while others are timed.

Worker threads of PyTorch and ONNX Runtime spin for a while after each answer, and would slow what is measured next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from build import ROOT
from build.bench.question import Question, drawn, together
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.learners.history import History, windows
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Spec

BATCHES = (1, 2, 4, 8, 16, 32)  # histories at once, of which ONNX Runtime's best is looked for
WARM_UP = 2
Prepare = Callable[[Sequence[Question]], Any]  # makes of questions what is asked
Ask = Callable[[Any], object]


class LocalError(LastrowError):
    """The process ended or said that it cannot measure; the message is its own."""


class Local:
    """The parent's handle on a resting process; it answers only inside `times`.

    device_ms: of the last `times`, the calls' time on a GPU; none for what runs on the CPU.
    """

    device_ms: list[float]

    def __init__(self, kind: str, spec_file: Path, checkpoint: Path, core: Path) -> None:
        from build.server import reaper  # not in the process that is timed: it has a client of Triton's with it

        command = [sys.executable, "-m", "build.bench.ladder.local", kind, str(spec_file), str(checkpoint), str(core)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **reaper.marked()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()
        self._rest()

    def times(self, questions: Sequence[Question], size: int, calls: int) -> list[float]:
        """Milliseconds of each of `calls` calls, each with `size` questions; the first ones, still cold, are left out."""
        request = {
            "questions": [_as_lists(question) for question in questions],
            "size": size,
            "calls": calls,
        }
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._rest()
        self.device_ms = answer["device_ms"]
        return answer["ms"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _rest(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines()
            self.close()
            raise LocalError(said[-1] if said else f"it ended with exit code {self._process.returncode}")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise LocalError(answer["error"])
        return answer


def _as_lists(question: Question) -> Any:
    if isinstance(question, History):
        return [question.problem_ids.tolist(), question.responses.tolist()]
    return {name: value.tolist() for name, value in question.items()}


def _of_lists(spec: Spec, given: Any) -> Question:
    if isinstance(given, list):
        return History("0", *map(np.array, given))
    types = {tensor.name: triton_to_np_dtype(tensor.dtype) for tensor in spec.requested}
    return {name: np.array(value, types[name]) for name, value in given.items()}


def _torch(kind: str, spec: KnowledgeTracing, checkpoint: Path) -> Ask:
    import torch

    from build.model import checkpoint as checkpoints
    from build.model.network import Network

    model = checkpoints.load(checkpoint, spec).eval()
    torch.set_grad_enabled(False)
    own = isinstance(model, Network)
    forward: Callable[..., Any] = torch.compile(model) if kind == "compile" else model

    def ask(windows: list[np.ndarray]) -> object:
        ids, responses, lengths = (torch.from_numpy(x) for x in windows)
        if kind == "last":
            if not isinstance(model, Network):
                raise LocalError("a module of one's own says nothing of its head")
            return model.last(ids, responses, lengths).sigmoid().numpy()
        answer = forward(ids, responses) if own else forward(ids.long(), responses.long())
        if kind == "logits":
            return answer[torch.arange(len(ids)), lengths.long() - 1].sigmoid().numpy()
        return answer.sigmoid()[torch.arange(len(ids)), lengths.long() - 1].numpy()

    return ask


def _onnxruntime(spec: KnowledgeTracing, core: Path) -> Ask:
    import onnxruntime as ort

    session = ort.InferenceSession(str(core), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in (spec.tensors.recent_problem_ids, spec.tensors.recent_responses)]

    def ask(windows: list[np.ndarray]) -> object:
        return session.run(None, dict(zip([*names, spec.tensors.lengths.name], windows, strict=True)))

    return ask


def _knowledge_tracing(kind: str, spec: KnowledgeTracing, checkpoint: Path, core: Path) -> tuple[Prepare, Ask]:
    from build.bench.ladder import device

    # PyTorch is padded to the window, as a model that was trained on windows is asked; the core stops by itself.
    def prepare(questions: Sequence[Question]) -> list[np.ndarray]:
        return list(windows([each for each in questions if isinstance(each, History)], [spec.model.window]))

    if kind.startswith(device.PREFIX):
        return prepare, device.ask(kind, spec, checkpoint, core)
    if kind == "onnxruntime":
        return prepare, _onnxruntime(spec, core)
    return prepare, _torch(kind, spec, checkpoint)


def _sequence(kind: str, spec: SequenceSpec, checkpoint: Path, core: Path) -> tuple[Prepare, Ask]:
    """Any sequence model: as its author asks it, the row and the answer taken out included; or its core."""
    from build.bench import reply
    from build.core.inference import Inference
    from build.core.served import Served, types

    answer, contract = reply.whole(spec), spec.contract
    if kind == "onnxruntime":
        import onnxruntime as ort

        session = ort.InferenceSession(str(core), providers=["CPUExecutionProvider"])
        taken = {entry.name for entry in session.get_inputs()}

        def prepare(questions: Sequence[Question]) -> dict[str, np.ndarray]:
            request = together(spec, questions)
            fed = contract.feed(request, contract.check(request), types(spec))
            return {name: value for name, value in fed.items() if name in taken}

        return prepare, lambda fed: session.run([answer.of.name], fed)
    import torch

    from build.model import checkpoint as checkpoints

    module: Any = checkpoints.load(checkpoint, spec).eval()
    if kind == "compile":
        module = torch.compile(module)
    author = Inference(spec, Served(module, spec))
    return (lambda questions: together(spec, questions)), lambda request: reply.by_author(author, answer, request)


def main(kind: str, spec_file: str, checkpoint: str, core: str) -> None:
    """Load, say that it is ready, then answer each line of stdin with the times that it took."""
    from build.bench.ladder import device

    spec = Spec.read(spec_file)
    files = Path(checkpoint), Path(core)
    if isinstance(spec, SequenceSpec):
        prepare, ask = _sequence(kind, spec, *files)
    else:
        prepare, ask = _knowledge_tracing(kind, narrowed(spec), *files)
    ask(prepare(drawn(spec, [spec.model.window])))
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        questions = [_of_lists(spec, given) for given in request["questions"]]
        size = request["size"]
        taken: list[float] = []
        on_device: list[float] = []
        for number in range(WARM_UP + request["calls"]):
            given = prepare([questions[(number * size + n) % len(questions)] for n in range(size)])
            start = time.perf_counter()
            ask(given)
            taken.append((time.perf_counter() - start) * 1e3)
            if isinstance(ask, device.Asked):
                on_device.append(ask.device_ms)
        print(json.dumps({"ms": taken[WARM_UP:], "device_ms": on_device[WARM_UP:]}), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as e:  # whatever PyTorch's compiler or a checkpoint raises becomes a row of the table
        print(json.dumps({"error": next((x for x in str(e).splitlines() if x.strip()), type(e).__name__)}), flush=True)
