"""Sequence models as people serve them: a class each in models.py, or made by a library in library.py, and specs of both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import tomlkit
import torch
from torch import nn

from ensemble.sequence import Sequence
from ensemble.spec import Spec

SPECS = Path(__file__).with_name("specs")
NAMES = sorted(file.stem for file in SPECS.glob("*.toml"))


def read(name: str, **keys: Any) -> Sequence:
    """The spec of one of them, or with other values: `model__padding="left"`."""
    table = tomlkit.parse((SPECS / f"{name}.toml").read_text(encoding="utf-8")).unwrap()
    for path, value in keys.items():
        *outer, last = path.split("__")
        inner = table
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    found = Spec.model_validate(table)
    assert isinstance(found, Sequence)
    return found


def make(spec: Sequence) -> nn.Module:
    """Its model, with weights that are random and the same each time."""
    torch.manual_seed(0)
    module, _, name = spec.network.factory.partition(":")
    model: nn.Module = getattr(importlib.import_module(module), name)()
    return model.eval()


def save(spec: Sequence, path: Path) -> Path:
    """That model's state_dict."""
    torch.save(make(spec).state_dict(), path)
    return path
