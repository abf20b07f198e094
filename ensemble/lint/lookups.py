"""What an ONNX model does with ids: whether it looks them up in tables, and in how many rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.lint.onnx_file import load

if TYPE_CHECKING:
    import onnx

# Below these operators ids are still ids, or sums of them with an offset; comparisons ask for nothing but their order.
PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Clip", "Transpose", "Expand", "Max", "Min"}
PASSING |= {"Add", "Sub", "Mul", "Where", "Concat", "Slice"}
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")


def looked_up(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Inputs that are used as indices of known tables alone, and the rows of the largest one."""
    model = load(path)
    if model is None:
        return {}
    graph = model.graph
    tables = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name in names:
        rows = _rows(name, readers, tables, {output.name for output in graph.output})
        if rows and max(rows) < 2**31:
            found[name] = max(rows)
    return found


def _rows(
    given: str, readers: dict[str, list[onnx.NodeProto]], tables: dict[str, list[int]], outputs: set[str]
) -> list[int] | None:
    """Rows of every table that a tensor is looked up in; None where it is used for anything else.

    Each tensor below is looked at once, however many ways lead to it.
    """
    rows: list[int] = []
    waiting, seen = [given], {given}
    while waiting:
        name = waiting.pop()
        if name in outputs or name not in readers:
            return None
        for node in readers[name]:
            if node.op_type in COMPARISONS:
                continue
            if node.op_type in PASSING:
                below = node.output[0]
                if below not in seen:
                    seen.add(below)
                    waiting.append(below)
            elif node.op_type == "Gather" and node.input[1] == name and node.input[0] in tables:
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
                rows.append(tables[node.input[0]][axis])
            else:
                return None
    return rows
