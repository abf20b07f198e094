"""A spec written from what a model takes and answers, to be read and changed by whoever knows the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from build import ARTIFACTS, aside
from ensemble.errors import LastrowError, SpecError
from ensemble.sequence import free
from ensemble.spec import Spec
from ensemble.tables import CORE, POSTPROCESS, PREPROCESS, PROPOSE

if TYPE_CHECKING:
    from build.core.inspection import Inspection
    from build.core.subject import Given

MOST_COLUMNS = 10  # that a proposed chain picks


@dataclass(frozen=True)
class Inspected:
    """What was found, and where its spec is."""

    found: Inspection
    spec: Path


def inspect(checkpoint: Path | None, factory: str | None, out: Path | None = None) -> Inspected:
    """Look at an ONNX file, or at what a factory makes, and write a spec of it to `out`.

    Raises:
        LastrowError: neither or both are given, the model is not of a form that is served, or a file is there already.
    """
    is_file = checkpoint is not None and checkpoint.suffix == ".onnx"
    if is_file == (factory is not None):
        raise LastrowError(
            "a model is looked at in an ONNX file, CHECKPOINT=model.onnx, or as FACTORY=package.module:function, to which "
            f"CHECKPOINT= may have the weights; given are {'both' if is_file else 'neither'}"
        )
    from build.core import export, inspection, served, subject
    from build.model.checkpoint import module

    if factory is None:
        assert checkpoint is not None
        model, name = None, checkpoint.stem
        found = inspection.look(subject.of_file(checkpoint))
    else:
        model = module.made(factory) if checkpoint is None else module.load(checkpoint, factory)
        name = factory.partition(":")[2]
        found = inspection.look(subject.of_module(model, factory))
    path = out or ARTIFACTS / "inspected" / _safe(name) / "spec.toml"
    text = write(found, _safe(name), factory, checkpoint, path)
    with aside.beside(path) as folder:
        made = folder / path.name
        made.write_text(text, encoding="utf-8")
        spec = Spec.read(made)
        if model is None:
            assert checkpoint is not None
            export.adopt(checkpoint, spec)
        else:
            served.check(model, spec)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise SpecError(
                f"{path} is there already, and says something else; move it away, or give another file as OUT="
            )
        made.replace(path)
    return Inspected(found, path)


def show(found: Inspection) -> Table:
    """What each input is taken for, and why; and the outputs."""
    table = Table("", "name", "taken for", "why", title=found.name, title_justify="left")
    for given in found.inputs:
        said = f"{given.of}{f', {given.low} to {given.high}' if given.high is not None else ''}"
        table.add_row("input", given.name, said, escape(_why(found, given)))
    for name, shape in found.outputs.items():
        table.add_row(
            "output", name, "a row a history" if found.own else "a row a step", escape(f"a row is {list(shape)}")
        )
    for name, why in found.left_out.items():
        table.add_row("output", name, "nothing", escape(why))
    return table


def write(found: Inspection, name: str, factory: str | None, checkpoint: Path | None, path: Path) -> str:
    """The spec, as TOML with comments."""
    return "\n".join(_lines(found, name, factory, checkpoint, path)) + "\n"


def _lines(found: Inspection, name: str, factory: str | None, checkpoint: Path | None, path: Path) -> Iterator[str]:
    yield f"# What {found.name} was taken for, by running it. Read it, change what is otherwise, and then:"
    yield f"#   make repo SPEC={path} CHECKPOINT={checkpoint or 'its state_dict'}"
    yield "[model]"
    yield f'name = "{name}"'
    limit = "steps that it takes at most" if found.bounded else "it takes any number of steps: how many are to be seen?"
    yield f"window = {found.window} # {limit}"
    yield f'padding = "{_padding(found)}" # {_padding_why(found)}'
    if found.time_major:
        yield "time_major = true # its tensors are [time, batch, ...]"
    yield "\n[network]"
    yield 'type = "onnx"' if factory is None else f'type = "module"\nfactory = "{factory}"'
    names = _names(found)
    for kind in ("history", "context"):
        for given in found.inputs:
            if given.of == kind:
                yield f"\n[{kind}.{names[given.name]}] # {_why(found, given)}"
                yield from _values(given)
    yield "\n[inputs] # of the model, and what each is fed with"
    for given in found.inputs:
        yield f'{_key(given.name)} = "{names.get(given.name, given.of)}"'
    yield "\n[row]"
    if found.own:
        yield 'select = "own" # it answers one row a history by itself'
    else:
        yield 'select = "last" # or "first", "mean", "max"; or "index", with index = the name of a context'
    for output, shape in found.outputs.items():
        yield f"\n[outputs.{_key(output)}]"
        yield f"shape = {list(shape)}"
    for output, why in found.left_out.items():
        yield f"# Not served: {output}, {why}."
    answers = _answers(found, names)
    for output, answer in answers.items():
        yield "\n[[answer]]"
        yield f'name = "{answer}"'
        if len(answers) > 1:
            yield f'of = "{output}"'
        shape = found.outputs[output]
        if len(shape) == 1 and shape[0] > 1:
            yield f'# chain = ["softmax", {{ top = {min(shape[0], MOST_COLUMNS)} }}]'
    yield "\n[batching]\nmax_batch_size = 32"


def _values(given: Given) -> Iterator[str]:
    if given.dtype.kind == "f":
        yield 'dtype = "FP32"'
    else:
        high = given.high
        yield f"values = [{given.low}, {1 if high is None else high}]" + (
            " # nothing bounds them: which are there?" if high is None else ""
        )
    if given.shape:
        yield f"shape = {list(given.shape)}"


def _padding(found: Inspection) -> str:
    return "none" if (found.ahead or found.own) and not found.is_told else "right"


def _padding_why(found: Inspection) -> str:
    if _padding(found) == "none":
        said = "its first row changes with later steps" if found.ahead else "it takes its row itself"
        return f"{said}, and nothing tells it where a history ends"
    return 'or "left", if its author pads in front'


def _why(found: Inspection, given: Given) -> str:
    if given.name in found.alone:
        return (
            f"{given.why}; a row sees this one's own step alone: if it is what the row is asked about, write "
            f'{given.name} = {{ from = "<the history>", shift = "<a context>" }}'
        )
    return given.why


def _names(found: Inspection) -> dict[str, str]:
    """What requests call the inputs that they have."""
    names: dict[str, str] = {}
    for given in found.inputs:
        if given.is_drawn:
            names[given.name] = free(_safe(given.name), [*names.values()])
    return names


def _answers(found: Inspection, names: dict[str, str]) -> dict[str, str]:
    """By output what clients call it."""
    answers: dict[str, str] = {}
    for output in found.outputs:
        answers[output] = free(_safe(output), [*names.values(), *answers.values()])
    return answers


def _safe(name: str) -> str:
    """What may name a model or a tensor, and names no step."""
    safe = re.sub(r"[^A-Za-z0-9_]", "_", name)
    safe = safe if re.match(r"[A-Za-z_]", safe) else f"model_{safe}"
    steps = (PREPROCESS, CORE, POSTPROCESS, PROPOSE)
    return f"{safe}_model" if safe in steps else safe


def _key(name: str) -> str:
    """A name as a key of TOML."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{escaped}"'
