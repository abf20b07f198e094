"""Tensors in system shared memory, for a client on the server's host: what crosses the socket is where they lie."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.shared_memory import SharedMemory as Region
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from ensemble.client.raw import as_sent
from ensemble.client.retry import remaining
from ensemble.errors import ServingError, UnavailableError
from ensemble.interface import Interface, size

CLOSING_S = 5.0  # a server that does not answer keeps its view of the memory until it ends
LOOK_AGAIN_S = 0.02
# What Triton says of a region that it has not been told of: it was started anew, or somebody took the region from it.
UNKNOWN = "Unable to find shared memory region"
IN_USE = "currently in use"  # and of one that a request may still be written to
NOT_HERE = "Unable to open shared memory region"


class SharedMemory:
    """Two regions that a server has been told of: one that requests are written to, one that it answers into.

    They hold one request at a time. Their names are gone as soon as the server has them, so that a client which is killed
    leaves nothing in /dev/shm; their memory is given up with the last of both. After a request that failed in any way the
    server may still read and write them, so the next one gets others, and these are taken back when it is done with them.
    """

    def __init__(self, url: str, interface: Interface) -> None:
        histories = interface.max_batch_size
        self._url = url
        self._call = threading.Lock()
        self._regions: list[tuple[str, Region]] = []
        self._retired: list[str] = []
        # Twice the window, since clients send whole histories; what is longer travels over the socket.
        longest = 2 * interface.contract.widths[-1]
        self._room = histories * sum(size(tensor, longest) for tensor in interface.inputs)
        self._offsets: dict[str, int] = {}
        self._sizes: dict[str, int] = {}  # bytes of a full batch
        self._types = {tensor.name: np.dtype(triton_to_np_dtype(tensor.dtype)) for tensor in interface.outputs}
        self._end = 0
        for tensor in interface.outputs:
            self._offsets[tensor.name] = self._end
            self._sizes[tensor.name] = histories * size(tensor, longest)
            self._end += self._sizes[tensor.name]

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """For as long as a call of the client is under way.

        Raises:
            ServingError: another thread's is.
        """
        if not self._call.acquire(blocking=False):
            raise ServingError(
                f"another thread has a call to {self._url} under way, and the shared memory of a client holds one at a "
                "time; give each thread a client of its own",
                "FAILED_PRECONDITION",
            )
        try:
            yield
        finally:
            self._call.release()

    def open(self, stub: Any, deadline: float) -> None:
        """Tell the server of two regions, if there are none, and take those back that it has done with.

        Raises:
            UnavailableError: it does not let clients do that. ServingError: it runs elsewhere, or there is no room here.
            grpc.RpcError: it is not reachable, or says no for another reason.
        """
        self._retired = [name for name in self._retired if not _taken_back(stub, name, deadline)]
        if self._regions:
            return
        try:
            for purpose, size in (("requests", self._room), ("answers", self._end)):
                self._register(stub, f"lastrow_{os.getpid()}_{purpose}_{uuid.uuid4().hex}", size, deadline)
        except BaseException:
            self._retire()
            raise

    def infer(
        self,
        stub: Any,
        message: service_pb2.ModelInferRequest,
        values: Sequence[np.ndarray],
        shapes: Mapping[str, Sequence[int]],
        deadline: float,
    ) -> service_pb2.ModelInferResponse:
        """Ask once, or once more where the server has lost the regions.

        Args:
            values: of the message's inputs.
            shapes: of what it asks for, by name.

        Raises:
            What `open` does, and grpc.RpcError.
        """
        known = bool(self._regions)
        try:
            self.open(stub, deadline)
            self._place(message, values, shapes)
            return stub.ModelInfer(message, timeout=remaining(deadline))
        except BaseException as e:
            self._retire()
            if not (known and isinstance(e, grpc.RpcError) and UNKNOWN in str(e.details())):
                raise
        return self.infer(stub, message, values, shapes, deadline)

    def read(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """An answer of this shape, copied: the next one comes to the same place."""
        return np.ndarray(shape, self._types[name], self._regions[1][1].buf, self._offsets[name]).copy()

    def close(self, stub: Any) -> None:
        """Take the regions back from the server, if it is still there, and give their memory up."""
        deadline = time.monotonic() + CLOSING_S
        if not self._call.acquire(timeout=CLOSING_S):
            return  # the call goes on in this very thread, below us: its memory ends with the process
        try:
            self._retire()
            while self._retired and time.monotonic() < deadline:
                self._retired = [name for name in self._retired if not _taken_back(stub, name, deadline)]
                if self._retired:
                    time.sleep(LOOK_AGAIN_S)
        finally:
            self._call.release()

    def _register(self, stub: Any, name: str, size: int, deadline: float) -> None:
        try:
            region = Region(name, create=True, size=size)
        except OSError as e:
            raise ServingError(f"cannot make {size} bytes of shared memory: {e.strerror}", "RESOURCE_EXHAUSTED") from e
        self._regions.append((name, region))
        try:
            request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
            stub.SystemSharedMemoryRegister(request, timeout=remaining(deadline))
        except grpc.RpcError as e:
            text = str(e.details())
            if "restricted" in text:
                raise UnavailableError(
                    f"{self._url} keeps shared memory closed; serve with `make serve OPEN=shared-memory`, or leave "
                    "shared_memory out",
                    e.code().name,
                ) from e
            if NOT_HERE in text:
                raise ServingError(
                    f"{self._url} does not see the shared memory of this host; leave shared_memory out where the server "
                    "runs on another one, or in a container without this one's /dev/shm",
                    e.code().name,
                ) from e
            raise
        finally:
            region.unlink()

    def _place(
        self, message: service_pb2.ModelInferRequest, values: Sequence[np.ndarray], shapes: Mapping[str, Sequence[int]]
    ) -> None:
        """Write the values where they fit, else into the message, and say in it where its tensors are and go."""
        (requests, region), (answers, _) = self._regions
        if any(value.dtype == np.object_ for value in values):
            values = [np.frombuffer(as_sent(value), np.uint8) for value in values]
        if sum(value.nbytes for value in values) <= self._room:
            offset = 0
            for tensor, value in zip(message.inputs, values, strict=True):
                np.ndarray(value.shape, value.dtype, region.buf, offset)[:] = value
                _point(tensor, requests, value.nbytes, offset)
                offset += value.nbytes
        elif not message.raw_input_contents:
            message.raw_input_contents.extend(value.tobytes() for value in values)
        sizes = {name: math.prod(shape) * self._types[name].itemsize for name, shape in shapes.items()}
        if all(
            0 < size <= self._sizes[name] for name, size in sizes.items()
        ):  # -1: of a length that only the answer says
            for output in message.outputs:
                _point(output, answers, sizes[output.name], self._offsets[output.name])

    def _retire(self) -> None:
        """Use these regions no more. The server's own view of them stays until it is told."""
        for name, region in self._regions:
            region.close()
            self._retired.append(name)
        self._regions.clear()


def _taken_back(stub: Any, name: str, deadline: float) -> bool:
    """Whether the server has no view of a region any more. It keeps one that a request is under way with."""
    try:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        stub.SystemSharedMemoryUnregister(request, timeout=remaining(deadline))
    except grpc.RpcError as e:
        if e.code() is grpc.StatusCode.UNAVAILABLE:  # what is gone has no view
            return True
        if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED or IN_USE in str(e.details()):
            return False
        raise
    return True


def _point(tensor: Any, region: str, size: int, offset: int) -> None:
    """The parameters of Triton's shared memory extension."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset
