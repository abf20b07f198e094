"""How an ensemble's steps fit: each tensor has two ends, who makes it and who takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Model, Repository


@dataclass
class End:
    """One end of a tensor: whose it is, the configuration's input or output, and the model that has it."""

    owner: str
    tensor: Any
    model: Model

    @property
    def type(self) -> str:
        """E.g. "FP32"."""
        return DataType.Name(self.tensor.data_type).removeprefix("TYPE_")

    @property
    def shape(self) -> list[int]:
        """Its dims, behind the batch where there is one."""
        return ([-1] if self.model.config.max_batch_size else []) + list(self.tensor.dims)

    def fits(self, other: End) -> bool:
        """Whether type and shape are the same, a -1 on either side standing for any size."""
        same = len(self.shape) == len(other.shape) and self.type == other.type
        return same and all(a == b or -1 in (a, b) for a, b in zip(self.shape, other.shape, strict=True))

    def __str__(self) -> str:
        return f"{self.owner} is {self.type} {self.shape}"


def wiring(repository: Repository) -> Iterator[Finding]:
    """Tensors that do not fit from step to step.

    `input_map { key: "x" value: "between" }`: first's y is FP32 [-1, 4] and second's x is FP32 [-1, 5].
    """
    for ensemble in repository.ensembles():
        steps = ensemble.config.ensemble_scheduling.step
        complete = all(step.model_name in repository.models for step in steps)
        made = _made(repository, ensemble)
        for step in steps:
            model = repository.models.get(step.model_name)
            if model is not None:
                yield from _step(ensemble, step, model, made, complete)
            elif not (repository.folder / step.model_name).is_dir():
                key = f"ensemble_scheduling.step ({step.model_name})"
                why = f"there is no model {step.model_name} in {repository.folder}"
                yield Finding(ensemble.file, key, why, "one that is there", "error")
        for tensor in ensemble.config.output:
            key = f"output ({tensor.name})"
            if tensor.name in made:
                yield from _joined(
                    ensemble, key, made[tensor.name], End(f"the answer's {tensor.name}", tensor, ensemble)
                )
            elif complete:
                yield _missing(ensemble, key, "no step makes it", made)


def _made(repository: Repository, ensemble: Model) -> dict[str, End]:
    """Every tensor that the request or a step makes, by the ensemble's name for it."""
    made = {tensor.name: End(f"the request's {tensor.name}", tensor, ensemble) for tensor in ensemble.config.input}
    for step in ensemble.config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        if model is None:
            continue
        for tensor in model.config.output:
            if tensor.name in step.output_map:
                made[step.output_map[tensor.name]] = End(f"{model.name}'s {tensor.name}", tensor, model)
    return made


def _step(ensemble: Model, step: Any, model: Model, made: dict[str, End], complete: bool) -> Iterator[Finding]:
    """complete: whether everything that is made is known."""
    asked, most = ensemble.config.max_batch_size, model.config.max_batch_size
    if most < asked:
        why = f"{asked} is more than {model.name} takes, {most}"
        yield Finding(ensemble.file, "max_batch_size", why, f"{most} at most", "error")
    outputs = [tensor.name for tensor in model.config.output]
    for own in step.output_map:
        if outputs and own not in outputs:
            yield _missing(ensemble, f"output_map ({own})", f"{model.name} has no output {own}", outputs)
    inputs = {tensor.name: tensor for tensor in model.config.input}
    for own, name in step.input_map.items():
        if complete and name not in made:
            yield _missing(ensemble, f"input_map ({name})", "no step and no input of the ensemble makes it", made)
        if inputs and own not in inputs:
            yield _missing(ensemble, f"input_map ({own})", f"{model.name} has no input {own}", inputs)
        elif inputs and name in made:
            taken = End(f"{model.name}'s {own}", inputs[own], model)
            yield from _joined(ensemble, f"input_map ({name})", made[name], taken)


def _missing(ensemble: Model, key: str, why: str, there: Iterable[str]) -> Finding:
    return Finding(ensemble.file, key, why, f"one of {', '.join(sorted(there))}", "error")


def _joined(ensemble: Model, key: str, made: End, taken: End) -> Iterator[Finding]:
    if not made.fits(taken):
        yield Finding(ensemble.file, key, f"{made} and {taken}", "the same type and dims on both sides", "error")
