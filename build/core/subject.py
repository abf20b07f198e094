"""A model of which nothing is written down yet, an ONNX file or a module, as something that can be tried with arrays."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from build.core.asked import by_name
from build.core.reduce.file import load, open_session
from ensemble.errors import LastrowError
from ensemble.signature import KNOWN

Array = np.ndarray
Feed = Mapping[str, Array]
ONCE = ("context", "lengths", "row")  # a number, or one vector, a history
_TYPES = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
_WAYS = 400  # in which a module's inputs are tried


class InspectionError(LastrowError):
    """A model is not of a form that is served, or nothing tells of which."""


@dataclass(frozen=True)
class Given:
    """An input.

    Attributes:
        of: "history", "context", or what is derived from a history's length (`ensemble.signature`).
        shape: of one step, or of a context.
        low, high: of integers that are no derived ones, both allowed; None: nothing bounds them.
        why: how all this is known, in words.
    """

    name: str
    of: str
    dtype: np.dtype
    shape: tuple[int, ...] = ()
    low: int = 0
    high: int | None = None
    why: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether it holds something that a request has."""
        return self.of in ("history", "context")

    def draw(self, batch: int, time: int, time_major: bool, rng: np.random.Generator | None) -> Array:
        """Values for whole histories; without a generator the lowest that are sure to be taken."""
        shape: tuple[int, ...] = (batch,) if self.of in ONCE else (time, batch) if time_major else (batch, time)
        shape += self.shape
        if self.of in ("lengths", "row"):
            return np.full(shape, time - (self.of == "row"), self.dtype)
        if self.of in ("mask", "padding", "token_types"):
            return np.full(shape, self.of == "mask", self.dtype)
        if self.of == "positions":
            steps = np.arange(time, dtype=self.dtype)
            return np.broadcast_to(steps[:, None] if time_major else steps, shape).copy()
        if self.dtype.kind == "f":
            return (rng or np.random.default_rng(0)).standard_normal(shape).astype(self.dtype)
        if rng is None or self.high is None:
            return np.full(shape, self.of == "context", self.dtype)
        return rng.integers(min(self.low, self.high), self.high + 1, shape).astype(self.dtype)


@dataclass(frozen=True)
class Subject:
    """run: a feed by name to arrays by name, or whatever exception the model raises. time: where the model fixes it.

    ways: in which its inputs may be taken; the first that runs is the one. padded: ids of 0 are padding to it.
    """

    name: str
    run: Callable[[Feed], dict[str, Array]]
    ways: tuple[tuple[Given, ...], ...]
    time: int | None = None
    padded: bool = False


def of_file(path: Path) -> Subject:
    """An ONNX file.

    Raises:
        InspectionError: an input has a fixed batch, or a type or shape that is not served.
        ReductionError: it cannot be read.
    """
    load(path)  # says better than ONNX Runtime what is wrong with a file
    try:
        session = open_session(path)
    except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
        raise InspectionError(f"ONNX Runtime does not load {path}: {str(e).splitlines()[0]}") from e
    values = session.get_inputs()
    found, time = [], None
    for value in values:
        axes = ", ".join(map(str, value.shape))
        kind = _TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if kind is None or not value.shape:
            raise InspectionError(
                f"{path}: input {value.name} is {value.type} [{axes}]; served are INT32, INT64, FP32 and BOOL, batch first"
            )
        derived = KNOWN.get(value.name.lower())
        rank, dtype = len(value.shape), np.dtype(kind)
        vector = dtype.kind == "f" and rank == 2 and isinstance(value.shape[1], int) and len(values) > 1
        of = derived or ("context" if rank == 1 or vector else "history")
        leading = 1 if of in ONCE else 2
        rest = tuple(value.shape[leading:])
        if rank < leading or not all(isinstance(size, int) for size in rest):
            raise InspectionError(
                f"{path}: input {value.name} [{axes}] is no [batch, time, ...] with the sizes behind time fixed"
            )
        if leading == 2:
            time = next((size for size in value.shape[1:2] if isinstance(size, int)), time)
        if isinstance(value.shape[0], int):
            raise InspectionError(
                f"{path}: input {value.name} [{axes}] has a fixed batch; export it with that axis dynamic"
            )
        why = f"its name says so; {value.type[7:-1]} [{axes}]" if derived else f"{value.type[7:-1]} [{axes}]"
        found.append(Given(value.name, of, dtype, rest, why=why))

    def run(feed: Feed) -> dict[str, Array]:
        return by_name(session, session.run(None, dict(feed)))

    counted = tuple(replace(each, of="lengths") if _may_count(each) else each for each in found)
    return Subject(path.stem, run, tuple(dict.fromkeys((counted, tuple(found)))), time)


