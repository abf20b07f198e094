"""What is measured as a repository of its own: a spec with other values, or the naive deployment of its full model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build.repository import assembly as repository
from build.repository import config
from ensemble.spec import Spec
from ensemble.tables import CORE

NAIVE = "naive"  # the one model of a naive deployment's repository


@dataclass(frozen=True)
class Variant:
    """A repository: a spec, and for a naive deployment the queue delay of the one model in it, in microseconds."""

    spec: Spec
    naive_delay_us: int | None = None


def changed(spec: Spec, **values: object) -> Spec:
    """The spec with other values, by dotted keys with two underscores for the dot: reduce__where="postprocess"."""
    table = spec.model_dump()
    for key, value in values.items():
        *path, last = key.split("__")
        inner = table
        for name in path:
            inner = inner[name]
        inner[last] = value
    return Spec.model_validate(table)


def build(variant: Variant, checkpoint: Path, folder: Path) -> Path:
    """Make the variant's repository in `folder`, only what changed, and return where it lies."""
    if variant.naive_delay_us is None:
        return repository.build(variant.spec, checkpoint, folder).folder
    # The core that answers every row, by itself: that of the ladder's third rung, which is built once for all of them.
    whole = repository.build(variant.spec, checkpoint, folder.with_name("row")).folder
    message = ModelConfig()
    message.CopyFrom(config.repository(variant.spec)[CORE])
    message.name = NAIVE
    message.dynamic_batching.max_queue_delay_microseconds = variant.naive_delay_us
    target = folder / NAIVE
    shutil.rmtree(folder, ignore_errors=True)
    (target / "1").mkdir(parents=True)
    for file in (whole / CORE).glob("1/*"):
        (target / "1" / file.name).hardlink_to(file)
    (target / "config.pbtxt").write_text(text_format.MessageToString(message), encoding="utf-8")
    return folder
