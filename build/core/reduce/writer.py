"""What writes new nodes and constants into a graph, each under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Writer:
    """Adds nodes to a graph, behind those that are there.

    >>> from build.core.reduce.example import model
    >>> writer = Writer(model("y = Tanh(x)").graph)
    >>> writer.node("Neg", [writer.graph.inputs[0]], "y").name, writer.name("y")
    ('y_2', 'y_3')
    >>> writer.constant([1, 2]) is writer.constant([1, 2])
    True
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[object, ir.Value] = {}
        self._names = {str(v.name) for node in graph for v in node.outputs} | set(graph.initializers)

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number behind it where that is taken."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str = "",
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """One more node; its first output, named after `name`."""
        node = ir.node(op_type, inputs, attributes or None, domain=domain, num_outputs=outputs)
        self.graph.append(node)
        node.outputs[0].name = self.name(name or op_type.lower())
        return node.outputs[0]

    def initializer(self, array: np.ndarray, name: str) -> ir.Value:
        """One more initializer, named after `name`."""
        name = self.name(name)
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        self.graph.register_initializer(value)
        return value

    def constant(self, numbers: Sequence[int] | np.ndarray, dtype: type | None = None) -> ir.Value:
        """An initializer, INT64 unless it is an array or dtype says otherwise; equal ones are shared."""
        array: np.ndarray = np.asarray(numbers, dtype or (None if isinstance(numbers, np.ndarray) else np.int64))
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._constants:
            name = "_".join(["const", *map(str, array.reshape(-1).tolist()[:4])]).replace("-", "minus")
            self._constants[key] = self.initializer(array, name)
        return self._constants[key]
