"""An ensemble's own graph: what each step reads and writes, by the ensemble's names for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import ENSEMBLE, Model, Repository
from ensemble.lint.rule import CORE, rule

CHECKED = f"{CORE}/model_config_utils.cc (ValidateEnsembleSchedulingConfig)"
STEP = "ensemble_scheduling.step"


@rule("ensemble-steps", CHECKED)
def steps(repository: Repository) -> Iterator[Finding]:
    """An ensemble without steps, or a step without a model, inputs or outputs.

    `platform: "ensemble" ensemble_scheduling { step [ { model_name: "m" input_map { ... } output_map { ... } } ] }`:
    all of these are needed, and ensemble_scheduling goes with no other platform.
    """
    for model in repository.ensembles():
        if not model.config.HasField("ensemble_scheduling"):
            yield refused(model, "platform", "an ensemble has ensemble_scheduling, and this one not", "its steps")
            continue
        if model.config.platform != ENSEMBLE:
            given = model.config.platform or model.config.backend or "none"
            why = f"ensemble_scheduling is for ensembles, and the platform is {given}"
            yield refused(model, "ensemble_scheduling", why, 'platform: "ensemble"')
        if not model.config.ensemble_scheduling.step:
            yield refused(model, "ensemble_scheduling", "it has no step", "a step for each model")
        for number, step in enumerate(model.config.ensemble_scheduling.step):
            for key in ("model_name", "input_map", "output_map"):
                if not getattr(step, key):
                    named = f" ({step.model_name})" if step.model_name else ""
                    yield refused(model, f"{STEP}{named}", f"step {number} has no {key}", f"its {key}")


@rule("ensemble-graph", CHECKED)
def graph(repository: Repository) -> Iterator[Finding]:
    """Tensors that nobody writes, nobody reads, or two steps write.

    Each tensor of an ensemble is written once, by the request or a step, and read at least once, by a step or the
    answer; steps that wait for each other never run. Give each output_map a name of its own, and leave away what nobody
    reads.
    """
    for model in repository.ensembles():
        if all(step.input_map and step.output_map for step in model.config.ensemble_scheduling.step):
            yield from _graph(model)


def _graph(model: Model) -> Iterator[Finding]:
    steps = model.config.ensemble_scheduling.step
    written = Counter(name for step in steps for name in step.output_map.values())
    read = {name for step in steps for name in step.input_map.values()}
    asked = [tensor.name for tensor in model.config.input]
    answered = [tensor.name for tensor in model.config.output]
    for name, count in written.items():
        if count > 1:
            yield refused(model, f"output_map ({name})", f"{count} steps or outputs write it", "a name for each")
    ready = _ready(model, set(asked))
    waits = sorted({*read, *written} - ready)
    unmade = [name for name in waits if name not in written]
    for name in asked:
        if name not in read and name not in written:
            yield refused(model, f"input ({name})", "no step reads it", "an input_map of a step, or no such input")
    for name in unmade:
        there = ", ".join(sorted({*asked, *written}))
        why = "no step and no input of the ensemble makes it"
        yield refused(model, f"input_map ({name})", why, f"one of {there}")
    if waits and not unmade:
        why = f"{', '.join(waits)} wait for each other: their steps go in a circle"
        yield refused(model, f"{STEP} ({waits[0]})", why, "steps that follow from the inputs")
    for name in answered:
        if name not in written and name not in read:
            yield refused(model, f"output ({name})", "no step makes it", f"one of {', '.join(sorted(written))}")
    for name in written:
        if name in ready and name not in read and name not in answered:
            why = "no step reads it, and it is no output"
            yield refused(model, f"output_map ({name})", why, "nothing: an output that nobody needs is not mapped")


def _ready(model: Model, ready: set[str]) -> set[str]:
    """Every tensor that is made in the end, from what the request has."""
    waiting = list(model.config.ensemble_scheduling.step)
    while True:
        done = [step for step in waiting if ready.issuperset(step.input_map.values())]
        if not done:
            return ready
        waiting = [step for step in waiting if step not in done]
        ready = ready.union(*(step.output_map.values() for step in done))


@rule("ensemble-cycle", f"{CORE}/model_repository_manager/model_repository_manager.cc (CircularDependencyCheck)")
def cycle(repository: Repository) -> Iterator[Finding]:
    """Ensembles that are steps of each other.

    An ensemble may be a step of another, but none of itself, however many lie between.
    """
    below = {
        model.name: list(dict.fromkeys(step.model_name for step in model.config.ensemble_scheduling.step))
        for model in repository.ensembles()
    }
    for name, model in ((model.name, model) for model in repository.ensembles()):
        waiting, seen = list(below[name]), set(below[name])
        while waiting:
            for step in below.get(waiting.pop(), ()):
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
        if name in seen:
            yield refused(model, f"{STEP} ({below[name][0]})", f"{name} is a step of itself", "a model that is not")
