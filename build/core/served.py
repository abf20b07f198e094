"""A model as it is served: the core's inputs by their order in, batch first, and the outputs that the spec names out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tritonclient.utils import triton_to_np_dtype

from build.model.network import Network
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.sample import draw
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Spec

BATCH, TIME = "batch", "time"
_HALVES = {torch.float16, torch.bfloat16}


class SignatureError(LastrowError):
    """A model does not take what the spec feeds it, or answers something else than the spec says."""


class Served(nn.Module):
    """Takes the core's inputs in the spec's order, batch first, integers INT32; answers FP32 tensors, batch first.

    A model that computes in 16 bits computes in 32 here, with its own weights; one in 64 does so, unless `single`.

    Raises:
        SignatureError: the model's forward has no such inputs.
    """

    def __init__(self, model: nn.Module, spec: Spec, single: bool = False) -> None:
        super().__init__()
        kinds = {value.dtype for value in model.state_dict().values() if value.dtype.is_floating_point}
        if kinds & _HALVES or (single and torch.float64 in kinds):
            model = copy.deepcopy(model).float()
        own = torch.float64 if torch.float64 in kinds and torch.float32 not in kinds else torch.float32
        self.floating = torch.float32 if single else own
        self.model = model.eval()
        self.wide = not isinstance(model, Network)  # somebody's module takes INT64
        self.names = tuple(spec.fed) if spec.by_name else None
        self.swapped = [BATCH not in axes[:1] for axes in own_axes(spec).values()]
        self.outputs = own_outputs(spec)
        self.time_first = isinstance(spec, SequenceSpec) and spec.model.time_major and spec.row.select != "own"
        if self.names is not None:
            parameters = inspect.signature(model.forward).parameters
            anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
            unknown = [name for name in self.names if name not in parameters and not anything]
            if unknown:
                raise SignatureError(
                    f"{type(model).__name__} has no input {unknown[0]!r}; its forward takes {', '.join(parameters)}: name "
                    "these in the spec, [inputs]"
                )

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        taken = [
            self._typed(x.transpose(0, 1) if swapped else x) for x, swapped in zip(given, self.swapped, strict=True)
        ]
        answer = self.model(*taken) if self.names is None else self.model(**dict(zip(self.names, taken, strict=True)))
        outputs = _named(answer, self.outputs, type(self.model).__name__)
        return tuple(_single(output.transpose(0, 1) if self.time_first else output) for output in outputs)

    def _typed(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return x.to(self.floating)
        return x.long() if self.wide and x.dtype == torch.int32 else x


def own_outputs(spec: Spec) -> tuple[str, ...]:
    """What the model itself calls the outputs that are served."""
    return tuple(spec.outputs) if isinstance(spec, SequenceSpec) else (spec.core_output.name,)


def own_axes(spec: Spec) -> dict[str, tuple[str, ...]]:
    """By the core's name of each input of the model its leading axes, as the model itself has them."""
    first = (TIME, BATCH) if isinstance(spec, SequenceSpec) and spec.model.time_major else (BATCH, TIME)
    return {name: first if TIME in axes else axes for name, axes in axes_of(spec).items()}


def axes_of(spec: Spec) -> dict[str, tuple[str, ...]]:
    """By the core's name of each input of the model its leading axes: batch, and time, or another of any length."""
    contract = spec.contract
    found: dict[str, tuple[str, ...]] = {}
    for source in spec.fed.values():
        context = contract.contexts.get(source.of)
        once = context is not None or source.of in ("lengths", "row")
        further = [f"{source.of}_any"] if context is not None and context.is_open else []
        found[source.name] = (BATCH, *further) if once else (BATCH, TIME)
    return found


def types(spec: Spec) -> dict[str, Any]:
    """By name the numpy type of what the core gets."""
    return {tensor.name: triton_to_np_dtype(tensor.dtype) for tensor in spec.windows}


