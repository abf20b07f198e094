"""Tensors in system shared memory, for a client on the server's host: what crosses the socket is where they lie."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import shared_memory, triton_to_np_dtype

from ensemble.spec import Spec, Tensor


class SharedMemory:
    """Two regions that a server has been told of: one that requests are written to, one that it answers into.

    They hold one request at a time.

    Raises:
        InferenceServerException: the server is not reachable, or runs on another host.
    """

    def __init__(self, channel: grpcclient.InferenceServerClient, spec: Spec) -> None:
        tensors, learners = spec.tensors, spec.batching.max_batch_size
        self._channel = channel
        self._spec = spec
        self._regions: list[tuple[str, Any]] = []
        # Twice the window, since clients send whole histories; what is longer travels over the socket.
        self._room = sum(_bytes(tensor, learners * 2 * spec.model.window) for tensor in _inputs(spec))
        self._offsets: dict[str, int] = {}
        end = 0
        for tensor in (tensors.probabilities, tensors.next_problem_ids, tensors.next_problem_probabilities):
            self._offsets[tensor.name] = end
            end += _bytes(tensor, learners * spec.dims(tensor)[0])
        try:
            self._requests = self._region("requests", self._room)
            self._answers = self._region("answers", end)
        except BaseException:
            self.close()
            raise

    def place(self, inputs: Sequence[grpcclient.InferInput], values: Sequence[np.ndarray]) -> bool:
        """Write the values and point the inputs at them; False, and nothing done, where they do not fit."""
        if sum(value.nbytes for value in values) > self._room:
            return False
        offset, (name, region) = 0, self._requests
        for given, value in zip(inputs, values, strict=True):
            shared_memory.set_shared_memory_region(region, [value], offset)
            given.set_shared_memory(name, value.nbytes, offset)
            offset += value.nbytes
        return True

    def wanted(self, tensor: Tensor, learners: int) -> grpcclient.InferRequestedOutput:
        """The output, to be answered into its place."""
        output = grpcclient.InferRequestedOutput(tensor.name)
        size = _bytes(tensor, learners * self._spec.dims(tensor)[0])
        output.set_shared_memory(self._answers[0], size, self._offsets[tensor.name])
        return output

    def read(self, tensor: Tensor, learners: int) -> np.ndarray:
        """An answer [learners, ...], copied: the next one comes to the same place."""
        shape = (learners, *self._spec.dims(tensor))
        kind = triton_to_np_dtype(tensor.dtype)
        return shared_memory.get_contents_as_numpy(self._answers[1], kind, shape, self._offsets[tensor.name]).copy()

    def close(self) -> None:
        """Take the regions back from the server and give their memory up."""
        for name, region in self._regions:
            try:
                self._channel.unregister_system_shared_memory(name)
            finally:
                shared_memory.destroy_shared_memory_region(region)
        self._regions.clear()

    def _region(self, purpose: str, size: int) -> tuple[str, Any]:
        name = f"lastrow_{purpose}_{uuid.uuid4().hex}"
        region = shared_memory.create_shared_memory_region(name, f"/{name}", size)
        self._regions.append((name, region))
        self._channel.register_system_shared_memory(name, f"/{name}", size)
        return name, region


def _inputs(spec: Spec) -> tuple[Tensor, Tensor]:
    return spec.tensors.problem_ids, spec.tensors.responses


def _bytes(tensor: Tensor, elements: int) -> int:
    return elements * np.dtype(triton_to_np_dtype(tensor.dtype)).itemsize
