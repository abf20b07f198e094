"""The core's recipe: the model exported, cut to the row that is served, brought to its precision, and each step held against
the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from build.core import parity
from build.core.battery import prove
from build.core.export import adopt, export, finish, widen
from build.core.precision import lower
from build.core.reduce import Declared, Reduction, ReductionError, reduce
from build.core.reduce.file import save
from build.model import checkpoint as checkpoints
from build.progress import bar
from ensemble.spec import Spec


@dataclass(frozen=True)
class Core:
    """What is served, and the largest difference of its probabilities from PyTorch's."""

    model: ir.Model
    difference: float


def make(spec: Spec, checkpoint: Path, path: Path) -> Core:
    """Export, cut, lower, compare. The core is written to `path`, and beside it what it is compared with.

    Raises:
        CheckpointError, ExportError, ReductionError, PrecisionError, ParityError: as their modules say.
    """
    full_file, cut_file = path.with_name("full.onnx"), path.with_name("cut.onnx")
    with bar("export to ONNX") as update:
        model = None if spec.network.type == "onnx" else checkpoints.load(checkpoint, spec)
        full = adopt(checkpoint, spec) if model is None else export(model, spec)
        save(full.model, full_file)
        update(0.7, "reduce")
        reduction = cut(full.model, spec) if spec.reduce.where == "core" else None
        core = full.model.clone() if reduction is None else reduction.model
        save(core, cut_file)
        core = widen(lower(core, spec.export.precision), spec)
        save(core, path)
    with bar("parity") as update:
        differences = parity.check(model, full_file, path, spec, full.sigmoid, update)
        worst = max(d.value for d in differences)
        update(1.0, f"largest difference {worst:.1e}")
    if reduction is not None:
        with bar("cut against full") as update:
            proof = prove(full_file, cut_file, reduction.inputs, spec.tensors.all_logits.name, progress=update)
            update(1.0, f"largest difference {proof.difference:.1e}")
    return Core(core, worst)


def cut(full: ir.Model, spec: Spec) -> Reduction:
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
