"""Model Analyzer's sweeps, and the tuning by them."""

from __future__ import annotations

from typing import Annotated

import typer

from build.commands import repository
from build.commands.options import Choice, takes
from build.progress import say

Quick = Annotated[bool, typer.Option("--quick", help="The ends of each axis, in a few minutes")]


@takes("spec", "checkpoint", "out", "network", "factory", "device")
def analyze(
    choice: Choice,
    url: Annotated[str, typer.Option("--url", help="gRPC endpoint of a server that runs: measure it as it is")] = "",
    http_url: Annotated[str, typer.Option("--http-url", help="Its HTTP endpoint, if it is not on port 8000")] = "",
    metrics_url: Annotated[
        str, typer.Option("--metrics-url", help="Its metrics, if they are not http://host:8002/metrics")
    ] = "",
    quick: Quick = False,
) -> None:
    """Sweep the ensemble and the core with Model Analyzer, and draw what it found."""
    from build.analyzer import analysis
    from build.analyzer.profile import Endpoints

    workspace = choice.open()
    if not url:
        repository.build(workspace)
    running = Endpoints.of(url, http_url, metrics_url) if url else None
    for path in analysis.analyze(workspace, quick, running):
        say(f"wrote {path}")


@takes("spec", "checkpoint", "out", "network", "factory", "device")
def tune(
    choice: Choice,
    p99_ms: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0.1, help="The budget [default: twice the present p99 with one caller]"),
    ] = None,
    quick: Quick = False,
) -> None:
    """Sweep, choose under a latency budget, measure the choice beside the present one, and write it if it gains."""
    from build.analyzer import analysis

    workspace = choice.open()
    repository.build(workspace)
    if analysis.tune(workspace, quick, p99_ms):
        repository.build(choice.open())
