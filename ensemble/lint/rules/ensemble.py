"""What an ensemble has not, and whose answers are kept."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import ENSEMBLE, Repository
from ensemble.lint.rule import CORE, GUIDE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateEnsembleSchedulingConfig)"


@rule("ensemble-not-a-step", CHECKED)
def on_the_ensemble(repository: Repository) -> Iterator[Finding]:
    """What only a step has.

    `platform: "ensemble" instance_group [ { count: 2 kind: KIND_CPU } ]`: an ensemble runs nothing itself, and Triton
    refuses instance_group, optimization and model_warmup there. Write them in the configuration of the step that they
    are meant for.
    """
    for model in repository.ensembles():
        if not model.config.HasField("ensemble_scheduling"):
            continue
        for key, given in (
            ("instance_group", len(model.config.instance_group)),
            ("optimization", model.config.HasField("optimization")),
            ("model_warmup", len(model.config.model_warmup)),
        ):
            if given:
                why = "an ensemble runs nothing itself, and Triton refuses one that has it"
                yield refused(model, key, why, "the same in the configuration of the step that it is meant for")


@rule("ensemble-ragged", f"{GUIDE}/ragged_batching.html")
def ragged(repository: Repository) -> Iterator[Finding]:
    """A ragged input of an ensemble, which it takes without a word and does not do.

    `platform: "ensemble" input [ { name: "x" allow_ragged_batch: true } ]`: requests are batched by the steps, each for
    itself. Write it in the configuration of the step that batches.
    """
    for model in repository.ensembles():
        names = [tensor.name for tensor in model.config.input if tensor.allow_ragged_batch]
        if names:
            why = "an ensemble runs nothing itself: it is without effect"
            instead = "the same in the configuration of the step that it is meant for"
            yield Finding(model.file, f"input.allow_ragged_batch ({', '.join(names)})", why, instead)


@rule("response-cache", f"{GUIDE}/response_cache.html")
def response_cache(repository: Repository) -> Iterator[Finding]:
    """Answers that the cache cannot keep.

    `response_cache { enable: true } sequence_batching { }` is refused: answers of sequences and of decoupled models are
    not kept. Those of an ensemble are not kept by many versions: enable it for the slowest step.
    """
    for model in repository.models.values():
        if not model.config.response_cache.enable:
            continue
        asked = repository.steps(model) if model.backend == ENSEMBLE else [model]
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
        elif model.backend == ENSEMBLE:
            why = "many versions of Triton do not keep the answers of an ensemble"
            yield Finding(model.file, "response_cache.enable", why, "the same in the configuration of its slowest step")
