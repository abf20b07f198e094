"""One's own function in front of the contract: what its requests carry, and what it makes of them.

Numpy and the standard library alone, in the words of Python 3.8: a copy travels beside the first step.

The function takes the tensors of one request by name, [batch, ...], and returns the histories and contexts that the contract
is about, as a client would send them to the model without it.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .values import WORDS, RefusedError, Values, Words, check_context

FOLDER = "own"  # beside a step: the function's file, and what it opens
REASON = "function"  # what its refusals are counted by
TYPES = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
_NUMBERS = itertools.count()

Arrays = Mapping[str, np.ndarray]


class FunctionError(Exception):
    """The function is not there, or what it returns is not what it has to; names file, function and what is allowed."""


class Part(NamedTuple):
    """A tensor that the function takes, or has to return: its type and shape, behind the batch; -1 stands for any length.

    values: the lowest and the highest of integers; None: any.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    values: tuple[int, int] | None = None
    optional: bool = False

    def fits(self, array: Any, batch: int) -> bool:
        """Whether an array is of this type and shape.

        >>> Part("INT32", (-1,)).fits(np.zeros((2, 5), np.int32), 2)
        True
        """
        return (
            isinstance(array, np.ndarray)
            and array.dtype == TYPES[self.dtype]
            and array.ndim == 1 + len(self.shape)
            and all(size in (-1, given) for size, given in zip((batch, *self.shape), array.shape))
        )

    def __str__(self) -> str:
        shape = ", ".join(("batch", *("any" if size == -1 else str(size) for size in self.shape)))
        return f"{self.dtype} [{shape}]{' (optional)' if self.optional else ''}"


class Function(NamedTuple):
    """`name` in `file`, what it takes of a request, and what it returns; as JSON it travels to the first step.

    >>> of = Function("steps.py", "prepare", {"text": Part("BYTES")}, {"ids": Part("INT32", (-1,))})
    >>> Function.loads(of.dumps()) == of
    True
    >>> prepare = of.around(lambda inputs: {"ids": np.array([[len(text)] for text in inputs["text"]], np.int32)})
    >>> prepare({"text": np.array([b"to be", b"or"], object)})["ids"].tolist()
    [[5], [2]]
    """

    file: str
    name: str
    takes: dict[str, Part]
    returns: dict[str, Part]
    words: Words = WORDS

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What refusals are counted by, beside the contract's."""
        return (*(name for name, part in self.takes.items() if part.values is not None), REASON)

    def opened(self, folder: Path) -> Callable[[Arrays], dict[str, np.ndarray]]:
        """The function of the file in this folder, as `around` has it.

        Raises:
            FunctionError: the file cannot be imported, or has no such function.
        """
        # A package of its own: what lies beside the file is found by `from . import`, and no other module is in the way.
        package = types.ModuleType(f"own_{next(_NUMBERS)}")
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
        stem = self.file[: -len(".py")]
        try:
            module = importlib.import_module(f"{package.__name__}.{stem}")
        except Exception as e:
            raise FunctionError(f"{self.file} cannot be imported: {type(e).__name__}: {e}") from e
        found = getattr(module, self.name, None)
        if not callable(found):
            there = ", ".join(name for name, value in vars(module).items() if isinstance(value, types.FunctionType))
            raise FunctionError(f"{self.file} has no function {self.name}; it has {there or 'none'}")
        return self.around(found)

    def around(self, call: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Arrays], dict[str, np.ndarray]]:
        """The function between two checks: of what a request carries, and of what comes back.

        It raises RefusedError where the request holds what is not allowed or the function raises ValueError, and
        FunctionError where the function returns other names, types or shapes than it has to.
        """
        return functools.partial(self._apply, call)

    def _apply(self, call: Callable[[dict[str, np.ndarray]], Any], request: Arrays) -> dict[str, np.ndarray]:
        batch = self.check(request)
        try:
            returned = call(dict(request))
        except ValueError as e:
            raise RefusedError(REASON, str(e) or f"{self} refuses this request, and does not say why") from e
        known = isinstance(returned, dict) and set(returned) <= set(self.returns)
        if not known or not all(
            part.fits(returned[name], batch) if name in returned else part.optional
            for name, part in self.returns.items()
        ):
            needed = ", ".join(f"{name} {part}" for name, part in self.returns.items())
            raise FunctionError(
                f"{self} returned {_spelled(returned)} for a batch of {batch}; it has to return a dict of arrays: {needed}"
            )
        return dict(returned)

    def check(self, request: Arrays) -> int:
        """How many histories a request is about; raises RefusedError where it is not what the function takes."""
        batch = len(next(iter(request.values())))
        for name, part in self.takes.items():
            if name not in request:
                if not part.optional:
                    raise RefusedError("shape", f"{name} is missing; {self} needs it of each {self.words.history}")
                continue
            if not part.fits(request[name], batch):
                given = list(request[name].shape)
                raise RefusedError(
                    "shape", f"{name} has shape {given}; needed is {part} of {batch} {self.words.histories}"
                )
            if part.values is not None:
                check_context(request[name], allowed(name, part), name, batch, self.words)
        return batch

    def said_of(self, refusal: RefusedError) -> RefusedError:
        """What the contract refuses of it, with whose work it is."""
        return RefusedError(refusal.reason, f"of what {self} made of the request, {refusal}")

    def dumps(self) -> str:
        """As JSON, for the parameter of a step."""
        return json.dumps(self._asdict())

    @classmethod
    def loads(cls, text: str) -> Function:
        """What `dumps` wrote."""
        found = json.loads(text)
        for each in ("takes", "returns"):
            found[each] = {name: _part(*fields) for name, fields in found[each].items()}
        found["words"] = Words(*found["words"])
        return cls(**found)


def allowed(name: str, part: Part) -> Values:
    """What a tensor that the function takes may hold, in the contract's terms; without limits any number."""
    if part.values is None:
        return Values(None, "any numbers", name, 0, part.shape)
    low, high = part.values
    return Values(high + 1, f"{low} to {high}", name, low, part.shape)


def _part(dtype: str, shape: list[int], values: list[int] | None, optional: bool) -> Part:
    return Part(dtype, tuple(shape), None if values is None else (values[0], values[1]), optional)


def _spelled(returned: Any) -> str:
    """What came back, as messages show it: types and shapes alone."""
    if not isinstance(returned, dict):
        return f"{type(returned).__name__}"
    kinds = {np.dtype(type_): name for name, type_ in TYPES.items()}
    said = []
    for name, value in returned.items():
        if isinstance(value, np.ndarray):
            said.append(f"{name} {kinds.get(value.dtype, value.dtype)} {list(value.shape)}")
        else:
            said.append(f"{name} as {type(value).__name__}")
    return ", ".join(said) or "an empty dict"
