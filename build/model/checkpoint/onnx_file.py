"""An ONNX file: problem ids and responses in, [batch, time, problems] out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build.model.checkpoint.errors import CheckpointError, unreadable


def describe(path: Path) -> dict[str, dict[str, Any]]:
    """Its number of problems, its window where that is fixed, and what it calls its tensors.

    Raises:
        CheckpointError: it cannot be read, or takes or answers something else.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as e:
        raise unreadable(path, e) from e
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


def _spelled(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    sizes = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    return f"{value.name} [{sizes}]"
