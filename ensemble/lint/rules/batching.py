"""What a batcher waits for, and how long."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.repository import WITHOUT_TENSORRT, Repository
from ensemble.lint.timing import time_us

DELAY_SHARE = 0.1  # of a step's own time
DELAY_UNMEASURED_US = 10_000  # above it a step would have to take 100 ms to be worth the wait
DELAY = "dynamic_batching.max_queue_delay_microseconds"


def several_delays(repository: Repository) -> Iterator[Finding]:
    """A delay is paid once a step.

    `dynamic_batching { max_queue_delay_microseconds: 100 }` in two steps: first, second of ensemble whole wait one after the
    other, 200 us for who comes alone.
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


def long_delay(repository: Repository) -> Iterator[Finding]:
    """A wait beside what it waits for.

    `max_batch_size: 1 dynamic_batching { max_queue_delay_microseconds: 100 }`: every batch is full at once.
    """
    for model in repository.models.values():
        if not model.delay_us:
            continue
        if model.config.max_batch_size <= 1:
            why = (
                f"with max_batch_size {model.config.max_batch_size} every batch is full at once, and nothing ever waits"
            )
            yield Finding(model.file, DELAY, why, "no delay, or a larger max_batch_size")
            continue
        took = time_us(model)
        if took is None and model.delay_us > DELAY_UNMEASURED_US:
            worth = model.delay_us / DELAY_SHARE / 1e6
            why = f"{model.delay_us:,} us pay off only where the step itself takes {worth:.1f} s"
            yield Finding(model.file, DELAY, why, "0: what is queued while the step works is batched without any delay")
        elif took is not None and model.delay_us > DELAY_SHARE * took:
            why = f"{model.delay_us:,} us are over a tenth of the step's own time, {took:,.0f} us here for one item"
            yield Finding(model.file, DELAY, why, f"at most {int(DELAY_SHARE * took)}, or 0")


def queue_policy(repository: Repository) -> Iterator[Finding]:
    """Limits that cost more than what they guard against, for who does not need them.

    `dynamic_batching { default_queue_policy { max_queue_size: 8 } }`: a burst's end waits up to 500 ms longer.
    """
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


def preferred_sizes(repository: Repository) -> Iterator[Finding]:
    """They hold a batch back for a size that means something to TensorRT's profiles alone.

    `backend: "onnxruntime" dynamic_batching { preferred_batch_size: [ 4, 8 ] }`: it has no profile for each size.
    """
    for model in repository.models.values():
        sizes = list(model.config.dynamic_batching.preferred_batch_size)
        if sizes and model.backend in WITHOUT_TENSORRT:
            why = f"{sizes} are of use where the model has a profile for each size, which {model.backend} has not"
            yield Finding(model.file, "dynamic_batching.preferred_batch_size", why, "dynamic_batching { }")
