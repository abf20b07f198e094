"""Command line of `build`: how a model is made, held against PyTorch, served, measured and tuned."""

from __future__ import annotations

import typer

from build.commands.analyzer import analyze, tune
from build.commands.bench import bench, bench_peers, demo, stages
from build.commands.core import precision, reduce
from build.commands.model import evaluate, train
from build.commands.repository import inspect, repo
from build.commands.score import score
from build.commands.server import serve
from ensemble.command import run

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    train,
    inspect,
    repo,
    reduce,
    serve,
    score,
    demo,
    evaluate,
    precision,
    bench,
    bench_peers,
    stages,
    analyze,
    tune,
):
    app.command()(command)

if __name__ == "__main__":
    run(app)
