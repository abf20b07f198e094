"""Any sequence model: histories and contexts in, what its wanted row says out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from ensemble.contract import Contract, Source, Values, Words
from ensemble.function import Function, Part
from ensemble.function_tables import Preprocess, Requested, check
from ensemble.sequence_checks import check_answers, check_numbers, is_int32, whole
from ensemble.sequence_tables import (
    Context,
    Fed,
    History,
    Input,
    Networks,
    Number,
    Output,
    RelativeParity,
    Row,
    SequenceModel,
    Wanted,
)
from ensemble.signature import DERIVED, INTEGER, TYPES, recognised
from ensemble.spec import Answer, Core, Spec
from ensemble.tables import CORE, POSTPROCESS, Count, Name, Tensor
from ensemble.tables import Words as WordsTable

LENGTHS, ROW = "lengths", "row"


class Sequence(Spec):
    """A served sequence model."""

    made_from: ClassVar[frozenset[str]] = Spec.made_from | {
        "sizes", "history", "context", "inputs", "outputs", "row", "answer", "batching",
    }  # fmt: skip

    model: SequenceModel
    network: Annotated[Networks, Field(discriminator="type")]
    sizes: dict[Name, Count] = Field(default_factory=dict)
    history: Annotated[dict[Name, History], Field(min_length=1)]
    context: dict[Name, Context] = Field(default_factory=dict)
    inputs: dict[str, Fed]
    outputs: Annotated[dict[str, Output], Field(min_length=1)]
    row: Row = Row()
    answer: Annotated[tuple[Wanted, ...], Field(min_length=1)]
    parity: RelativeParity = RelativeParity()
    words: WordsTable = WordsTable()
    preprocess: Preprocess | None = None
    request: dict[Name, Requested] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _inputs_are_recognised(cls, table: Any) -> Any:
        """A list of the model's inputs, or none, or a name alone in place of a table."""
        if not isinstance(table, dict) or not isinstance(table.get("history"), dict):
            return table
        history, context = list(table["history"]), list(table.get("context", {}))
        given = table.get("inputs")
        if given is None:
            used = str([table.get("row"), table.get("answer")])
            given = [*history, *(name for name in context if f"'{name}'" not in used)]
        if isinstance(given, list):
            given = recognised(given, history, context)
        if isinstance(given, dict):
            given = {name: {"from": source} if isinstance(source, str) else source for name, source in given.items()}
        return {**table, "inputs": given}

    def check_names(self) -> None:
        """As Spec's: of histories, contexts, outputs and sizes."""
        held: dict[str, Input] = {f"history.{name}": each for name, each in self.history.items()}
        held.update({f"context.{name}": each for name, each in self.context.items()})
        for where, sizes in [
            *((f"{name}.shape", each.shape) for name, each in held.items()),
            *((f"outputs.{name}.shape", each.shape) for name, each in self.outputs.items()),
            *((f"{name}.values", each.values or ()) for name, each in held.items()),
            *((f"request.{name}.shape", each.shape) for name, each in self.request.items()),
            *((f"request.{name}.values", each.values or ()) for name, each in self.request.items()),
        ]:
            known = [*self.sizes, *(self._lengths if where.startswith("outputs.") else ())]
            unknown = next((size for size in sizes if isinstance(size, str) and size not in known), None)
            if unknown is not None:
                raise ValueError(f"{where} says {unknown!r}; [sizes] has {', '.join(self.sizes) or 'nothing'}")
        context = " or ".join(self.context) or "a [context] table, of which there is none"
        for name, given in self.inputs.items():
            if given.of not in (*self.history, *self.context, *DERIVED):
                allowed = ", ".join((*self.history, *self.context, *DERIVED))
                raise ValueError(f"inputs.{name}.from is {given.of!r}; allowed are {allowed}")
            for key, other in (("append", given.append), ("shift", given.shift)):
                if other is not None and given.of not in self.history:
                    raise ValueError(f"inputs.{name}.{key} is for a history, and {given.of} is none")
                if isinstance(other, str) and other not in self.context:
                    raise ValueError(f"inputs.{name}.{key} is {other!r}; allowed is {context}")
                if isinstance(other, str) and not _is_step(self.context[other], self.history[given.of]):
                    raise ValueError(
                        f"inputs.{name}.{key} is {other!r}; needed is a context that is as a step of {given.of}, in shape "
                        "and in being integers or not"
                    )
        histories = [given for given in self.inputs.values() if given.of in self.history]
        if not histories:
            raise ValueError(f"no input of the model comes from a history ({', '.join(self.history)})")
        if len({given.append is None for given in histories}) > 1:
            raise ValueError("append adds a step to each input that comes from a history, or to none")
        if self.row.index is not None and self.row.index not in self.context:
            raise ValueError(f"row.index is {self.row.index!r}; allowed is {context}")
        if self.row.index is not None and not _is_step(self.context[self.row.index], Context(values=(0, 1))):
            raise ValueError(f"row.index is {self.row.index!r}; needed is a context of one integer a history")
        check_answers(self)

    @model_validator(mode="after")
    def _numbers_fit(self) -> Sequence:
        check_numbers(self)
        return self

    @model_validator(mode="after")
    def _padding_suits_the_row(self) -> Sequence:
        if self.model.padding == "left" and self.row.select in ("mean", "max"):
            raise ValueError(
                f'row.select = "{self.row.select}" is of windows padded on the right; model.padding is "left"'
            )
        if self.model.padding == "none" and self.model.buckets:
            raise ValueError(
                'model.padding = "none" has each history as long as it is: model.buckets are for padded ones'
            )
        if self.reduce.where != "core":
            raise ValueError('reduce.where = "postprocess" is knowledge tracing\'s; set "core"')
        names = [*self.request, *(tensor.name for tensor in (*self.checked, *self.answered))]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two tensors of requests and answers are named {twice!r}; each needs a name of its own")
        return self

    @model_validator(mode="after")
    def _function_is_asked_for(self) -> Sequence:
        check(self.preprocess, self.request)
        return self

    def input(self, name: str) -> Input:
        return self.history.get(name) or self.context.get(name) or Input(dtype="FP32")

    def _number(self, number: Number | float) -> float:
        return float(self.sizes[number] if isinstance(number, str) else number)

    def size(self, size: Number | float) -> int:
        return self.sizes.get(size, -1) if isinstance(size, str) else int(size)

    @property
    def _lengths(self) -> list[str]:
        """The contexts of any length, as many as which an output may have."""
        return [name for name, given in self.context.items() if -1 in given.shape]

    def about(self, output: str) -> str | None:
        """The context that an output has a number, or a row, for each of."""
        return next(
            (size for size in self.outputs[output].shape if size in self._lengths and size not in self.sizes), None
        )

    def _allowed(self, name: str, given: Input) -> Values:
        shape = tuple(self.size(size) for size in given.shape)
        if given.dtype == "FP32":
            limits = given.values and (self._number(given.values[0]), self._number(given.values[1]))
            said = f"numbers from {limits[0]:g} to {limits[1]:g}" if limits else "finite numbers"
            return Values(None, said, name, 0, shape, limits)
        low, high = map(self.size, given.values or ())
        return Values(high + 1, f"{low} to {high}", name, low, shape)

    @property
    def sizes_by_name(self) -> dict[str, int]:
        """[sizes], and the window."""
        return {**self.sizes, "window": self._width}

    @property
    def _width(self) -> int:
        return -1 if len(self.model.widths) > 1 or self.model.padding == "none" else self.model.window

    @property
    def shortest_history(self) -> int:
        """Steps that a history needs at least."""
        return self.model.shortest_history

    @property
    def index_source(self) -> Source | None:
        """What the cut asks for beside the model's own inputs: how many steps are valid, or which row is wanted."""
        if self.row.select == "own":
            return None
        if self.row.select in ("mean", "max") or (self.row.select, self.model.padding) == ("last", "right"):
            return Source(free(LENGTHS, self._fed_names), "lengths")
        return Source(free(ROW, self._fed_names), "row")

    @property
    def fed(self) -> dict[str, Source]:
        """By the name of the model's own input where it comes from, under the core's name for it."""
        return dict(zip(self.inputs, (self._source(n, each) for n, each in self.inputs.items()), strict=True))

    def _source(self, name: str, given: Fed) -> Source:
        of = given.of
        return Source(self._inside(name), of, given.append, given.shift, given.start)

    @property
    def _fed_names(self) -> list[str]:
        return [self._inside(name) for name in self.inputs]

    def _inside(self, name: str) -> str:
        """What the core calls a tensor: a name that is the request's or an answer's is theirs alone."""
        safe = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
        taken = {
            *self.history,
            *self.context,
            *self.request,
            *(tensor for wanted in self.answer for tensor in wanted.names),
        }
        return f"core_{safe}" if safe in taken or not safe[:1].isalpha() else safe

    @property
    def contract(self) -> Contract:
        """What a request has to be, and what the core gets of it."""
        return Contract(
            inputs={name: self._allowed(name, given) for name, given in self.history.items()},
            core=(*self.fed.values(), *([self.index_source] if self.index_source else []), *self._columns.values()),
            widths=self.model.widths,
            shortest=self.shortest_history,
            longest=self.batching.longest_history,
            left=self.model.padding == "left",
            fills=tuple((name, given.padding) for name, given in self.history.items() if given.padding),
            words=Words(**self.words.model_dump()),
            even=self.model.padding == "none",
            contexts={name: self._allowed(name, given) for name, given in self.context.items()},
            optional=tuple(name for name, each in self.context.items() if self.is_optional(name, each)),
            select="first" if self.row.select == "first" else "last",
            row=self.row.index,
            defaults=tuple(
                (name, whole(each.default, self._allowed(name, each)))
                for name, each in self.context.items()
                if each.default is not None
            ),
            pads=tuple((name, each.padding) for name, each in self.context.items() if each.padding is not None),
        )

    def is_optional(self, name: str, given: Context) -> bool:
        return given.optional or given.default is not None or name in self._columns

    def holds(self, source: Source) -> tuple[float, float] | None:
        """The lowest and the highest that the core gets of an input; None: any number, or it is derived."""
        of = [source.of, *(name for name in (source.append, source.shift) if isinstance(name, str))]
        ranges = [self._allowed(name, self.input(name)) for name in of]
        if any(each.end is None and each.limits is None for each in ranges):
            return None
        found: list[float] = [number for each in ranges for number in each.limits or (each.start, (each.end or 0) - 1)]
        found += [source.append] if isinstance(source.append, (int, float)) else []
        if source.of in self.history:
            found.append(self.history[source.of].padding)
        given = [self.context[name] for name in of if name in self.context]
        found += [each.padding for each in given if each.padding is not None]
        for name, each in zip(of, map(self.input, of), strict=True):
            if isinstance(each, Context) and each.default is not None:
                default = np.asarray(whole(each.default, self._allowed(name, each)))
                found += [float(default.min()), float(default.max())]
        return min(found), max(found)

    @property
    def _columns(self) -> dict[str, Source]:
        """By the context that names wanted columns what hands them to a core."""
        return {at: Source(f"{at}_columns", at, columns=True) for at in dict.fromkeys(w.at for w in self.answer) if at}

    @property
    def function(self) -> Function | None:
        """What makes histories and contexts of a request that carries something else."""
        if self.preprocess is None:
            return None
        takes = {
            name: Part(each.dtype, tuple(map(self.size, each.shape)), self._limits(each.values), each.optional)
            for name, each in self.request.items()
        }
        steps = {name: Part(each.dtype, (-1, *map(self.size, each.shape))) for name, each in self.history.items()}
        once = {
            name: Part(each.dtype, tuple(map(self.size, each.shape)), None, name in self.contract.optional)
            for name, each in self.context.items()
        }
        return Function(self.preprocess.path.name, self.preprocess.name, takes, {**steps, **once}, self.contract.words)

    def _limits(self, values: tuple[Number, Number] | None) -> tuple[int, int] | None:
        return None if values is None else (self.size(values[0]), self.size(values[1]))

    @property
    def requested(self) -> tuple[Tensor, ...]:
        """What a client sends: histories, then contexts; or what a function makes them of."""
        if self.preprocess is None:
            return self.checked
        return tuple(
            Tensor(dtype=each.dtype, shape=[*map(self.size, each.shape)] or [1], name=name, optional=each.optional)
            for name, each in self.request.items()
        )

    @property
    def checked(self) -> tuple[Tensor, ...]:
        """What the contract is about: histories, then contexts."""
        made = [
            Tensor(dtype=given.dtype, shape=[-1, *(self.size(size) for size in given.shape)], name=name)
            for name, given in self.history.items()
        ]
        for name, given in self.context.items():
            optional = name in self.contract.optional
            shape = [self.size(size) for size in given.shape]
            made.append(Tensor(dtype=given.dtype, shape=[*shape] or [1], name=name, optional=optional))
        return tuple(made)

    @property
    def windows(self) -> tuple[Tensor, ...]:
        """What the first step makes of it, in the contract's order."""
        types = {self._inside(name): given.dtype for name, given in self.inputs.items()}
        return tuple(self._window(source, types.get(source.name)) for source in self.contract.core)

    def _window(self, source: Source, dtype: str | None) -> Tensor:
        if source.of in self.history:
            shape = [self._width, *(self.size(size) for size in self.history[source.of].shape)]
        elif source.of in self.context:
            shape = [self.size(size) for size in self.context[source.of].shape]
        else:
            shape = [] if source.of in (LENGTHS, ROW) else [self._width]
        return Tensor.model_validate({"dtype": dtype or self._dtype(source), "shape": shape, "name": source.name})

    def _dtype(self, source: Source) -> str:
        """What an input is fed as where the spec does not say: half the bytes of INT64, where that holds all there is."""
        if source.of in (*self.history, *self.context) and self.input(source.of).dtype == "FP32":
            return "FP32"
        if source.of in TYPES:
            return TYPES[source.of]
        low, high = self.holds(source) or (0, 0)
        return INTEGER if is_int32(low, high) else "INT64"

    @property
    def cores(self) -> tuple[Core, ...]:
        """A model for all columns, and one for each answer that is about wanted ones."""
        columns = {source.name for source in self._columns.values()}
        inputs = tuple(tensor for tensor in self.windows if tensor.name not in columns)
        outputs = {
            name: Tensor(dtype="FP32", shape=[self.size(size) for size in each.shape], name=self._inside(name))
            for name, each in self.outputs.items()
        }
        made = [Core(CORE, inputs, tuple(outputs.values()))]
        for wanted in self.answer:
            if wanted.at:
                source = self._columns[wanted.at]
                column = next(tensor for tensor in self.windows if tensor.name == source.name)
                name = wanted.of or next(iter(outputs))
                answer = Tensor(dtype="FP32", shape=[-1], name=f"{outputs[name].name}_at_{wanted.at}")
                number = list(outputs).index(name)
                made.append(Core(f"{CORE}_{wanted.name}", (*inputs, column), (answer,), column.name, number))
        return tuple(made)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What clients can ask for; each is a step of its own, which runs only for those who do."""
        cores = {core.step: core for core in self.cores}
        made = []
        for number, wanted in enumerate(self.answer):
            if wanted.at:
                of = cores[f"{CORE}_{wanted.name}"].outputs[0]
            else:
                of = cores[CORE].outputs[list(self.outputs).index(wanted.of) if wanted.of else 0]
            names, count = wanted.names, wanted.count
            tensors = [Tensor(dtype="FP32", shape=[count] if count else list(of.shape) or [1], name=names[-1])]
            if count:
                tensors.insert(0, Tensor(dtype="INT32", shape=[count], name=names[0]))
            chain = [[*link, self._start(link[1])] if link[0] == "leave_out" else link for link in wanted.links]
            seen = [link[1] for link in wanted.links if link[0] in ("leave_out", "at")]
            asked = tuple(tensor for tensor in self.checked if tensor.name in seen)
            step = f"{POSTPROCESS}_{wanted.name}" if number else POSTPROCESS
            about = wanted.at or self.about(wanted.of or next(iter(self.outputs)))
            made.append(Answer(wanted.name, step, of, tuple(tensors), chain, asked, about))
        return tuple(made)

    def _start(self, history: str) -> int:
        return self._allowed(history, self.input(history)).start


def _is_step(context: Context, of: Input) -> bool:
    """Whether a context can stand for a step of a history."""
    return context.shape == of.shape and (context.dtype == "FP32") == (of.dtype == "FP32")


def free(name: str, taken: list[str]) -> str:
    """The name, or with a number behind it where that is taken."""
    return next(free for free in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if free not in taken)
