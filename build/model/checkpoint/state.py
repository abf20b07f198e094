"""A state_dict on disk: written whole, and read as plain tensors or refused, since a checkpoint may want to run code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from build.aside import beside
from build.model.checkpoint.errors import CheckpointError, unreadable
from build.model.checkpoint.run import weights_file
from ensemble.knowledge_tracing import KnowledgeTracing

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    import torch
    from torch import nn

# What trainers wrap models in leaves its name in front of every key.
WRAPPERS = ("module.", "_orig_mod.", "model.")
NESTED = ("state_dict", "model_state_dict")
Value = TypeVar("Value")


def save(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict; the file appears whole or not at all."""
    import torch

    with beside(path) as folder:
        torch.save(model.state_dict(), folder / path.name)
        (folder / path.name).replace(path)


def read(path: Path, unwrap: bool = True) -> dict[str, torch.Tensor]:
    """The state_dict on disk.

    Args:
        unwrap: take the names of wrappers (DataParallel, torch.compile, pyKT's question models) off the keys.

    Raises:
        CheckpointError: there is none, or it is none.
    """
    import torch

    path = weights_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what matters of them is an error below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise unreadable(path, e) from e
    except pickle.UnpicklingError as e:
        wants = f" ({_wanted(str(e))})" if _wanted(str(e)) else ""
        raise CheckpointError(
            f"{path} is no checkpoint of plain tensors, or wants to run code when it is opened{wants}, which is refused; "
            "save one with torch.save(model.state_dict(), path)"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({str(e).splitlines()[0]}); copy it again, or make one with `make train`"
        ) from e
    if isinstance(state, dict):
        state = next((state[key] for key in NESTED if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
    return unwrapped(state) if unwrap else dict(state)


def unwrapped(state: Mapping[str, Value]) -> dict[str, Value]:
    """The entries without the names of wrappers that are in front of all of them.

    >>> unwrapped({"module.model.out.weight": 1, "module.model.out.bias": 2})
    {'out.weight': 1, 'out.bias': 2}
    """
    names = dict(state)
    for _ in WRAPPERS:
        for wrapper in WRAPPERS:
            if names and all(name.startswith(wrapper) for name in names):
                names = {name.removeprefix(wrapper): value for name, value in names.items()}
    return names


def compare(
    path: Path,
    given: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    kind: str,
    spec: KnowledgeTracing | None = None,
) -> None:
    """Hold the weights of a file against those of the model that they are for.

    Args:
        kind: the model's name. spec: which it was made from.

    Raises:
        CheckpointError: names the entry that is missing, of another size, or too many.
    """
    for name, tensor in wanted.items():
        if name not in given:
            raise CheckpointError(
                f"{path} has no {name!r}; a {kind} checkpoint has {', '.join(wanted)}, this one has "
                f"{', '.join(given) or 'nothing'}"
            )
        if given[name].shape != tensor.shape:
            says = (
                f"{kind} makes" if spec is None else f"the spec ({spec.model.problems} problems, {spec.network}) makes"
            )
            raise CheckpointError(
                f"{path}: {name} is {list(given[name].shape)}, but {says} it {list(tensor.shape)}; give the spec that goes "
                "with it as SPEC=, or none: then it is taken from the checkpoint"
            )
    surplus = [name for name in given if name not in wanted]
    if surplus:
        raise CheckpointError(f"{path} has {surplus[0]!r}, which a {kind} does not; is it another model's?")


def _wanted(message: str) -> str:
    """The name of what a refused pickle asks for, out of PyTorch's message."""
    _, found, rest = message.partition("Unsupported global: GLOBAL ")
    return rest.split()[0] if found and rest else ""
