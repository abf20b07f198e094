"""The weights of a reference architecture: which one they are of, and that model with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build.model.checkpoint import state as states
from build.model.checkpoint.errors import CheckpointError
from ensemble.knowledge_tracing import KnowledgeTracing

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    import torch

    from build.model.network import Network


def describe(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, dict[str, Any]]:
    """The network and the number of problems that a reference architecture's weights belong to.

    Raises:
        CheckpointError: they are no reference architecture's.
    """
    sizes = {name: list(tensor.shape) for name, tensor in state.items()}
    try:
        problems, embedding = sizes["out_layer.weight"][0], sizes["interaction_emb.weight"][1]
        if sizes["interaction_emb.weight"][0] != 2 * problems:
            raise CheckpointError(
                f"{path}: interaction_emb.weight has {sizes['interaction_emb.weight'][0]} rows and out_layer.weight "
                f"{problems}; needed are two interactions a problem, wrong and right"
            )
        model: dict[str, Any] = {"problems": problems}
        for cell, kind in (("lstm", "dkt"), ("gru", "gru")):
            if f"{cell}_layer.weight_hh_l0" in sizes:
                hidden = sizes[f"{cell}_layer.weight_hh_l0"][1]
                return {"model": model, "network": {"type": kind, "embedding": embedding, "hidden": hidden}}
        blocks = len({name.split(".")[1] for name in sizes if name.startswith("blocks.")})
        model["window"] = sizes["positions"][0] - 1
        network = {"type": "transformer", "embedding": embedding, "blocks": blocks, "heads": int(state["heads"])}
    except KeyError as e:
        raise CheckpointError(
            f"{path} has no {e}, which every reference architecture has (dkt: interaction_emb, lstm_layer, out_layer); "
            f"it has {', '.join(sizes) or 'nothing'}. For a module of your own give FACTORY=package.module:function"
        ) from e
    return {"model": model, "network": network}


def load(path: Path, spec: KnowledgeTracing) -> Network:
    """The spec's model with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: it cannot be read, or its weights are not the spec's model's.
    """
    from build.model.network import create

    state = states.read(path)
    model = create(spec)
    states.compare(path, state, model.state_dict(), spec.network.type, spec)
    model.load_state_dict(state)
    return model.eval()
