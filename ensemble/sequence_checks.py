"""What a sequence model's spec says in numbers: whether types hold them, and what stands for a context that is not sent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ensemble.contract import Source, Values
from ensemble.sequence_tables import Context, History, Number, Wanted

LIMITS = {name: np.iinfo(kind) for name, kind in (("INT32", np.int32), ("INT64", np.int64))}
FLAGS = ("mask", "padding", "token_types")  # what is derived and 0 or 1


def is_int32(low: float, high: float) -> bool:
    """Whether INT32 holds all from one number to another.

    >>> is_int32(0, 2**31 - 1), is_int32(0, 2**31)
    (True, False)
    """
    return LIMITS["INT32"].min <= low and high <= LIMITS["INT32"].max


def whole(default: Any, allowed: Values) -> Any:
    """A default as nested lists of the context's shape; of any length, one of it.

    >>> whole(7, Values(9, "0 to 8", "id", shape=(2,))), whole([3, 4, 5], Values(9, "0 to 8", "id", shape=(-1,)))
    ([7, 7], [3, 4, 5])

    Raises:
        ValueError: it has another shape, or is not of integers where these are, or not of finite numbers.
    """
    try:
        found: Any = np.array(default)
    except ValueError:
        found = np.array(None)
    if found.ndim == 0 and allowed.shape:
        found = np.full([1 if size == -1 else size for size in allowed.shape], found)
    fits = found.ndim == len(allowed.shape) and found.size
    fits = fits and all(size in (-1, given) for size, given in zip(allowed.shape, found.shape, strict=True))
    if (
        not fits
        or found.dtype.kind not in "if"
        or not np.isfinite(found).all()
        or (allowed.end and found.dtype.kind == "f")
    ):
        kind = "a number" if allowed.end is None else "an integer"
        raise ValueError(
            f"default is {default!r}; needed is {kind}{f', or a list of shape {list(allowed.shape)}' * bool(allowed.shape)}"
        )
    return found.tolist()


def check_answers(spec: Any) -> None:
    """Raise ValueError where an answer is of what the model does not say, or picks columns that it has not."""
    for wanted in spec.answer:
        if wanted.of is not None and wanted.of not in spec.outputs:
            raise ValueError(f"answer {wanted.name}: of is {wanted.of!r}; allowed are {', '.join(spec.outputs)}")
        if wanted.at is not None and spec.context.get(wanted.at, Context(dtype="FP32")).shape != (-1,):
            raise ValueError(
                f"answer {wanted.name}: at is {wanted.at!r}; needed is a context of integers of shape [-1]"
            )
        for link in wanted.links:
            if link[0] == "leave_out" and spec.input(link[1]).dtype == "FP32":
                raise ValueError(f"answer {wanted.name}: leave_out is {link[1]!r}; needed is a history of integers")
        shape = spec.outputs[wanted.of or next(iter(spec.outputs))].shape
        if wanted.count and shape and wanted.count > spec.size(shape[-1]):
            raise ValueError(f"answer {wanted.name} picks {wanted.count} of {spec.size(shape[-1])} columns")
        about = spec.about(wanted.of or next(iter(spec.outputs)))
        if about and any(link[0] in ("leave_out", "top", "nearest", "at") for link in wanted.links):
            raise ValueError(f"answer {wanted.name}: its columns are those of {about}, and all of them are answered")
        if about and (
            shape[0] != about or spec.context[about].padding is not None or spec.is_optional(about, spec.context[about])
        ):
            raise ValueError(
                f"answer {wanted.name} has one of each {about}: that comes first in its shape, and context.{about} has "
                "neither padding nor default, so that nobody gets an answer to what was not asked"
            )
        if (wanted.count or wanted.at) and len(shape) != 1:
            raise ValueError(f"answer {wanted.name}: columns are picked from an output of shape [columns] alone")
        _check_columns(spec, wanted, shape)


def _check_columns(spec: Any, wanted: Wanted, shape: tuple[Number, ...]) -> None:
    """Of an answer that is about columns by their numbers, that these are columns."""
    for name in (link[1] for link in wanted.links if link[0] in ("leave_out", "at")):
        low, high = map(spec.size, spec.input(name).values or (0, 0))
        last = spec.size(shape[-1]) - 1 if shape else high
        if low < 0 or high > last:
            raise ValueError(f"answer {wanted.name}: {name} may be {low} to {high}, and columns are 0 to {last}")


def check_numbers(spec: Any) -> None:
    """Raise ValueError where a number of the spec is none that its tensor can hold, or the model would get none at all."""
    held: dict[str, History | Context] = {**spec.history, **spec.context}
    for name, given in held.items():
        where = f"{'history' if name in spec.history else 'context'}.{name}"
        if given.values is not None:
            low, high = (spec.sizes[size] if isinstance(size, str) else size for size in given.values)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{where}.values is [{low}, {high}]; needed are two numbers, the lowest comes first")
        if given.values is not None and given.dtype != "FP32":
            limits = LIMITS[given.dtype]
            if min(low - 1, -1) < limits.min or high > limits.max:
                raise ValueError(
                    f"{where}.values is [{low}, {high}]; {given.dtype} holds {limits.min} to {limits.max}, the lowest of "
                    "which is kept for padding" + (': write dtype = "INT64"' if given.dtype == "INT32" else "")
                )
        _check_number(given.padding, given.dtype != "FP32", f"{where}.padding")
    contract = spec.contract
    _check_cold_start(spec)
    for own, source in spec.fed.items():
        where, given_as = f"inputs.{own}", spec.inputs[own].dtype
        is_float = source.of in held and held[source.of].dtype == "FP32"
        if isinstance(source.append, (int, float)):
            _check_number(source.append, not is_float, f"{where}.append")
        if given_as is not None:
            _check_type(spec, source, given_as, is_float, where)
        for taken in (source.of, source.append, source.shift):
            _check_default(spec, taken, f"{where} gets")
    _check_default(spec, spec.row.index, "row.index needs")
    for name, _ in contract.pads:
        if not any(source.of == name for source in spec.fed.values()):
            raise ValueError(f"context.{name}.padding is what the model gets, and no input of it comes from {name}")


def _check_cold_start(spec: Any) -> None:
    """That who has no history is answered from a row that the model has: else nothing tells what is right."""
    if spec.shortest_history or any(source.append is not None for source in spec.fed.values()):
        return
    select, padding = spec.row.select, spec.model.padding
    if not (select == "own" and padding != "none") and (select, padding) != ("last", "left"):
        raise ValueError(
            f'model.shortest_history is 0; with padding = "{padding}" and row.select = "{select}" an empty history has no '
            'row to answer from: append a step to it ([inputs]), pad as its author does (model.padding = "left"), or set 1'
        )


def _check_number(value: float | None, integer: bool, where: str) -> None:
    if value is not None and (not math.isfinite(value) or (integer and value != int(value))):
        raise ValueError(f"{where} is {value}; needed is {'an integer' if integer else 'a finite number'}")


def _check_type(spec: Any, source: Source, dtype: str, is_float: bool, where: str) -> None:
    """That a type loses nothing: a fraction, the upper half of an integer, all but whether it is 0."""
    held = spec.holds(source)
    low, high = held if held is not None else (0, 1 if source.of in FLAGS else spec.model.window)
    if dtype == "FP32":
        return
    if is_float:
        raise ValueError(f"{where}.dtype is {dtype}; {source.of} has fractions: write FP32")
    if dtype == "BOOL" and not 0 <= low <= high <= 1:
        raise ValueError(f"{where}.dtype is BOOL; {source.of} is {low} to {high}, of which that keeps 0 and 1 alone")
    if dtype == "INT32" and not is_int32(low, high):
        raise ValueError(f"{where}.dtype is INT32; {source.of} is {low} to {high}: write INT64")


def _check_default(spec: Any, name: Any, what: str) -> None:
    context = spec.context.get(name) if isinstance(name, str) else None
    if context is not None and context.optional and context.default is None:
        raise ValueError(
            f"context.{name}.optional: {what} {name}, so say what it is where a request has none, as in default = 0"
        )
