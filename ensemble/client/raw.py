"""Histories as one's own function takes them: text and numbers by input name, together in a request where shapes agree."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.utils import serialize_byte_tensor

from ensemble.client.batch import Batch, as_array, named, refuse, renumbered
from ensemble.contract import RefusedError
from ensemble.function import Function, Part, allowed
from ensemble.interface import Interface


def batches(histories: Sequence[object], interface: Interface) -> list[Batch]:
    """Checked batches of at most max_batch_size histories, each of one shape: what may pad a shorter one is not known here.

    Raises:
        InvalidRequestError: what the function does not take, in the server's words, histories numbered over the whole call.
    """
    function = interface.function
    assert function is not None
    given = [read(history, number, len(histories), interface) for number, history in enumerate(histories)]
    alike: dict[Any, list[int]] = {}
    for number, arrays in enumerate(given):
        alike.setdefault(tuple((name, array.shape) for name, array in arrays.items()), []).append(number)
    size, made = interface.max_batch_size, []
    for together in alike.values():
        for start in range(0, len(together), size):
            numbers = together[start : start + size]
            rows = [given[number] for number in numbers]
            arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            try:
                function.check(arrays)
            except RefusedError as e:
                refuse(renumbered(str(e), numbers, interface.contract.words.history), e)
            made.append(Batch(numbers, arrays, rows))
    return made


def read(history: object, number: int, count: int, interface: Interface) -> dict[str, np.ndarray]:
    """One history's arrays by input name."""
    function: Function | None = interface.function
    assert function is not None
    arrays = {}
    for tensor, value in named(history, number, count, interface):
        part, where = function.takes[tensor.name], f"{tensor.name}: {interface.contract.words.history} {number}"
        if part.dtype == "BYTES":
            arrays[tensor.name] = _text(value, part, where)
        else:
            arrays[tensor.name] = as_array(value, tensor, allowed(tensor.name, part), where, None)
    return arrays


def _text(value: object, part: Part, where: str) -> np.ndarray:
    """Text as bytes in UTF-8, [...] of objects; one alone may stand for a list of one."""
    alone = isinstance(value, (str, bytes))
    array = np.empty((), object) if alone else np.asarray(value, object)
    if alone:
        array[()] = value
    if alone and part.shape == (1,):
        array = array[None]
    for each in array.ravel():
        if not isinstance(each, (str, bytes)):
            refuse(f"{where} has {reprlib.repr(each)}; needed is text")
    if array.ndim != len(part.shape) or any(
        n not in (-1, size) for n, size in zip(part.shape, array.shape, strict=True)
    ):
        needed = f"text of shape {list(part.shape)}" if part.shape else "one text"
        refuse(f"{where} has shape {list(array.shape)}; needed is {needed}")
    made = np.empty(array.shape, object)
    for place, each in np.ndenumerate(array):
        made[place] = each.encode() if isinstance(each, str) else each
    return made


def as_sent(values: np.ndarray) -> bytes:
    """A tensor on the wire; text as Triton has it, each behind its length.

    >>> as_sent(np.array([b"to be"], object))
    b'\\x05\\x00\\x00\\x00to be'
    """
    if values.dtype != np.object_:
        return values.tobytes()
    return bytes(serialize_byte_tensor(values).item()) if values.size else b""
