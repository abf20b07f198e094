"""The tables of a spec with a function in front of the contract: where that is, and what requests carry for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemble.tables import Name, Table

Number = int | Name  # or what [sizes] calls it


class Requested(Table):
    """A tensor that a request carries, once a history: text as BYTES, or numbers.

    shape: of one history's; [-1] is any length. values: the lowest and the highest of integers [default: any].
    """

    dtype: Literal["BYTES", "INT32", "INT64", "FP32"]
    shape: tuple[int | Name, ...] = ()
    values: tuple[Number, Number] | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _limits_are_of_integers(self) -> Requested:
        if self.values is not None and self.dtype in ("BYTES", "FP32"):
            raise ValueError(f"values is for integers, and {self.dtype} has none; the function tells what is allowed")
        return self


class Preprocess(Table):
    """One's own function: a file and a name in it, as in "my_steps.py:prepare"; relative to the spec's file.

    files: what it opens or imports, relative to its own file, beside which it finds them where it is served. example: one
        history's inputs by name each, which the build asks; text needs some, numbers are drawn else.
    """

    function: Annotated[str, Field(pattern=r"^.*[^/]\.py:[A-Za-z_]\w*$")]
    files: tuple[str, ...] = ()
    example: tuple[dict[Name, Any], ...] = ()

    @field_validator("files")
    @classmethod
    def _files_lie_beside(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        for name in files:
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise ValueError(f"{name!r} does not lie beside the function's file or below; move it there")
        return files

    @property
    def path(self) -> Path:
        """The function's file."""
        return Path(self.function.rpartition(":")[0])

    @property
    def name(self) -> str:
        """The function's."""
        return self.function.rpartition(":")[2]

    @property
    def sources(self) -> dict[str, Path]:
        """Every file that is copied, by its path beside the step."""
        return {self.path.name: self.path, **{name: self.path.parent / name for name in self.files}}


def check(preprocess: Preprocess | None, request: Mapping[str, Requested]) -> None:
    """Whether a function and what requests carry for it fit each other.

    Raises:
        ValueError: one is there without the other, or the examples are not such requests.
    """
    if (preprocess is None) == bool(request):
        raise ValueError(
            '[preprocess] function = "my_steps.py:prepare" and [request.<name>], what a request carries for it, go '
            "together; without both, requests carry histories and contexts"
        )
    if preprocess is None:
        return
    if all(each.optional for each in request.values()):
        raise ValueError("every tensor of [request] is optional; needed is one that tells how many histories there are")
    for number, example in enumerate(preprocess.example):
        unknown = next((name for name in example if name not in request), None)
        missing = next((name for name, each in request.items() if not each.optional and name not in example), None)
        if unknown or missing:
            said = f"has {unknown!r}" if unknown else f"lacks {missing!r}"
            raise ValueError(f"preprocess.example {number} {said}; [request] has {', '.join(request)}")
    unknown = next((n for n, each in request.items() if each.dtype != "FP32" and each.values is None), None)
    if not preprocess.example and unknown is not None:
        raise ValueError(
            f"[[preprocess.example]] is missing: nothing says what to draw for {unknown}, and the build asks the function "
            f"something; give one history's {', '.join(request)}, and better several"
        )
