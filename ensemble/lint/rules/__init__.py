"""Every rule: what it finds in a repository. A file is a family."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ensemble.lint.finding import Finding
from ensemble.lint.repository import Repository
from ensemble.lint.rules import batching, cost, ensemble, keys, wiring

RULES: tuple[Callable[[Repository], Iterator[Finding]], ...] = (
    keys.unknown_key,
    keys.tensorrt_only,
    keys.cuda_graph,
    batching.several_delays,
    batching.long_delay,
    batching.queue_policy,
    batching.preferred_sizes,
    cost.wide_integers,
    cost.large_outputs,
    cost.threads,
    ensemble.on_the_ensemble,
    ensemble.response_cache,
    wiring.wiring,
)
