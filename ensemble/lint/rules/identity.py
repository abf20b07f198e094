"""What a model is: its name, its backend, its versions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import ENSEMBLE, PLATFORMS, Model, Repository
from ensemble.lint.rule import CORE, GUIDE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateModelConfig)"
BACKENDS = {
    "onnxruntime",
    "tensorrt",
    "pytorch",
    "tensorflow",
    "openvino",
    "python",
    "dali",
    "fil",
    "vllm",
    "tensorrtllm",
    "identity",
    "repeat",
    "square",
}
NEAR = 0.75
PAIRED = {"onnxruntime", "tensorrt", "pytorch", "tensorflow"}  # those whose platforms the core knows


@rule("name-of-folder", f"{CORE}/model_repository_manager/model_repository_manager.cc")
def name(repository: Repository) -> Iterator[Finding]:
    """A name that is not the folder's.

    `name: "other"` in m/config.pbtxt is refused. Write the folder's name, or none: Triton then takes the folder's.
    """
    for model in repository.models.values():
        if model.config.name and model.config.name != model.name:
            why = f"{model.config.name} is not the folder's name, {model.name}"
            yield refused(model, "name", why, f'name: "{model.name}", or nothing')


@rule("backend-missing", f"{CORE}/model_config_utils.cc (AutoCompleteBackendFields)")
def missing(repository: Repository) -> Iterator[Finding]:
    """Neither a backend nor anything that tells one.

    Triton takes `backend`, `platform`, the file in the version folder (model.onnx, model.py, model.pt, model.plan) or
    the end of the model's name (model.identity). Write `backend: "onnxruntime"`, or what it is.
    """
    for model in repository.models.values():
        config = model.config
        told = model.backend or config.platform or config.default_model_filename
        if told:
            continue
        if model.versions:
            yield refused(model, "backend", "nothing says which backend runs it", 'backend: "...", e.g. "onnxruntime"')
        else:  # the file of a version folder that is not here may tell it
            why = "nothing says which backend runs it, unless a file does that is not here"
            yield Finding(model.file, "backend", why, 'backend: "...", e.g. "onnxruntime"')


@rule("backend-platform", CHECKED)
def platform(repository: Repository) -> Iterator[Finding]:
    """A platform and a backend that are not of each other, or are none.

    `backend: "onnxruntime" platform: "onnxruntim"` is refused, and so is an ensemble with a backend. Write the backend
    alone, or `platform: "ensemble"` alone.
    """
    for model in repository.models.values():
        given, backend = model.config.platform, model.config.backend
        if given == ENSEMBLE and backend:
            why = f"an ensemble has no backend, and this one has {backend}"
            yield refused(model, "backend", why, 'platform: "ensemble" and no backend')
        elif backend in PAIRED and given and PLATFORMS.get(given) != backend:
            yield refused(model, "platform", f"{given} is no platform of {backend}", "no platform")
        elif not backend and given and given not in PLATFORMS and given != ENSEMBLE:
            near = difflib.get_close_matches(given, PLATFORMS, 1)
            instead = f'platform: "{near[0]}"' if near else f'backend: "...", or a platform of {", ".join(PLATFORMS)}'
            yield refused(model, "platform", f"{given} is no platform that Triton knows", instead)


@rule("backend-misspelt", f"{GUIDE}/../backend/README.html")
def misspelt(repository: Repository) -> Iterator[Finding]:
    """A backend that nearly is one of Triton's, and of which no library lies beside the model.

    `backend: "onnxruntim"`: Triton looks for libtriton_onnxruntim.so in the version's folder, the model's and the
    backends'. A warning, because the third is the server's.
    """
    for model in repository.singles():
        backend = model.backend
        near = difflib.get_close_matches(backend, BACKENDS, 1, NEAR)
        if not near or backend in BACKENDS or model.config.runtime:
            continue
        library = f"libtriton_{backend}.so"
        if not any(model.folder.glob(f"**/{library}")):
            why = f"{backend} is none of Triton's own, and no {library} lies beside the model"
            yield Finding(model.file, "backend" if model.config.backend else "name", why, f'backend: "{near[0]}"')


@rule("runtime-library", f"{CORE}/backend_model.cc (GetBackendLibraryProperties)")
def runtime(repository: Repository) -> Iterator[Finding]:
    """A runtime that is no library's name.

    `runtime: "../other/libtriton_x.so"` leads out of the backend's folder, and is refused; so is a name that is not of
    the form libtriton_BACKEND.so or model.py. Leave it away: Triton finds the backend's own.
    """
    for model in repository.singles():
        given = model.config.runtime
        if "/" in given:
            yield refused(model, "runtime", f"{given} leads out of the backend's folder", "nothing, or a file's name")
        elif given and given != "model.py" and not (given.startswith("libtriton_") and given.endswith(".so")):
            why = f"{given} is neither libtriton_BACKEND.so nor model.py"
            yield Finding(model.file, "runtime", why, "nothing: Triton finds the backend's own")


@rule("max-batch-size", CHECKED)
def batch(repository: Repository) -> Iterator[Finding]:
    """A max_batch_size below 0.

    0 says that the model does not batch, and that dims are the whole shape.
    """
    for model in repository.models.values():
        if model.config.max_batch_size < 0:
            yield refused(model, "max_batch_size", f"{model.config.max_batch_size} is below 0", "0, or 1 and more")


@rule("versions", f"{GUIDE}/model_repository.html")
def versions(repository: Repository) -> Iterator[Finding]:
    """No version folder, or none that the version_policy takes.

    A model has a folder with a number for each version (`m/1/model.onnx`), an ensemble an empty one: Git keeps no empty
    folder, so put a .gitkeep in it. Of another model without one nothing is said, because its files come from elsewhere;
    nor of an ensemble where no model has one.
    """
    models = list(repository.models.values())
    if not any(model.versions for model in models):
        return
    for model in models:
        policy = model.config.version_policy
        if not model.versions:
            why = "there is no version folder, a number from 1 on"
            if model.backend == ENSEMBLE:
                yield refused(model, "version_policy", why, f"an empty folder {model.name}/1")
            continue
        absent = sorted(set(policy.specific.versions) - set(model.versions))
        if policy.HasField("specific") and not model.served:
            listed = ", ".join(map(str, sorted(model.versions)))
            yield refused(model, "version_policy.specific", f"none of {absent} is there", f"one of {listed}")
        elif absent:
            why = f"there is no version {', '.join(map(str, absent))}, which Triton passes over"
            yield Finding(model.file, "version_policy.specific", why, "versions that are there")
        yield from _misnamed(model)


def _misnamed(model: Model) -> Iterator[Finding]:
    for path in sorted(model.folder.iterdir()):
        if path.is_dir() and path.name.isdigit() and path.name != "0" and path.name[0] == "0":
            why = f"folder {path.name} is no version: numbers do not begin with 0"
            yield Finding(model.file, f"version_policy ({path.name})", why, f"folder {int(path.name)}")
