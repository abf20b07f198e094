"""The tables of a sequence model's spec: what it takes, what it is fed with, and what clients can ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ensemble.tables import (
    Count,
    ForecasterNetwork,
    Gru4RecNetwork,
    Model,
    ModuleNetwork,
    Name,
    OnnxModel,
    Parity,
    SasrecNetwork,
    Table,
)

Number = int | Name  # or what [sizes] calls it
Activation = Literal["sigmoid", "softmax", "exp"]


class SequenceModel(Model):
    """The served model.

    padding: where a window that its history does not fill has it: "right", behind it, or "left", in front; "none": histories
        of unequal length are never together, and the core sees each as long as it is.
    shortest_history: steps that a history needs at least; 0: the cold start is answered.
    time_major: whether the model's own tensors are [time, batch, ...].
    """

    padding: Literal["right", "left", "none"] = "right"
    shortest_history: Annotated[int, Field(ge=0)] = 1
    time_major: bool = False


class Input(Table):
    """A tensor of a request.

    values: the lowest and the highest, both allowed; integers need them, floats without are any finite numbers. Where
    integers may be negative, what pads them in a request is one below the lowest, and else -1.
    """

    dtype: Literal["INT32", "INT64", "FP32"] = "INT32"
    shape: tuple[Count | Name, ...] = ()
    values: tuple[Number | float, Number | float] | None = None

    @model_validator(mode="after")
    def _integers_have_an_end(self) -> Input:
        if self.dtype != "FP32" and (self.values is None or any(isinstance(end, float) for end in self.values)):
            raise ValueError("integers need values, the lowest and the highest of them, as in values = [1, 9999]")
        return self


class History(Input):
    """Aligned with the others, oldest first. shape: of one step. padding: what the core sees where there is no step."""

    padding: float = 0


class Context(Input):
    """Once a history. A shape of [-1] is any length, of [-1, 3] any number of vectors.

    optional: a request may do without it. default: it may, and this is what the model gets then: a number, all over the
    shape, or a list of that shape. padding: what the model gets behind one of any length that is shorter than another in the
    same request, where it is padded with -1 or NaN; without it all of a request have to be of one length.
    """

    shape: tuple[Literal[-1] | Count | Name, ...] = ()
    optional: bool = False
    default: int | float | list[Any] | None = None
    padding: int | float | None = None

    @model_validator(mode="after")
    def _any_length_comes_first(self) -> Context:
        if -1 in self.shape[1:]:
            raise ValueError("-1, any length, is the first of a context's shape alone, as in shape = [-1, 3]")
        if self.padding is not None and -1 not in self.shape:
            raise ValueError("padding is for a context of any length, as shape = [-1] is; nothing pads this one")
        return self


class Fed(Table):
    """Where an input of the model comes from: a history, a context, or derived.

    append: a number or a context that stands behind the history as one more step. shift: a context that does so while the
    oldest step is dropped: each step is replaced by the one after it. start: of positions.
    """

    of: str = Field(alias="from")
    dtype: Literal["INT32", "INT64", "FP32", "BOOL"] | None = None
    append: int | float | Name | None = None
    shift: Name | None = None
    start: int = 0


class Output(Table):
    """What the model answers: its shape, of one row; the name of a context of any length is as many as that has."""

    shape: tuple[int | Name, ...] = ()


class Row(Table):
    """Which row is wanted: by number, or what all valid ones amount to; "own": the model answers one row by itself.

    index: for "index", the context that says which step of the history, from 0; and for "own", if the model is fed "row".
    """

    select: Literal["last", "first", "index", "mean", "max", "own"] = "last"
    index: Name | None = None

    @model_validator(mode="after")
    def _index_says_which(self) -> Row:
        if (self.select == "index") != (self.index is not None) and not (self.select == "own" and self.index):
            raise ValueError('index names the context that says which step, and goes with select = "index" or "own"')
        return self


class Nearest(Table):
    """The `count` columns nearest to a number."""

    nearest: float
    count: Count


class Link(Table):
    """One step from what the core answers to what a client gets."""

    scale: float | None = None
    leave_out: Name | None = None
    top: Count | None = None
    at: Name | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Link:
        if len(self.model_fields_set) != 1:
            raise ValueError(
                'a link is one of { scale = 2.0 }, { leave_out = "item_ids" }, { top = 10 }, { at = "ids" }'
            )
        return self


class Wanted(Table):
    """What a client can ask for. of: which output it is made of [default: the first]; chain: how; tensors: their names.

    ids and values of the columns where the chain picks some, else one tensor [default: the answer's name, and that with
    _ids and _values].
    """

    name: Name
    of: Name | None = None
    chain: tuple[Activation | Nearest | Link, ...] = ()
    tensors: tuple[Name, ...] = ()

    @property
    def links(self) -> list[list[Any]]:
        """The chain as `ensemble.chain` has it, without where the history's ids start."""
        made: list[list[Any]] = []
        for link in self.chain:
            if isinstance(link, str):
                made.append([link])
            elif isinstance(link, Nearest):
                made.append(["nearest", link.nearest, link.count])
            else:
                made += [[key, value] for key, value in link if value is not None]
        return made

    @property
    def count(self) -> int | None:
        """How many columns it picks; None: it has all."""
        return next((link[-1] for link in self.links if link[0] in ("top", "nearest")), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors."""
        return self.tensors or ((f"{self.name}_ids", f"{self.name}_values") if self.count else (self.name,))

    @property
    def at(self) -> str | None:
        """The context that names the columns it is about."""
        return next((link[1] for link in self.links if link[0] == "at"), None)

    @model_validator(mode="after")
    def _chain_ends_once(self) -> Wanted:
        picks = [number for number, link in enumerate(self.links) if link[0] in ("top", "nearest")]
        if picks and picks != [len(self.links) - 1]:
            raise ValueError(f"{self.name}: top or nearest picks columns, and so ends a chain")
        if self.at and (self.links[0][0] != "at" or len(self.links) > 1 + sum(map(_elementwise, self.links))):
            raise ValueError(f"{self.name}: at stands first, and before sigmoid, exp and scale alone")
        count = 2 if picks else 1
        if self.tensors and len(self.tensors) != count:
            raise ValueError(f"{self.name}: tensors has {len(self.tensors)} names; this chain makes {count}")
        return self


class RelativeParity(Parity):
    """The largest difference of two stages' answers that counts as the same, as a part of the largest of them."""

    max_abs_difference: Annotated[float, Field(gt=0)] = 1e-4


Networks = ModuleNetwork | OnnxModel | SasrecNetwork | Gru4RecNetwork | ForecasterNetwork


def _elementwise(link: list[Any]) -> bool:
    return link[0] in ("sigmoid", "exp", "scale")