def _may_count(given: Given) -> bool:
    return given.of == "context" and given.dtype.kind == "i" and not given.shape


def of_module(model: nn.Module, name: str) -> Subject:
    """A PyTorch module, by its forward's parameters; those with a default only where the name says what they hold.

    Raises:
        InspectionError: it takes any number of inputs.
    """
    parameters = inspect.signature(model.forward).parameters
    needed = [each for each in parameters.values() if each.default is each.empty]
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in needed):
        needed = [each for each in needed if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        if not needed:
            raise InspectionError(f"{name}: its forward takes any inputs ({', '.join(parameters)}), and so names none")
    names = [each.name for each in needed] or list(parameters)[:1]
    told = [each for each in parameters if each not in names and KNOWN.get(each) in ("mask", "padding", "lengths")]
    widths = sorted({width for module in model.modules() for width in _widths(module)})
    options = [list(_options(each, widths)) for each in (*names, *told)]
    ways = tuple(
        way for way in itertools.islice(itertools.product(*options), _WAYS) if any(g.of == "history" for g in way)
    )

    def run(feed: Feed) -> dict[str, Array]:
        taken = {key: torch.from_numpy(value.copy()) for key, value in feed.items()}
        with torch.inference_mode():
            return _arrays(model(**taken))

    padded = any(isinstance(module, nn.Embedding) and module.padding_idx == 0 for module in model.modules())
    return Subject(name, run, ways, padded=padded)


def _widths(module: nn.Module) -> Iterator[int]:
    """How many features a layer takes."""
    for key in ("in_features", "input_size", "in_channels", "embed_dim"):
        width = getattr(module, key, None)
        if isinstance(width, int):
            yield width


def _options(name: str, widths: list[int]) -> Iterator[Given]:
    """What an input of this name may be, the likeliest first."""
    integers, floats = np.dtype(np.int64), np.dtype(np.float32)
    if name.lower() in KNOWN:
        of = KNOWN[name.lower()]
        yield Given(name, of, np.dtype(np.bool_) if of == "padding" else integers, why="its name says so")
    yield Given(name, "history", integers, why="integers, one a step")
    for width in widths:
        yield Given(name, "history", floats, (width,), why=f"numbers, {width} a step")
    yield Given(name, "history", floats, why="numbers, one a step")
    for of in ("lengths", "context"):  # the first is tried with numbers of steps, of which the other may know too few
        yield Given(name, of, integers, why="integers, one a history")
    for width in widths:
        yield Given(name, "context", floats, (width,), why=f"numbers, {width} a history")


def _arrays(answer: Any) -> dict[str, Array]:
    """A module's outputs by name: its own, where it has names, else by their order."""
    if isinstance(answer, Mapping):
        return {str(key): value.numpy() for key, value in answer.items() if isinstance(value, torch.Tensor)}
    outputs = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    tensors = list(itertools.takewhile(lambda output: isinstance(output, torch.Tensor), outputs))
    names = ["output"] if len(tensors) == 1 else [f"output_{number}" for number in range(1, len(tensors) + 1)]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def is_named(given: Given) -> bool:
    """Whether its name says what it is."""
    return given.name.lower() in KNOWN


def told(given: Given, why: str) -> Given:
    """The same, and how more of it is known."""
    return replace(given, why=f"{given.why}; {why}" if given.why else why)
