"""The spec: typed objects read from one TOML file. Every name, shape, dtype and limit comes from here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, model_validator

from ensemble.contract import Contract, Source, Values, Words
from ensemble.errors import SpecError
from ensemble.tables import (
    COUNTS,
    INTEGER_ROLES,
    INTEGERS,
    POSTPROCESS,
    PROPOSE,
    Batching,
    Export,
    Model,
    Network,
    NextProblems,
    Parity,
    Reduce,
    Steps,
    Table,
    Tensor,
    Tensors,
    Tuned,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_SPEC = Path(__file__).with_name("presets") / "knowledge_tracing.toml"


class Answer(NamedTuple):
    """What a step makes of what the core answers.

    chain: its links, as `ensemble.chain` has them. seen: inputs of a request that they name.
    """

    step: str
    tensors: tuple[Tensor, ...]
    chain: list[list[Any]]
    seen: tuple[Tensor, ...] = ()


class Spec(Table):
    """A served model, whole. Read one with `Spec.read(path)`."""

    model: Model
    network: Network
    reduce: Reduce = Reduce()
    export: Export = Export()
    next_problems: NextProblems
    parity: Parity
    batching: Batching
    steps: Steps = Steps()
    tuned: Tuned | None = None
    tensors: Tensors

    @model_validator(mode="after")
    def _types_are_served(self) -> Spec:
        for role, tensor in self.tensors:
            allowed = INTEGERS if role in INTEGER_ROLES else ("INT32",) if role in COUNTS else ("FP32",)
            if tensor.dtype not in allowed:
                raise ValueError(f"tensors.{role}.dtype is {tensor.dtype}; allowed is {' or '.join(allowed)}")
        return self

    @model_validator(mode="after")
    def _the_ensemble_is_no_step(self) -> Spec:
        if self.model.name in Steps.model_fields:
            raise ValueError(
                f"model.name is {self.model.name!r}, which is a step of the ensemble, and would take its place; steps are "
                f"{', '.join(Steps.model_fields)}: give the model another name"
            )
        return self

    @model_validator(mode="after")
    def _window_is_accepted(self) -> Spec:
        if self.batching.longest_history < self.model.window:
            raise ValueError(
                f"batching.longest_history is {self.batching.longest_history}, less than the window of "
                f"{self.model.window} (model.window) that the core sees"
            )
        return self

    @model_validator(mode="after")
    def _precision_suits_device_and_core(self) -> Spec:
        if self.export.precision == "int8" and self.reduce.length_aware:
            raise ValueError(
                "ONNX Runtime's LSTM in 8 bits, told of lengths, answers the same batch otherwise from one run to the next: "
                'set reduce.length_aware = false, or export.precision = "float32"'
            )
        device = {"float16": "gpu", "int8": "cpu"}.get(self.export.precision)
        if device is not None and (self.steps.core.device, self.reduce.where) != (device, "core"):
            raise ValueError(
                f'export.precision = "{self.export.precision}" is of use on a {device.upper()}, for a core that answers one '
                f'row: set steps.core.device = "{device}" and reduce.where = "core", or precision = "float32"'
            )
        return self

    @model_validator(mode="after")
    def _graphs_repeat_any_lengths(self) -> Spec:
        sizes = self.steps.core.graph_batch_sizes
        if sizes and (self.reduce.length_aware or self.reduce.where != "core"):
            raise ValueError(
                "steps.core.graph_batch_sizes asks for CUDA graphs, which repeat the number of steps that they were "
                'captured with: set reduce.where = "core", reduce.length_aware = false, and model.buckets for short ones'
            )
        if sizes and sizes[-1] > self.batching.max_batch_size:
            raise ValueError(
                f"steps.core.graph_batch_sizes ends in {sizes[-1]}, but a batch has at most {self.batching.max_batch_size} "
                "learners (batching.max_batch_size)"
            )
        return self

    @model_validator(mode="after")
    def _proposals_fit(self) -> Spec:
        if self.next_problems.count > self.model.problems:
            raise ValueError(
                f"next_problems.count is {self.next_problems.count}, but there are only "
                f"{self.model.problems} problems (model.problems)"
            )
        return self

    @classmethod
    def read(cls, path: str | Path = DEFAULT_SPEC) -> Spec:
        """Read and check a spec file.

        Raises:
            SpecError: the file is missing, is not TOML, or a value is not allowed; names file, key, value and rule.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise SpecError(
                f"cannot read the spec {path}: {e.strerror}. Pass an existing file, e.g. {DEFAULT_SPEC}"
            ) from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise SpecError(f"{path} is not a TOML file: {e}") from e
        try:
            return cls.model_validate(table)
        except ValidationError as e:
            raise SpecError(f"{path}: " + "; ".join(_explain(error) for error in e.errors())) from e

    def dims(self, tensor: Tensor) -> list[int]:
        """A tensor's shape a learner in numbers; -1 stands for any length."""
        window = -1 if len(self.model.widths) > 1 else self.model.window
        named = {"problems": self.model.problems, "window": window, "next": self.next_problems.count}
        return [named[d] if isinstance(d, str) else d for d in tensor.shape]

    @property
    def shortest_history(self) -> int:
        """Interactions that a learner needs at least. Without the cut there is no row to answer a cold start from."""
        return 0 if self.model.cold_start and self.reduce.where == "core" else 1

    @property
    def contract(self) -> Contract:
        """What a request has to be, and what the core gets of it."""
        t, problems = self.tensors, self.model.problems
        return Contract(
            inputs={
                t.problem_ids.name: Values(problems, f"0 to {problems - 1}", "problem_id"),
                t.responses.name: Values(2, "0 (wrong) and 1 (correct)", "response"),
            },
            core=(
                Source(t.recent_problem_ids.name, t.problem_ids.name),
                Source(t.recent_responses.name, t.responses.name),
                Source(t.lengths.name, "lengths"),
            ),
            widths=self.model.widths,
            shortest=self.shortest_history,
            longest=self.batching.longest_history,
            words=Words("learner", "learners", "interaction", "interactions"),
        )

    @property
    def requested(self) -> tuple[Tensor, ...]:
        """What a client sends, in the contract's order."""
        return self.tensors.problem_ids, self.tensors.responses

    @property
    def windows(self) -> tuple[Tensor, ...]:
        """What the first step makes of it, in the contract's order; the last says how much of a window is valid."""
        return self.tensors.recent_problem_ids, self.tensors.recent_responses, self.tensors.lengths

    @property
    def answered(self) -> tuple[Tensor, ...]:
        """What a client can get, in the answers' order."""
        return tuple(tensor for answer in self.answers for tensor in answer.tensors)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What clients can ask for; each is a step of its own, which runs only for those who do."""
        t, wanted = self.tensors, self.next_problems
        proposal: list[list[Any]] = [
            ["sigmoid"],
            # The request's own history, not the window: what was answered 600 interactions ago is answered all the same.
            ["leave_out", t.problem_ids.name, 0],
            ["nearest", wanted.target_success_rate, wanted.count],
        ]
        return (
            Answer(POSTPROCESS, (t.probabilities,), [["sigmoid"]]),
            Answer(PROPOSE, (t.next_problem_ids, t.next_problem_probabilities), proposal, (t.problem_ids,)),
        )

    @property
    def core_output(self) -> Tensor:
        """What the core emits: the wanted row's logits, or every row's where postprocess selects."""
        return self.tensors.logits if self.reduce.where == "core" else self.tensors.all_logits


def _explain(error: object) -> str:
    """One pydantic error as "key = value: rule"."""
    assert isinstance(error, dict)
    key = ".".join(str(part) for part in error["loc"]) or "spec"
    given = "" if error["type"] == "missing" or isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{key}{given}: {error['msg']}"
