"""Inputs and outputs that Triton's core refuses as they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelInput

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import Model, Repository
from ensemble.lint.rule import CONFIGURATION, CORE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateIOShape)"
SIZES = "sizes of 1 or more, or -1 for any"


def _tensors(repository: Repository) -> Iterator[tuple[Model, str, Any]]:
    for model in repository.models.values():
        for tensor in model.config.input:
            yield model, "input", tensor
        for tensor in model.config.output:
            yield model, "output", tensor


@rule("tensor-incomplete", CHECKED)
def incomplete(repository: Repository) -> Iterator[Finding]:
    """A tensor without a name, a type or dims.

    `input [ { name: "x" dims: [ 4 ] } ]` has no data_type. Write name, data_type and dims of every tensor; or leave all
    inputs or all outputs away where the backend completes them from the model file. Python models may fill in what a
    tensor lacks in auto_complete_config, and TensorRT does so from the engine: of those nothing is said.
    """
    for model, side, tensor in _tensors(repository):
        if not tensor.name:
            yield refused(model, side, f"an {side} has no name", 'name: "..."')
            continue
        if model.completes_itself or model.backend in ("tensorrt", "openvino", ""):
            continue
        key = f"{side} ({tensor.name})"
        if tensor.data_type == DataType.TYPE_INVALID:
            yield refused(model, key, "it has no data_type", "data_type: TYPE_FP32, or what it is")
        if not tensor.dims:
            yield refused(model, key, "it has no dims", "dims: [ ... ] without the batch, e.g. [ 1 ] for a number")


@rule("tensor-dims", CHECKED)
def dims(repository: Repository) -> Iterator[Finding]:
    """A dimension that is no size.

    `dims: [ 0 ]`: a dimension is 1 or more, or -1 for any size. The batch is no part of dims where max_batch_size is
    above 0.
    """
    for model, side, tensor in _tensors(repository):
        for key, shape in (("dims", tensor.dims), ("reshape.shape", tensor.reshape.shape)):
            wrong = [size for size in shape if size < 1 and size != -1]
            if wrong:
                yield refused(model, f"{side}.{key} ({tensor.name})", f"{list(shape)} has {wrong[0]}", SIZES)


@rule("tensor-reshape", CHECKED)
def reshape(repository: Repository) -> Iterator[Finding]:
    """A reshape that has not the elements of the dims.

    `dims: [ 4 ] reshape { shape: [ 2, 3 ] }`: both need the same number of elements, and between free dimensions (-1)
    too; an empty shape is for dims [ 1 ] of a model that batches.
    """
    for model, side, tensor in _tensors(repository):
        given, shape = list(tensor.dims), list(tensor.reshape.shape)
        if not tensor.HasField("reshape") or any(size < 1 and size != -1 for size in [*given, *shape]) or not given:
            continue
        key = f"{side}.reshape ({tensor.name})"
        if not shape:
            if model.config.max_batch_size == 0:
                why = "an empty shape leaves nothing where there is no batch"
                yield refused(model, key, why, "no reshape, or a max_batch_size above 0")
            elif -1 in given or math.prod(given) != 1:
                yield refused(model, key, f"an empty shape has one element, and dims {given} not", f"shape: {given}")
        elif _parts(given) != _parts(shape):
            why = f"dims {given} and shape {shape} have not the same elements"
            yield refused(model, key, why, "a shape of as many, and as many of them between the free dimensions")


def _parts(shape: Sequence[int]) -> list[int]:
    """Elements between free dimensions: [2, 4, -1, 6] has 8 and 6."""
    parts = [1]
    for size in shape:
        if size == -1:
            parts.append(1)
        else:
            parts[-1] *= size
    return parts


@rule("tensor-twice", CONFIGURATION)
def twice(repository: Repository) -> Iterator[Finding]:
    """Two tensors of one name.

    `input [ { name: "x" ... }, { name: "x" ... } ]`: the second is without effect, or keeps the model from loading.
    Give each its own name.
    """
    for model in repository.models.values():
        for side, tensors in (("input", model.config.input), ("output", model.config.output)):
            names = [tensor.name for tensor in tensors]
            for name in sorted({name for name in names if name and names.count(name) > 1}):
                yield Finding(model.file, f"{side} ({name})", "there are two of this name", "one of them, or two names")


@rule("tensor-format", f"{CORE}/model_config_utils.cc (ValidateModelInput)")
def format_(repository: Repository) -> Iterator[Finding]:
    """An image format, a shape tensor or a non-linear format where there is none.

    `format: FORMAT_NCHW dims: [ 4 ]`: NHWC and NCHW are formats of 3 dims; is_shape_tensor and is_non_linear_format_io
    are TensorRT's. Leave them away elsewhere.
    """
    for model, side, tensor in _tensors(repository):
        images = (ModelInput.FORMAT_NHWC, ModelInput.FORMAT_NCHW)
        if side == "input" and tensor.format in images and len(tensor.dims) not in (0, 3):
            why = f"{ModelInput.Format.Name(tensor.format)} is of 3 dims, and these are {len(tensor.dims)}"
            yield refused(model, f"input.format ({tensor.name})", why, "no format, or 3 dims")
        elsewhere = model.backend not in ("tensorrt", "")
        for key in ("is_shape_tensor", "is_non_linear_format_io"):
            if getattr(tensor, key, False) and elsewhere:
                why = f"only TensorRT has it, and this model runs on {model.backend}"
                yield refused(model, f"{side}.{key} ({tensor.name})", why, "nothing")
