"""What an ensemble has not, and whose answers are kept."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Repository


def on_the_ensemble(repository: Repository) -> Iterator[Finding]:
    """What only a step has.

    `platform: "ensemble" instance_group [ { count: 2 kind: KIND_CPU } ]`: an ensemble runs nothing itself.
    """
    for model in repository.ensembles():
        ragged = [tensor.name for tensor in model.config.input if tensor.allow_ragged_batch]
        for key, given in (
            ("instance_group", len(model.config.instance_group)),
            ("model_warmup", len(model.config.model_warmup)),
            (f"input.allow_ragged_batch ({', '.join(ragged)})", len(ragged)),
        ):
            if given:
                why = "an ensemble runs nothing itself: it is without effect, or keeps the ensemble from loading"
                yield Finding(model.file, key, why, "the same in the configuration of the step that it is meant for")


def response_cache(repository: Repository) -> Iterator[Finding]:
    """Answers that the cache cannot keep.

    `response_cache { enable: true } sequence_batching { }`: m batches by sequence.
    """
    for model in repository.models.values():
        if not model.config.response_cache.enable:
            continue
        asked = repository.steps(model) if model.backend == "ensemble" else [model]
        reasons = [
            f"{step.name} {reason}"
            for step in asked
            for reason, holds in (
                ("is decoupled", step.config.model_transaction_policy.decoupled),
                ("batches by sequence", step.config.HasField("sequence_batching")),
            )
            if holds
        ]
        if reasons:
            why = f"{' and '.join(reasons)}, whose answers Triton's cache does not keep"
            yield Finding(model.file, "response_cache.enable", why, "nothing", "error")
        elif model.backend == "ensemble":
            why = "many versions of Triton do not keep the answers of an ensemble"
            yield Finding(model.file, "response_cache.enable", why, "the same in the configuration of its slowest step")
