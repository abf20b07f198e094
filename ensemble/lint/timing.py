"""How long a step takes here, alone."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup
from tritonclient.utils import triton_to_np_dtype

from ensemble.lint.repository import Model

RUNS = 5
BUDGET_S = 4.0  # for all models of a repository; what is over it has its time not known
LARGEST = 64_000_000  # bytes of model files: to make a session of more takes seconds


class Clock:
    """Times steps, until its budget is spent."""

    def __init__(self) -> None:
        self._left_s = BUDGET_S

    def time_us(self, model: Model) -> float | None:
        """What the step takes for one item here, in microseconds: of its warm-up's, else of zeros; None if not known."""
        path = model.onnx()
        elsewhere = any(group.kind == ModelInstanceGroup.KIND_GPU for group in model.config.instance_group)
        if path is None or elsewhere or self._left_s <= 0 or not path.is_file() or _bytes(path.parent) > LARGEST:
            return None
        try:
            import onnxruntime as ort
        except ImportError:
            return None
        begun = time.perf_counter()
        try:
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            feeds = _feeds(model)
            ranks = {entry.name: len(entry.shape) for entry in session.get_inputs()}
            shaped = {name: value.reshape(value.shape[: ranks[name]]) for name, value in feeds.items()}
            times: list[float] = []
            while len(times) < RUNS and time.perf_counter() - begun < self._left_s:
                start = time.perf_counter()
                session.run(None, shaped)
                times.append(time.perf_counter() - start)
        except Exception:  # whatever keeps it from running here, its time is not known
            return None
        finally:
            self._left_s -= time.perf_counter() - begun
        return statistics.median(times) * 1e6 if times else None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _feeds(model: Model) -> dict[str, np.ndarray]:
    """An item of each input.

    Raises:
        ValueError: the size of one is not known, or a warm-up's file is shorter than an item.
    """
    batch = [1] if model.config.max_batch_size else []
    warm = model.config.model_warmup[0].inputs if model.config.model_warmup else {}
    feeds = {}
    for tensor in model.config.input:
        dtype = triton_to_np_dtype(DataType.Name(tensor.data_type).removeprefix("TYPE_"))
        dims = list(warm[tensor.name].dims) if tensor.name in warm else list(tensor.dims)
        if -1 in dims:
            raise ValueError(f"{tensor.name} has a free dimension")
        given = warm[tensor.name].input_data_file if tensor.name in warm else ""
        shape = [*batch, *dims]
        if given:
            count = int(np.prod(shape))  # the rest of a longer file is never read
            feeds[tensor.name] = np.fromfile(model.folder / "warmup" / given, dtype, count).reshape(shape)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype)
    return feeds
