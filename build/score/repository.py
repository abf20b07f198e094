"""A model repository as functions: its cores as sessions of this process, and which answer is made of which rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import triton_to_np_dtype

from ensemble.chain import damage
from ensemble.contract import last_rows
from ensemble.errors import LastrowError
from ensemble.interface import Interface
from ensemble.tables import PREPROCESS

CHAIN, STEPS, SELECT, FUNCTION = "chain", "steps", "select", "function"


class ScoringError(LastrowError):
    """What is to be scored, or with what, cannot be; says which and why."""


class Made(NamedTuple):
    """An answer: its tensors, the rows that it is made of, and by which chain; lengths: which row it takes of each."""

    tensors: tuple[str, ...]
    rows: str
    chain: list[list[Any]]
    lengths: str | None = None


class Core(NamedTuple):
    """A model that computes, and what it takes and answers by name."""

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Served:
    """What `make repo` wrote into a folder, read from its configurations alone.

    types: of the cores' inputs by name.
    """

    interface: Interface
    cores: tuple[Core, ...]
    types: dict[str, Any]
    made: tuple[Made, ...]

    @classmethod
    def read(cls, repository: Path) -> Served:
        """Raises ScoringError: the folder is no repository of this project's, or its core is missing."""
        configs = {}
        for path in sorted(repository.glob("*/config.pbtxt")):
            try:
                configs[path.parent.name] = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
            except (OSError, UnicodeDecodeError, text_format.ParseError) as e:
                raise ScoringError(f"cannot read {path}: {e}") from e
        whole = [config for config in configs.values() if "answers" in config.parameters]
        if len(whole) != 1:
            raise ScoringError(f"{repository} is no repository that `make repo` wrote; build one, or name its folder")
        (config,) = whole
        if any(FUNCTION in each.parameters for each in configs.values()):
            raise ScoringError(f"{repository} has a first step of one's own, which is not scored yet; ask its server")
        served = _single(repository, config) if STEPS in config.parameters else _ensemble(repository, config, configs)
        missing = next((core.file for core in served.cores if not core.file.is_file()), None)
        if missing is not None:
            raise ScoringError(f"{missing} is missing; run `make repo`")
        return served

    def of(self, tensors: Sequence[str]) -> Made:
        """How the answer that comes in these tensors is made."""
        return next(made for made in self.made if made.tensors == tuple(tensors))


def _ensemble(repository: Path, whole: ModelConfig, configs: Mapping[str, ModelConfig]) -> Served:
    """A model a step. Every tensor has one name in the whole repository."""
    steps = [configs[step.model_name] for step in whole.ensemble_scheduling.step]
    made = []
    for step in steps:
        if CHAIN in step.parameters:
            names = [tensor.name for tensor in step.input]
            selects = names[-1] if SELECT in step.parameters else None
            chain = json.loads(step.parameters[CHAIN].string_value)
            made.append(Made(tuple(tensor.name for tensor in step.output), names[0], chain, selects))
    cores = tuple(
        Core(
            _version(repository / step.name) / "model.onnx",
            tuple(tensor.name for tensor in step.input),
            tuple(tensor.name for tensor in step.output),
        )
        for step in steps
        if step.platform == "onnxruntime_onnx"
    )
    return Served(Interface.of_config(whole), cores, _types(configs[PREPROCESS].output), tuple(made))


def _single(repository: Path, whole: ModelConfig) -> Served:
    """All steps in one model."""
    said = json.loads(whole.parameters[STEPS].string_value)
    configs = [json_format.ParseDict(core, ModelConfig()) for core in said["cores"]]
    cores = tuple(
        Core(
            _version(repository / whole.name) / f"{config.name}.onnx",
            tuple(tensor.name for tensor in config.input),
            tuple(tensor.name for tensor in config.output),
        )
        for config in configs
    )
    types = {name: kind for config in configs for name, kind in _types(config.input).items()}
    made = tuple(Made(tuple(tensors), rows, chain) for tensors, rows, chain in said["answers"])
    return Served(Interface.of_config(whole), cores, types, made)


def _types(tensors: Any) -> dict[str, Any]:
    return {t.name: triton_to_np_dtype(DataType.Name(t.data_type).removeprefix("TYPE_")) for t in tensors}


def _version(folder: Path) -> Path:
    """The newest, which is the one that Triton serves."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return folder / str(max(numbers, default=1))


class Cores:
    """The repository's cores in this process, each opened when its rows are first asked for.

    threads: that one session computes with.
    """

    def __init__(self, served: Served, threads: int) -> None:
        self._served = served
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        # Nobody waits between two batches, and where processes share cores a worker that spins takes another's.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: dict[Path, ort.InferenceSession] = {}

    def rows(self, made: Sequence[Made], fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the cores answer, of which these answers are made: [batch, ...] by name.

        Raises:
            ScoringError: they are not finite numbers.
        """
        wanted, found = {each.rows for each in made}, dict[str, np.ndarray]()
        for core in self._served.cores:
            names = [name for name in core.outputs if name in wanted]
            if names:
                answered = self._session(core).run(names, {name: fed[name] for name in core.inputs})
                found.update(zip(names, answered, strict=True))
        contract = self._served.interface.contract
        for each in made:
            if each.lengths is not None and found[each.rows].ndim == 3:
                names_ = (each.lengths, each.rows)
                found[each.rows] = last_rows(found[each.rows], fed[each.lengths].reshape(-1), names_, contract.words)
        for name, rows in found.items():
            wrong = damage(rows, name, contract.words.history)
            if wrong:
                raise ScoringError(wrong)
        return found

    def _session(self, core: Core) -> ort.InferenceSession:
        if core.file not in self._sessions:
            try:
                session = ort.InferenceSession(core.file, self._options, providers=["CPUExecutionProvider"])
            except Exception as e:  # ONNX Runtime has a class for every status, and no common one
                raise ScoringError(f"{core.file} cannot be opened: {e}") from e
            self._sessions[core.file] = session
        return self._sessions[core.file]
