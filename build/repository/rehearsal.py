"""One's own function tried out before it is served: copied as the step gets it, and asked what the spec's examples ask."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from build.repository.sources import imports
from ensemble.client import raw
from ensemble.contract import Contract, RefusedError
from ensemble.errors import InvalidRequestError, LastrowError
from ensemble.function import Function, FunctionError, Part
from ensemble.interface import Interface
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.values import is_padding

DRAWN, LONGEST = 6, 5  # examples where a spec has none, and the ends of their open axes
STEPS_OWN = "numpy"  # the one package that is there wherever Triton's Python backend is

Request = dict[str, np.ndarray]
Prepare = Callable[[Mapping[str, np.ndarray]], Request]


class RehearsalError(LastrowError):
    """The function cannot be served: names its file, itself, what it did and what is allowed."""


def sources(spec: Spec) -> dict[str, bytes]:
    """What is copied beside the step, by relative path; nothing where a spec has no function.

    Raises:
        RehearsalError: a file cannot be read, or imports what a step has not.
    """
    if not isinstance(spec, Sequence) or spec.preprocess is None:
        return {}
    found = {}
    for name, path in spec.preprocess.sources.items():
        try:
            found[name] = path.read_bytes()
        except OSError as e:
            key = "function" if name == spec.preprocess.path.name else "files"
            raise RehearsalError(f"preprocess.{key}: cannot read {path}: {e.strerror}") from e
    for name in found:
        _check_imports(name, spec.preprocess.sources[name], found)
    return found


def _check_imports(name: str, path: Path, beside: Mapping[str, bytes]) -> None:
    """A step runs in whatever container serves it: of packages numpy alone is there, and what is copied with it."""
    if path.suffix != ".py":
        return
    package = ".".join(("own", *Path(name).parent.parts))
    own = {".".join(("own", *Path(each).with_suffix("").parts)) for each in beside if each.endswith(".py")}
    for module in imports(path, package):
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top == STEPS_OWN:
            continue
        if any(module == each or module.startswith(f"{each}.") or each.startswith(f"{module}.") for each in own):
            continue
        said = f"from {module.removeprefix('own')}" if top == "own" else module
        raise RehearsalError(
            f"{path} imports {said}, which the step that runs it has not; allowed are numpy, Python's standard library, and "
            f"by `from . import` the modules beside it that preprocess.files names"
        )


def examples(spec: Spec) -> list[Request]:
    """Requests of one history each, as the function gets them: the spec's, or drawn from the values that it declares.

    Raises:
        RehearsalError: an example is not what [request] says.
    """
    if not isinstance(spec, Sequence) or spec.preprocess is None or spec.function is None:
        return []
    given = [*spec.preprocess.example] or list(_drawn(spec.function))
    try:
        (*found,) = (_alone(example, number, spec) for number, example in enumerate(given))
    except InvalidRequestError as e:
        raise RehearsalError(f"preprocess.example: {e}") from e
    return found


def _alone(example: object, number: int, spec: Sequence) -> Request:
    arrays = raw.read(example, number, 2, Interface.of(spec))
    return {name: array[None] for name, array in arrays.items()}


def _drawn(function: Function) -> Iterator[dict[str, np.ndarray]]:
    """Of every length of the open axes; what is optional is there every other time."""
    rng = np.random.default_rng(0)
    for number in range(DRAWN):
        yield {
            name: _numbers(part, 1 + number % LONGEST, rng)
            for name, part in function.takes.items()
            if number % 2 == 0 or not part.optional
        }


def _numbers(part: Part, length: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(length if size == -1 else size for size in part.shape)
    if part.values is None:
        return rng.standard_normal(shape, np.float32)
    return rng.integers(part.values[0], part.values[1], shape, endpoint=True)


def rehearse(spec: Spec) -> list[Request]:
    """What the function makes of each example, once that is known to be as good as a request.

    The file is called where it lies and as the copy that is served, an example at a time and all of one shape together.

    Raises:
        RehearsalError: it cannot be imported, fails, returns what the contract refuses, or answers otherwise as a copy or in
            other company.
    """
    asked = examples(spec)
    if not asked:
        return []
    assert isinstance(spec, Sequence)
    assert spec.preprocess is not None
    function, contract = spec.function, spec.contract
    assert function is not None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in sources(spec).items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        local, served = _opened(function, spec.preprocess.path.parent), _opened(function, Path(folder))
        made = [_made(served, request, function, contract, f"example {n}") for n, request in enumerate(asked)]
        for number, (request, wanted) in enumerate(zip(asked, made, strict=True)):
            said = f"example {number}, where it lies"
            if not _same(_made(local, request, function, contract, said), wanted):
                raise RehearsalError(
                    f"{function} answers example {number} otherwise as the copy that is served than where it lies; what it "
                    "returns may depend on nothing but the request and the files of preprocess.files"
                )
        _check_together(served, asked, made, spec)
    return made


def _opened(function: Function, folder: Path) -> Prepare:
    try:
        return function.opened(folder)
    except FunctionError as e:
        raise RehearsalError(
            f"preprocess.function: {e}; what it opens or imports has to stand in preprocess.files"
        ) from e


def _made(prepare: Prepare, request: Request, function: Function, contract: Contract, said: str) -> Request:
    """What comes of a request, which has to keep the contract."""
    try:
        made = prepare({name: array.copy() for name, array in request.items()})
        contract.feed(made, contract.check(made), {source.name: np.float32 for source in contract.core})
    except RefusedError as e:
        raise RehearsalError(f"{function} at {said}: {e}") from e
    except FunctionError as e:
        raise RehearsalError(f"at {said} {e}") from e
    except Exception as e:  # whatever their code raises
        raise RehearsalError(
            f"{function} failed at {said}: {type(e).__name__}: {e}; what it opens has to stand in preprocess.files, and a "
            "request that it does not take it refuses with ValueError"
        ) from e
    return made


def _check_together(served: Prepare, asked: list[Request], made: list[Request], spec: Sequence) -> None:
    """A request may be about several histories, of which none may change what another one gets."""
    alike: dict[object, list[int]] = {}
    contract, function = spec.contract, spec.function
    assert function is not None
    for number, request in enumerate(asked):
        length = contract.check(made[number])[0] if contract.even else None
        alike.setdefault((length, *((name, a.shape) for name, a in request.items())), []).append(number)
    for numbers in alike.values():
        for some in itertools.zip_longest(*[iter(numbers)] * spec.batching.max_batch_size):
            together = [number for number in some if number is not None]
            stacked = {name: np.concatenate([asked[n][name] for n in together]) for name in asked[together[0]]}
            found = _made(served, stacked, function, contract, f"examples {', '.join(map(str, together))} together")
            for row, number in enumerate(together):
                if not _same(_share(found, row, contract), _share(made[number], 0, contract)):
                    raise RehearsalError(
                        f"{function} answers example {number} otherwise alone than in one request with examples "
                        f"{', '.join(str(n) for n in together if n != number)}; each history's share may depend on that "
                        "history alone, and what pads it is -1 or NaN"
                    )


def _share(request: Request, row: int, contract: Contract) -> Request:
    """One history's part, without padding."""
    length = contract._replace(even=False).check(request)[row]
    share = {}
    for name, values in request.items():
        own = values[row]
        if name in contract.inputs:
            own = own[:length]
        elif contract.contexts[name].is_open:
            own = own[~is_padding(values, contract.contexts[name])[row]]
        share[name] = own
    return share


def _same(one: Request, other: Request) -> bool:
    return set(one) == set(other) and all(
        np.array_equal(values, other[name], equal_nan=values.dtype.kind == "f") for name, values in one.items()
    )
