"""The core of any sequence model: fed as lastrow's first step feeds it, and answered from as its last step answers.

Both are copies of lastrow's own contract and chain, which lie beside each step of a repository and need numpy alone.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


class SequenceCore:
    """The ONNX core in this process, on the CPU. description: a file of `build.bench.peers.process.described`."""

    def __init__(self, path: str, threads: int, description: str) -> None:
        said = json.loads(Path(description).read_text(encoding="utf-8"))
        package = ModuleType("step")
        package.__path__ = [said["step"]]
        sys.modules["step"] = package
        self._contract = importlib.import_module("step.contract").Contract.loads(json.dumps(said["contract"]))
        self._answer = importlib.import_module("step.chain").answer
        self._chain, self._inputs, self._output = said["chain"], said["inputs"], said["output"]
        self._types = {name: np.dtype(kind) for name, kind in said["core"].items()}
        self.answers: dict[str, Any] = {}  # Python's types of the answer's tensors, by name
        for name, kind, axes in said["answers"]:
            number: Any = {"int": int, "float": float}[kind]
            self.answers[name] = reduce(lambda inner, _: list[inner], range(axes), number)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0: as many as there are cores
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._taken = {value.name for value in self._session.get_inputs()}

    def answer(self, given: Mapping[str, Array]) -> list[Array]:
        """The answer's tensors of one history, by input name without a batch axis."""
        request = {name: value[None] for name, value in given.items()}
        fed = self._contract.feed(request, self._contract.check(request), self._types)
        taken = {name: value for name, value in fed.items() if name in self._taken}
        rows = self._session.run([self._output], taken)[0]
        return [tensor[0] for tensor in self._answer(self._chain, rows, request)]

    def from_lists(self, table: Mapping[str, Any]) -> dict[str, Array]:
        """A history out of JSON."""
        return {name: np.array(table[name], kind) for name, kind, _ in self._inputs if table.get(name) is not None}

    def from_bytes(self, body: bytes) -> dict[str, Array]:
        """A history out of bytes: INT32 how many steps or ids each input has, -1 for none; then their numbers."""
        sizes = np.frombuffer(body, "<i4", len(self._inputs))
        start, found = sizes.nbytes, {}
        for (name, kind, shape), size in zip(self._inputs, sizes, strict=True):
            if size >= 0:
                whole = [int(size) if dim == -1 else dim for dim in shape]
                value = np.frombuffer(body, kind, int(np.prod(whole)), start)
                found[name] = value.reshape(whole)
                start += value.nbytes
        return found

    @staticmethod
    def to_bytes(tensors: list[Array]) -> bytes:
        """The answer's tensors, one behind the other."""
        return b"".join(tensor.tobytes() for tensor in tensors)

    def to_lists(self, tensors: list[Array]) -> dict[str, Any]:
        """The answer as JSON."""
        return {name: tensor.tolist() for name, tensor in zip(self.answers, tensors, strict=True)}
