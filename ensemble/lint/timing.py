"""How long a step takes here, alone."""

from __future__ import annotations

import statistics
import time

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup
from tritonclient.utils import triton_to_np_dtype

from ensemble.lint.repository import Model

RUNS = 5


def time_us(model: Model) -> float | None:
    """What the step takes for one item here, in microseconds: of its warm-up's, else of zeros; None if that is not known."""
    path = model.onnx()
    elsewhere = any(group.kind == ModelInstanceGroup.KIND_GPU for group in model.config.instance_group)
    if path is None or elsewhere or any(-1 in tensor.dims for tensor in model.config.input):
        return None
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    feeds = _feeds(model)
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ranks = {entry.name: len(entry.shape) for entry in session.get_inputs()}
        shaped = {name: value.reshape(value.shape[: ranks[name]]) for name, value in feeds.items()}
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(None, shaped)
            times.append(time.perf_counter() - start)
    except Exception:  # whatever keeps it from running here, its time is not known
        return None
    return statistics.median(times) * 1e6


def _feeds(model: Model) -> dict[str, np.ndarray]:
    batch = [1] if model.config.max_batch_size else []
    warm = model.config.model_warmup[0].inputs if model.config.model_warmup else {}
    feeds = {}
    for tensor in model.config.input:
        dtype = triton_to_np_dtype(DataType.Name(tensor.data_type).removeprefix("TYPE_"))
        shape = [*batch, *tensor.dims]
        given = warm[tensor.name].input_data_file if tensor.name in warm else ""
        if given and (model.folder / "warmup" / given).is_file():
            feeds[tensor.name] = np.fromfile(model.folder / "warmup" / given, dtype).reshape(shape)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype)
    return feeds
