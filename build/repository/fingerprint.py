"""What a core was made from, in one digest: as long as that stays the same, the core is not made again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from build.model import checkpoint as checkpoints
from build.repository import sources
from ensemble.spec import Spec
from ensemble.tables import ModuleNetwork

MAKER = "build.core.recipe"  # this module and all that it imports make the core
# PyTorch's exporter takes the other two along; of the two names of ONNX Runtime one is installed.
EXPORTERS = ("torch", "onnxscript", "onnx-ir", "onnx", "numpy", "onnxruntime", "onnxruntime-gpu")


def of(spec: Spec, checkpoint: Path, examples: Sequence[Mapping[str, np.ndarray]] = ()) -> str:
    """What the core depends on: the spec's model, the weights, all code that makes it, and the versions of what it uses.

    examples: the requests that it is held against its model on, beside those that are drawn.
    """
    own = sources.find(MAKER)
    files, versions = dict(own.files), _versions()
    if isinstance(spec.network, ModuleNetwork):
        brought = sources.find(checkpoints.factory_module(spec.network.factory))
        files |= brought.files
        versions |= brought.versions()
    parts = [
        spec.model_dump_json(include=set(spec.made_from)),
        spec.steps.core.device,  # by which parity's tolerance goes
        checkpoints.digest(checkpoint),
        json.dumps(versions, sort_keys=True),
        *(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in sorted(files.items())),
        *(f"{name} {array.dtype} {array.tolist()}" for each in examples for name, array in sorted(each.items())),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """The version of each package that exports, rewrites or runs the core, of those that are installed."""
    found = {}
    for package in EXPORTERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
