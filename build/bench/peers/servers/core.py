"""What every peer does alike: reads a history, runs the core on a batch of them, and writes the answer.

The peers differ in how requests reach this and how they become batches, and in nothing else. They run in an environment
without lastrow, so nothing of it is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

LOOPBACK = "127.0.0.1"
BYTES = "application/octet-stream"

History = NDArray[np.int32]  # [2, interactions]: problem ids, then responses, oldest first


class Core:
    """The ONNX core in this process, on the CPU."""

    def __init__(self, path: str, threads: int, window: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0: as many as there are cores
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._window = window

    def answer(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """Probabilities FP32 [histories, problems], from one run."""
        padded = np.zeros((2, len(histories), self._window), np.int32)
        lengths = np.empty(len(histories), np.int32)
        for row, history in enumerate(histories):
            recent = history[:, -self._window :]
            lengths[row] = recent.shape[1]
            padded[:, row, : lengths[row]] = recent
        inputs = {"recent_problem_ids": padded[0], "recent_responses": padded[1], "lengths": lengths}
        return _sigmoid(self._session.run(["logits"], inputs)[0])


def from_lists(problem_ids: Sequence[int], responses: Sequence[int]) -> History:
    """A history out of JSON."""
    return np.array((problem_ids, responses), np.int32)


def from_bytes(body: bytes) -> History:
    """A history out of INT32 little-endian [2, interactions]."""
    return np.frombuffer(body, "<i4").reshape(2, -1)


def to_bytes(probabilities: NDArray[np.float32]) -> bytes:
    """The answer as FP32 little-endian [problems]."""
    return probabilities.astype("<f4", copy=False).tobytes()


def parser() -> argparse.ArgumentParser:
    """The arguments that every peer is started with."""
    made = argparse.ArgumentParser()
    made.add_argument("--core", required=True, help="the core's model.onnx")
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--threads", type=int, default=0, help="of one run of the core; 0 is ONNX Runtime's own choice")
    made.add_argument("--window", type=int, default=512, help="the most recent interactions that count")
    made.add_argument("--max-batch-size", type=int, default=32)
    made.add_argument("--sequence", default="", help="of a sequence model's core: the file that describes it")
    return made


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # In place, since the logits are nobody else's. Far negative ones overflow exp to inf, which is exactly 0.
    np.negative(logits, out=logits)
    with np.errstate(over="ignore"):
        np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)
