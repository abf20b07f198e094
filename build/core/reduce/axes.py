"""Which axes of a model's inputs have one size: batch, time, and others.

Names in a file may be missing, wrong, or different for what is one axis. Running the model with unequal sizes tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from build.core.reduce.layout import ReductionError

BATCH, TIME = "batch", "time"
Key = tuple[str, int] | str  # an axis by its name, or where it has none by its input and number
_SIZES = (3, 5, 7, 11, 13, 17, 19, 23)
_TRIES = 300  # ways to tell axes apart that are tried: three inputs without common names have 25


def find(
    model: ir.Model,
    session: ort.InferenceSession,
    output: str,
    labels: Sequence[str | None],
    time_axis: int,
    window: int,
    lowest: Mapping[str, float],
    own: bool = False,
) -> tuple[dict[str, tuple[str | int, ...]], dict[str, int]]:
    """Name every axis of every input.

    >>> from build.core.reduce.example import model
    >>> full = model("y = Tanh(x)", "float[n, m, 2] x")
    >>> session = ort.InferenceSession(ir.to_proto(full).SerializeToString())
    >>> find(full, session, "y", labels=(), time_axis=1, window=512, lowest={})
    ({'x': ('batch', 'time', 2)}, {})

    Args:
        output: the output that is meant.
        labels: what the file calls its axes, as far as it does.
        time_axis: of the output; batch is axis 0 there, or 1 where time is 0.
        window: rows that the model takes at most.
        own: whether the output has batch as axis 0 and no time, whose axis is then the inputs'.
        lowest: of some inputs the value to try the model with; others get zeros, what has no axes but the batch ones.

    Returns:
        By input the names of its axes (or their sizes, where the file fixes them and they are neither batch nor time), and
        the sizes of batch and time where the file fixes those.

    Raises:
        ReductionError: an input has no shape or none has two axes, or the model does not run.
    """
    keys = _keys(model)
    main, places = _main(keys, time_axis)
    refusal = ""
    for groups in islice(_groupings(keys, places), _TRIES):
        counts = [_sizes(groups, window, again) for again in (False, True)]
        shapes: list[tuple[int, ...]] = []
        try:
            for sizes in counts:
                shapes.append(_answer(model, session, output, keys, sizes, lowest))
        except Exception as e:  # ONNX Runtime raises plain classes of its own without a common base
            told = ", ".join(f"{_spelled(key)} {size}" for key, size in counts[len(shapes)].items())
            refusal = f"the model does not run at {told or 'the sizes in its file'}: {str(e).splitlines()[0]}"
            continue
        answer = (0, None) if own else (1 if time_axis == 0 else 0, time_axis)
        return _named(keys, main, places, groups, counts, shapes, labels, answer)
    raise ReductionError(
        f"{refusal}. An axis that is fixed inside the graph has to be fixed in its inputs, or exported as dynamic (a loop "
        "over time in Python is exported with as many steps as its example has rows: export it at a fixed window, with the "
        "batch alone dynamic); if an input takes no zeros, say what it takes: --range NAME=LOW:HIGH"
    )


def _keys(model: ir.Model) -> dict[str, list[Key | int]]:
    found: dict[str, list[Key | int]] = {}
    for value in model.graph.inputs:
        if value.shape is None:
            raise ReductionError(f"input {value.name!r} has no shape; export it with one, sizes that vary as names")
        found[str(value.name)] = [
            size if isinstance(size, int) else (size.value or (str(value.name), axis))
            for axis, size in enumerate(value.shape)
        ]
    return found


def _main(keys: dict[str, list[Key | int]], time_axis: int) -> tuple[str, tuple[int, int]]:
    """The input that is taken for the history, and its axes of batch and time, if the output does not say otherwise."""
    places = (1, 0) if time_axis == 0 else (0, 1)
    histories = [name for name, axes in keys.items() if len(axes) >= 2]
    if not histories:
        given = ", ".join(f"{name} with {len(axes)}" for name, axes in keys.items()) or "none"
        raise ReductionError(f"an input needs two axes, batch and time; there are {given}")
    dynamic = [name for name in histories if not isinstance(keys[name][places[1]], int)]
    return (dynamic or histories)[0], places


def _groupings(keys: dict[str, list[Key | int]], places: tuple[int, int]) -> Iterator[list[list[Key]]]:
    """Which axes may be one, from all apart to all that stand in one place together."""
    standing: dict[object, list[Key]] = {}
    for name, axes in keys.items():
        for number, key in enumerate(axes):
            place = places[0] if len(axes) == 1 else number
            alone = place if place in places else (name, number)
            if not isinstance(key, int) and not any(key in those for those in standing.values()):
                standing.setdefault(alone, []).append(key)
    ways = [sorted(_partitions(those), key=len, reverse=True) for those in standing.values()]
    for way in sorted(product(*ways), key=lambda parts: -sum(map(len, parts))):
        yield [group for part in way for group in part]


def _partitions(keys: list[Key]) -> list[list[list[Key]]]:
    if not keys:
        return [[]]
    first, rest = keys[0], _partitions(keys[1:])
    joined = [[*part[:n], [first, *part[n]], *part[n + 1 :]] for part in rest for n in range(len(part))]
    return [[[first], *part] for part in rest] + joined


def _sizes(groups: list[list[Key]], window: int, again: bool) -> dict[Key, int]:
    """A size for each axis, one for each group; again: others, in the other order, as only a longer mask may run."""
    fitting = [size for size in _SIZES if size <= window] or [window]
    fitting = fitting[: len(fitting) // 2 * 2] or fitting  # of an odd number one group would have its size again
    numbers = range(2 * len(groups) - 1, len(groups) - 1, -1) if again else range(len(groups))
    return {key: fitting[number % len(fitting)] for number, group in zip(numbers, groups, strict=True) for key in group}


def _answer(
    model: ir.Model,
    session: ort.InferenceSession,
    output: str,
    keys: dict[str, list[Key | int]],
    sizes: dict[Key, int],
    lowest: Mapping[str, float],
) -> tuple[int, ...]:
    feeds = {}
    for value in model.graph.inputs:
        name = str(value.name)
        shape = [size if isinstance(size, int) else sizes[size] for size in keys[name]]
        number = lowest.get(name, 1 if len(shape) < 2 or value.dtype == ir.DataType.BOOL else 0)
        feeds[name] = np.full(shape, number, (value.dtype or ir.DataType.FLOAT).numpy())
    return session.run([output], feeds)[0].shape


def _named(
    keys: dict[str, list[Key | int]],
    main: str,
    places: tuple[int, int],
    groups: list[list[Key]],
    counts: list[dict[Key, int]],
    shapes: list[tuple[int, ...]],
    labels: Sequence[str | None],
    answer: tuple[int, int | None],
) -> tuple[dict[str, tuple[str | int, ...]], dict[str, int]]:
    names: dict[Key, str] = {}
    fixed: dict[str, int] = {}
    for meaning, axis, place in zip((BATCH, TIME), answer, places, strict=True):
        followed = [
            group
            for group in groups
            if axis is not None
            and all(
                len(shape) > axis and shape[axis] == sizes[group[0]]
                for shape, sizes in zip(shapes, counts, strict=True)
            )
        ]
        here = keys[main][place]
        # Where the output has its axes in another order than all inputs, only their names tell whether that is meant.
        told = axis is not None and axis < len(labels) and bool(followed) and labels[axis] in followed[0]
        stands = any(axes[place] in group for group in followed[:1] for axes in keys.values() if len(axes) >= 2)
        if not isinstance(here, int) and not stands and not told:
            followed = []
        if not followed and isinstance(here, int):
            standing = [axes[place] for axes in keys.values() if len(axes) >= 2]
            answered = shapes[0][axis] if axis is not None and len(shapes[0]) > axis else here
            fixed[meaning] = answered if answered in standing else here
            continue
        # Where the output follows none, this is not its axis, and the caller sees that.
        followed = followed or [group for group in groups if here in group]
        if axis is None and any(key in names for key in followed[0]):  # the first of the inputs has batch there
            standing = [axes[place] for axes in keys.values() if len(axes) >= 2 and axes[place] not in names]
            followed = [group for group in groups if any(key in group for key in standing)] or followed
        if not any(key in names for key in followed[0]):
            names |= dict.fromkeys(followed[0], meaning)
    for number, group in enumerate(groups):
        own = next((key for key in group if isinstance(key, str) and key not in (BATCH, TIME)), None)
        names |= {key: own or f"axis {number}" for key in group if key not in names}

    def meant(place: int, size: Key | int) -> str | int:
        if not isinstance(size, int):
            return names[size]
        return next(
            (m for m, p in zip((BATCH, TIME), places, strict=True) if p == place and fixed.get(m) == size), size
        )

    return {name: tuple(meant(n, size) for n, size in enumerate(axes)) for name, axes in keys.items()}, fixed


def _spelled(key: Key) -> str:
    return key if isinstance(key, str) else f"axis {key[1]} of {key[0]}"
