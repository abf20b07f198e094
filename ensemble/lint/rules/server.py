"""What holds for some versions of Triton."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Repository
from ensemble.lint.rule import GUIDE, rule

RELEASES = "https://github.com/triton-inference-server/server/releases"


@rule("stuck-requests", RELEASES, since="before 26.03")
def stuck(repository: Repository) -> Iterator[Finding]:
    """Requests that wait for ever when a step's queue is full.

    `max_queue_size` on a step of an ensemble: before 26.03 a request that exceeds it inside an ensemble is never
    answered. Limit the queue of the first step's clients instead, or serve with 26.03 or newer.
    """
    if not repository.before(26, 3):
        return
    inner = {step.model_name for each in repository.ensembles() for step in each.config.ensemble_scheduling.step}
    for model in repository.singles():
        batcher = model.config.dynamic_batching
        policies = [batcher.default_queue_policy, *batcher.priority_queue_policy.values()]
        if model.name in inner and any(policy.max_queue_size for policy in policies):
            why = "before Triton 26.03 a request that finds the queue of a step full is never answered"
            yield Finding(model.file, "dynamic_batching.max_queue_size", why, "no limit on a step, or Triton 26.03")


@rule("timeout-decay", RELEASES, since="before 26.08")
def decay(repository: Repository) -> Iterator[Finding]:
    """A queue's timeout that slows the model down until it is loaded anew.

    `default_timeout_microseconds`: before 26.08 each request that times out leaves the batcher a little slower. Let
    clients set deadlines, or serve with 26.08 or newer.
    """
    if not repository.before(26, 8):
        return
    for model in repository.singles():
        batcher = model.config.dynamic_batching
        policies = [batcher.default_queue_policy, *batcher.priority_queue_policy.values()]
        if any(policy.default_timeout_microseconds for policy in policies):
            why = "before Triton 26.08 throughput decays with every timeout until the model is loaded anew"
            yield Finding(
                model.file,
                "dynamic_batching.default_timeout_microseconds",
                why,
                "deadlines of the clients, or Triton 26.08",
            )


@rule("openvino-lengths", f"{GUIDE}/optimization.html")
def openvino(repository: Repository) -> Iterator[Finding]:
    """An OpenVINO accelerator over a model that is told how long each history is.

    `cpu_execution_accelerator : [ { name: "openvino" } ]` over a recurrent model with sequence_lens: where shapes are
    dynamic OpenVINO ignores them, and shorter histories of a batch are answered wrongly. Serve that model without it.
    """
    for model in repository.singles():
        accelerators = model.config.optimization.execution_accelerators.cpu_execution_accelerator
        named = any(accelerator.name == "openvino" for accelerator in accelerators)
        lengths = [
            tensor.name for tensor in model.config.input if tensor.name in ("lengths", "sequence_lens", "seq_lens")
        ]
        if named and lengths:
            why = f"OpenVINO ignores {lengths[0]} where shapes are dynamic, and answers shorter histories wrongly"
            key = "optimization.execution_accelerators.cpu_execution_accelerator"
            yield Finding(model.file, key, why, "nothing: ONNX Runtime's own CPU provider", "error")
