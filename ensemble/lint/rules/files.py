"""Files that a configuration names: the model's own, labels, warm-up data. Judged only where the model's own file is
there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import triton_to_np_dtype

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import Model, Repository
from ensemble.lint.rule import CONFIGURATION, CORE, GUIDE, rule

WARMUP = f"{CORE}/backend_model_instance.cc (GenerateWarmupData)"


@rule("model-file", f"{GUIDE}/model_repository.html")
def model_file(repository: Repository) -> Iterator[Finding]:
    """A version folder without the file that is served from it.

    `default_model_filename: "net.onnx"` where m/1 has model.onnx. Said only where other models of the repository have
    their files: one whose files come from elsewhere is not judged.
    """
    if not any(model.model_files for model in repository.singles()):
        return
    for model in repository.singles():
        for version in model.served:
            path = model.folder / str(version) / model.filename
            if model.filename and model.backend != "tensorrt" and not path.exists():
                there = sorted(each.name for each in path.parent.iterdir() if each.suffix == path.suffix)
                why = f"there is no {path.relative_to(repository.folder)}"
                named = model.config.default_model_filename
                instead = f'default_model_filename: "{there[0]}"' if there else "the file, before it is served"
                yield Finding(model.file, "default_model_filename" if named else "backend", why, instead)


@rule("labels", f"{GUIDE}/../protocol/extension_classification.html")
def labels(repository: Repository) -> Iterator[Finding]:
    """A file of labels that is not there, or of another size than the output.

    `output [ { name: "y" dims: [ 1000 ] label_filename: "labels.txt" } ]`: it lies in the model's folder, a label a
    line.
    """
    for model in repository.singles():
        if not model.model_files:
            continue
        for tensor in model.config.output:
            path = model.folder / tensor.label_filename
            if not tensor.label_filename:
                continue
            key = f"output.label_filename ({tensor.name})"
            if not path.is_file():
                yield refused(model, key, f"there is no {path.relative_to(repository.folder)}", "one that is there")
                continue
            count, size = len(path.read_bytes().rstrip(b"\n").split(b"\n")), math.prod(tensor.dims)
            if -1 not in tensor.dims and count != size:
                why = f"{tensor.label_filename} has {count:,} labels, and the output {size:,} values"
                yield Finding(model.file, key, why, "a label for each value")


@rule("warmup-batch", CONFIGURATION)
def warmup_batch(repository: Repository) -> Iterator[Finding]:
    """A warm-up that is never run.

    `model_warmup [ { name: "w" batch_size: 0 ... } ]`: Triton skips a sample whose batch_size is 0, which is also what
    it is where none is written. Write batch_size: 1 or more, for a model that does not batch too.
    """
    for model in repository.singles():
        for sample in model.config.model_warmup:
            key = f"model_warmup.batch_size ({sample.name})" if sample.name else "model_warmup.batch_size"
            if sample.batch_size == 0:
                yield Finding(model.file, key, "it is 0, and Triton skips the sample without a word", "1 or more")
            elif sample.batch_size > max(model.config.max_batch_size, 1):
                why = f"{sample.batch_size} is more than max_batch_size {model.config.max_batch_size} lets through"
                yield Finding(model.file, key, why, f"{max(model.config.max_batch_size, 1)} at most")


@rule("warmup-data", WARMUP)
def warmup(repository: Repository) -> Iterator[Finding]:
    """A warm-up without data, of a free size, or from a file that is not there or too short.

    `inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "d" } }`: m/warmup/d has the 16 bytes
    of one item, which is sent batch_size times. What is longer is not read. Dims are without -1, and one of zero_data,
    random_data and input_data_file is there.
    """
    for model in repository.singles():
        for sample in model.config.model_warmup:
            if sample.batch_size:
                for name, given in sample.inputs.items():
                    yield from _input(model, name, given)


def _input(model: Model, name: str, given: Any) -> Iterator[Finding]:
    key = f"model_warmup.inputs ({name})"
    if -1 in given.dims:
        yield refused(model, key, f"dims {list(given.dims)} are not a size", "dims without -1")
        return
    source = given.WhichOneof("input_data_type")
    if source is None:
        yield refused(model, key, "it has no data", "zero_data: true, random_data: true or input_data_file")
        return
    own = next((tensor for tensor in model.config.input if tensor.name == name), None)
    if own is not None and own.dims and own.data_type:
        fits = len(own.dims) == len(given.dims) and all(a in (-1, b) for a, b in zip(own.dims, given.dims, strict=True))
        if not fits or own.data_type != given.data_type:
            there = f"{DataType.Name(own.data_type)} {list(own.dims)}"
            why = f"it is {DataType.Name(given.data_type)} {list(given.dims)}, and the input {there}"
            yield Finding(model.file, key, why, there)
    if source != "input_data_file" or given.data_type == DataType.TYPE_STRING or not model.model_files:
        return
    path = model.folder / "warmup" / given.input_data_file
    if not path.is_file():
        yield refused(model, key, f"there is no {path.relative_to(model.folder.parent)}", "one that is there")
        return
    kind = DataType.Name(given.data_type).removeprefix("TYPE_")
    item = 2 if kind in ("FP16", "BF16") else np.dtype(triton_to_np_dtype(kind) or np.uint8).itemsize
    size, wanted = path.stat().st_size, math.prod(given.dims) * item
    if size < wanted:
        yield refused(model, key, f"{given.input_data_file} has {size} bytes, and an item {wanted}", f"{wanted} bytes")
    elif size > wanted:
        why = f"{given.input_data_file} has {size} bytes, of which every item of the batch is the first {wanted}"
        yield Finding(model.file, key, why, f"{wanted} bytes: batch_size repeats them")
