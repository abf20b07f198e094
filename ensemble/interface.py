"""What a client has to know of a served model, by the spec or by what the server says of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput
from tritonclient.utils import triton_to_np_dtype

from ensemble.contract import Contract
from ensemble.errors import SpecError
from ensemble.function import Function
from ensemble.spec import Spec
from ensemble.tables import Tensor


class Answered(NamedTuple):
    """An answer, as clients ask for it: its name and the tensors that it comes in.

    at: the context of wanted columns that it is about, and as long as.
    """

    name: str
    tensors: tuple[str, ...]
    at: str | None = None

    @property
    def picks(self) -> bool:
        """Whether it is ids of columns and their values, filled up with -1."""
        return len(self.tensors) > 1


@dataclass(frozen=True)
class Interface:
    """A served model, as its clients see it.

    inputs, outputs: their types and shapes a history, in numbers; -1 stands for any length. contract: what a request has to
    be. max_batch_size: histories of a request, at most. function: what makes such a request of what a client sends.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    contract: Contract
    max_batch_size: int
    answers: tuple[Answered, ...]
    function: Function | None = None

    @classmethod
    def of(cls, spec: Spec) -> Interface:
        """The interface of what is served from a spec."""
        inputs, outputs = (
            tuple(tensor.model_copy(update={"shape": spec.dims(tensor) or [1]}) for tensor in tensors)
            for tensors in (spec.requested, spec.answered)
        )
        answers = tuple(
            Answered(
                answer.name,
                tuple(tensor.name for tensor in answer.tensors),
                answer.at,
            )
            for answer in spec.answers
        )
        size = spec.batching.max_batch_size
        return cls(spec.model.name, inputs, outputs, spec.contract, size, answers, spec.function)

    @classmethod
    def of_config(cls, config: ModelConfig) -> Interface:
        """The interface of an ensemble, by its configuration.

        Raises:
            SpecError: that has not all of it: another program wrote it, or an older version of this one.
        """
        said = {key: value.string_value for key, value in config.parameters.items()}
        try:
            return cls(
                config.name,
                tuple(map(_tensor, config.input)),
                tuple(map(_tensor, config.output)),
                Contract.loads(said["contract"]),
                config.max_batch_size,
                tuple(Answered(name, tuple(tensors), at) for name, tensors, at in json.loads(said["answers"])),
                Function.loads(said["function"]) if "function" in said else None,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise SpecError(
                f"the server's configuration of {config.name} does not say what it takes and answers ({e!r}); serve a "
                "repository that `make repo` writes, or give the client its spec"
            ) from e

    @property
    def parameters(self) -> dict[str, str]:
        """What an ensemble's configuration has of it beside inputs and outputs."""
        function = {} if self.function is None else {"function": self.function.dumps()}
        return {"contract": self.contract.dumps(), "answers": json.dumps(self.answers), **function}

    def answer(self, name: str) -> Answered | None:
        """The answer of this name."""
        return next((answer for answer in self.answers if answer.name == name), None)


def size(tensor: Tensor, longest: int) -> int:
    """Bytes of one history's tensor; longest: where its shape is open, and of a text."""
    elements = math.prod(longest if dim == -1 else int(dim) for dim in tensor.shape)
    if tensor.dtype == "BYTES":
        return elements * (4 + longest)  # its length goes before each
    return elements * np.dtype(triton_to_np_dtype(tensor.dtype)).itemsize


def _tensor(message: ModelInput | ModelOutput) -> Tensor:
    return Tensor.model_validate(
        {
            "dtype": DataType.Name(message.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"),
            "shape": list(message.dims),
            "name": message.name,
            "optional": getattr(message, "optional", False),
        }
    )
