"""The author's own inference: a model asked as its author asks it, one history at a time; and the core held against it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from build.core.battery import times
from build.core.export import full_outputs
from build.core.parity import CORE, Difference, ParityError
from build.core.reduce.file import open_session
from build.core.served import Served, axes_of, types
from ensemble.contract import narrowest
from ensemble.sample import draw
from ensemble.sequence import Sequence
from ensemble.values import is_padding

Array = np.ndarray
TOGETHER = 8  # histories of a batch at most


@dataclass(frozen=True)
class Inference:
    """A sequence model by itself: PyTorch's, or where an ONNX file is all there is, that.

    Where windows are padded on the right, or not at all, a history goes in as long as it is, alone; where they are padded on
    the left, in the whole window, as its author pads it.
    """

    spec: Sequence
    model: Served | ort.InferenceSession

    @classmethod
    def of(cls, model: nn.Module | None, full: Path, spec: Sequence) -> Inference:
        """model: None where only the ONNX file `full` is there."""
        return cls(spec, open_session(full) if model is None else Served(model, spec))

    @property
    def name(self) -> str:
        """What answers."""
        return "PyTorch" if isinstance(self.model, Served) else "the ONNX file"

    def rows(self, request: Mapping[str, Array]) -> list[Array]:
        """The wanted row of every output, [batch, ...], of a request as a client sends it."""
        contract = self.spec.contract
        lengths = contract._replace(even=False).check(request)
        found = []
        for number, length in enumerate(lengths):
            one = {name: value[number : number + 1] for name, value in request.items()}
            one.update({name: one[name][:, :length] for name in contract.inputs})
            for name in contract.contexts:
                if name in one and contract.pads_context(name):  # as long as its own is
                    one[name] = one[name][:, ~is_padding(one[name], contract.contexts[name])[0]]
            found.append(self._row(one, int(length)))
        return [np.stack(each) for each in zip(*found, strict=True)]

    def _row(self, one: Mapping[str, Array], length: int) -> list[Array]:
        contract, window = self.spec.contract, self.spec.model.window
        extra = any(source.append is not None for source in contract.core)
        valid = min(length + extra, window)
        fixed = isinstance(self.model, ort.InferenceSession) and _has_fixed_time(self.model)
        width = window if contract.left or fixed else max(valid, 1)
        fed = contract._replace(widths=(width,), even=False).feed(one, np.array([length], np.int32), types(self.spec))
        fed.update(self._as_given(one))
        outputs = self._run({name: fed[name] for name in axes_of(self.spec)})
        if self.spec.row.select == "own":
            return [output[0] for output in outputs]
        rows = [output[0, width - max(valid, 1) :] if contract.left else output[0, :valid] for output in outputs]
        if self.spec.row.select in ("mean", "max"):
            return [getattr(each, self.spec.row.select)(0) for each in rows]
        number = {"last": valid - 1, "first": 0}.get(self.spec.row.select)
        if number is None:
            number = int(one[str(self.spec.row.index)][0]) - (length + extra - valid)
        return [each[number] for each in rows]

    def _as_given(self, one: Mapping[str, Array]) -> dict[str, Array]:
        """The contexts that a history has, by the core's names: not from what feeds the core, which is held against this."""
        kinds, contexts = types(self.spec), self.spec.contract.contexts
        return {
            source.name: one[source.of].astype(kinds[source.name])
            for source in self.spec.fed.values()
            if source.of in contexts and source.of in one
        }

    def _run(self, fed: Mapping[str, Array]) -> list[Array]:
        if isinstance(self.model, Served):
            with torch.inference_mode():
                return [answer.numpy() for answer in self.model(*(torch.from_numpy(v.copy()) for v in fed.values()))]
        return run(self.model, fed, [tensor.name for tensor in full_outputs(self.spec)])


def _has_fixed_time(session: ort.InferenceSession) -> bool:
    """Whether the file takes windows of one width alone."""
    return any(len(value.shape) > 1 and isinstance(value.shape[1], int) for value in session.get_inputs()[:1])


def run(session: ort.InferenceSession, fed: Mapping[str, Array], outputs: list[str]) -> list[Array]:
    """A session's outputs by their order; of what is fed, what it asks for."""
    asked = {value.name for value in session.get_inputs()}
    answers: list[Array] = session.run(outputs, {name: value for name, value in fed.items() if name in asked})
    return answers


def batches(spec: Sequence) -> list[tuple[int, ...]]:
    """Lengths that parity is checked on: each of the battery's, the ends of widths, beyond the window; and together."""
    window = spec.model.window
    edges = [length for width in spec.model.widths[:-1] for length in (width, width + 1)]
    wanted = {*times(window), *edges, min(window + 3, spec.batching.longest_history), max(spec.shortest_history, 0)}
    lengths = sorted(length for length in wanted if length >= spec.shortest_history)
    if spec.model.padding == "none":
        return [(length,) * min(2, spec.batching.max_batch_size) for length in lengths]
    size = min(spec.batching.max_batch_size, TOGETHER)
    mixed = lengths[::-1]
    return [*((length,) for length in lengths), *(tuple(mixed[n : n + size]) for n in range(0, len(mixed), size))]


