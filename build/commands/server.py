"""The server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from build.commands import repository
from build.commands.options import Choice, takes
from build.server import endpoints
from ensemble.errors import LastrowError

Port = Annotated[int, typer.Option(min=1, max=65535)]


@takes("spec", "checkpoint", "out", "data", "learners", "network", "factory", "device", "layout")
def serve(
    choice: Choice,
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    health_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where balancers ask: 200 serving, 503 not, 404 stopping")
    ] = 8003,
    announce_s: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM that requests are answered on while the health says 404")
    ] = 5.0,
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

    workspace = choice.open()
    ports = Ports(http_port, grpc_port, metrics_port, health_port, address, server.LOOPBACK if tls else address)
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
    server.check_free(address, health_port, "health-port")
    repository.build(workspace)
    code = Supervisor(workspace.out, workspace.spec.model.name, ports, arguments, announce_s).run()
    raise typer.Exit(code if code >= 0 else 1)
