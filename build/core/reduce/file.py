"""Models on disk: read, written, opened."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort

from build.core.reduce.layout import ReductionError

PROTOBUF_LIMIT = 1 << 30  # bytes of weights from which on they are kept beside the file: protobuf ends at 2 GiB


def weights(model: ir.Model) -> int:
    """Bytes of the model's constants.

    >>> from build.core.reduce.example import model
    >>> weights(model("y = Mul(x, w)", weights="float[2] w = {1, 2}"))
    8
    """
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def load(path: Path) -> ir.Model:
    """Read a model, with weights that lie beside its file.

    >>> load(Path("missing.onnx"))
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.ReductionError: cannot read missing.onnx: [Errno 2] No such file or directory: 'missing.onnx'

    Raises:
        ReductionError: it cannot be read, or says that its weights lie elsewhere than in its own folder.
    """
    try:
        return ir.from_proto(onnx.load(path))  # onnx_ir's own reader would follow any path that the file names
    except Exception as e:  # protobuf, file and external data errors have no common base
        raise ReductionError(f"cannot read {path}: {str(e).splitlines()[0]}") from e


def save(model: ir.Model, path: Path) -> None:
    """Write the model, its weights in a file beside it where protobuf could not hold them.

    >>> from build.core.reduce.example import model
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(model("y = Tanh(x)"), Path(folder) / "model.onnx")
    ...     load(Path(folder) / "model.onnx").graph[0].op_type
    'Tanh'
    """
    ir.save(model, path, external_data=f"{path.name}.data" if weights(model) > PROTOBUF_LIMIT else None)


def open_session(path: Path, optimised: bool = True) -> ort.InferenceSession:
    """A session on the CPU that prints nothing: what goes wrong is raised, and the caller says it.

    ONNX Runtime 1.31's blocking of convolutions crashes on a float16 product behind a Transpose: it is left out.

    >>> from build.core.reduce.example import model
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(model("y = Tanh(x)"), Path(folder) / "model.onnx")
    ...     [value.name for value in open_session(Path(folder) / "model.onnx").get_inputs()]
    ['x']
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=["NchwcTransformer"])
