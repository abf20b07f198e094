"""Sequence batching that Triton's core refuses as it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import ModelSequenceBatching

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import Repository
from ensemble.lint.rule import CORE, rule

Kind = ModelSequenceBatching.Control.Kind
VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")


@rule("sequence-control", f"{CORE}/model_config_utils.cc (GetBooleanSequenceControlProperties)")
def control(repository: Repository) -> Iterator[Finding]:
    """A control input of a sequence that says too much or too little.

    Each kind (START, END, READY, CORRID) has one tensor, each tensor one kind, and START, END and READY one pair of
    values: `control_input [ { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] }
    ]`.
    """
    for model in repository.models.values():
        inputs = model.config.sequence_batching.control_input
        names = Counter(control.name for control in inputs)
        kinds = Counter(control.kind for each in inputs for control in each.control)
        key = "sequence_batching.control_input"
        for name, count in names.items():
            if not name:
                yield refused(model, key, "one has no name", "the name of the model's input for it")
            elif count > 1:
                yield refused(model, f"{key} ({name})", "it is there for more than one kind", "a tensor for each kind")
        for kind, count in kinds.items():
            if count > 1:
                yield refused(model, key, f"{count} tensors are {Kind.Name(kind)}", "one of them")
        for each in inputs:
            for one in each.control:
                if one.kind == ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID:
                    continue
                given = [value for value in VALUES if getattr(one, value)]
                if len(given) != 1 or len(getattr(one, given[0])) != 2:
                    said = ", ".join(given) or "none"
                    why = f"{Kind.Name(one.kind)} needs one pair of values, and there is {said}"
                    yield refused(model, f"{key} ({each.name})", why, f"one of {', '.join(VALUES)}, e.g. [ 0, 1 ]")


@rule("sequence-strategy", f"{CORE}/model_config_utils.cc (ValidateModelConfig)")
def strategy(repository: Repository) -> Iterator[Finding]:
    """Batch sizes or a share of slots that a sequence batcher cannot have.

    `sequence_batching { oldest { preferred_batch_size: [ 16 ] } }` with max_batch_size 8, or
    `direct { minimum_slot_utilization: 2 }`: sizes lie within 1 and max_batch_size, the share within 0 and 1.
    """
    for model in repository.models.values():
        batching, most = model.config.sequence_batching, model.config.max_batch_size
        wrong = [size for size in batching.oldest.preferred_batch_size if not 0 < size <= most]
        if wrong:
            key = "sequence_batching.oldest.preferred_batch_size"
            yield refused(model, key, f"{wrong[0]} is not within 1 and max_batch_size {most}", "sizes that are")
        share = batching.direct.minimum_slot_utilization
        if not 0 <= share <= 1:
            key = "sequence_batching.direct.minimum_slot_utilization"
            yield refused(model, key, f"{share} is not within 0 and 1", "a share of the slots")
