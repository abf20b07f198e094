"""Checkpoints: a PyTorch state_dict on disk, read without running any code in it."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.errors import LastrowError
from ensemble.spec import Spec

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    import torch

    from build.dkt import DKT


class CheckpointError(LastrowError):
    """The checkpoint is missing, damaged, or of another model than the spec's."""


def save(model: DKT, path: Path) -> None:
    """Write the model's state_dict; the file appears whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save(model.state_dict(), aside)
    aside.replace(path)


def load(path: Path, spec: Spec) -> DKT:
    """The spec's model with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: names the file, what is wrong with it, and the remedy.
    """
    import torch

    from build.dkt import DKT

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what matters of them is an error below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise _unreadable(path, e) from e
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{path} is no checkpoint of plain tensors, or wants to run code when it is opened, which is refused; save "
            "one with torch.save(model.state_dict(), path)"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({str(e).splitlines()[0]}); copy it again, or make one with `make train`"
        ) from e
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
    model = DKT.from_spec(spec)
    _compare(path, state, model.state_dict(), spec)
    model.load_state_dict(state)
    return model.eval()


def digest(path: Path) -> str:
    """SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise _unreadable(path, e) from e


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot read the checkpoint {path}: {error.strerror}. Give one with CHECKPOINT=, or make one with `make train`"
    )


def _compare(path: Path, given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], spec: Spec) -> None:
    for name, tensor in wanted.items():
        if name not in given:
            raise CheckpointError(
                f"{path} has no {name!r}; a {spec.network.type} checkpoint has {', '.join(wanted)}, this one has "
                f"{', '.join(given) or 'nothing'}"
            )
        if given[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} is {list(given[name].shape)}, but the spec makes it {list(tensor.shape)} "
                f"(problems = {spec.model.problems}, embedding = {spec.network.embedding}, hidden = "
                f"{spec.network.hidden}); give the spec that goes with it as SPEC="
            )
    surplus = [name for name in given if name not in wanted]
    if surplus:
        raise CheckpointError(
            f"{path} has {surplus[0]!r}, which a {spec.network.type} does not; is it another model's?"
        )