def _drawn(spec: Sequence) -> Iterator[Mapping[str, Array]]:
    """Random requests of the declared values; every third without what a request may do without."""
    left_out = dict(spec.contract.defaults)
    for number, lengths in enumerate(batches(spec)):
        request = draw(spec.contract, lengths, seed=number)
        yield {name: value for name, value in request.items() if number % 3 != 2 or name not in left_out}


def check(
    model: nn.Module | None,
    full: Path,
    cores: Mapping[str, Path],
    spec: Sequence,
    progress: Callable[[float, str], None] = lambda *_: None,
    examples: Collection[Mapping[str, Array]] = (),
) -> list[Difference]:
    """Hold every core against the author's inference, on random requests of the declared values and on examples.

    Args:
        full: the ONNX file before the cut. cores: each one's file by its step. examples: requests that keep the contract.

    Returns:
        Every core's difference on every batch, as a part of the largest number answered there.

    Raises:
        ParityError: one is above the spec's; or every history has the same answer, so that nothing is compared.
    """
    author = Inference.of(model, full, spec)
    sessions = {step: open_session(path) for step, path in cores.items()}
    found, firsts = [], []
    todo = [*_drawn(spec), *examples]
    for done, request in enumerate(todo):
        counted = spec.contract.check(request)
        lengths = tuple(counted.tolist())
        progress(done / len(todo), f"lengths {', '.join(map(str, lengths))}")
        reference = author.rows(request)
        if not all(np.isfinite(each).all() for each in reference):
            held = {**spec.contract.inputs, **spec.contract.contexts}
            raise ParityError(
                f"{author.name} itself answers NaN or infinity at lengths {list(lengths)}, for random values that the spec "
                f"allows: {', '.join(f'{name} {each.said}' for name, each in held.items())}. Nothing was written. Say "
                "which there are (values of [history.*] and [context.*])"
            )
        firsts.append(np.concatenate([each[0].reshape(-1) for each in reference]))
        for stage, answers, wanted in _answers(spec, sessions, request, counted, reference):
            worst = max(_apart(answer, want) for answer, want in zip(answers, wanted, strict=True))
            found.append(Difference(stage, lengths, worst))
            key, allowed = spec.parity.of_core(spec.export.precision)
            if not worst <= allowed:  # a NaN fails too
                raise ParityError(
                    f"{stage} parts from {author.name} by {worst:.1e} of the largest answer at lengths {list(lengths)}; "
                    f"allowed is {allowed:.0e} ({key}). Nothing was written. {_cure(spec)}"
                )
    if len(todo) > 1 and all(np.allclose(first, firsts[0], rtol=1e-3, atol=0) for first in firsts[1:]):
        raise ParityError(
            f"{author.name} answers every history the same, so that a wrong core would not be seen. Does the spec feed the "
            f"model what it takes? It says {', '.join(f'{n} from {each.of}' for n, each in spec.fed.items())}"
        )
    return found


def _answers(
    spec: Sequence, sessions: Mapping[str, ort.InferenceSession], request: Mapping[str, Array], lengths: Array,
    reference: list[Array],
) -> Iterator[tuple[str, list[Array], list[Array]]]:  # fmt: skip
    """What each core answers, at every width that such a batch may come in, and what is wanted of it."""
    contract, longest = spec.contract, int(min(lengths.max(), spec.model.window))
    for width in sorted({narrowest(contract.widths, longest), spec.model.window}):
        if contract.even and width > longest:
            continue
        fed = contract._replace(widths=(width,)).feed(request, lengths, types(spec))
        for core in spec.cores:
            answers = run(sessions[core.step], fed, [tensor.name for tensor in core.outputs])
            wanted = reference
            if core.columns is not None:
                whole = reference[core.of]
                wanted = [np.take_along_axis(whole, fed[core.columns].astype(np.int64), 1)]
            yield f"{CORE} {core.step} at width {width}", answers, wanted


def _apart(answer: Array, wanted: Array) -> float:
    """The largest difference, as a part of the largest number wanted."""
    if answer.shape != wanted.shape:
        raise ParityError(
            f"a core answers {list(answer.shape)} where the model has {list(wanted.shape)}: please report it"
        )
    return float(np.abs(answer.astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-6))


def _cure(spec: Sequence) -> str:
    """What to look at where a core parts from its author's inference."""
    if spec.model.padding == "none":
        return "Is the model one that answers otherwise from call to call (dropout, sampling)?"
    cure = (
        "Does the model look at what pads a window (a layer that reads backwards, attention without a mask, positions from "
        'the other end)? Feed it a mask or lengths ([inputs]; "padding" is 1 where "mask" is 0), pad where its author does '
        '(model.padding = "left" or "right", history.*.padding), or say model.padding = "none"'
    )
    if spec.contract.pads:
        cure += (
            f"; or at what pads {spec.contract.pads[0][0]}? Then leave context.{spec.contract.pads[0][0]}.padding out"
        )
    return f"{cure}; with one width alone, model.buckets = []" if len(spec.model.widths) > 1 else cure
