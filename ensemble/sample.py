"""Random requests that keep a contract: for parity, benches and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ensemble.contract import Contract, Values, is_valid


def random_request(
    allowed: Mapping[str, Values],
    lengths: Sequence[int],
    width: int | None = None,
    seed: int = 0,
    padded: bool = True,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """A valid request of random values for histories of these lengths: integers or FP32 [batch, width, ...] by input name.

    >>> from ensemble.contract import check
    >>> allowed = {"ids": Values(40, "0 to 39", "id")}
    >>> check(random_request(allowed, [2, 3]), allowed).tolist()
    [2, 3]

    Args:
        width: None: of the longest.
        padded: False leaves noise behind a length, so that whoever looks there answers otherwise.
        shapes: of one step, where it is no single number.
    """
    rng = np.random.default_rng(seed)
    batch, time = len(lengths), width or max(lengths)
    request: dict[str, np.ndarray] = {}
    for name, values in allowed.items():
        shape = (batch, time, *(shapes or {}).get(name, ()))
        if values.end is None:
            request[name] = _floats(rng, values, shape)
        else:
            request[name] = _integers(rng, values, shape)
    if padded:
        behind = ~is_valid(np.asarray(lengths), time)
        for name, drawn in request.items():
            drawn[behind] = allowed[name].padding
    return request


def _floats(rng: np.random.Generator, values: Values, shape: Sequence[int]) -> np.ndarray:
    """FP32 over the whole of the limits; without limits, normal."""
    if values.limits is None:
        return rng.standard_normal(shape, np.float32)
    low, high = np.array(values.limits, np.float32)
    return np.clip(rng.uniform(*values.limits, shape).astype(np.float32), low, high)


def _integers(rng: np.random.Generator, values: Values, shape: Sequence[int]) -> np.ndarray:
    """INT32 where that has all of them, else INT64."""
    assert values.end is not None
    wide = values.end > np.iinfo(np.int32).max or values.padding < np.iinfo(np.int32).min
    return rng.integers(values.start, values.end, shape, np.int64 if wide else np.int32)


def draw(
    contract: Contract, lengths: Sequence[int], seed: int = 0, padded: bool = True, most: int = 5, even: bool = False
) -> dict[str, np.ndarray]:
    """A valid request of random values, contexts included; of a row's number, one that is there.

    >>> of = Contract({"ids": Values(40, "0 to 39", "id")}, (), (8,), contexts={"age": Values(99, "0 to 98", "age")})
    >>> {name: value.shape for name, value in draw(of, [2, 3]).items()}
    {'ids': (2, 3), 'age': (2,)}

    Args:
        most: how many a context of any length has at most; even: and has.
    """
    shapes = {name: values.shape for name, values in contract.inputs.items()}
    request = random_request(contract.inputs, lengths, max(*lengths, 1), seed, padded, shapes)
    rng = np.random.default_rng([seed, 1])
    for name, values in contract.contexts.items():
        counts = np.full(len(lengths), most if even else rng.integers(1, most + 1), np.int32)
        if contract.pads_context(name) and not even:
            counts = rng.integers(1, most + 1, len(lengths), np.int32)
        shape = (len(lengths), *(counts.max() if size == -1 else size for size in values.shape))
        if name == contract.row:
            ends = np.asarray(lengths)
            request[name] = rng.integers(np.maximum(ends - contract.widths[-1], 0), np.maximum(ends, 1)).astype(
                np.int32
            )
        elif values.end is None:
            request[name] = _floats(rng, values, shape)
        else:
            request[name] = _integers(rng, values, shape)
        if values.is_open:
            request[name][~is_valid(counts, counts.max())] = values.padding
    return request
