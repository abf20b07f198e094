"""A model repository as its config.pbtxt files describe it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ensemble.errors import LastrowError

CONFIG = "config.pbtxt"
# Backends that read none of TensorRT's settings. Others may: nothing is said of a backend that is not known.
WITHOUT_TENSORRT = ("onnxruntime", "python", "pytorch", "tensorflow", "openvino")
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "ensemble",
}


class LintError(LastrowError):
    """There is no repository to read, or a file in it is no configuration."""


@dataclass
class Model:
    """A model of the repository: its folder and its configuration."""

    folder: Path
    config: ModelConfig
    unknown: str = ""  # what a parser of this version does not know

    @property
    def file(self) -> Path:
        """Its config.pbtxt."""
        return self.folder / CONFIG

    @property
    def name(self) -> str:
        """The configuration's name; the folder's where it has none."""
        return self.config.name or self.folder.name

    @property
    def backend(self) -> str:
        """ "ensemble", the backend's name, or "" where it is not known."""
        if self.config.HasField("ensemble_scheduling"):
            return "ensemble"
        return self.config.backend or PLATFORMS.get(self.config.platform, "")

    @property
    def delay_us(self) -> int:
        """How long its batcher waits for company."""
        return self.config.dynamic_batching.max_queue_delay_microseconds

    def onnx(self) -> Path | None:
        """The newest version's ONNX file, if that is what it serves."""
        name = self.config.default_model_filename or "model.onnx"
        found = [path for path in self.folder.glob(f"*/{name}") if path.parent.name.isdigit()]
        return max(found, key=lambda path: int(path.parent.name)) if self.backend == "onnxruntime" and found else None


@dataclass
class Repository:
    """Every model with a config.pbtxt, by name; length stands for each dimension of -1, cores for the machine's."""

    folder: Path
    models: dict[str, Model]
    length: int
    cores: int

    def ensembles(self) -> Iterator[Model]:
        """Those that are ensembles."""
        return (model for model in self.models.values() if model.backend == "ensemble")

    def steps(self, ensemble: Model) -> list[Model]:
        """The composing models that have a configuration here, each once, in their order."""
        names = dict.fromkeys(step.model_name for step in ensemble.config.ensemble_scheduling.step)
        return [self.models[name] for name in names if name in self.models]


def read(folder: Path, length: int, cores: int | None) -> Repository:
    """The repository in a folder; cores: None for this machine's.

    Raises:
        LintError: there is no such folder, no config.pbtxt in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise LintError(f"there is no model repository {folder}; pass a folder that has a folder for each model")
    models = [_read(path) for path in sorted(folder.glob(f"*/{CONFIG}"))]
    if not models:
        raise LintError(f"no {CONFIG} in the folders of {folder}; pass a model repository, e.g. models")
    return Repository(folder, {model.name: model for model in models}, length, cores or len(os.sched_getaffinity(0)))


def _read(path: Path) -> Model:
    config = ModelConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise LintError(f"cannot read {path}: {e}") from e
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as first:
        config.Clear()
        try:
            text_format.Parse(text, config, allow_unknown_field=True)
        except text_format.ParseError as e:
            raise LintError(f"{path} is no model configuration, line {e.GetLine()}: {e}") from e
        return Model(path.parent, config, str(first))
    return Model(path.parent, config)
