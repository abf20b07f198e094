"""Where instances run, how many, and on what."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup, ModelOptimizationPolicy

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import WITHOUT_TENSORRT, Repository
from ensemble.lint.rule import CORE, GUIDE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateInstanceGroup)"
AUTO_OVER_CORES = 2


@rule("instance-gpus", CHECKED)
def gpus(repository: Repository) -> Iterator[Finding]:
    """GPUs where there can be none.

    `instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]`: gpus go with KIND_GPU or KIND_AUTO, and are numbered from 0.
    """
    for model in repository.singles():
        for group in model.config.instance_group:
            kind = ModelInstanceGroup.Kind.Name(group.kind)
            if group.gpus and kind in ("KIND_CPU", "KIND_MODEL"):
                yield refused(model, "instance_group.gpus", f"{kind} has no gpus", "no gpus, or KIND_GPU")
            if kind == "KIND_GPU" and any(gpu < 0 for gpu in group.gpus):
                yield refused(model, "instance_group.gpus", f"{list(group.gpus)} has a number below 0", "from 0 on")


@rule("instance-profile", CHECKED)
def profile(repository: Repository) -> Iterator[Finding]:
    """Optimization profiles outside TensorRT.

    `platform: "onnxruntime_onnx" instance_group [ { kind: KIND_GPU profile: [ "1" ] } ]` is refused: only engines have
    profiles, and their names are numbers from 0 on.
    """
    for model in repository.singles():
        given = [name for group in model.config.instance_group for name in group.profile]
        if given and model.backend not in ("tensorrt", ""):
            why = f"only TensorRT has profiles, and this model runs on {model.backend}"
            yield refused(model, "instance_group.profile", why, "nothing")
        elif any(not name.isdigit() for name in given):
            yield refused(model, "instance_group.profile", f"{given} has what is no number", 'numbers, e.g. "0"')


@rule("tensorrt-priority", f"{GUIDE}/optimization.html")
def priority(repository: Repository) -> Iterator[Finding]:
    """A priority that only TensorRT gives to its CUDA streams.

    `optimization { priority: PRIORITY_MAX }` elsewhere does nothing. Requests' own priorities are
    `dynamic_batching { priority_levels }`.
    """
    for model in repository.singles():
        given = model.config.optimization.priority
        if given != ModelOptimizationPolicy.PRIORITY_DEFAULT and model.backend in WITHOUT_TENSORRT:
            why = f"the TensorRT backend alone reads it, and this model runs on {model.backend}"
            yield Finding(model.file, "optimization.priority", why, "nothing")


@rule("accelerator-kind", f"{GUIDE}/optimization.html")
def accelerator(repository: Repository) -> Iterator[Finding]:
    """Accelerators of a device that no instance runs on.

    `execution_accelerators { gpu_execution_accelerator : [ { name: "tensorrt" } ] }` with `kind: KIND_CPU`: GPU
    accelerators are for instances on GPUs, CPU accelerators for those on the CPU.
    """
    for model in repository.singles():
        kinds = {group.kind for group in model.config.instance_group}
        asked = model.config.optimization.execution_accelerators
        for key, given, kind in (
            ("gpu_execution_accelerator", asked.gpu_execution_accelerator, ModelInstanceGroup.KIND_CPU),
            ("cpu_execution_accelerator", asked.cpu_execution_accelerator, ModelInstanceGroup.KIND_GPU),
        ):
            if given and kinds == {kind}:
                names = ", ".join(accelerator.name for accelerator in given)
                why = f"every instance is {ModelInstanceGroup.Kind.Name(kind)}, where {names} is never used"
                yield Finding(
                    model.file, f"optimization.execution_accelerators.{key}", why, "nothing, or the other kind"
                )


@rule("rate-limiter", f"{GUIDE}/rate_limiter.html")
def rate_limiter(repository: Repository) -> Iterator[Finding]:
    """Resources of a rate limiter that is off.

    `instance_group [ { rate_limiter { resources [ { name: "R" count: 1 } ] } } ]` acts only on a tritonserver with
    `--rate-limit=execution_count`; without the flag it is ignored. Said unless `--flag` names it.
    """
    if any(flag.startswith("--rate-limit=execution_count") for flag in repository.flags):
        return
    for model in repository.singles():
        if any(group.HasField("rate_limiter") for group in model.config.instance_group):
            why = "it acts only where tritonserver has --rate-limit=execution_count, and is ignored otherwise"
            instead = "that flag (and --flag=--rate-limit=execution_count here), or nothing"
            yield Finding(model.file, "instance_group.rate_limiter", why, instead)


@rule("auto-instances", CHECKED)
def auto(repository: Repository) -> Iterator[Finding]:
    """Several instances of KIND_AUTO, on the CPU where there is no GPU.

    `instance_group [ { count: 4 } ]`: KIND_AUTO is KIND_GPU where there is a GPU and KIND_CPU where there is none; ONNX
    Runtime then takes every core for each of them. Say kind: KIND_GPU or KIND_CPU, and for the CPU a thread count.
    """
    for model in repository.singles():
        groups = [group for group in model.config.instance_group if group.kind == ModelInstanceGroup.KIND_AUTO]
        count = sum(max(group.count, 1) for group in groups)
        threads = model.parameter("intra_op_thread_count")
        alone = model.backend == "onnxruntime" and threads in (None, "", "0")
        if alone and count >= AUTO_OVER_CORES and count > repository.cores:
            each = f"{count} sessions, each of {repository.cores} threads on as many cores"
            why = f"without a GPU KIND_AUTO is the CPU: {each}"
            yield Finding(model.file, "instance_group.count", why, "kind: KIND_GPU; or KIND_CPU and a thread count")
