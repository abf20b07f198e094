"""A configuration against the model file: names, types, dims, batch."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import DataType

from ensemble.lint.finding import Finding
from ensemble.lint.onnx_file import AVAILABLE, LARGEST, face
from ensemble.lint.refusal import among, refused
from ensemble.lint.repository import Model, Repository
from ensemble.lint.rule import rule

BACKEND = "https://github.com/triton-inference-server/onnxruntime_backend/blob/main/src/onnxruntime.cc"
# The newest opset and IR version of the ONNX Runtime in NVIDIA's containers: its version is in the server's build.py of each
# release, what it runs in onnxruntime.ai/docs/reference/compatibility. Of those from LAST on nothing is said.
RUNTIMES = {(24, 1): (19, 9), (24, 3): (20, 9), (24, 5): (21, 10), (25, 3): (22, 10), (25, 5): (23, 11)}
LAST = (25, 8)


@rule("onnx-unread", BACKEND)
def unread(repository: Repository) -> Iterator[Finding]:
    """An ONNX file that could not be looked into.

    The package onnx reads it: `pip install onnx`. A file above 300 MB takes too long for a linter; `--load` asks Triton
    instead.
    """
    for model in repository.singles():
        path = model.onnx()
        if path is None or not path.is_file():
            continue
        if not AVAILABLE:
            why = "names, types and dims were not compared with the ONNX file, which nothing here can read"
            yield Finding(model.file, "backend", why, "pip install onnx, or --load", "note")
        elif path.stat().st_size > LARGEST:
            why = f"{path.name} has {path.stat().st_size / 1e6:.0f} MB, and was not looked into"
            yield Finding(model.file, "backend", why, "--load", "note")
        elif face(path) is None and path.stat().st_size:
            why = f"{path.relative_to(repository.folder)} is no ONNX model, or one without outputs"
            yield Finding(model.file, "backend", why, "a whole file: git lfs pull, where it is a pointer")


@rule("onnx-tensors", BACKEND)
def tensors(repository: Repository) -> Iterator[Finding]:
    """Inputs and outputs that are not those of the ONNX file.

    The ONNX Runtime backend refuses a name, a type or dims that the file does not have, an input too few, and -1 where
    the file is fixed. Leave all inputs, or all outputs, away and the backend completes them from the file.
    """
    for model in repository.singles():
        path = model.onnx()
        read = face(path) if path is not None else None
        if read is None:
            continue
        if model.config.max_batch_size > 0:
            fixed = [
                name for name, (_, shape) in [*read.inputs.items(), *read.outputs.items()] if shape and shape[0] != -1
            ]
            if fixed:
                why = f"{fixed[0]} of the model file has a fixed first axis, on which nothing can be batched"
                yield refused(model, "max_batch_size", why, "0 and the whole shapes, or an export with a free axis")
                continue
        for side, there in (("input", read.inputs), ("output", read.outputs)):
            yield from _side(model, side, there)


def _side(model: Model, side: str, there: dict[str, tuple[str, list[int] | None]]) -> Iterator[Finding]:
    given = getattr(model.config, side)
    made = {name for each in model.config.batch_input for name in each.target_name}
    made |= {control.name for control in model.config.sequence_batching.control_input}
    made |= {state.input_name for state in model.config.sequence_batching.state}
    for tensor in given:
        if tensor.name and tensor.name not in there:
            key = f"{side} ({tensor.name})"
            yield refused(model, key, f"the model file has no {side} {tensor.name}", among(there))
    names = {tensor.name for tensor in given}
    missing = sorted(set(there) - names - made)
    if given and missing and side == "input":
        yield refused(model, "input", f"the model file also has {', '.join(missing)}", "every input of it, or none")
    for tensor in given:
        kind, shape = there.get(tensor.name, ("", None))
        if not kind:
            continue
        if tensor.data_type and kind != DataType.Name(tensor.data_type):
            why = f"it is {DataType.Name(tensor.data_type)} here and {kind} in the model file"
            yield refused(model, f"{side}.data_type ({tensor.name})", why, kind)
        dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
        own = [-1, *dims] if model.config.max_batch_size > 0 else dims
        ragged = side == "input" and tensor.allow_ragged_batch
        if shape and (tensor.dims or tensor.HasField("reshape")) and not ragged and not _fits(own, shape, side):
            why = f"its shape is {own} here and {shape} in the model file"
            wanted = shape[1:] if model.config.max_batch_size > 0 else shape
            yield refused(model, f"{side}.dims ({tensor.name})", why, f"dims: {wanted}")


def _fits(own: list[int], shape: list[int], side: str) -> bool:
    """The backend's rule: outputs are the same, inputs may be fixed where the file is free."""
    return len(own) == len(shape) and all(
        b == a or (b == -1 and side == "input") for a, b in zip(own, shape, strict=True)
    )


@rule("onnx-opset", "https://onnxruntime.ai/docs/reference/compatibility.html")
def opset(repository: Repository) -> Iterator[Finding]:
    """An ONNX file that is newer than the server's ONNX Runtime.

    Said where `--triton` names the server: each ONNX Runtime runs opsets and IR versions up to its own. Export with
    `opset_version=...`, or serve with a newer Triton.
    """
    if repository.triton is None:
        return
    known = [limits for version, limits in RUNTIMES.items() if version <= repository.triton]
    if not known or repository.triton >= LAST:
        return
    most, newest = known[-1]
    for model in repository.singles():
        path = model.onnx()
        read = face(path) if path is not None else None
        if read is not None and (read.opset > most or read.ir_version > newest):
            why = f"the model file has opset {read.opset}, IR {read.ir_version}, and that server's runs {most}, IR {newest}"
            yield Finding(model.file, "backend", why, f"an export with opset {most} at most, or a newer Triton")
