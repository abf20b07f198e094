"""How large a free dimension is: what is known, never what is assumed."""

from __future__ import annotations

from typing import Any

from ensemble.lint.onnx_file import symbols
from ensemble.lint.repository import Model, Repository


def sized(repository: Repository, model: Model, tensor: Any) -> tuple[list[int], str]:
    """An output's dims with the free ones filled in as far as they are known, and how they are, for a sentence.

    First what the user says is typical, then what a warm-up gives the inputs, where the model file calls the output's
    axis by the same name as an input's.
    """
    dims = list(tensor.dims)
    if -1 not in dims:
        return dims, ""
    typical = list(repository.typical.get(tensor.name, ()))
    if typical:
        given = iter(typical * len(dims) if len(typical) == 1 else typical)
        return [next(given, -1) if dim == -1 else dim for dim in dims], f", with what is typical of {tensor.name}"
    path = model.onnx()
    named = symbols(path) if path is not None and model.config.model_warmup else {}
    lengths = _warm(model, named)
    axes = named.get(tensor.name, [])[-len(dims) :]
    if len(axes) != len(dims) or not lengths:
        return dims, ""
    filled = [lengths.get(axis, -1) if dim == -1 else dim for dim, axis in zip(dims, axes, strict=True)]
    return filled, ", as long as the warm-up" if filled != dims else ""


def _warm(model: Model, named: dict[str, list[str]]) -> dict[str, int]:
    """The longest that a warm-up makes each named axis of the inputs."""
    longest: dict[str, int] = {}
    for sample in model.config.model_warmup:
        for name, given in sample.inputs.items():
            axes = named.get(name, [])[-len(given.dims) :]
            for axis, size in zip(axes, given.dims, strict=False):
                if axis:
                    longest[axis] = max(longest.get(axis, 0), size)
    return longest
