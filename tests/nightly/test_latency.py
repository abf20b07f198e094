"""How fast a served answer is beside the same one in process: a figure of the machine as much as of this project."""

from __future__ import annotations

import contextlib
import statistics

from build.bench import load
from build.bench.caller import EnsembleClient
from build.bench.ladder.local import Local
from ensemble.spec import DEFAULT_SPEC
from tests.conftest import Served, learner


def test_served_p50_is_under_a_third_of_pytorchs_or_near_the_cores(served: Served):
    """Whichever is slower: how fast PyTorch multiplies 512 rows is the machine's, what serving adds is this project's."""
    history = learner(512)
    times: dict[str, list[float]] = {"served": [], "eager": [], "onnxruntime": []}
    core = served.repository / "core" / "1" / "model.onnx"
    with contextlib.ExitStack() as stack:
        resting = {kind: Local(kind, DEFAULT_SPEC, served.checkpoint, core) for kind in ("eager", "onnxruntime")}
        for local in resting.values():
            stack.callback(local.close)
        caller = EnsembleClient(served.server.grpc_url, served.spec)
        stack.callback(caller.close)
        for _ in range(5):
            for kind, local in resting.items():
                times[kind] += local.times([history], 1, 10)
            times["served"] += load.run([caller], [history], 1, seconds=0.1, warm_up=2).latencies_ms
    p50 = {kind: statistics.median(found) for kind, found in times.items()}
    print(p50)
    assert p50["served"] <= max(0.30 * p50["eager"], 2.0 * p50["onnxruntime"])