def example(spec: Spec, batch: int, time: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A random feed of these sizes, by the core's names, as serving makes it: the last history is short, if it may be."""
    contract = spec.contract._replace(widths=(time,))
    shortest = time if contract.even else max(1, min(time, contract.shortest))
    lengths = [time] * (batch - 1) + [max(shortest, time // 2)]
    extra = any(source.append is not None for source in contract.core)
    most = batch + 1  # of what is of any length as many as neither batch nor time has
    request = draw(contract, [max(length - extra, 0) for length in lengths], seed, most=most, even=True)
    fed = contract.feed(request, contract._replace(shortest=0).check(request), types(spec))
    return {name: fed[name] for name in axes_of(spec)}


def check(model: nn.Module, spec: Spec) -> None:
    """Run the model once on what serving would feed it.

    Raises:
        SignatureError: it fails, and on which input; or it answers other shapes than the spec says, and which.
    """
    served, batch, time = Served(model, spec), 2, _time(spec)
    fed = example(spec, batch, time)
    try:
        answers = _run(served, fed)
    except SignatureError:
        raise
    except Exception as e:  # the user's own code may raise anything
        raise SignatureError(_blamed(served, spec, fed, e)) from e
    if isinstance(spec, KnowledgeTracing):
        return
    try:
        _run(served, example(spec, batch, spec.model.window))
    except Exception as e:
        raise SignatureError(
            f"{type(model).__name__} answers {time} steps and fails on {spec.model.window}, the model.window: {_told(e)}. "
            "Does it take so many?"
        ) from e
    assert isinstance(spec, SequenceSpec)
    for name, tensor, answer in zip(spec.outputs, spec.cores[0].outputs, answers, strict=True):
        rows = [] if spec.row.select == "own" else [time]
        needed = [batch, *rows, *spec.dims(tensor)]
        needed = [batch + 1 if size == -1 else size for size in needed]  # as many as `example` has of any length
        if list(answer.shape) != needed:
            raise SignatureError(
                f"outputs.{name}: for {batch} histories of {time} {spec.words.steps} {type(model).__name__} answers "
                f"{list(answer.shape)}; by the spec it is {needed} (outputs.{name}.shape, and row.select: "
                '"own" for a model that answers one row by itself)'
            )
        if not answer.dtype.is_floating_point:
            raise SignatureError(f"outputs.{name} is {answer.dtype}; served are floating-point numbers")


def is_whole(spec: Spec) -> bool:
    """Whether the core always gets the whole window: one width, and nothing that is not padded to it."""
    return isinstance(spec, SequenceSpec) and len(spec.model.widths) == 1 and not spec.contract.even


def _time(spec: Spec) -> int:
    """Rows that a model is tried on: those that its author pads in front to, or a few."""
    if is_whole(spec) and spec.contract.left:
        return spec.model.window
    return min(spec.model.window, max(7, spec.shortest_history))


def _run(served: Served, fed: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        answers: tuple[Tensor, ...] = served(*(torch.from_numpy(value.copy()) for value in fed.values()))
    return answers


def _blamed(served: Served, spec: Spec, fed: Mapping[str, np.ndarray], error: Exception) -> str:
    """Which input a model fails on: the one without whose values it does not."""
    told = _told(error)
    own = dict(zip(fed, spec.fed, strict=True))
    for name, value in fed.items():
        if value.dtype.kind != "i" or not value.any():
            continue
        try:
            _run(served, {**fed, name: np.zeros_like(value)})
        except Exception:  # noqa: S112 it is another input's fault, or not this one's alone
            continue
        source = spec.fed[own[name]]
        return (
            f"{type(served.model).__name__} fails on the values of its input {own[name]!r}, {value.min()} to {value.max()}, "
            f"which come from {source.of!r}: {told}. Does the spec allow more of them than the model knows?"
        )
    shapes = ", ".join(f"{own[name]} {value.dtype} {list(value.shape)}" for name, value in fed.items())
    return f"{type(served.model).__name__} fails on what the spec feeds it ({shapes}): {told}"


def _single(output: Tensor) -> Tensor:
    return output.float() if output.dtype.is_floating_point else output


def fields(answer: Any) -> Mapping[str, Any] | None:
    """What a model answers under names: a dict, a named tuple or a dataclass; None: it names nothing."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, (type, Mapping)):
        return {each.name: getattr(answer, each.name) for each in dataclasses.fields(answer)}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        named: dict[str, Any] = answer._asdict()
        return named
    return answer if isinstance(answer, Mapping) else None


def _told(error: Exception) -> str:
    """The first line of what somebody's code raised."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _named(answer: Any, names: Sequence[str], model: str) -> list[Tensor]:
    """The outputs that are meant: by name, where a model names several, else in their order."""
    given = fields(answer)
    if given is not None:
        tensors = {str(key): value for key, value in given.items() if isinstance(value, Tensor)}
        missing = [name for name in names if name not in tensors]
        if missing and (len(tensors) > 1 or len(names) > 1):
            raise SignatureError(
                f"{model} answers {', '.join(tensors) or 'no tensor'}, and no {missing[0]}: name what is served by these in "
                "the spec ([outputs])"
            )
        answer = list(tensors.values()) if missing else [tensors[name] for name in names]
    outputs = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    if len(outputs) < len(names) or not all(isinstance(output, Tensor) for output in outputs[: len(names)]):
        kinds = ", ".join(type(output).__name__ for output in outputs)
        raise SignatureError(
            f"{model} answers {kinds}; by the spec it is {', '.join(names)}, a tensor each ([outputs])"
        )
    return outputs[: len(names)]
