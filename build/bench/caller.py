"""How a client asks: questions in, an answer for each out. A caller belongs to one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from build.bench import question, reply
from build.bench.question import Question
from build.bench.reply import Expected
from build.bench.transport import TIMEOUT_S, Grpc, Http, Transport
from build.bench.variant import NAIVE, naive_tensors
from build.core.served import types
from ensemble.client import Client
from ensemble.contract import Source
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.learners.history import History, windows
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Answer, Spec
from ensemble.tables import CORE

Part = Literal["naive", "ensemble", "core"]


class Caller(Protocol):
    """A connection that answers questions."""

    def ask(self, questions: Sequence[Any]) -> list[np.ndarray]:
        """For each of the questions, in one request, an answer; that of knowledge tracing is FP32 [problems]."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class EnsembleClient:
    """The project's own client, over gRPC or with tensors in shared memory."""

    def __init__(self, url: str, spec: Spec, shared_memory: bool = False) -> None:
        self._client = Client(url, spec=spec, deadline_s=TIMEOUT_S, shared_memory=shared_memory)

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        return [prediction.probabilities for prediction in self._client.predict(questions)]  # type: ignore[misc]

    def close(self) -> None:
        self._client.close()


class _Connected:
    """Knowledge tracing over a connection."""

    def __init__(self, transport: Transport, spec: KnowledgeTracing) -> None:
        self._transport = transport
        self._spec = spec

    def close(self) -> None:
        self._transport.close()


class EnsembleHttp(_Connected):
    """The ensemble over HTTP."""

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        given = question.together(self._spec, questions)
        inputs = question.on_the_wire(self._spec.requested, given)
        return list(self._transport.infer(self._spec.model.name, inputs, self._spec.answered[:1])[0])


class NaiveHttp(_Connected):
    """The whole model over HTTP: windows are padded here, every row comes back, and the wanted one is taken here."""

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        *values, lengths = windows(questions, [self._spec.model.window])
        tensors = self._spec.windows[:-1]
        given = dict(zip((tensor.name for tensor in tensors), values, strict=True))
        (every,) = self._transport.infer(NAIVE, question.on_the_wire(tensors, given), [self._spec.core_output])
        return list(1 / (1 + np.exp(-every[np.arange(len(lengths)), lengths - 1])))


class CoreClient(_Connected):
    """The core alone over gRPC; its input is ready and its logits stay as they are."""

    def ask(self, questions: Sequence[History]) -> list[np.ndarray]:
        values = windows(questions, self._spec.model.widths)
        given = dict(zip((tensor.name for tensor in self._spec.windows), values, strict=True))
        inputs = question.on_the_wire(self._spec.windows, given)
        return list(self._transport.infer(CORE, inputs, [self._spec.core_output])[0])


class SequenceCaller:
    """Any sequence model: its ensemble, its core alone, or the whole model, whose wanted row is taken here."""

    def __init__(self, transport: Transport, spec: SequenceSpec, answer: Answer, part: Part = "ensemble") -> None:
        self._transport, self._spec, self._answer, self._part = transport, spec, answer, part
        self._core = reply.core_of(spec, answer)
        self._contract, self._types = spec.contract, types(spec)
        if part == "naive":
            told = (*self._contract.core, Source(_VALID, "lengths"), Source(_ROW, "row"))
            self._contract = self._contract._replace(widths=spec.model.widths[-1:], core=told)
            self._whole = naive_tensors(spec)

    def ask(self, questions: Sequence[Question]) -> list[np.ndarray]:
        request = question.together(self._spec, questions)
        if self._part == "ensemble":
            inputs = question.on_the_wire(self._spec.requested, request)
            return reply.joined(self._transport.infer(self._spec.model.name, inputs, self._answer.tensors))
        fed = self._contract.feed(request, self._contract.check(request), self._types)
        if self._part == "core":
            inputs = question.on_the_wire(self._core.inputs, fed)
            (rows,) = self._transport.infer(self._core.step, inputs, [self._answer.of])
        else:
            taken, answered = self._whole
            outputs = self._transport.infer(NAIVE, question.on_the_wire(taken, fed), answered)
            found = [_row(self._spec, output, fed) for output in outputs]
            rows = reply.rows_of(self._spec, self._answer, found, request)
        return reply.made(self._answer, rows, request)

    def close(self) -> None:
        self._transport.close()


_VALID, _ROW = ".valid", ".row"  # what the client of a naive deployment knows; no tensor is named so


def _row(spec: SequenceSpec, output: np.ndarray, fed: dict[str, np.ndarray]) -> np.ndarray:
    """The wanted row, [batch, ...], of every row of windows, [batch, window, ...]."""
    if spec.row.select == "own":
        return output
    if spec.row.select in ("mean", "max"):  # of windows padded behind
        pairs = zip(output, fed[_VALID], strict=True)
        return np.stack([getattr(rows[:valid], spec.row.select)(0) for rows, valid in pairs])
    return output[np.arange(len(output)), fed[_ROW]]


def of_ensemble(url: str, spec: Spec, answer: Answer | None = None) -> Caller:
    """A client of the ensemble over gRPC, which asks for this answer; by default for the whole one."""
    if isinstance(spec, SequenceSpec):
        return SequenceCaller(Grpc(url), spec, answer or reply.whole(spec))
    return EnsembleClient(url, spec)


def of_part(url: str, spec: Spec, part: Part, http: bool = False, answer: Answer | None = None) -> Caller:
    """A client of one of the models, over gRPC or HTTP."""
    transport = Http(url) if http else Grpc(url)
    if isinstance(spec, SequenceSpec):
        return SequenceCaller(transport, spec, answer or reply.whole(spec), part)
    assert isinstance(spec, KnowledgeTracing)
    kinds: dict[Part, Callable[[Transport, KnowledgeTracing], Caller]]
    kinds = {"naive": NaiveHttp, "ensemble": EnsembleHttp, "core": CoreClient}
    return kinds[part](transport, spec)


def full_windows(spec: Spec, count: int = 8) -> list[Question]:
    """Questions with as many steps as the window holds."""
    return question.drawn(spec, [spec.model.window] * count)


def answers_of(repository: Path, spec: Spec, questions: Sequence[Question]) -> list[Expected]:
    """What every contender and every peer has to answer: what the repository's core does in this process."""
    answer = reply.whole(spec)
    alone = [question.together(spec, [one]) for one in questions]
    return [expected for request in alone for expected in reply.by_core(repository, spec, answer, request)]


def difference(spec: Spec, got: np.ndarray, wanted: Expected, answer: Answer | None = None) -> float:
    """How far an answer is off: of knowledge tracing in probabilities, else as a part of the largest number.

    `build.core.parity.tolerance` says how far it may be.
    """
    if isinstance(spec, SequenceSpec):
        return reply.apart(answer or reply.whole(spec), got, wanted)
    return float(np.abs(got - wanted.answer).max())
