"""Any nn.Module: a function that makes it, and its state_dict."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build.model.checkpoint import state as states
from build.model.checkpoint.errors import CheckpointError

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    from torch import nn


def describe(path: Path, factory: str) -> dict[str, dict[str, Any]]:
    """Its number of problems, by asking it once.

    Raises:
        CheckpointError: as load; or it takes or answers other tensors than problem ids and responses, and every row.
    """
    import torch

    model = load(path, factory)
    try:
        with torch.inference_mode():
            answer = model(torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.int64))
    except Exception as e:  # the user's own code may raise anything
        raise CheckpointError(
            f"{factory}: the model does not take problem ids and responses, INT64 [2, 7]: {str(e).splitlines()[0]}"
        ) from e
    shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if not isinstance(answer, torch.Tensor) or answer.ndim != 3 or answer.shape[:2] != (2, 7):
        raise CheckpointError(f"{factory}: for inputs [2, 7] the model answers {shape}; needed is [2, 7, problems]")
    return {
        "model": {"problems": answer.shape[2], "cold_start": False},
        "network": {"type": "module", "factory": factory},
    }


def load(path: Path, factory: str) -> nn.Module:
    """What a factory makes, with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: there is no such factory, or the weights are not its model's.
    """
    model = made(factory)
    state = states.read(path, unwrap=False)
    if set(state) != set(model.state_dict()):
        state = states.unwrapped(state)
    states.compare(path, state, model.state_dict(), factory)
    model.load_state_dict(state)
    return model


def made(factory: str) -> nn.Module:
    """What a factory makes, in evaluation mode.

    Raises:
        CheckpointError: there is none, or it makes something else.
    """
    from torch import nn

    name = factory.partition(":")[2]
    try:
        make = getattr(importlib.import_module(factory_module(factory)), name or "")
    except (ImportError, AttributeError, ValueError) as e:
        raise CheckpointError(
            f"there is no factory {factory!r}: {e}. It is written package.module:function, and found from here or PYTHONPATH"
        ) from e
    model = make()
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"the factory {factory!r} made a {type(model).__name__}; needed is an nn.Module")
    return model.eval()


def factory_module(factory: str) -> str:
    """The module of "package.module:function"; from here on it is found as `python -m` would find it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not
    return factory.partition(":")[0]
