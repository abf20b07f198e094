"""The spec: typed objects read from one TOML file. Every name, shape, dtype and limit comes from here."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ValidationError, model_validator

from ensemble.contract import Contract, Source
from ensemble.errors import SpecError
from ensemble.function import Function
from ensemble.tables import PREPROCESS, Batching, Export, Model, Parity, Reduce, Serve, Steps, Table, Tensor, Tuned

if TYPE_CHECKING:
    from typing_extensions import Self

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_SPEC = Path(__file__).with_name("presets") / "knowledge_tracing.toml"
# By the table that tells them the kinds of spec, by name: they are read when one is asked for, being made of what is here.
KINDS = {"tensors": "ensemble.knowledge_tracing:KnowledgeTracing", "history": "ensemble.sequence:Sequence"}


class Answer(NamedTuple):
    """What a step makes of what the core answers.

    name: what clients call it. of: what it reads of a core. chain: its links, as `ensemble.chain` has them. seen: inputs of
    a request that they name. at: the context of which it has one number each.
    """

    name: str
    step: str
    of: Tensor
    tensors: tuple[Tensor, ...]
    chain: list[list[Any]]
    seen: tuple[Tensor, ...] = ()
    at: str | None = None


class Core(NamedTuple):
    """A model that computes: its step, what it gets and what it answers.

    columns: of its inputs the one that says which columns of the answer are wanted; None: all. of: the number of the first
    core's output that they are columns of.
    """

    step: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    columns: str | None = None
    of: int = 0


class Spec(Table):
    """A served model, whole. Read one with `Spec.read(path)`.

    This is what is common to all; what a model takes and answers is a subclass' business, of which the tables of the file
    tell which one: `ensemble.sequence` for any sequence model, `ensemble.knowledge_tracing` for one preset of it.
    """

    by_name: ClassVar[bool] = True  # whether the model's own inputs have names, or their order tells which is which
    made_from: ClassVar[frozenset[str]] = frozenset({"model", "network", "reduce", "export", "parity"})  # the core is

    model: Model
    network: Any
    reduce: Reduce = Reduce()
    export: Export = Export()
    parity: Parity
    batching: Batching
    steps: Steps = Steps()
    serve: Serve = Serve()
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _names_are_known_first(self) -> Spec:
        self.check_names()
        return self

    @model_validator(mode="after")
    def _the_ensemble_is_no_step(self) -> Spec:
        steps = [PREPROCESS, *(core.step for core in self.cores), *(answer.step for answer in self.answers)]
        if self.model.name in steps:
            raise ValueError(
                f"model.name is {self.model.name!r}, which is a step of the ensemble, and would take its place; steps are "
                f"{', '.join(steps)}: give the model another name"
            )
        return self

    @model_validator(mode="after")
    def _one_model_selects_no_row(self) -> Spec:
        if self.serve.layout == "single" and self.reduce.where != "core":
            raise ValueError(
                'serve.layout = "single" needs reduce.where = "core": there is no postprocess step to select'
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
                f"{self.contract.words.histories} (batching.max_batch_size)"
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
        _resolve(table, path.parent)
        try:
            return cls.model_validate(table)
        except ValidationError as e:
            raise SpecError(f"{path}: " + "; ".join(_explain(error) for error in e.errors())) from e

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, of the subclass that the tables tell."""
        if cls is not Spec or not isinstance(obj, dict):
            return super().model_validate(obj, **options)
        found = [kind for table, kind in KINDS.items() if table in obj]
        if len(found) != 1:
            tables = " or ".join(f"[{table}]" for table in KINDS)
            raise SpecError(
                f"a spec has either {tables}, by which its kind is known; this one has {', '.join(obj) or 'nothing'}"
            )
        made: Any = pkgutil.resolve_name(found[0]).model_validate(obj, **options)
        return made

    def check_names(self) -> None:
        """Raise ValueError where a table says the name of something that no table has: all other rules look names up."""

    def dims(self, tensor: Tensor) -> list[int]:
        """A tensor's shape a history in numbers; -1 stands for any length."""
        named = self.sizes_by_name
        return [named[dim] if isinstance(dim, str) else dim for dim in tensor.shape]

    @property
    def sizes_by_name(self) -> dict[str, int]:
        """What the names in shapes stand for; of a window -1 where its width differs from batch to batch."""
        raise NotImplementedError

    @property
    def shortest_history(self) -> int:
        """Steps that a history needs at least."""
        raise NotImplementedError

    @property
    def contract(self) -> Contract:
        """What a request has to be, and what the core gets of it."""
        raise NotImplementedError

    @property
    def requested(self) -> tuple[Tensor, ...]:
        """What a client sends, in the contract's order: histories, then contexts; for a function, what it takes."""
        raise NotImplementedError

    @property
    def function(self) -> Function | None:
        """What makes histories and contexts of a request that does not carry them itself."""
        return None

    @property
    def fed(self) -> dict[str, Source]:
        """By the name of the model's own input where it comes from, under the core's name for it."""
        raise NotImplementedError

    @property
    def windows(self) -> tuple[Tensor, ...]:
        """What the first step makes of it, in the contract's order."""
        raise NotImplementedError

    @property
    def cores(self) -> tuple[Core, ...]:
        """What computes: a model for all columns, and one for each answer that is about wanted ones."""
        raise NotImplementedError

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What clients can ask for; each is a step of its own, which runs only for those who do."""
        raise NotImplementedError

    @property
    def answered(self) -> tuple[Tensor, ...]:
        """What a client can get, in the answers' order."""
        return tuple(tensor for answer in self.answers for tensor in answer.tensors)

    @property
    def core_output(self) -> Tensor:
        """What the first core emits first."""
        return self.cores[0].outputs[0]


def _resolve(table: dict[str, Any], folder: Path) -> None:
    """A function's file is meant relative to the spec's."""
    preprocess = table.get("preprocess")
    if isinstance(preprocess, dict) and isinstance(preprocess.get("function"), str):
        preprocess["function"] = str((folder / preprocess["function"]).resolve())


def _explain(error: object) -> str:
    """One pydantic error as "key = value: rule"."""
    assert isinstance(error, dict)
    key = ".".join(str(part) for part in error["loc"]) or "spec"
    given = "" if error["type"] == "missing" or isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{key}{given}: {error['msg']}"
