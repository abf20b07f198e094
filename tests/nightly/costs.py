"""Predicted beside measured times of this project's, foreign and served models: python -m tests.nightly.costs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from build.bench import costs, publication
from build.core.export import export
from build.core.reduce import reduce
from build.core.reduce.file import load
from build.progress import bar
from build.repository.workspace import open_workspace
from tests.conftest import untrained
from tests.nightly import served
from tests.unit.reduce.foreign import embedded

WINDOW = served.LONGEST
NETWORKS = ("dkt", "gru", "transformer")
# What the foreign models are of is set before they are defined.
embedded.WIDTH, embedded.ANSWERS, embedded.VOCABULARY, embedded.LONGEST = served.WIDTH, 1000, 1000, WINDOW

from tests.unit.reduce.foreign.cases import CASES  # noqa: E402
from tests.unit.reduce.foreign.test_foreign_models import OUTPUTS, exported  # noqa: E402


def subjects() -> Iterator[costs.Subject]:
    """The networks of this project at their window, and the foreign models of dynamic sizes, once each."""
    for network in NETWORKS:
        spec = open_workspace(network=network).spec
        full = export(untrained(spec), spec).model
        yield costs.Subject(network, full, reduce(full, window=spec.model.window))
    seen = set()
    for name, case in CASES.items():
        plain = name.rpartition(", ")[0]
        if plain in seen or case.sizes != (None, None):
            continue
        seen.add(plain)
        full = exported(case)
        output = OUTPUTS[case.output]
        reduction = reduce(full, select="row", time_axis=case.time_axis, output=output, window=WINDOW)
        yield costs.Subject(plain, alone(full, output), reduction)
    for name, (make, inputs) in served.MODELS.items():
        full = exported_served(make, inputs)
        output = str(full.graph.outputs[0].name)
        reduction = reduce(full, select="row", window=WINDOW)
        yield costs.Subject(name, alone(full, output), reduction)


def alone(full: ir.Model, output: str) -> ir.Model:
    """The model with one output, and what that needs."""
    model = full.clone()
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == output]
    RemoveUnusedNodesPass()(model)
    return model


def exported_served(make: type[nn.Module], inputs: dict[str, Tensor]) -> ir.Model:
    """A served model: attention as the current exporter writes it, recurrent layers as the older one does."""
    torch.manual_seed(0)
    model = make().eval()
    axes = {name: {0: "batch", 1: "time"} if name != "static" else {0: "batch"} for name in inputs}
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, tuple(inputs.values()), dynamo=True, dynamic_shapes=tuple(axes.values()), verbose=False
            )
        assert program is not None
        return program.model
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            file,
            dynamo=False,
            input_names=list(inputs),
            dynamic_axes=axes,
            opset_version=17,
        )
        return load(file)


def main() -> None:
    """Measure, print the rates that fit, and publish, or where a file is named write the figures there and no more."""
    with bar("costs") as update:
        report = costs.measure(subjects(), update)
    print({name: float(f"{rate:.2g}") for name, rate in costs.fit(report["models"]).items()})
    if len(sys.argv) > 1:
        publication.save(report, Path(sys.argv[1]))
        return
    publication.save(report, publication.FOLDER / "costs.json")
    publication.publish(publication.REDUCE, "costs", costs.section(report))


if __name__ == "__main__":
    main()
