"""What is measured as a repository of its own: a spec with other values, or the naive deployment of its full model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build.repository import assembly as repository
from build.repository import config, fingerprint
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import CORE, Tensor

Kind = TypeVar("Kind", bound=Spec)  # knowledge tracing's spec, or a sequence's

NAIVE = "naive"  # the one model of a naive deployment's repository


@dataclass(frozen=True)
class Variant:
    """A repository: a spec, and for a naive deployment the queue delay of the one model in it, in microseconds."""

    spec: Spec
    naive_delay_us: int | None = None


def table(spec: Spec) -> dict[str, Any]:
    """The spec as the tables of a file that reads as it does."""
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def changed(spec: Kind, **values: object) -> Kind:
    """The spec with other values, by dotted keys with two underscores for the dot: reduce__where="postprocess"."""
    made = table(spec)
    for key, value in values.items():
        *path, last = key.split("__")
        inner = made
        for name in path:
            inner = inner[name]
        inner[last] = value
    return type(spec).model_validate(made)


def in_int64(spec: Sequence) -> Sequence:
    """The spec with INT64 where it has INT32: in requests, and in what the model is fed of them."""
    made = table(spec)
    types = {tensor.name: tensor.dtype for tensor in spec.windows}
    for given in (*made["history"].values(), *made.get("context", {}).values()):
        given["dtype"] = {"INT32": "INT64"}.get(given["dtype"], given["dtype"])
    for name, source in spec.fed.items():
        if source.of in (*spec.history, *spec.context) and types[source.name] == "INT32":
            made["inputs"][name]["dtype"] = "INT64"
    return Sequence.model_validate(made)


def naive_tensors(spec: Sequence) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the whole model takes and answers; every row of it, unless it answers one by itself."""
    fed = {source.name for source in spec.fed.values()}
    rows = [] if spec.row.select == "own" else [-1]  # as long as the windows are
    every = (Tensor(dtype=each.dtype, shape=[*rows, *each.shape], name=each.name) for each in spec.cores[0].outputs)
    return tuple(tensor for tensor in spec.cores[0].inputs if tensor.name in fed), tuple(every)


def build(variant: Variant, checkpoint: Path, folder: Path) -> Path:
    """Make the variant's repository in `folder`, only what changed, and return where it lies."""
    if variant.naive_delay_us is None:
        return repository.build(variant.spec, checkpoint, folder).folder
    message = ModelConfig()
    message.CopyFrom(config.repository(variant.spec)[CORE])
    message.name = NAIVE
    message.dynamic_batching.max_queue_delay_microseconds = variant.naive_delay_us
    if isinstance(variant.spec, Sequence):
        files = _full(variant.spec, checkpoint, folder.with_name("full"))
        _without_the_cut(message, variant.spec, files[0])
    else:
        # The core that answers every row, by itself: that of the ladder's third rung, built once for all of them.
        whole = repository.build(variant.spec, checkpoint, folder.with_name("row")).folder
        files = sorted((whole / CORE).glob("1/*"))
    target = folder / NAIVE
    shutil.rmtree(folder, ignore_errors=True)
    (target / "1").mkdir(parents=True)
    for file in files:
        (target / "1" / file.name).hardlink_to(file)
    (target / "config.pbtxt").write_text(text_format.MessageToString(message), encoding="utf-8")
    return folder


def _full(spec: Sequence, checkpoint: Path, folder: Path) -> list[Path]:
    """The whole model as an ONNX file, its integers as the spec has them, made once for all rungs; and its weights."""
    file, wanted = folder / "model.onnx", fingerprint.of(spec, checkpoint)
    if repository.metadata(file).get(repository.FINGERPRINT) != wanted:
        from build.core.export import adopt, export, widen
        from build.core.reduce.file import save
        from build.model import checkpoint as checkpoints

        own = spec.network.type == "onnx"
        full = adopt(checkpoint, spec) if own else export(checkpoints.load(checkpoint, spec), spec)
        model = widen(full.model, spec)
        model.metadata_props[repository.FINGERPRINT] = wanted
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save(model, file)
    return sorted(folder.glob(f"{file.name}*"))


def _without_the_cut(message: ModelConfig, spec: Sequence, file: Path) -> None:
    """A core's configuration as the whole model's: not told which row is wanted, all of them answered."""
    from build.core.reduce.file import open_session

    taken, answered = naive_tensors(spec)
    shapes = {each.name: each.shape[1:] for each in open_session(file).get_outputs()}
    names = [tensor.name for tensor in taken]
    for number in reversed(range(len(message.input))):
        if message.input[number].name not in names:
            del message.input[number]
    for output, tensor in zip(message.output, answered, strict=True):
        output.dims[:] = [dim if isinstance(dim, int) else -1 for dim in shapes[tensor.name]] or [1]
        if tensor.shape:
            output.ClearField("reshape")
    del message.model_warmup[:]  # its tensors are those of the core
