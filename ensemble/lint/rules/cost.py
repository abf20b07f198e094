"""Bytes and cores that are spent for nothing."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup
from tritonclient.utils import triton_to_np_dtype

from ensemble.lint.finding import Finding
from ensemble.lint.lookups import looked_up
from ensemble.lint.repository import Repository
from ensemble.lint.rule import rule
from ensemble.lint.rules.keys import ONNXRUNTIME
from ensemble.lint.sizes import sized

MESSAGE_BYTES = 4_000_000  # what many gRPC clients take at most unless told otherwise


@rule("wide-integers", ONNXRUNTIME)
def wide_integers(repository: Repository) -> Iterator[Finding]:
    """Ids in twice the bytes that they need, on every hop.

    `input [ { name: "ids" data_type: TYPE_INT64 dims: [ 512 ] } ]`: all it does is to look up one of 14,041 rows.
    """
    for model in repository.models.values():
        path = model.onnx()
        wide = [tensor.name for tensor in model.config.input if tensor.data_type == DataType.TYPE_INT64]
        if path is None or not wide:
            continue
        if importlib.util.find_spec("onnx") is None:
            why = "whether 4 bytes would hold them is in the ONNX file, which nothing here can read"
            instead = (
                "TYPE_INT32 where they number a table's rows; where the package onnx is installed, lint looks itself"
            )
            yield Finding(model.file, f"input.data_type ({', '.join(wide)})", why, instead)
            continue
        for name, rows in looked_up(path, wide).items():
            why = f"all it does is to look up one of {rows:,} rows: 4 bytes hold that number, and 8 are sent"
            yield Finding(
                model.file,
                f"input.data_type ({name})",
                why,
                "TYPE_INT32, and a Cast inside the model where it wants one",
            )


@rule("output-too-large", "https://grpc.io/docs/guides")
def large_outputs(repository: Repository) -> Iterator[Finding]:
    """Answers that clients' defaults refuse, and that cost more to carry than to compute.

    `output [ { name: "logits" data_type: TYPE_FP32 dims: [ 512, 14041 ] } ]`: 28.8 MB an item. A free dimension (-1) is
    sized by `--typical logits=512`, by the warm-up where the model file says that it is an input's, or not at all.
    """
    for model in repository.models.values():
        for tensor in model.config.output:
            if tensor.data_type == DataType.TYPE_STRING:
                continue
            dims, said = sized(repository, model, tensor)
            known = [dim for dim in dims if dim != -1]
            size = math.prod(known) * _item_bytes(tensor.data_type)
            if size > MESSAGE_BYTES:
                least = "at least " if len(known) < len(dims) else ""
                over = "over the 4 MB that many gRPC clients take, and slow to carry"
                why = f"{least}{size / 1e6:.1f} MB an item{said}: {over}"
                yield Finding(
                    model.file, f"output.dims ({tensor.name})", why, "an output with what the client needs of it"
                )


@rule("threads-over-cores", ONNXRUNTIME)
def threads(repository: Repository) -> Iterator[Finding]:
    """Sessions that take each other's cores.

    `instance_group [ { count: 2 kind: KIND_CPU } ]` on 4 cores: 2 sessions of 4 threads each share 4 cores.
    """
    for model in repository.models.values():
        groups = model.config.instance_group
        count = sum(max(group.count, 1) for group in groups if group.kind == ModelInstanceGroup.KIND_CPU)
        if model.backend != "onnxruntime" or not count:
            continue
        given = model.parameter("intra_op_thread_count") or "0"
        own = int(given) if given.isdigit() and int(given) else repository.cores
        if count * own > repository.cores and (count > 1 or own > repository.cores):
            why = f"{count} sessions of {own} threads each share {repository.cores} cores"
            fair = max(repository.cores // count, 1)
            yield Finding(model.file, "parameters.intra_op_thread_count", why, f'"{fair}", or fewer instances')


def _item_bytes(data_type: DataType.ValueType) -> int:
    name = DataType.Name(data_type).removeprefix("TYPE_")
    return 2 if name in ("FP16", "BF16") else np.dtype(triton_to_np_dtype(name) or np.uint8).itemsize
