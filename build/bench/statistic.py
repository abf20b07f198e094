"""Medians with their uncertainty, and what Triton's own statistics say of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

RESAMPLES = 2000
COUNTED = ("queue", "compute_input", "compute_infer")


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of `values`, one a round: calls of a round drift together."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def counters(client: grpcclient.InferenceServerClient) -> dict[str, dict[str, tuple[int, int]]]:
    """Of every model, nanoseconds and requests so far in each phase and in all ("success")."""
    answer = client.get_inference_statistics(as_json=True)
    return {
        model["name"]: {
            phase: (
                int(model["inference_stats"][phase].get("ns", 0)),
                int(model["inference_stats"][phase].get("count", 0)),
            )
            for phase in (*COUNTED, "success")
        }
        for model in answer["model_stats"]
        if "inference_stats" in model
    }


def parts(before: dict[str, Any], after: dict[str, Any], asked: str) -> dict[str, float]:
    """Where a request's time in the server went, in milliseconds: queues, each step, and handing over between them.

    A step's share is what it takes until its answer is there. Copying the answer out overlaps with the next step, so the
    hand-over is what remains of the whole.

    Args:
        before, after: `counters` around the turn.
        asked: the model that clients ask.
    """
    spent = {name: {phase: _mean(before[name], after[name], phase) for phase in after[name]} for name in after}
    whole = spent[asked]["success"]
    steps = {name: s for name, s in spent.items() if name != asked and s["success"]} or {asked: spent[asked]}
    found = {"queue": sum(s["queue"] for s in steps.values())}
    for name, s in steps.items():
        found[name] = s["compute_input"] + s["compute_infer"]
    found["hand-over"] = whole - sum(found.values())
    return found


def _mean(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], phase: str) -> float:
    requests = after["success"][1] - before["success"][1]
    return (after[phase][0] - before[phase][0]) / requests / 1e6 if requests else 0.0
