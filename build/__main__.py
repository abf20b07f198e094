"""Command line of `build`: how a model is made, held against PyTorch, served, measured and tuned."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from build import ARTIFACTS, ROOT
from build.progress import answers, bar, board, console
from build.repository.workspace import Workspace, open_workspace
from build.server import endpoints
from ensemble.command import run
from ensemble.errors import LastrowError
from ensemble.lint import lint
from ensemble.spec import DEFAULT_SPEC

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

SpecFile = Annotated[
    Path | None, typer.Option("--spec", help="The spec [default: ensemble/presets/knowledge_tracing.toml]")
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A state_dict [default: the reference model, trained if it is not there]"),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="The repository [default: models for the default spec, else an artifact]")
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of fold*.csv with real learners [default: simulated learners]"),
]
NetworkName = Annotated[
    str | None,
    typer.Option("--network", help="A reference architecture: dkt, gru or transformer [default: the spec's]"),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--factory", help="package.module:function that makes the nn.Module whose state_dict the checkpoint is"
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="What the core runs on: cpu or gpu [default: the spec's]")]
Learners = Annotated[int | None, typer.Option("--learners", min=10, help="Use so many learners only")]
Port = Annotated[int, typer.Option(min=1, max=65535)]
Budget = Annotated[float, typer.Option("--budget", min=1.0, help="Seconds of training")]

TRAINING_S = 60.0
EVALUATION_TRAINING_S = 300.0


@app.command()
def train(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    budget: Budget = TRAINING_S,
) -> None:
    """Train the reference model and say how well it predicts, beside the per-problem mean."""
    workspace = open_workspace(spec, None, None, data, learners, network)
    if checkpoint is not None:
        if checkpoint.exists():
            raise LastrowError(
                f"{checkpoint} is there already, and training would write over it; give a new name as CHECKPOINT="
            )
        workspace = replace(workspace, checkpoint=checkpoint)
    _train(workspace, budget)
    print(f"checkpoint {workspace.checkpoint}")
    print(f"spec       {workspace.spec_file}")


@app.command()
def repo(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    out: OutFolder = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    factory: Factory = None,
    device: Device = None,
) -> None:
    """Build the model repository, and only what changed; train the reference model first if it is not there."""
    _repo(open_workspace(spec, checkpoint, out, data, learners, network, factory, device))


@app.command()
def reduce(
    model: Annotated[Path, typer.Argument(help="An ONNX file whose output has a time axis")],
    out: Annotated[Path, typer.Option("--out", help="Where the reduced model goes")],
    select: Annotated[
        str, typer.Option("--select", help="last or mean or max of the valid rows (input lengths), or row (input row)")
    ] = "last",
    time_axis: Annotated[
        int, typer.Option("--time-axis", min=0, help="The output's axis of time; batch is 0, or 1 where time is 0")
    ] = 1,
    output: Annotated[str | None, typer.Option("--output", help="Which output [default: the first]")] = None,
    window: Annotated[
        int, typer.Option("--window", min=1, help="Rows that the model takes at most; costs are counted for them")
    ] = 512,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", help="NAME=LOW:HIGH: what an input's values lie between [repeatable]")
    ] = None,
    lengths: Annotated[
        list[str] | None, typer.Option("--length", help="An input that holds how many rows are valid [repeatable]")
    ] = None,
    masks: Annotated[
        list[str] | None, typer.Option("--mask", help="An input that is 1 at valid rows and 0 behind them [repeatable]")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the graph from its output to the selection")] = False,
) -> None:
    """Take the wanted row of any ONNX model as early as its graph allows, and check that it is the same row."""
    from build.core.reduce import Declared
    from build.core.reduction import reduce_file, show

    declared = Declared.parse(ranges or (), lengths or (), masks or ())
    with bar("reduce") as update:
        reduction, proof = reduce_file(model, out, select, time_axis, output, window, declared, update)
    show(reduction, proof, explain)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


@app.command()
def serve(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    out: OutFolder = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    factory: Factory = None,
    device: Device = None,
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    address: Annotated[
        str, typer.Option(help="IPv4 or IPv6 address to listen on; 0.0.0.0 or ::: on every network")
    ] = "127.0.0.1",
    tls: Annotated[
        Path | None,
        typer.Option(
            help="Folder with server.crt and server.key (--mutual: and ca.crt): gRPC is encrypted, HTTP local"
        ),
    ] = None,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Clients have to show a certificate that ca.crt signed")
    ] = False,
    test_certificates: Annotated[
        bool, typer.Option("--test-certificates", help="Make those of --tls if it has none, for trying it out")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make new test certificates, over those that are there")
    ] = False,
    opened: Annotated[
        str, typer.Option("--open", help=f"Of {', '.join(endpoints.MANAGEMENT)}: what is open to everybody")
    ] = "",
    trace: Annotated[str, typer.Option(help="OTLP/HTTP collector that gets the spans of every request")] = "",
) -> None:
    """Build the repository if need be and serve it until Ctrl-C; start again whatever of it dies."""
    from build import server
    from build.server.certificate import Files, make
    from build.server.supervisor import Ports, Supervisor

    workspace = open_workspace(spec, checkpoint, out, data, learners, network, factory, device)
    ports = Ports(http_port, grpc_port, metrics_port, address, server.LOOPBACK if tls else address)
    open_to_all = [name for name in opened.split(",") if name]
    try:
        closed = endpoints.closed(open_to_all, os.environ.get(endpoints.ADMIN_KEY, ""))
    except ValueError as e:
        raise LastrowError(str(e)) from e
    arguments = [*closed, *endpoints.observed(trace, workspace.spec.model.name)]
    if "shared-memory" in open_to_all:
        arguments += server.find().client_shared_memory()
    if tls is not None:
        files = make(tls, renew) if test_certificates else Files(tls)
        arguments += files.arguments(mutual)
    elif mutual or test_certificates:
        raise LastrowError("--mutual and --test-certificates go with --tls FOLDER")
    if renew and not test_certificates:
        raise LastrowError("--renew goes with --test-certificates")
    server.check_ports(ports.arguments())  # before a build, which may take a minute
    _repo(workspace)
    code = Supervisor(workspace.out, workspace.spec.model.name, ports, arguments).run()
    raise typer.Exit(code if code >= 0 else 1)


@app.command()
def demo(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    out: OutFolder = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    device: Device = None,
) -> None:
    """Build everything, serve it, ask for several learners, compare with PyTorch, and stop."""
    from build.commands.demo import demonstrate, pick
    from build.model import checkpoint as checkpoints
    from build.model.training import split

    workspace = open_workspace(spec, checkpoint, out, data, learners, network, device=device)
    _repo(workspace)
    _, test = split(workspace.folds())
    demonstrate(
        workspace,
        checkpoints.load_network(workspace.checkpoint, workspace.spec),
        pick(test, workspace.spec.model.window),
    )


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of fold*.csv with real learners; the last fold is the test")
    ],
    networks: Annotated[
        str, typer.Option("--networks", help="Which reference architectures, comma-separated")
    ] = "dkt,transformer",
    learners: Learners = None,
    budget: Annotated[
        float, typer.Option("--budget", min=1.0, help="Seconds of training, each")
    ] = EVALUATION_TRAINING_S,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Predictions asked of the server, at random; 0: all")
    ] = 4000,
) -> None:
    """Train on all folds but the last, predict the last one offline and through the server, and compare."""
    from build.model import checkpoint as checkpoints
    from build.model import evaluation
    from build.model.training import split
    from build.server import Server
    from ensemble.client import Client

    done, curves = [], {}
    for name in networks.split(","):
        workspace = open_workspace(data=data, learners=learners, network=name)
        # Beside what `make train` took its time for.
        folder = workspace.checkpoint.parent / "evaluation"
        workspace = replace(workspace, checkpoint=folder / workspace.checkpoint.name, out=folder / workspace.out.name)
        _train(workspace, budget)
        _repo(workspace)
        training, test = split(workspace.folds())
        model = checkpoints.load_network(workspace.checkpoint, workspace.spec)
        with ExitStack() as stack:
            update = stack.enter_context(bar(f"evaluate {name}"))
            server = stack.enter_context(Server(workspace.out))
            client = stack.enter_context(Client(server.grpc_url, spec=workspace.spec))
            found, labels, probabilities = evaluation.evaluate(
                model, client, training, test, workspace.spec, sample or None, update
            )
        done.append(found)
        curves[name] = labels, probabilities
    evaluation.show(done)
    for path in evaluation.save(done, curves, folder.parent.parent):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def precision(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    sample: Annotated[int, typer.Option("--sample", min=100, help="Predictions, drawn at random")] = 4000,
) -> None:
    """What a lower precision costs: AUC of the core in float32, float16 and int8 on learners that the model has not seen."""
    from build.core.accuracy import cost
    from build.model.training import split

    workspace = open_workspace(spec, checkpoint, None, data, learners, network)
    if not workspace.checkpoint.exists() and not workspace.checkpoint_given:
        _train(workspace)
    with bar("precision") as update:
        _, test = split(workspace.folds())
        found = cost(workspace.spec, workspace.checkpoint, test, sample, update)
    single = found["float32"]
    print(f"{workspace.spec.network.type}, {single.predictions:,} predictions: AUC {single.auc:.5f} in float32")
    for name in [name for name in found if name != "float32"]:
        lower = found[name]
        print(
            f"  {lower.auc:.5f} in {name} ({lower.auc - single.auc:+.1e}); probabilities differ by "
            f"{lower.largest_difference:.1e} at most"
        )


@app.command()
def bench(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    data: DataFolder = None,
    learners: Learners = None,
    network: NetworkName = None,
    factory: Factory = None,
    lengths: Annotated[
        Path | None,
        typer.Option("--lengths", help="Folder of fold*.csv: as long as its learners are the mix's [default: --data]"),
    ] = None,
    rungs: Annotated[
        str | None, typer.Option("--rungs", help="Which, e.g. 0,1,4-8,floor [default: all of them]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, only concurrency 1 and 16")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu: without rung 11, even where there is a GPU; gpu: with it")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Write picture and table into the repository")] = False,
) -> None:
    """Climb from the naive deployment to this one on this machine, and show where each millisecond goes."""
    from build.bench import publication
    from build.bench.ladder import ladder, report, waterfall
    from build.bench.ladder.rung import select

    chosen = select(rungs)
    if device not in (None, "cpu", "gpu"):
        raise LastrowError(f"there is no device {device!r}; there are cpu and gpu")
    # The served repository stays as it is: every rung is built in a folder of its own.
    workspace = open_workspace(spec, checkpoint, None, data, learners, network, factory)
    if not workspace.checkpoint.exists() and not workspace.checkpoint_given:
        _train(workspace)
    folder = ARTIFACTS / "bench" / workspace.spec.network.type
    settings = ladder.Settings.quick() if quick else ladder.Settings()
    climb = ladder.Climb(workspace, chosen, settings, folder, lengths, device)
    with ExitStack() as stack:
        with bar("build and start the rungs") as update:
            stack.enter_context(climb.ready(update))
        with board("climb") as (update, show):
            climb.climb(update, lambda: show(report.table(climb.report())))
    found = climb.report()
    publication.save(found, folder / "ladder.json")
    written = [folder / "ladder.json", *waterfall.draw(found, folder)]
    if publish:
        written += report.publish(found)
    answers().print(report.table(found))
    for line in report.lines(found):
        answers().print(line, highlight=False)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command("bench-peers")
def bench_peers(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Write the table into the repository")] = False,
) -> None:
    """Serve the same core by LitServe, BentoML, Ray Serve, FastAPI and PyTriton, and compare under the same load."""
    from build.bench import publication
    from build.bench.peers import comparison, report
    from build.repository import assembly as repository

    workspace = open_workspace(spec, checkpoint)
    if not workspace.checkpoint.exists() and not workspace.checkpoint_given:
        _train(workspace)
    folder = ARTIFACTS / "bench" / "peers"
    built = repository.build(workspace.spec, workspace.checkpoint, folder / "models")
    rounds, turn_s = (1, 1.0) if quick else (5, 2.0)
    with bar("peers") as update:
        found = comparison.compare(workspace.spec, built.folder, rounds, turn_s, folder, update)
    publication.save(found, folder / "peers.json")
    written = [folder / "peers.json"]
    if publish:
        written += report.publish(found)
    answers().print(report.table(found))
    for name, value in report.summary(found).items():
        answers().print(f"{name}: {value:.3f}", highlight=False)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def analyze(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    out: OutFolder = None,
    network: NetworkName = None,
    factory: Factory = None,
    device: Device = None,
    url: Annotated[str, typer.Option("--url", help="gRPC endpoint of a server that runs: measure it as it is")] = "",
    http_url: Annotated[str, typer.Option("--http-url", help="Its HTTP endpoint, if it is not on port 8000")] = "",
    metrics_url: Annotated[
        str, typer.Option("--metrics-url", help="Its metrics, if they are not http://host:8002/metrics")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The ends of each axis, in a few minutes")] = False,
) -> None:
    """Sweep the ensemble and the core with Model Analyzer, and draw what it found."""
    from build.analyzer import analysis
    from build.analyzer.profile import Endpoints

    workspace = open_workspace(spec, checkpoint, out, network=network, factory=factory, device=device)
    if not url:
        _repo(workspace)
    running = Endpoints.of(url, http_url, metrics_url) if url else None
    for path in analysis.analyze(workspace, quick, running):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def tune(
    spec: SpecFile = None,
    checkpoint: CheckpointFile = None,
    out: OutFolder = None,
    network: NetworkName = None,
    factory: Factory = None,
    device: Device = None,
    p99_ms: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0.1, help="The budget [default: twice the present p99 with one caller]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The ends of each axis, in a few minutes")] = False,
) -> None:
    """Sweep, choose under a latency budget, measure the choice beside the present one, and write it if it gains."""
    from build.analyzer import analysis

    workspace = open_workspace(spec, checkpoint, out, network=network, factory=factory, device=device)
    _repo(workspace)
    if analysis.tune(workspace, quick, p99_ms):
        _repo(open_workspace(spec, checkpoint, out, network=network, factory=factory, device=device))


def _train(workspace: Workspace, budget_s: float = TRAINING_S) -> None:
    from build.model import checkpoint as checkpoints
    from build.model.training import split
    from build.model.training import train as train_model

    with bar("read learners" if workspace.data else "simulate learners"):
        training, test = split(workspace.folds())
    with bar("train") as update:
        model, report = train_model(training, test, workspace.spec, budget_s=budget_s, progress=update)
    checkpoints.save(model, workspace.checkpoint)
    workspace.report.write_text(report.to_json(workspace.data_digest()), encoding="utf-8")
    print(
        f"test AUC {report.auc:.4f}, per-problem mean {report.baseline_auc:.4f} "
        f"({report.test_learners:,} learners, {report.test_interactions:,} interactions)"
    )


def _repo(workspace: Workspace) -> None:
    from build.repository import assembly as repository

    if not workspace.checkpoint.exists() and not workspace.checkpoint_given:
        _train(workspace)
    built = repository.build(workspace.spec, workspace.checkpoint, workspace.out)
    done = f"wrote {len(built.changed)} files to" if built.changed else "up to date:"
    console.print(f"{done} {built.folder} (parity {built.parity:.1e})", highlight=False, soft_wrap=True)
    for finding in lint(built.folder):
        console.print(str(finding), highlight=False, soft_wrap=True)
    if (workspace.spec_file, workspace.out) == (DEFAULT_SPEC, ROOT / "models"):
        from build.analyzer import profile

        profile.write(workspace.spec)
    if workspace.spec_file != DEFAULT_SPEC:
        console.print(f"its spec: {workspace.spec_file}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(app)
