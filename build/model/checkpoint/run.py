"""The folder of a training run: of pyKT (config.json, *_model.ckpt), or of knowledge-tracing-collection-pytorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build.model.checkpoint.errors import CheckpointError

PYKT, COLLECTION = "config.json", "model_config.json"  # by which a folder is known
PYKT_MODELS = {"dkt": "num_c", "dkt+": "num_c", "qdkt": "num_q"}  # where each has its number of problems


def complete(path: Path, tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the weights say of the model, held against the run's configuration, and with the window that only that has.

    Raises:
        CheckpointError: the configuration cannot be read, or says otherwise.
    """
    config = _json(path / PYKT) if (path / PYKT).is_file() else _json(path / COLLECTION)
    _check(path, config, tables)
    window = config.get("train_config", {}).get("seq_len")
    if isinstance(window, int):
        tables["model"]["window"] = window
    return tables


def weights_file(path: Path) -> Path:
    """The file that has the weights: `path` itself, or the one in a run's folder.

    Raises:
        CheckpointError: a folder has none, or several.
    """
    if not path.is_dir():
        return path
    if not (path / PYKT).is_file() and not (path / COLLECTION).is_file():
        raise CheckpointError(f"{path} has neither {PYKT} (pyKT) nor {COLLECTION}; give a run's folder, or a file")
    found = sorted(path.glob("*.ckpt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(f"{path} has to have one *.ckpt file; it has {names}")
    return found[0]


def files(path: Path) -> list[Path]:
    """The run's weights, and its configuration.

    Raises:
        CheckpointError: it is no run.
    """
    return [weights_file(path), *(path / name for name in (PYKT, COLLECTION) if (path / name).is_file())]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _check(path: Path, config: dict[str, Any], tables: dict[str, dict[str, Any]]) -> None:
    """What a run's configuration says of its model has to be what the weights say."""
    network, problems = tables["network"], tables["model"]["problems"]
    said: list[tuple[str, object, object]] = []
    if "data_config" in config:
        name = str(config.get("params", {}).get("model_name", config.get("train_config", {}).get("model_name")))
        if name not in PYKT_MODELS:
            raise CheckpointError(f"{path}: a pyKT run of {name!r}; read are {', '.join(PYKT_MODELS)}")
        count = PYKT_MODELS[name]
        said.append((f"data_config.{count}", config["data_config"].get(count), problems))
        sizes, where = config.get("model_config", {}), "model_config."
        # These of pyKT have one size for both layers.
        said.append(("model_config.emb_size", sizes.get("emb_size"), network.get("hidden")))
    else:
        sizes, where = config.get("dkt", config), ""
        said.append(("num_q", sizes.get("num_q"), problems))
        said.append(("hidden_size", sizes.get("hidden_size"), network.get("hidden")))
    said.append((f"{where}emb_size", sizes.get("emb_size"), network.get("embedding")))
    for key, given, found in said:
        if given is not None and given != found:
            raise CheckpointError(
                f"{path}: its configuration says {key} = {given}, its weights {found}; are they of one run?"
            )
