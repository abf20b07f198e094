"""What torch.onnx.export made, kept for the same call again: it is the slowest thing that the tests do.

The first call of a process gets what the exporter made, every later one a copy. A call is the same if all that the exporter
looks at is: the module with its weights and settings, the examples and the options. The code of both cannot change while a
process lives, and so nothing here can be out of date. What fails is not kept.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import onnx
import onnx_ir as ir
from torch import Tensor, nn
from torch.onnx import ONNXProgram

Export = Callable[..., ONNXProgram | None]


class _Pickler(pickle.Pickler):
    """Tensors by their values: how PyTorch itself pickles them is not the same every time."""

    def reducer_override(self, thing: object) -> Any:
        if isinstance(thing, Tensor):
            values = thing.detach().numpy()
            return bytes, (f"{values.dtype} {values.shape} ".encode() + values.tobytes(),)
        return NotImplemented


def _digest(*things: object) -> bytes | None:
    """SHA-256 of everything that the things are made of; None where that cannot be told."""
    written = BytesIO()
    try:
        pickler = _Pickler(written)
        pickler.fast = True  # who else holds a thing makes no difference
        pickler.dump(things)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):  # a class inside of a function, say
        return None
    return hashlib.sha256(written.getvalue()).digest()


def kept(export: Export) -> Export:
    """torch.onnx.export, which makes each model of the current exporter once."""
    made: dict[bytes, bytes] = {}

    def again(module: nn.Module, examples: tuple[Tensor, ...], *files: Any, **options: Any) -> ONNXProgram | None:
        key = _digest(module, examples, options) if options.get("dynamo") and not files else None
        if key in made:
            return ONNXProgram(ir.from_proto(onnx.ModelProto.FromString(made[key])), None)
        program = export(module, examples, *files, **options)
        if key is not None and program is not None:
            made[key] = ir.to_proto(program.model).SerializeToString()  # weights may change, what was exported does not
        return program

    return again
