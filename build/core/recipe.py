"""The core's recipe: the model exported, cut to the row that is served, brought to its precision, and each step held against
the one before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from build.core import inference, parity
from build.core.battery import prove
from build.core.export import Full, adopt, export, finish, widen
from build.core.precision import lower
from build.core.reduce import Declared, Reduction, ReductionError, Select, reduce
from build.core.reduce.columns import columns
from build.core.reduce.file import save
from build.model import checkpoint as checkpoints
from build.progress import bar, say
from ensemble import spec as specs
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.tables import CORE


@dataclass(frozen=True)
class Core:
    """What is served, the largest difference of its answers from PyTorch's, and cores of wanted columns by their step."""

    model: ir.Model
    difference: float
    others: Mapping[str, ir.Model] = field(default_factory=dict)


def make(spec: Spec, checkpoint: Path, path: Path, examples: Collection[Mapping[str, np.ndarray]] = ()) -> Core:
    """Export, cut, lower, compare. The core is written to `path`, and beside it what it is compared with.

    examples: requests of a sequence model that it is compared on, beside random ones.

    Raises:
        CheckpointError, ExportError, SignatureError, ReductionError, PrecisionError, ParityError: as their modules say.
    """
    full_file = path.with_name("full.onnx")
    with bar("export to ONNX") as update:
        model = None if spec.network.type == "onnx" else checkpoints.load(checkpoint, spec)
        full = adopt(checkpoint, spec) if model is None else export(model, spec)
        save(full.model, full_file)
        update(0.7, "reduce")
        if isinstance(spec, Sequence):
            reduction, cut_model = cut_sequence(full, spec)
        else:
            reduction = cut(full.model, narrowed(spec)) if spec.reduce.where == "core" else None
            cut_model = full.model.clone() if reduction is None else reduction.model
    return _proven(spec, model, full, reduction, cut_model, path, examples)


def _proven(
    spec: Spec,
    model: nn.Module | None,
    full: Full,
    reduction: Reduction | None,
    core: ir.Model,
    path: Path,
    examples: Collection[Mapping[str, np.ndarray]],
) -> Core:
    full_file, cut_file = path.with_name("full.onnx"), path.with_name("cut.onnx")
    with bar("lower") as update:
        save(core, cut_file)
        others = {each.step: _columns(core, each, spec) for each in spec.cores if each.columns}
        core = widen(lower(core, spec.export.precision), spec)
        save(core, path)
    with bar("parity") as update:
        files = {CORE: path, **{step: path.with_name(f"{step}.onnx") for step in others}}
        for step, other in others.items():
            save(other, files[step])
        if isinstance(spec, Sequence):
            differences = inference.check(model, full_file, files, spec, update, examples)
        else:
            differences = parity.check(model, full_file, path, narrowed(spec), full.sigmoid, update, files)
        worst = max(d.value for d in differences)
        update(1.0, f"largest difference {worst:.1e}")
    if reduction is not None and reduction.select != "own":
        with bar("cut against full") as update:
            outputs = [str(value.name) for value in full.model.graph.outputs]
            proof = prove(full_file, cut_file, reduction.inputs, outputs, reduction.select, progress=update)
            update(1.0, f"largest difference {proof.difference:.1e}")
    return Core(core, worst, others)


def _columns(core: ir.Model, of: specs.Core, spec: Spec) -> ir.Model:
    """The core that answers wanted columns, under the name that its step gives the answer."""
    assert of.columns is not None
    output = str(core.graph.outputs[of.of].name)
    kept = core.clone()
    kept.graph.outputs[:] = [value for value in kept.graph.outputs if value.name == output]
    made = columns(kept, output, of.columns)
    if made.rests:
        say(f"{of.step}: all columns are computed, and the wanted ones taken behind: {'; '.join(made.rests)}")
    model = made.model
    model.graph.outputs[0].name = of.outputs[0].name
    return widen(lower(finish(model), spec.export.precision), spec)


def cut_sequence(full: Full, spec: Sequence) -> tuple[Reduction | None, ir.Model]:
    """The full model reduced to the wanted row, and the core; without a reduction where the model has one row already."""
    index = spec.index_source
    select: Select = "own"
    if index is not None:
        select = spec.row.select if spec.row.select in ("mean", "max") else "last" if index.of == "lengths" else "row"
    names = [str(value.name) for value in full.model.graph.outputs]
    right = spec.model.padding == "right"
    try:
        made = reduce(
            full.model,
            window=spec.model.window,
            select=select,
            output=names,
            index_name=None if index is None else index.name,
            length_aware=spec.reduce.length_aware and right,
            declared=declared(spec),
        )
    except ReductionError:
        if index is not None:
            raise
        return None, full.model.clone()  # it answers a row as it is: less is not needed
    return replace(made, model=finish(made.model)), made.model


def declared(spec: Sequence) -> Declared:
    """What the model's inputs hold, as the spec says."""
    right = spec.model.padding == "right"
    ranges: dict[str, tuple[float, float]] = {}
    lengths, masks = set(), set()
    for source in spec.fed.values():
        held = spec.holds(source)
        if held is not None:
            ranges[source.name] = held
        elif source.of == "lengths" and right:
            lengths.add(source.name)
        elif source.of == "mask" and right:
            masks.add(source.name)
        elif source.of in ("mask", "padding", "additive_mask", "token_types", "lengths"):
            of = {"mask": (1, 1), "lengths": (spec.model.window, spec.model.window)}.get(source.of, (0, 0))
            ranges[source.name] = of
        elif source.of == "positions":
            ranges[source.name] = (0, spec.model.window - 1 + source.start)
    return Declared(ranges, frozenset(lengths), frozenset(masks))


def cut(full: ir.Model, spec: KnowledgeTracing) -> Reduction:
    """The full model reduced to the last valid row, under the spec's names, its inputs as the spec declares them.

    Raises:
        ReductionError: its output is not [batch, time, problems], or it does not answer a cold start that the spec promises.
    """
    ids, responses = spec.tensors.recent_problem_ids.name, spec.tensors.recent_responses.name
    reduction = reduce(
        full,
        window=spec.model.window,
        index_name=spec.tensors.lengths.name,
        output_name=spec.tensors.logits.name,
        length_aware=spec.reduce.length_aware,
        declared=Declared({ids: (0, spec.model.problems - 1), responses: (0, 1)}),
    )
    if spec.shortest_history == 0 and not reduction.empty:
        raise ReductionError(
            "the reduced model has no row before the first interaction to answer a cold start from; set "
            f"model.cold_start = false in the spec. The selection rests at {'; '.join(reduction.rests)}"
        )
    return replace(reduction, model=finish(reduction.model))
