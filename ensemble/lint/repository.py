"""A model repository as its config.pbtxt files describe it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ensemble.errors import LastrowError
from ensemble.lint.finding import Finding

CONFIG = "config.pbtxt"
# Backends that read none of TensorRT's settings. Others may: nothing is said of a backend that is not known.
WITHOUT_TENSORRT = ("onnxruntime", "python", "pytorch", "tensorflow", "openvino")
PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
ENSEMBLE = "ensemble"
# By the file in the version folder, in the order in which Triton's core looks for them (model_config_utils.cc).
FILES = {
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.xml": "openvino",
    "model.pt": "pytorch",
    "model.py": "python",
}


class LintError(LastrowError):
    """There is no repository to read, or an option is none."""

    exit_code = 2


@dataclass
class Model:
    """A model of the repository: its folder and its configuration."""

    folder: Path
    config: ModelConfig
    text: str = ""
    unknown: str = ""  # what a parser of this version does not know

    @property
    def file(self) -> Path:
        """Its config.pbtxt."""
        return self.folder / CONFIG

    @property
    def name(self) -> str:
        """Its folder's, by which Triton knows it."""
        return self.folder.name

    @cached_property
    def backend(self) -> str:
        """ "ensemble", the backend's name, or "" where neither the configuration nor a file says it."""
        if self.config.platform == ENSEMBLE or self.config.HasField("ensemble_scheduling"):
            return ENSEMBLE
        named = self.config.backend or PLATFORMS.get(self.config.platform, "")
        if named or self.config.platform:
            return named
        if self.config.default_model_filename:
            return FILES.get(self.config.default_model_filename, "")
        for file, backend in FILES.items():
            if self.versions and (self.folder / str(self.versions[0]) / file).exists():
                return backend
        return self.name.partition(".")[2]

    @cached_property
    def versions(self) -> list[int]:
        """The numbers of its version folders, in the order of their names."""
        folders = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        return [int(name) for name in folders if name.isdigit() and (name == "0" or name[0] != "0")]

    @property
    def served(self) -> list[int]:
        """The version folders that its version_policy takes, newest last."""
        policy, there = self.config.version_policy, sorted(self.versions)
        if policy.HasField("all"):
            return there
        if policy.HasField("specific"):
            return [version for version in there if version in policy.specific.versions]
        return there[-(policy.latest.num_versions or 1) :]

    @property
    def filename(self) -> str:
        """What lies in a version folder; "" where nobody says."""
        if self.config.default_model_filename:
            return self.config.default_model_filename
        if self.backend == "tensorflow":
            return "model.graphdef" if self.config.platform == "tensorflow_graphdef" else "model.savedmodel"
        return next((file for file, backend in FILES.items() if backend == self.backend), "")

    @property
    def model_files(self) -> list[Path]:
        """Its file in each version that is served, newest last, where it is there."""
        paths = [self.folder / str(version) / self.filename for version in self.served if self.filename]
        return [path for path in paths if path.exists()]

    @property
    def completes_itself(self) -> bool:
        """Whether more inputs and outputs than the configuration has may come from the model's own code."""
        if self.backend == "python":
            return any("auto_complete_config" in _text(path) for path in self.model_files)
        return False

    @property
    def delay_us(self) -> int:
        """How long its batcher waits for company."""
        return self.config.dynamic_batching.max_queue_delay_microseconds

    def parameter(self, key: str) -> str | None:
        """A parameter's text; None where it is not given."""
        return self.config.parameters[key].string_value if key in self.config.parameters else None

    def onnx(self) -> Path | None:
        """The newest version's ONNX file, if that is what it serves."""
        return self.model_files[-1] if self.backend == "onnxruntime" and self.model_files else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:  # whoever may not read it learns so from Triton
        return ""


@dataclass
class Repository:
    """Every model with a config.pbtxt, by name.

    Attributes:
        folder: has a folder a model.
        models: those whose configuration was read.
        cores: of the machine that serves.
        typical: what each free axis of a tensor is mostly, by the tensor's name.
        triton: the version that serves, e.g. (24, 10); None if that is not said.
        flags: of tritonserver, as far as they are known, e.g. "--rate-limit=execution_count".
        unreadable: a finding for each configuration that was not.
    """

    folder: Path
    models: dict[str, Model]
    cores: int
    typical: Mapping[str, Sequence[int]] = field(default_factory=dict)
    triton: tuple[int, int] | None = None
    flags: Sequence[str] = ()
    unreadable: list[Finding] = field(default_factory=list)

    def ensembles(self) -> Iterator[Model]:
        """Those that are ensembles."""
        return (model for model in self.models.values() if model.backend == ENSEMBLE)

    def singles(self) -> Iterator[Model]:
        """Those that are none."""
        return (model for model in self.models.values() if model.backend != ENSEMBLE)

    def steps(self, ensemble: Model) -> list[Model]:
        """The composing models that have a configuration here, each once, in their order."""
        names = dict.fromkeys(step.model_name for step in ensemble.config.ensemble_scheduling.step)
        return [self.models[name] for name in names if name in self.models]

    def before(self, *version: int) -> bool:
        """Whether what serves is older than a version of Triton, or is not said."""
        return self.triton is None or self.triton < version

    def since(self, *version: int) -> bool:
        """Whether what serves is of a version of Triton or newer, or is not said."""
        return self.triton is None or self.triton >= version


def read(
    folder: Path,
    cores: int | None = None,
    typical: Mapping[str, Sequence[int]] | None = None,
    triton: tuple[int, int] | None = None,
    flags: Sequence[str] = (),
) -> Repository:
    """The repository in a folder; cores: None for this machine's.

    Raises:
        LintError: there is no such folder, or no config.pbtxt in it.
    """
    if not folder.is_dir():
        raise LintError(f"there is no model repository {folder}; pass a folder that has a folder for each model")
    paths = sorted(folder.glob(f"*/{CONFIG}"))
    if not paths and not any(path.name in FILES for path in folder.glob("*/[0-9]*/*")):
        raise LintError(f"no {CONFIG} in the folders of {folder}; pass a model repository, e.g. models")
    results = [_read(path) for path in paths]
    models = {result.name: result for result in results if isinstance(result, Model)}
    unreadable = [result for result in results if isinstance(result, Finding)]
    return Repository(
        folder, models, cores or len(os.sched_getaffinity(0)), typical or {}, triton, tuple(flags), unreadable
    )


def _read(path: Path) -> Model | Finding:
    config = ModelConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        return Finding(path, "file", f"it cannot be read: {e}", "text in UTF-8", "error")
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as first:
        config.Clear()
        try:
            text_format.Parse(text, config, allow_unknown_field=True)
        except (text_format.ParseError, ValueError) as e:
            line = e.GetLine() if isinstance(e, text_format.ParseError) else None
            why = f"it is no model configuration, line {line}: {e}" if line else f"it is no model configuration: {e}"
            return Finding(path, "file", why, "what protobuf's text format allows", "error", line=line or 1)
        return Model(path.parent, config, text, str(first))
    except ValueError as e:
        return Finding(
            path, "file", f"it is no model configuration: {e}", "what protobuf's text format allows", "error"
        )
    return Model(path.parent, config, text)
