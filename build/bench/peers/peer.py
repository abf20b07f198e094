"""Peers: other servers with the same reduced core, each as its quick start has it and as it serves best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ensemble.errors import LastrowError

Encoding = Literal["JSON", "bytes", "gRPC"]


class PeerError(LastrowError):
    """A peer did not start or did not answer; the message is its own."""


@dataclass(frozen=True)
class Peer:
    """A server.

    package: whose version counts. encodings: first the quick start's, then what serves it best. paths: of each over HTTP, in
    which {name} is the model's.
    """

    name: str
    package: str
    file: str
    batching: str
    encodings: tuple[Encoding, ...] = ("JSON", "bytes")
    arguments: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("/predict", "/predict")


PEERS = (
    Peer("FastAPI + uvicorn", "fastapi", "fastapi_server.py", "none of its own"),
    Peer("LitServe", "litserve", "litserve_server.py", "max_batch_size=32, batch_timeout=0.001"),
    Peer(
        "BentoML",
        "bentoml",
        "bentoml_server.py",
        "batchable=True, max_batch_size=32",
        paths=("/predict", "/predict_bytes"),
    ),
    Peer("Mosec", "mosec", "mosec_server.py", "max_batch_size=32, max_wait_time=10 and, as bytes, 1"),
    Peer(
        "KServe",
        "kserve",
        "kserve_server.py",
        "none of its own",
        encodings=("JSON", "gRPC"),
        paths=("/v1/models/{name}:predict", ""),
    ),
    Peer("Ray Serve", "ray", "ray_server.py", "@serve.batch(max_batch_size=32, batch_wait_timeout_s=0)"),
    Peer("Ray Serve, no proxy", "ray", "ray_server.py", "as Ray Serve", arguments=("--direct",)),
    Peer("PyTriton", "nvidia-pytriton", "pytriton_server.py", "DynamicBatcher(), max_batch_size=32", ("gRPC",)),
)
