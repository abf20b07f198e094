"""Histories as mappings by input name: read as arrays, checked by the model's contract, and put together into requests."""

from __future__ import annotations

import numbers
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from ensemble.contract import RefusedError, Values
from ensemble.errors import InvalidRequestError
from ensemble.interface import Interface
from ensemble.tables import Tensor

EXACT = 2**53  # up to where FP64 has every whole number


class Batch(NamedTuple):
    """What goes into one request. numbers: of its histories, in the call. arrays: [batch, ...] by input name, as contracts
    have them. given: each history's own, not padded."""

    numbers: Sequence[int]
    arrays: dict[str, np.ndarray]
    given: Sequence[Mapping[str, np.ndarray]]


def batches(histories: Sequence[object], interface: Interface) -> list[Batch]:
    """Checked batches of at most max_batch_size histories; together are those that may be.

    Raises:
        InvalidRequestError: what breaks the contract, in the server's words, its histories numbered over the whole call.
    """
    given = [_read(history, number, len(histories), interface) for number, history in enumerate(histories)]
    alike: dict[Any, list[int]] = {}
    for number, arrays in enumerate(given):
        alike.setdefault(_kind(arrays, interface), []).append(number)
    size, made = interface.max_batch_size, []
    for together in alike.values():
        for start in range(0, len(together), size):
            numbers_ = together[start : start + size]
            rows = [given[number] for number in numbers_]
            batch = Batch(numbers_, {name: _stacked(rows, name, interface) for name in rows[0]}, rows)
            _check(batch, interface)
            made.append(batch)
    return made


def _read(history: object, number: int, count: int, interface: Interface) -> dict[str, np.ndarray]:
    """One history's arrays by input name, each of its own length."""
    contract, words = interface.contract, interface.contract.words
    of = _place(number, count, interface)
    arrays, every = {}, {**contract.inputs, **contract.contexts}
    for tensor, value in named(history, number, count, interface):
        name = tensor.name
        steps = words.steps if name in contract.inputs else None
        arrays[name] = as_array(value, tensor, every[name], f"{name}: {words.history} {number}", steps)
    for name, allowed in contract.contexts.items():
        if name in arrays and _is_padded(name, interface):  # what pads the shorter ones of a request is no value of one
            values = arrays[name]
            wrong = np.isnan(values) if allowed.end is None else values < allowed.start
            if wrong.any():
                _refuse_first(values, wrong, allowed, f"{name}: {words.history} {number}")
    (leading, first), *others = ((name, arrays[name]) for name in contract.inputs)
    for name, values in others:
        if len(values) != len(first):
            shapes = [[1, *array.shape] for array in (first, values)]
            refuse(
                f"{leading} has shape {shapes[0]} and {name} {shapes[1]}; both need the same [{words.histories}, "
                f"{words.steps}]{of}"
            )
    if len(first) and all(_is_padding(arrays[name][-1], allowed) for name, allowed in contract.inputs.items()):
        fill = contract.inputs[leading].padding
        refuse(
            f"{leading}: {words.history} {number} ends in {'NaN' if np.isnan(fill) else fill}, which stands for padding; "
            "leave the padding out, the client does it"
        )
    return arrays


def named(history: object, number: int, count: int, interface: Interface) -> Iterator[tuple[Tensor, Any]]:
    """One history's inputs and their values, in the interface's order; refuses what is no history of this model."""
    words, of = interface.contract.words, _place(number, count, interface)
    if not isinstance(history, Mapping):
        refuse(f"{words.history} {number} is {reprlib.repr(history)}; needed is a mapping of {_taken(interface)}")
    known = [tensor.name for tensor in interface.inputs]
    for name in history:
        if name not in known:
            refuse(f"{name!r} is no input of {interface.name}; it takes {_taken(interface)}{of}")
    for tensor in interface.inputs:
        if tensor.name in history:
            yield tensor, history[tensor.name]
        elif not tensor.optional:
            refuse(f"{tensor.name} is missing; this model needs it of each {words.history}{of}")


def _place(number: int, count: int, interface: Interface) -> str:
    return f" ({interface.contract.words.history} {number} of the call)" if count > 1 else ""


def as_array(value: object, tensor: Tensor, allowed: Values, where: str, steps: str | None) -> np.ndarray:
    """A value of the tensor's type, if that loses nothing; floating-point numbers are rounded to FP32.

    steps: what those of a history are called; None: it is a context.
    """
    lead = [] if steps is None else [steps]
    needed = f"[{', '.join(map(str, [*lead, *allowed.shape]))}]" if lead or allowed.shape else "one number"
    if np.ma.is_masked(value):
        refuse(f"{where} has masked values; needed is {needed}, without gaps")
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            array = np.asarray(value, object)  # each element as it was given
    except (TypeError, ValueError, RuntimeError):
        refuse(f"{where} has lists of unequal length; needed is {needed}")
    if not array.size and array.ndim == 1:
        array = np.zeros((0, *allowed.shape) if lead else array.shape)
    shape = array.shape[len(lead) :]
    fits = array.ndim == len(lead) + len(allowed.shape)
    if not (fits and all(size in (-1, given) for size, given in zip(allowed.shape, shape, strict=True))):
        given = f"has shape {list(array.shape)}" if array.ndim else f"is {reprlib.repr(value)}"
        refuse(f"{where} {given}; needed is {needed}")
    kind = np.dtype(triton_to_np_dtype(tensor.dtype))
    if array.dtype.kind == "O":
        array = _of_objects(array, allowed, where)
    if array.dtype == kind:
        return np.asarray(array, order="C")
    if array.dtype.kind not in "biuf":
        _refuse_first(array, np.ones(array.shape, bool), allowed, where)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit shows below
        taken = array.astype(kind)
    wrong = _lost(array, taken, allowed)
    if wrong.any():
        _refuse_first(array, wrong, allowed, where)
    return taken


