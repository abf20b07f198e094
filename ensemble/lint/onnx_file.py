"""What an ONNX file says of itself: its inputs and outputs, its opset, its IR version. Read only where onnx can be
imported."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGEST = 300_000_000  # bytes: above it a file takes longer to read than a linter may
AVAILABLE = importlib.util.find_spec("onnx") is not None


@dataclass
class OnnxFile:
    """A graph's face.

    Attributes: inputs: (type as in a configuration, shape with -1 for what is free) by name; a shape of None where the
    file has none. outputs: the same. opset: of ONNX's own operators. ir_version: of the file. symbols: the name of each
    free axis, "" for others, by the tensor's name.
    """

    inputs: dict[str, tuple[str, list[int] | None]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, list[int] | None]] = field(default_factory=dict)
    opset: int = 0
    ir_version: int = 0
    symbols: dict[str, list[str]] = field(default_factory=dict)


def load(path: Path) -> onnx.ModelProto | None:
    """A model without its external weights; None where it cannot be read here, or would take too long."""
    try:
        stat = path.stat()
    except OSError:
        return None
    if not AVAILABLE or not path.is_file() or stat.st_size > LARGEST:
        return None
    return _load(path, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: Path, _: int) -> onnx.ModelProto | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return None


def face(path: Path) -> OnnxFile | None:
    """What a file says of itself; None where it cannot be read here."""
    model = load(path)
    if model is None or not model.graph.output:
        return None
    import onnx

    kinds = {
        "FLOAT": "FP32",
        "DOUBLE": "FP64",
        "FLOAT16": "FP16",
        "BFLOAT16": "BF16",
    }
    made = OnnxFile(ir_version=model.ir_version)
    made.opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    weights = {tensor.name for tensor in model.graph.initializer}
    for side, entries in ((made.inputs, model.graph.input), (made.outputs, model.graph.output)):
        for entry in entries:
            if entry.name in weights or not entry.type.HasField("tensor_type"):
                continue
            kind = onnx.TensorProto.DataType.Name(entry.type.tensor_type.elem_type)
            shape = entry.type.tensor_type.shape.dim if entry.type.tensor_type.HasField("shape") else None
            dims = None if shape is None else [d.dim_value if d.HasField("dim_value") else -1 for d in shape]
            side[entry.name] = (f"TYPE_{kinds.get(kind, kind)}", dims)
            made.symbols[entry.name] = [d.dim_param for d in shape or ()]
    return made


def symbols(path: Path) -> dict[str, list[str]]:
    """The name of each free axis of a file's inputs and outputs."""
    read = face(path)
    return read.symbols if read else {}
