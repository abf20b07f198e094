"""Which of tritonserver's endpoints a served model opens, and to whom: arguments for its command line."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

# What changes the server or reaches into its host. Inference, health, metadata and statistics stay open.
MANAGEMENT = ("model-repository", "shared-memory", "trace", "logging")
ADMIN_HEADER = "lastrow-admin"  # over HTTP; over gRPC, tritonserver asks for triton-grpc-protocol-lastrow-admin
ADMIN_KEY = "LASTROW_ADMIN_KEY"


def closed(opened: Iterable[str] = (), admin_key: str = "") -> list[str]:
    """Arguments that close the management endpoints to everybody who does not send the key.

    Args:
        opened: of MANAGEMENT, those left open to everybody.
        admin_key: value of the header; empty: nobody's, a random one that is told to no one.

    Raises:
        ValueError: an endpoint that is not one of MANAGEMENT, or a key that is no single word.
    """
    opened = set(opened)
    unknown = sorted(opened - set(MANAGEMENT))
    if unknown:
        raise ValueError(f"there is no endpoint {unknown[0]!r} to open; there are {', '.join(MANAGEMENT)}")
    if (admin_key and not admin_key.isascii()) or any(c.isspace() or c in ":=," for c in admin_key):
        raise ValueError("the admin key travels in a header: use one word of ASCII without : = and ,")
    names = ",".join(name for name in MANAGEMENT if name not in opened)
    if not names:
        return []
    rule = f"{names}:{ADMIN_HEADER}={admin_key or secrets.token_urlsafe(32)}"
    return [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]


def observed(trace_url: str = "", service: str = "lastrow") -> list[str]:
    """Arguments for latency quantiles by step, and for OpenTelemetry spans of every request to an OTLP/HTTP collector."""
    arguments = ["--metrics-config=summary_latencies=true"]
    if trace_url:
        settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS")
        arguments += [f"--trace-config={setting}" for setting in settings]
        arguments += [
            f"--trace-config=opentelemetry,url={trace_url}",
            f"--trace-config=opentelemetry,resource=service.name={service}",
        ]
    return arguments
