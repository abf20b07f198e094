"""The Triton model repository: assembled aside, proven, then moved into place."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from build import ROOT, aside
from build.model import checkpoint as checkpoints
from build.model.checkpoint import digest, outside
from build.repository import config, manifest, sources
from ensemble.errors import LastrowError
from ensemble.spec import ModuleNetwork, Spec

if TYPE_CHECKING:
    import onnx_ir as ir

    from build.core.reduce import Reduction

STEPS = ROOT / "models"  # the steps' model.py are tracked here, whatever folder a repository is built into
FINGERPRINT = "lastrow.fingerprint"
PARITY = "lastrow.parity"
# PyTorch's exporter takes the other two along; of the two names of ONNX Runtime one is installed.
EXPORTERS = ("torch", "onnxscript", "onnx-ir", "onnx", "numpy", "onnxruntime", "onnxruntime-gpu")


class RepositoryError(LastrowError):
    """The model repository cannot be written."""


@dataclass(frozen=True)
class Built:
    """A repository on disk. changed: files written by this build, relative to it; parity: the largest difference."""

    folder: Path
    changed: tuple[str, ...]
    parity: float


def build(spec: Spec, checkpoint: Path, out: Path) -> Built:
    """Bring `out` to what spec and checkpoint ask for; writes only what differs, and removes what an earlier build left.

    Everything is made and checked in a folder beside `out` first: a failure leaves `out` as it was. Models that somebody
    else put there stay as they are.

    Raises:
        CheckpointError, ReductionError, ParityError: as their modules say.
        RepositoryError: `out` cannot be written, or has a model that would be overwritten and is not lastrow's.
    """
    wanted = fingerprint(spec, checkpoint)
    files = derived(spec)
    core = out / config.CORE / "1" / "model.onnx"
    found, weights = metadata(core), outside(core)
    try:
        written = manifest.read(out)
        _check_owner(out, files, written)
        with aside.beside(out) as folder:
            moves: dict[Path, Path] = {}
            if found.get(FINGERPRINT) != wanted or not all(file.is_file() for file in weights):
                made, parity = _make_core(spec, checkpoint, wanted, folder)
                moves |= {core.with_name(file.name): file for file in made}
                stale = [file for file in weights if FINGERPRINT in found and file not in moves]
            else:
                parity, stale = float(found[PARITY]), []
            for number, (name, content) in enumerate(files.items()):
                target = out / name
                if not target.is_file() or target.read_bytes() != content:
                    moves[target] = folder / str(number)
                    moves[target].write_bytes(content)
            for target, source in moves.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
            for file in stale:
                file.unlink(missing_ok=True)
            manifest.update(out, written, files)
    except OSError as e:
        raise RepositoryError(f"cannot write the repository {out}: {e.strerror} ({e.filename})") from e
    return Built(out, tuple(sorted(str(target.relative_to(out)) for target in moves)), parity)


def derived(spec: Spec) -> dict[str, bytes]:
    """Every file of the repository but the core's ONNX model, by relative path."""
    files = config.files(spec)
    for step in config.PYTHON_STEPS:
        files[f"{step}/1/model.py"] = (STEPS / step / "1" / "model.py").read_bytes()
    # Triton loads a model only if it has a version folder, and git keeps no empty ones.
    files[f"{spec.model.name}/1/.gitkeep"] = b""
    return files


def _check_owner(out: Path, files: Mapping[str, bytes], written: Mapping[str, str]) -> None:
    """Nothing that somebody made is overwritten, or served beside what takes its place."""
    models = sorted({Path(name).parts[0] for name in files})
    for model in models:
        if not _is_own(out, model, files):
            raise RepositoryError(
                f"{out / model} holds a model that lastrow did not write, and would be overwritten; move it away, or give "
                "another folder as OUT="
            )
    for name in manifest.changed(out, written):
        model = Path(name).parts[0]
        if model not in models:
            raise RepositoryError(
                f"{out / name} was changed since lastrow wrote it, and belongs to a model that the spec no longer has; move "
                f"{out / model} away"
            )


def _is_own(out: Path, model: str, files: Mapping[str, bytes]) -> bool:
    """Whether a model's folder is missing, or lastrow's: its configuration says so. A core alone may be a copy of one."""
    said = out / model / "config.pbtxt"
    if said.is_file():
        return said.read_bytes().startswith(config.GENERATED.encode())
    for file in (out / model).glob("[0-9]*/*"):
        core = file.name.startswith("model.onnx") and FINGERPRINT in metadata(file.with_name("model.onnx"))
        if file.is_file() and not core and file.read_bytes() != files.get(str(file.relative_to(out))):
            return False
    return True


def fingerprint(spec: Spec, checkpoint: Path) -> str:
    """What the core depends on: the spec's model, the weights, all code that makes it, and the versions of what it uses."""
    own = sources.find(__name__)
    files, versions = dict(own.files), _versions()
    if isinstance(spec.network, ModuleNetwork):
        brought = sources.find(checkpoints.factory_module(spec.network.factory))
        files |= brought.files
        versions |= brought.versions()
    parts = [
        spec.model_dump_json(include={"model", "network", "reduce", "export", "parity", "tensors"}),
        spec.steps.core.device,  # by which parity's tolerance goes
        digest(checkpoint),
        json.dumps(versions, sort_keys=True),
        *(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in sorted(files.items())),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """The version of each package that exports, rewrites or runs the core, of those that are installed."""
    found = {}
    for package in EXPORTERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def metadata(model: Path) -> dict[str, str]:
    """An ONNX file's metadata_props; empty where there is no readable file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    except (OSError, DecodeError):
        return {}


def _make_core(spec: Spec, checkpoint: Path, wanted: str, folder: Path) -> tuple[list[Path], float]:
    """Export, reduce, compare. Returns the core's files, weights first where they lie apart, and the largest difference."""
    from build.core import parity
    from build.core.battery import prove
    from build.core.export import adopt, export, widen
    from build.core.precision import lower
    from build.core.reduce.file import save
    from build.progress import bar

    with bar("export to ONNX") as update:
        model = None if spec.network.type == "onnx" else checkpoints.load(checkpoint, spec)
        full = adopt(checkpoint, spec) if model is None else export(model, spec)
        full_file, core_file = folder / "full.onnx", folder / "model.onnx"
        save(full.model, full_file)
        update(0.7, "reduce")
        reduction = cut(full.model, spec) if spec.reduce.where == "core" else None
        core = full.model.clone() if reduction is None else reduction.model
        save(core, folder / "cut.onnx")
        core = widen(lower(core, spec.export.precision), spec)
        save(core, core_file)
    with bar("parity") as update:
        differences = parity.check(model, full_file, core_file, spec, full.sigmoid, update)
        worst = max(d.value for d in differences)
        update(1.0, f"largest difference {worst:.1e}")
    if reduction is not None:
        with bar("cut against full") as update:
            proof = prove(
                full_file, folder / "cut.onnx", reduction.inputs, spec.tensors.all_logits.name, progress=update
            )
            update(1.0, f"largest difference {proof.difference:.1e}")
    core.metadata_props.update({FINGERPRINT: wanted, PARITY: repr(worst)})
    save(core, core_file)
    return sorted(folder.glob(f"{core_file.name}*"), reverse=True), worst


def cut(full: ir.Model, spec: Spec) -> Reduction:
    """The full model reduced to the last valid row, under the spec's names, its inputs as the spec declares them.

    Raises:
        ReductionError: its output is not [batch, time, problems], or it does not answer a cold start that the spec promises.
    """
    from build.core.export import finish
    from build.core.reduce import Declared, ReductionError, reduce

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
