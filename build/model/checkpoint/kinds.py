"""Which kind a checkpoint is of, and so who describes and loads it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build.model.checkpoint import module, onnx_file, reference, run, state
from build.model.checkpoint.errors import CheckpointError, unreadable
from ensemble.knowledge_tracing import narrowed
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import ModuleNetwork

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    from torch import nn

    from build.model.network import Network


def describe(path: Path, factory: str | None = None) -> dict[str, dict[str, Any]]:
    """What the checkpoint says of its model, as tables of a spec.

    Args:
        factory: "package.module:function" that makes the module whose state_dict this is.

    Raises:
        CheckpointError: it cannot be read, or its parts contradict each other.
    """
    if factory is not None:
        return module.describe(path, factory)
    if path.suffix == ".onnx":
        return onnx_file.describe(path)
    tables = reference.describe(state.read(path), path)
    return run.complete(path, tables) if path.is_dir() else tables


def load(path: Path, spec: Spec) -> nn.Module:
    """The spec's model with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: names the file, what is wrong with it, and the remedy.
    """
    if isinstance(spec.network, ModuleNetwork):
        return module.load(path, spec.network.factory)
    if isinstance(spec, Sequence):
        from build.model import preset

        weights, made = state.read(path), preset.of(spec).create()
        state.compare(path, weights, made.state_dict(), spec.network.type)
        made.load_state_dict(weights)
        return made.eval()
    return reference.load(path, narrowed(spec))


def load_network(path: Path, spec: Spec) -> Network:
    """As load, of a reference architecture.

    Raises:
        CheckpointError: it is none.
    """
    from build.model.network import Network

    model = load(path, narrowed(spec)) if spec.network.type != "onnx" else None
    if not isinstance(model, Network):
        raise CheckpointError(
            f"the demonstration compares with PyTorch's reference architectures; {path} is of type {spec.network.type}. "
            "`make repo` checks it, and `make serve` serves it"
        )
    return model


def digest(path: Path) -> str:
    """SHA-256 of the file, or of a folder's configuration and weights.

    Raises:
        CheckpointError: it cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = run.files(path)
    elif path.suffix == ".onnx":
        files += [file for file in onnx_file.outside(path) if file.is_file()]
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as content:
                for block in iter(lambda: content.read(1 << 20), b""):
                    total.update(block)
        except OSError as e:
            raise unreadable(file, e) from e
    return total.hexdigest()
