"""How an ensemble's steps fit: each tensor has two ends, who makes it and who takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from ensemble.lint.finding import Finding
from ensemble.lint.onnx_file import face
from ensemble.lint.refusal import among, refused
from ensemble.lint.repository import ENSEMBLE, Model, Repository
from ensemble.lint.rule import CORE, rule

CHECKED = f"{CORE}/ensemble_scheduler/ensemble_utils.cc (ValidateEnsembleConfig)"
STEP = "ensemble_scheduling.step"


@dataclass
class End:
    """One end of a tensor: whose it is, its type, its dims, and whether a batch lies before them."""

    owner: str
    type: str
    dims: list[int]
    batches: bool

    @property
    def shape(self) -> list[int]:
        """Its dims, behind the batch where there is one."""
        return [-1, *self.dims] if self.batches else self.dims

    def fits(self, other: End) -> bool:
        """Triton's own rule: the same type, and dims or whole shapes that agree, a -1 on either side standing for any."""
        return self.type == other.type and (_agree(self.dims, other.dims) or _agree(self.shape, other.shape))

    def __str__(self) -> str:
        return f"{self.owner} is {self.type.removeprefix('TYPE_')} {self.shape}"


def _agree(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _end(owner: str, tensor: Any, model: Model, own: bool = False) -> End:
    """own: of the ensemble, whose reshape counts."""
    dims = tensor.reshape.shape if own and tensor.HasField("reshape") else tensor.dims
    return End(owner, DataType.Name(tensor.data_type), list(dims), model.config.max_batch_size > 0)


def _side(model: Model, side: str) -> dict[str, End] | None:
    """A model's inputs or outputs by name; None where neither its configuration nor its file says all of them."""
    tensors = getattr(model.config, side)
    if tensors and not model.completes_itself:
        return {tensor.name: _end(f"{model.name}'s {tensor.name}", tensor, model) for tensor in tensors}
    path = model.onnx()
    read = face(path) if path is not None and not tensors else None
    if read is None:
        return None
    made = {}
    for name, (kind, shape) in (read.inputs if side == "input" else read.outputs).items():
        if shape is not None:
            dims, batches = (shape[1:], True) if model.config.max_batch_size else (shape, False)
            made[name] = End(f"{model.name}'s {name}", kind, dims, batches)
    return made


@rule("ensemble-wiring", CHECKED)
def wiring(repository: Repository) -> Iterator[Finding]:
    """Tensors that do not fit from step to step.

    `input_map { key: "x" value: "between" }`: first's y is FP32 [-1, 4] and second's x is FP32 [-1, 5]. Names are those
    of the step's configuration, every input that is not optional is mapped, and types and dims are the same on both
    sides: dims without the batch, or shapes with it. A step that does not batch may stand in an ensemble that does.
    """
    for ensemble in repository.ensembles():
        yield from _ensemble(repository, ensemble)


def _ensemble(repository: Repository, ensemble: Model) -> Iterator[Finding]:
    known = {t.name: _end(f"the request's {t.name}", t, ensemble, own=True) for t in ensemble.config.input}
    for tensor in ensemble.config.output:
        known.setdefault(tensor.name, _end(f"the answer's {tensor.name}", tensor, ensemble, own=True))
    answered = {tensor.name for tensor in ensemble.config.output}
    asked = ensemble.config.max_batch_size
    for step in ensemble.config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        if model is None:
            if step.model_name and not (repository.folder / step.model_name).is_dir():
                why = f"there is no model {step.model_name} in {repository.folder}"
                yield refused(ensemble, f"{STEP} ({step.model_name})", why, "one that is there")
            continue
        most = model.config.max_batch_size
        if 0 < most < asked:
            yield refused(
                ensemble, "max_batch_size", f"{asked} is more than {model.name} takes, {most}", f"{most} at most"
            )
        yield from _mapped(ensemble, model, step, known, answered)


def _mapped(ensemble: Model, model: Model, step: Any, known: dict[str, End], answered: set[str]) -> Iterator[Finding]:
    """known: who was first to say what each of the ensemble's tensors is; what this step says is added."""
    for side, mapped in (("input", step.input_map), ("output", step.output_map)):
        there = _side(model, side)
        for own, name in mapped.items():
            key = f"{side}_map ({name})"
            if there is not None and own not in there:
                yield refused(ensemble, f"{side}_map ({own})", f"{model.name} has no {side} {own}", among(there))
            if there is None or own not in there:
                continue
            first = known.setdefault(name, there[own])
            if not first.fits(there[own]):
                place = f"output ({name})" if name in answered and side == "output" else key
                why = f"{first} and {there[own]}"
                yield refused(ensemble, place, why, "the same type and dims on both sides")
    given = Counter(step.input_map)
    for tensor in model.config.input:
        if tensor.name and tensor.name not in given and not tensor.optional and step.input_map:
            key = f"{STEP} ({model.name})"
            why = f"{model.name}'s input {tensor.name} is not mapped, and is not optional"
            yield refused(
                ensemble, key, why, f'input_map {{ key: "{tensor.name}" ... }}, or optional: true in {model.name}'
            )


@rule("ensemble-versions", f"{CORE}/model_repository_manager/model_repository_manager.cc")
def versions(repository: Repository) -> Iterator[Finding]:
    """A step of a version that is not served.

    `step [ { model_name: "m" model_version: 2 } ]` where m has a folder 1 alone, or a version_policy that leaves 2 out.
    -1 is the newest that is served.
    """
    for ensemble in repository.ensembles():
        for step in ensemble.config.ensemble_scheduling.step:
            model = repository.models.get(step.model_name)
            if model is None or step.model_version == -1 or not model.versions:
                continue
            if step.model_version not in model.served:
                why = f"version {step.model_version} of {model.name} is not served, but {_listed(model.served)}"
                yield refused(ensemble, f"{STEP} ({model.name})", why, "-1, or one that is served")


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


@rule("ensemble-decoupled", CHECKED)
def decoupled(repository: Repository) -> Iterator[Finding]:
    """A step that reads of two models that each answer any number of times.

    Which answer of one belongs to which of the other cannot be told, and Triton refuses the ensemble. Give the step
    inputs that come of one decoupled model.
    """
    for ensemble in repository.ensembles():
        origin = {tensor.name: frozenset[int]() for tensor in ensemble.config.input}
        waiting = list(enumerate(ensemble.config.ensemble_scheduling.step))
        while True:
            done = [
                (number, step) for number, step in waiting if all(name in origin for name in step.input_map.values())
            ]
            if not done:
                break
            for number, step in done:
                origins = {origin[name] for name in step.input_map.values()}
                if len(origins) > 1:
                    why = f"{step.model_name} reads of different decoupled models, whose answers do not go together"
                    yield refused(ensemble, f"{STEP} ({step.model_name})", why, "inputs that come of one of them")
                own = (
                    frozenset([number]) if _decoupled(repository, step.model_name) else next(iter(origins), frozenset())
                )
                origin.update(dict.fromkeys(step.output_map.values(), own))
            waiting = [entry for entry in waiting if entry not in done]
        ends = {origin[t.name] for t in ensemble.config.output if t.name in origin}
        if len(ends) > 1:
            why = "its outputs come of different decoupled models, whose answers do not go together"
            yield refused(ensemble, "output", why, "outputs that come of one of them")


def _decoupled(repository: Repository, name: str) -> bool:
    waiting, seen = [name], {name}
    while waiting:
        model = repository.models.get(waiting.pop())
        if model is None:
            continue
        if model.config.model_transaction_policy.decoupled and model.backend != ENSEMBLE:
            return True
        for step in model.config.ensemble_scheduling.step:
            if step.model_name not in seen:
                seen.add(step.model_name)
                waiting.append(step.model_name)
    return False
