"""Tensors in system shared memory, for a client on the server's host: what crosses the socket is where they lie."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory as Region
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

from ensemble.spec import Spec, Tensor

CLOSING_S = 5.0  # a server that does not answer keeps its view of the memory until it ends


class SharedMemory:
    """Two regions that a server has been told of: one that requests are written to, one that it answers into.

    They hold one request at a time. Their names are gone as soon as the server has them, so that a client which is killed
    leaves nothing in /dev/shm; their memory is given up with the last of both.

    Raises:
        grpc.RpcError: the server is not reachable, or runs on another host.
    """

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, spec: Spec) -> None:
        tensors, learners = spec.tensors, spec.batching.max_batch_size
        self._stub = stub
        self._spec = spec
        self._regions: list[tuple[str, Region]] = []
        # Twice the window, since clients send whole histories; what is longer travels over the socket.
        self._room = sum(_bytes(tensor, learners * 2 * spec.model.window) for tensor in _inputs(spec))
        self._offsets: dict[str, int] = {}
        self._sizes: dict[str, int] = {}  # bytes a learner
        end = 0
        for tensor in (tensors.probabilities, tensors.next_problem_ids, tensors.next_problem_probabilities):
            self._offsets[tensor.name] = end
            self._sizes[tensor.name] = _bytes(tensor, spec.dims(tensor)[0])
            end += learners * self._sizes[tensor.name]
        try:
            self._requests = self._region("requests", self._room)
            self._answers = self._region("answers", end)
        except BaseException:
            self.close()
            raise

    def place(self, message: service_pb2.ModelInferRequest, values: Sequence[np.ndarray]) -> bool:
        """Write the values and say in the message where its inputs are; False, and nothing done, if they do not fit."""
        if sum(value.nbytes for value in values) > self._room:
            return False
        offset, (name, region) = 0, self._requests
        for tensor, value in zip(message.inputs, values, strict=True):
            np.ndarray(value.shape, value.dtype, region.buf, offset)[:] = value
            _point(tensor, name, value.nbytes, offset)
            offset += value.nbytes
        return True

    def want(self, message: service_pb2.ModelInferRequest, learners: int) -> None:
        """Say in the message where its outputs go."""
        for output in message.outputs:
            _point(output, self._answers[0], learners * self._sizes[output.name], self._offsets[output.name])

    def read(self, tensor: Tensor, learners: int) -> np.ndarray:
        """An answer [learners, ...], copied: the next one comes to the same place."""
        shape = (learners, *self._spec.dims(tensor))
        kind = triton_to_np_dtype(tensor.dtype)
        return np.ndarray(shape, kind, self._answers[1].buf, self._offsets[tensor.name]).copy()

    def close(self) -> None:
        """Take the regions back from the server, if it is still there, and give their memory up."""
        for name, region in self._regions:
            try:
                self._stub.SystemSharedMemoryUnregister(
                    service_pb2.SystemSharedMemoryUnregisterRequest(name=name), timeout=CLOSING_S
                )
            except grpc.RpcError as e:
                if e.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
            finally:
                region.close()
        self._regions.clear()

    def _region(self, purpose: str, size: int) -> tuple[str, Region]:
        name = f"lastrow_{purpose}_{uuid.uuid4().hex}"
        region = Region(name, create=True, size=size)
        try:
            self._stub.SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
            )
        except BaseException:
            region.close()
            raise
        finally:
            region.unlink()
        self._regions.append((name, region))
        return name, region


def _point(tensor: Any, region: str, size: int, offset: int) -> None:
    """The parameters of Triton's shared memory extension."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def _inputs(spec: Spec) -> tuple[Tensor, Tensor]:
    return spec.tensors.problem_ids, spec.tensors.responses


def _bytes(tensor: Tensor, elements: int) -> int:
    return elements * np.dtype(triton_to_np_dtype(tensor.dtype)).itemsize
