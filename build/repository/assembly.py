"""The Triton model repository: assembled aside, proven, then moved into place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from build import ROOT, aside
from build.model.checkpoint import outside
from build.repository import config, fingerprint, manifest, rehearsal
from ensemble.errors import LastrowError
from ensemble.function import FOLDER
from ensemble.spec import Spec
from ensemble.tables import CORE, POSTPROCESS, PREPROCESS

RUNTIME = ROOT / "build" / "server" / "backends" / "onnxruntime" / "lastrow_onnxruntime"
STEPS = ROOT / "models"  # the steps' model.py are tracked here, whatever folder a repository is built into
COPIED = ("contract.py", "values.py", "window.py")  # of `ensemble`, beside each step
FIRST, LAST = "function.py", "chain.py"  # and beside the first one, and the last ones
# In a core's metadata: what it was made from, and how far it was from PyTorch then.
FINGERPRINT, PARITY = "lastrow.fingerprint", "lastrow.parity"


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
        CheckpointError, ReductionError, ParityError, RehearsalError: as their modules say.
        RepositoryError: `out` cannot be written, or has a model that would be overwritten and is not lastrow's.
    """
    examples = rehearsal.rehearse(spec)
    wanted = fingerprint.of(spec, checkpoint, examples)
    files = derived(spec)
    cores = {core.step: core_file(spec, out, core.step) for core in spec.cores}
    found, weights = metadata(cores[CORE]), outside(cores[CORE])
    try:
        written = manifest.read(out)
        _check_owner(out, files, written)
        with aside.beside(out) as folder:
            moves: dict[Path, Path] = {}
            if found.get(FINGERPRINT) != wanted or not all(file.is_file() for file in (*weights, *cores.values())):
                drafts = {step: folder / step / target.name for step, target in cores.items()}
                parity = _make_cores(spec, checkpoint, wanted, drafts, examples)
                for step, target in cores.items():
                    made = sorted((folder / step).glob(f"{target.name}*"), reverse=True)
                    moves |= {target.with_name(file.name): file for file in made}  # weights first where they lie apart
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
            for file in (*stale, *_left(out, written, cores.values())):
                if file.is_file():
                    manifest.remove(out, file)
            manifest.update(out, written, files)
    except OSError as e:
        raise RepositoryError(f"cannot write the repository {out}: {e.strerror} ({e.filename})") from e
    return Built(out, tuple(sorted(str(target.relative_to(out)) for target in moves)), parity)


def _left(out: Path, written: Mapping[str, str], cores: Collection[Path]) -> list[Path]:
    """Cores, and weights beside them, that an earlier build wrote for steps or a layout that are no more."""
    found: list[Path] = []
    for model in {Path(name).parts[0] for name in written}:
        for file in (out / model / "1").glob("*.onnx"):
            ours = file.name == "model.onnx" or file.stem == CORE or file.stem.startswith(f"{CORE}_")
            if ours and file not in cores and FINGERPRINT in metadata(file):
                found += [*outside(file), file]
    return found


def core_file(spec: Spec, repository: Path, step: str = CORE) -> Path:
    """Where a repository has the ONNX file of a core."""
    if spec.serve.layout == "single":
        return repository / spec.model.name / "1" / f"{step}.onnx"
    return repository / step / "1" / "model.onnx"


def _make_cores(
    spec: Spec, checkpoint: Path, wanted: str, files: Mapping[str, Path], examples: list[rehearsal.Request]
) -> float:
    """Write every core, and in it what it was made from; returns the largest difference from PyTorch."""
    # Nearly every build finds its core there, and is to know without PyTorch.
    from build.core import recipe
    from build.core.reduce.file import save

    core = recipe.make(spec, checkpoint, files[CORE].parents[1] / "model.onnx", examples)
    for step, model in {CORE: core.model, **core.others}.items():
        model.metadata_props.update({FINGERPRINT: wanted, PARITY: repr(core.difference)})
        files[step].parent.mkdir()
        save(model, files[step])
    return core.difference


def derived(spec: Spec) -> dict[str, bytes]:
    """Every file of the repository but the core's ONNX model, by relative path."""
    files = config.files(spec)
    if spec.serve.layout == "single":
        return {**files, **_single(folder := f"{spec.model.name}/1"), **_own(spec, folder)}
    for step in (PREPROCESS, *(answer.step for answer in spec.answers)):
        source = PREPROCESS if step == PREPROCESS else POSTPROCESS
        files[f"{step}/1/model.py"] = (STEPS / source / "1" / "model.py").read_bytes()
        for name in (*COPIED, FIRST if step == PREPROCESS else LAST):
            files[f"{step}/1/{name}"] = (ROOT / "ensemble" / name).read_bytes()
    files |= _own(spec, f"{PREPROCESS}/1")
    # Triton loads a model only if it has a version folder, and git keeps no empty ones.
    files[f"{spec.model.name}/1/.gitkeep"] = b""
    return files


def _single(folder: str) -> dict[str, bytes]:
    """What the model that does it all runs: itself, the step that checks, and how sessions are opened."""
    sources = {
        "model.py": ROOT / "build" / "repository" / "steps" / "single.py",
        "preprocess.py": STEPS / PREPROCESS / "1" / "model.py",
        **{name: ROOT / "ensemble" / name for name in (*COPIED, FIRST, LAST)},
        **{f"{RUNTIME.name}/{file.name}": file for file in sorted(RUNTIME.glob("*.py"))},
    }
    return {f"{folder}/{name}": file.read_bytes() for name, file in sources.items()}


def _own(spec: Spec, folder: str) -> dict[str, bytes]:
    """What one's own function is, and what it opens."""
    return {f"{folder}/{FOLDER}/{name}": content for name, content in rehearsal.sources(spec).items()}


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
        stem, onnx, _ = file.name.partition(".onnx")
        core = bool(onnx) and FINGERPRINT in metadata(file.with_name(stem + onnx))
        if file.is_file() and not core and file.read_bytes() != files.get(str(file.relative_to(out))):
            return False
    return True


def metadata(model: Path) -> dict[str, str]:
    """An ONNX file's metadata_props; empty where there is no readable file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    except (OSError, DecodeError):
        return {}
