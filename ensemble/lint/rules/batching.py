"""What a batcher waits for, and how long."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.refusal import refused
from ensemble.lint.repository import WITHOUT_TENSORRT, Repository
from ensemble.lint.rule import CONFIGURATION, CORE, GUIDE, rule
from ensemble.lint.timing import Clock

DELAY_SHARE = 0.1  # of a step's own time
DELAY_UNMEASURED_US = 10_000  # above it a step would have to take 100 ms to be worth the wait
CHECKED = f"{CORE}/model_config_utils.cc (ValidateModelConfig)"
DELAY = "dynamic_batching.max_queue_delay_microseconds"


@rule("delay-on-several-steps", f"{GUIDE}/ensemble_models.html")
def several_delays(repository: Repository) -> Iterator[Finding]:
    """A delay is paid once a step.

    `dynamic_batching { max_queue_delay_microseconds: 100 }` in two steps: first, second of ensemble whole wait one
    after the other, 200 us for who comes alone.
    """
    for ensemble in repository.ensembles():
        delayed = [step for step in repository.steps(ensemble) if step.delay_us]
        if len(delayed) > 1:
            total = sum(step.delay_us for step in delayed)
            names = ", ".join(step.name for step in delayed)
            for step in delayed:
                yield Finding(
                    step.file,
                    DELAY,
                    f"{names} of ensemble {ensemble.name} wait one after the other, {total:,} us for who comes alone",
                    "a delay on the slowest step alone, 0 on the others",
                )


@rule("delay-too-long", f"{GUIDE}/batcher.html")
def long_delay(repository: Repository) -> Iterator[Finding]:
    """A wait beside what it waits for.

    `max_batch_size: 1 dynamic_batching { max_queue_delay_microseconds: 100 }`: every batch is full at once.
    """
    clock = Clock()
    for model in repository.singles():
        if not model.delay_us or not model.config.max_batch_size:
            continue
        if model.config.max_batch_size == 1:
            why = "with max_batch_size 1 every batch is full at once, and nothing ever waits"
            yield Finding(model.file, DELAY, why, "no delay, or a larger max_batch_size")
            continue
        took = clock.time_us(model)
        if took is None and model.delay_us > DELAY_UNMEASURED_US:
            worth = model.delay_us / DELAY_SHARE / 1e6
            why = f"{model.delay_us:,} us pay off only where the step itself takes {worth:.1f} s"
            yield Finding(model.file, DELAY, why, "0: what is queued while the step works is batched without any delay")
        elif took is not None and model.delay_us > DELAY_SHARE * took:
            why = f"{model.delay_us:,} us are over a tenth of the step's own time, {took:,.0f} us here for one item"
            yield Finding(model.file, DELAY, why, f"at most {int(DELAY_SHARE * took)}, or 0")


@rule("queue-limits", f"{GUIDE}/batcher.html", since="24.04 and later")
def queue_policy(repository: Repository) -> Iterator[Finding]:
    """Limits that cost more than what they guard against, for who does not need them.

    `dynamic_batching { default_queue_policy { max_queue_size: 8 } }`: a burst's end waits up to 500 ms longer.
    """
    if not repository.since(24, 4):
        return
    for model in repository.models.values():
        policies = [
            model.config.dynamic_batching.default_queue_policy,
            *model.config.dynamic_batching.priority_queue_policy.values(),
        ]
        given = [
            key
            for key in ("max_queue_size", "default_timeout_microseconds", "allow_timeout_override")
            if any(getattr(policy, key) for policy in policies)
        ]
        if given:
            why = (
                "from Triton 24.04 on the batcher of a model with queue limits sleeps until a request comes or 500 ms have "
                "passed when its instances are busy: what waits at the end of a burst waits that much longer"
            )
            instead = (
                "no queue policy and deadlines set by the clients; or keep it, where an end to the queue is worth that"
            )
            yield Finding(model.file, f"dynamic_batching.default_queue_policy ({', '.join(given)})", why, instead)


@rule("preferred-sizes", f"{GUIDE}/batcher.html")
def preferred_sizes(repository: Repository) -> Iterator[Finding]:
    """They hold a batch back for a size that means something to TensorRT's profiles alone.

    `backend: "onnxruntime" dynamic_batching { preferred_batch_size: [ 4, 8 ] }`: it has no profile for each size.
    """
    for model in repository.models.values():
        sizes = list(model.config.dynamic_batching.preferred_batch_size)
        if sizes and model.backend in WITHOUT_TENSORRT and model.config.max_batch_size >= max(sizes):
            why = f"{sizes} are of use where the model has a profile for each size, which {model.backend} has not"
            yield Finding(model.file, "dynamic_batching.preferred_batch_size", why, "dynamic_batching { }")


@rule("batcher-sizes", CHECKED)
def sizes(repository: Repository) -> Iterator[Finding]:
    """Preferred batches that cannot be.

    `max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 16 ] }` is refused: sizes lie within 1 and
    max_batch_size.
    """
    for model in repository.models.values():
        most = model.config.max_batch_size
        wrong = [size for size in model.config.dynamic_batching.preferred_batch_size if not 0 < size <= most]
        if wrong:
            why = f"{wrong[0]} is not within 1 and max_batch_size {most}"
            yield refused(model, "dynamic_batching.preferred_batch_size", why, "sizes that are, or none")


@rule("batcher-without-batch", CONFIGURATION)
def without_batch(repository: Repository) -> Iterator[Finding]:
    """A batcher of a model that does not batch.

    `max_batch_size: 0 dynamic_batching { }`: requests are queued, and go one by one. Write a max_batch_size, or no
    batcher.
    """
    for model in repository.singles():
        # A backend completes a size that is not written.
        written = "max_batch_size" in model.text
        if model.config.HasField("dynamic_batching") and written and model.config.max_batch_size == 0:
            why = "with max_batch_size 0 nothing is batched"
            yield Finding(model.file, "dynamic_batching", why, "a max_batch_size of 1 or more, or no dynamic_batching")


@rule("priority-levels", CHECKED)
def priorities(repository: Repository) -> Iterator[Finding]:
    """Levels of priority that do not agree.

    `dynamic_batching { priority_levels: 3 default_priority_level: 4 }` is refused: the default and each policy's key
    lie within 1 and priority_levels.
    """
    for model in repository.models.values():
        batcher = model.config.dynamic_batching
        if not batcher.priority_levels:
            continue
        allowed = f"within 1 and {batcher.priority_levels}"
        for key, given in (
            ("default_priority_level", [batcher.default_priority_level]),
            ("priority_queue_policy", list(batcher.priority_queue_policy)),
        ):
            wrong = [level for level in given if not 0 < level <= batcher.priority_levels]
            if wrong:
                yield refused(model, f"dynamic_batching.{key}", f"{wrong[0]} is not {allowed}", f"a level {allowed}")


@rule("preserve-ordering", CHECKED)
def ordering(repository: Repository) -> Iterator[Finding]:
    """An order that is to be kept, and requests that overtake.

    `dynamic_batching { preserve_ordering: true priority_levels: 2 }` is refused, and so is a timeout whose action is
    DELAY.
    """
    key = "dynamic_batching.preserve_ordering"
    for model in repository.models.values():
        batcher = model.config.dynamic_batching
        if not batcher.preserve_ordering:
            continue
        if batcher.priority_levels > 1:
            yield refused(model, key, f"{batcher.priority_levels} priority_levels overtake each other", "one of both")
        policies = [batcher.default_queue_policy, *batcher.priority_queue_policy.values()]
        if any(policy.default_timeout_microseconds and policy.timeout_action == policy.DELAY for policy in policies):
            yield refused(
                model, key, "a timeout_action of DELAY lets others overtake", "REJECT, or no preserve_ordering"
            )
