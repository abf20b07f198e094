"""Checkpoints, in the forms that people have them: what is in one, and the model with its weights.

- a state_dict of a reference architecture, or of any module whose factory is given
- a run folder of pyKT (config.json, *_model.ckpt): dkt, dkt+, qdkt
- a folder of knowledge-tracing-collection-pytorch (model_config.json, model.ckpt): dkt, dkt+
- an ONNX file

Nothing in them is run: weights are read as plain tensors, or refused.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from build import aside
from ensemble.errors import LastrowError
from ensemble.spec import ModuleNetwork, Spec

if TYPE_CHECKING:  # at run time torch is imported where it is needed: to see that nothing changed takes only a digest
    import torch
    from torch import nn

    from build.model.network import Network

PYKT, COLLECTION = "config.json", "model_config.json"  # by which a folder is known
PYKT_MODELS = {"dkt": "num_c", "dkt+": "num_c", "qdkt": "num_q"}  # where each has its number of problems
# What trainers wrap models in leaves its name in front of every key.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NESTED = ("state_dict", "model_state_dict")


class CheckpointError(LastrowError):
    """The checkpoint is missing, damaged, or of another model than the spec's."""


def save(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict; the file appears whole or not at all."""
    import torch

    with aside.beside(path) as folder:
        made = folder / path.name
        torch.save(model.state_dict(), made)
        made.replace(path)


def describe(path: Path, factory: str | None = None) -> dict[str, dict[str, Any]]:
    """What the checkpoint says of its model, as tables of a spec.

    Args:
        factory: "package.module:function" that makes the module whose state_dict this is.

    Raises:
        CheckpointError: it cannot be read, or its parts contradict each other.
    """
    if factory is not None:
        return _describe_module(path, factory)
    if path.suffix == ".onnx":
        return _describe_onnx(path)
    tables = describe_state(read(path), path)
    if path.is_dir():
        config = _json(path / PYKT) if (path / PYKT).is_file() else _json(path / COLLECTION)
        _check_config(path, config, tables)
        window = config.get("train_config", {}).get("seq_len")
        if isinstance(window, int):
            tables["model"]["window"] = window
    return tables


def describe_state(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, dict[str, Any]]:
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


def load(path: Path, spec: Spec) -> nn.Module:
    """The spec's model with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: names the file, what is wrong with it, and the remedy.
    """
    from build.model.network import create

    if isinstance(spec.network, ModuleNetwork):
        return load_module(path, spec.network.factory)
    state = read(path)
    model = create(spec)
    _compare(path, state, model.state_dict(), spec.network.type, spec)
    model.load_state_dict(state)
    return model.eval()


def load_network(path: Path, spec: Spec) -> Network:
    """As load, of a reference architecture.

    Raises:
        CheckpointError: it is none.
    """
    from build.model.network import Network

    model = load(path, spec) if spec.network.type != "onnx" else None
    if not isinstance(model, Network):
        raise CheckpointError(
            f"the demonstration compares with PyTorch's reference architectures; {path} is of type {spec.network.type}. "
            "`make repo` checks it, and `make serve` serves it"
        )
    return model


def load_module(path: Path, factory: str) -> nn.Module:
    """What a factory makes, with the checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: there is no such factory, or the weights are not its model's.
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
    state = read(path, unwrap=False)
    if set(state) != set(model.state_dict()):
        state = _unwrapped(state)
    _compare(path, state, model.state_dict(), factory)
    model.load_state_dict(state)
    return model.eval()


def factory_module(factory: str) -> str:
    """The module of "package.module:function"; from here on it is found as `python -m` would find it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not
    return factory.partition(":")[0]


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
        raise _unreadable(path, e) from e
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
        state = next((state[key] for key in _NESTED if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
    return _unwrapped(state) if unwrap else dict(state)


def digest(path: Path) -> str:
    """SHA-256 of the file, or of a folder's configuration and weights.

    Raises:
        CheckpointError: it cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = [weights_file(path), *(path / name for name in (PYKT, COLLECTION) if (path / name).is_file())]
    elif path.suffix == ".onnx":
        files += [file for file in outside(path) if file.is_file()]
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as content:
                for block in iter(lambda: content.read(1 << 20), b""):
                    total.update(block)
        except OSError as e:
            raise _unreadable(file, e) from e
    return total.hexdigest()


def outside(path: Path) -> list[Path]:
    """The files that an ONNX file keeps weights in; none where it cannot be read, which its reader says."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except (OSError, DecodeError):
        return []
    entries = [entry for tensor in tensors for entry in tensor.external_data]
    return sorted({path.parent / entry.value for entry in entries if entry.key == "location"})


def _wanted(message: str) -> str:
    """The name of what a refused pickle asks for, out of PyTorch's message."""
    _, found, rest = message.partition("Unsupported global: GLOBAL ")
    return rest.split()[0] if found and rest else ""


def _unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = dict(state)
    for _ in _WRAPPERS:
        for wrapper in _WRAPPERS:
            if names and all(name.startswith(wrapper) for name in names):
                names = {name.removeprefix(wrapper): tensor for name, tensor in names.items()}
    return names


def _describe_module(path: Path, factory: str) -> dict[str, dict[str, Any]]:
    import torch

    model = load_module(path, factory)
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


def _describe_onnx(path: Path) -> dict[str, dict[str, Any]]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as e:
        raise _unreadable(path, e) from e
    except DecodeError as e:
        raise CheckpointError(f"{path} is no ONNX model: {e}") from e
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    fit = [v for v in inputs if v.type.tensor_type.elem_type in integers and len(v.type.tensor_type.shape.dim) == 2]
    if len(inputs) != 2 or len(fit) != 2:
        raise CheckpointError(
            f"{path} has the inputs {', '.join(map(_spelled, inputs)) or '(none)'}; needed are two of integers, problem ids "
            "and responses in this order, [batch, time] each"
        )
    dims = [[(d.dim_value if d.HasField("dim_value") else 0) for d in v.type.tensor_type.shape.dim] for v in fit]
    if dims[0][0] or dims[1][0]:
        raise CheckpointError(f"{path}: {_spelled(fit[0])} has a fixed batch; export it with that axis dynamic")
    outputs = [v for v in graph.output if len(v.type.tensor_type.shape.dim) == 3]
    sizes = [v.type.tensor_type.shape.dim[2].dim_value for v in outputs]
    if not outputs or not sizes[0]:
        raise CheckpointError(
            f"{path} has the outputs {', '.join(map(_spelled, graph.output))}; needed is [batch, time, problems], the "
            "number of problems fixed"
        )
    model: dict[str, Any] = {"problems": sizes[0], "cold_start": False}
    if dims[0][1]:
        model |= {"window": dims[0][1], "buckets": []}
    names = {"problem_ids": fit[0].name, "responses": fit[1].name, "output": outputs[0].name}
    return {"model": model, "network": {"type": "onnx", **names}}


def _spelled(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    sizes = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    return f"{value.name} [{sizes}]"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {path}: {e}") from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _check_config(path: Path, config: dict[str, Any], tables: dict[str, dict[str, Any]]) -> None:
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


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot read the checkpoint {path}: {error.strerror}. Give one with CHECKPOINT=, or make one with `make train`"
    )


def _compare(
    path: Path,
    given: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    kind: str,
    spec: Spec | None = None,
) -> None:
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
