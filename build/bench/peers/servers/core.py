"""What every peer does alike, whatever it serves: reads histories, runs the core on a batch of them, writes answers.

The peers differ in how requests reach this and how they become batches, and in nothing else. They run in an environment
without lastrow. What a request has to be, what the core gets of it and how an answer is made come from lastrow's own
contract and chain all the same, which need numpy alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

LOOPBACK = "127.0.0.1"
BYTES = "application/octet-stream"

Array = NDArray[Any]
History = dict[str, Array]  # one history with its contexts, by input name, without a batch axis


class Core:
    """The ONNX core in this process, on the CPU.

    Attributes:
        name: the model's.
        inputs: of a request: name, numpy's type, and shape a history, -1 for any length.
        answers: of the answer: name, numpy's type, and shape a history.
    """

    def __init__(self, about: str, threads: int) -> None:
        """about: a file of `build.bench.peers.process.described`. threads: of one run; 0 is ONNX Runtime's own choice."""
        said = json.loads(Path(about).read_text(encoding="utf-8"))
        package = ModuleType("step")
        package.__path__ = [said["package"]]
        sys.modules["step"] = package
        self._contract = importlib.import_module("step.contract").Contract.loads(json.dumps(said["contract"]))
        self._chained = importlib.import_module("step.chain").answer
        self.name: str = said["name"]
        self.inputs: list[tuple[str, str, list[int]]] = said["inputs"]
        self.answers: list[tuple[str, str, list[int]]] = said["answers"]
        self._chain, self._output = said["chain"], said["output"]
        self._types = {name: np.dtype(kind) for name, kind in said["types"].items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(said["core"], options, providers=["CPUExecutionProvider"])
        self._taken = {value.name for value in self._session.get_inputs()}

    def answer(self, histories: Sequence[History]) -> list[list[Array]]:
        """Of each history the answer's tensors, without a batch axis; one run for all whose windows are of one shape.

        Raises:
            ValueError: a history breaks the contract; says which rule.
        """
        requests = [{name: value[None] for name, value in history.items()} for history in histories]
        feeds = [self._contract.feed(request, self._contract.check(request), self._types) for request in requests]
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
        for number, fed in enumerate(feeds):
            alike[tuple(value.shape for value in fed.values())].append(number)
        found: list[list[Array]] = [[] for _ in histories]
        for numbers in alike.values():
            fed = {name: np.concatenate([feeds[number][name] for number in numbers]) for name in self._taken}
            rows = self._session.run([self._output], fed)[0]
            for place, number in enumerate(numbers):
                made = self._chained(self._chain, rows[place : place + 1], requests[number])
                found[number] = [tensor[0] for tensor in made]
        return found

    def from_lists(self, table: Mapping[str, Any]) -> History:
        """A history out of JSON; an optional input may be null or missing."""
        return {name: np.array(table[name], kind) for name, kind, _ in self.inputs if table.get(name) is not None}

    def from_bytes(self, body: bytes) -> History:
        """A history out of bytes: INT32 how many steps or ids each input has, -1 for none; then their numbers."""
        sizes = np.frombuffer(body, "<i4", len(self.inputs))
        start, found = sizes.nbytes, {}
        for (name, kind, shape), size in zip(self.inputs, sizes, strict=True):
            if size >= 0:
                whole = [int(size) if dim == -1 else dim for dim in shape]
                value = np.frombuffer(body, kind, int(np.prod(whole)), start)
                found[name] = value.reshape(whole)
                start += value.nbytes
        return found

    def from_batch(self, batch: Mapping[str, Array]) -> list[History]:
        """Histories out of tensors [batch, ...], as a Triton hands them over; of one number each they may be [batch, 1]."""
        given = [(name, batch[name], shape) for name, _, shape in self.inputs if batch.get(name) is not None]
        count = len(given[0][1])
        return [
            {name: values[row].reshape(shape if -1 not in shape else values.shape[1:]) for name, values, shape in given}
            for row in range(count)
        ]

    @staticmethod
    def to_bytes(tensors: Sequence[Array]) -> bytes:
        """The answer's tensors, one behind the other."""
        return b"".join(tensor.tobytes() for tensor in tensors)

    def to_lists(self, tensors: Sequence[Array]) -> dict[str, Any]:
        """The answer as JSON."""
        return {name: tensor.tolist() for (name, _, _), tensor in zip(self.answers, tensors, strict=True)}

    def to_batch(self, answers: Sequence[Sequence[Array]]) -> dict[str, Array]:
        """Answers as tensors [batch, ...] by name."""
        return {name: np.stack([each[n] for each in answers]) for n, (name, _, _) in enumerate(self.answers)}

    def may_miss(self, name: str) -> bool:
        """Whether a request may do without an input."""
        return name in self._contract.optional

    @property
    def fields(self) -> dict[str, Any]:
        """Python's types of the answer's tensors by name, for pydantic: float, list[float], list[list[float]], ..."""
        found: dict[str, Any] = {}
        for name, kind, shape in self.answers:
            number: Any = float if np.dtype(kind).kind == "f" else int
            found[name] = reduce(lambda inner, _: list[inner], shape, number)
        return found


def parser() -> argparse.ArgumentParser:
    """The arguments that every peer is started with."""
    made = argparse.ArgumentParser()
    made.add_argument("--about", required=True, help="the file that describes the core")
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--threads", type=int, default=0, help="of one run of the core; 0 is ONNX Runtime's own choice")
    made.add_argument("--max-batch-size", type=int, default=32)
    made.add_argument("--encoding", choices=("JSON", "bytes", "gRPC"), default="JSON", help="of requests and answers")
    return made