def _lost(array: np.ndarray, taken: np.ndarray, allowed: Values) -> np.ndarray:
    """Which numbers another type does not have. Flags are numbers where 0 and 1 are all that is allowed."""
    given = array.dtype.kind
    lost: np.ndarray
    if taken.dtype.kind == "f":
        lost = np.isinf(taken) & np.isfinite(array) if given == "f" else taken.astype(np.float64) != array
    elif given == "b":
        lost = np.full(array.shape, (allowed.start, allowed.end) != (0, 2))
    else:
        lost = taken != array  # an integer without room is another one there
        if given == "f":
            lost |= np.abs(array) > EXACT
    return lost


def _of_objects(array: np.ndarray, allowed: Values, where: str) -> np.ndarray:
    """Python's own numbers, among which some are too large for numpy, or something else stands among them."""
    for position, value in np.ndenumerate(array):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not -EXACT <= float(value) <= EXACT:
            _refuse_value(array, position, allowed, where)
    return array.astype(np.float64)


def _refuse_first(array: np.ndarray, wrong: np.ndarray, allowed: Values, where: str) -> NoReturn:
    """Name the first of the wrong elements."""
    _refuse_value(array, tuple(np.argwhere(wrong)[0].tolist()), allowed, where)


def _refuse_value(array: np.ndarray, position: tuple[int, ...], allowed: Values, where: str) -> NoReturn:
    value = array[position]
    at = f", position {', '.join(map(str, position))}" if position else ""
    refuse(f"{where}{at} is {value.item() if isinstance(value, np.generic) else value!r}; allowed are {allowed.said}")


def _kind(arrays: Mapping[str, np.ndarray], interface: Interface) -> tuple[Any, ...]:
    """What histories of one request have in common: optional contexts, lengths where nothing is padded, shapes of those
    contexts of any length that nothing can pad."""
    contract = interface.contract
    shapes = tuple(
        arrays[name].shape for name in contract.contexts if name in arrays and not _is_padded(name, interface)
    )
    return tuple(arrays), len(arrays[next(iter(contract.inputs))]) if contract.even else None, shapes


def _is_padded(name: str, interface: Interface) -> bool:
    """Whether one request may have several lengths of an input."""
    return name not in interface.contract.contexts or interface.contract.pads_context(name)


def _stacked(rows: Sequence[Mapping[str, np.ndarray]], name: str, interface: Interface) -> np.ndarray:
    """One input of several histories, [batch, ...], padded where they are of unequal length."""
    arrays = [row[name] for row in rows]
    if not _is_padded(name, interface):
        return np.stack(arrays)
    if len(arrays) == 1 and len(arrays[0]):
        return arrays[0][None]  # nothing to pad, nothing to copy
    kind = arrays[0].dtype
    # At least 1 long: a tensor without elements cannot say how many histories it is about.
    shape = (len(rows), max(1, *map(len, arrays)), *arrays[0].shape[1:])
    allowed = {**interface.contract.inputs, **interface.contract.contexts}[name]
    padded = np.full(shape, allowed.padding, kind)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _check(batch: Batch, interface: Interface) -> None:
    """By the contract, in its words."""
    contract = interface.contract
    try:
        lengths = contract.check(batch.arrays)
        if contract.row is not None:  # whether it is in the window shows when the core is fed
            contract.feed(
                batch.arrays, lengths, {s.name: batch.arrays[s.of].dtype for s in contract.core if s.of in batch.arrays}
            )
    except RefusedError as e:
        refuse(renumbered(str(e), batch.numbers, contract.words.history), e)


def renumbered(message: str, numbers_: Sequence[int], word: str) -> str:
    """What is said of a history of a request, said of the call's."""
    found = re.compile(rf"\b{re.escape(word)} (\d+)\b")
    return found.sub(lambda m: f"{word} {numbers_[int(m[1])]}", message, count=1)


def _is_padding(step: np.ndarray, allowed: Values) -> bool:
    return bool((np.isnan(step) if allowed.end is None else step == allowed.padding).all())


def _taken(interface: Interface) -> str:
    return ", ".join(f"{tensor.name}{' (optional)' if tensor.optional else ''}" for tensor in interface.inputs)


def refuse(message: str, why: Exception | None = None) -> NoReturn:
    """Raise InvalidRequestError."""
    raise InvalidRequestError(message, "INVALID_ARGUMENT") from why
