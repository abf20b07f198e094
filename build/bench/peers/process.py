"""A peer's process: started, waited for, and ended with all that it started."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpcclient
from tritonclient.utils import triton_to_np_dtype

from build import ROOT
from build.bench import question, reply
from build.bench.caller import Caller
from build.bench.peers.caller import HttpPeer, PytritonPeer, SequencePeer
from build.bench.peers.peer import Encoding, Peer, PeerError
from build.bench.question import Question
from build.server import free_ports, reaper
from ensemble.knowledge_tracing import narrowed
from ensemble.sequence import Sequence
from ensemble.spec import Spec

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SERVERS = Path(__file__).parent / "servers"
STARTING_S, STOPPING_S = 120.0, 20.0


@dataclass(frozen=True)
class Running:
    """A server that answers. started_s: how long it took until then. connections: what connects to it, by encoding."""

    started_s: float
    pid: int
    connections: Mapping[Encoding, Callable[[], Caller]]


@contextmanager
def serving(peer: Peer, core: Path, spec: Spec, folder: Path) -> Iterator[Running]:
    """A peer that answers, and whatever it starts: gone at the end.

    core: the file, in a repository, from which it is copied.

    Raises:
        PeerError: it does not serve here.
    """
    if isinstance(spec, Sequence) and not peer.sequences:
        raise PeerError("measured for knowledge tracing alone")
    (port,) = free_ports(1)
    command = [str(PYTHON), str(SERVERS / peer.file), "--core", str(core), "--port", str(port), "--threads", "0"]
    command += [
        "--window",
        str(spec.model.window),
        "--max-batch-size",
        str(spec.batching.max_batch_size),
        *peer.arguments,
    ]
    if isinstance(spec, Sequence):
        about = folder / "sequence.json"
        about.write_text(json.dumps(described(spec, core.parents[2])), encoding="utf-8")
        command += ["--sequence", str(about)]
    log = folder / f"{re.sub(r'[^a-z]+', '_', peer.name.lower())}.log"
    mark = reaper.new_mark()
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, reaper.MARK: mark, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"},
        )
    try:

        def connect(encoding: Encoding) -> Caller:
            if encoding == "gRPC":
                return PytritonPeer(port)
            path = peer.paths[encoding == "bytes"]
            if isinstance(spec, Sequence):
                return SequencePeer(port, encoding, path, spec)
            return HttpPeer(port, encoding, path, narrowed(spec).model.problems)

        _wait(process, lambda: connect(peer.encodings[0]), question.drawn(spec, [3])[0], log)
        started = time.perf_counter() - began
        connections = {encoding: partial(connect, encoding) for encoding in peer.encodings}
        yield Running(started, process.pid, connections)
    finally:
        reaper.reap(mark, STOPPING_S)
        process.wait()


def described(spec: Sequence, repository: Path) -> dict[str, Any]:
    """What a peer has to know of a model: its contract, its chain, and what requests and the core's inputs are."""
    answer = reply.whole(spec)
    kinds = {tensor.name: np.dtype(triton_to_np_dtype(tensor.dtype)).str for tensor in (*spec.requested, *spec.windows)}
    shapes = {**spec.contract.inputs, **spec.contract.contexts}
    steps = {name: [-1] if name in spec.contract.inputs else [] for name in shapes}
    return {
        "step": str((repository / answer.step / "1").resolve()),
        "contract": json.loads(spec.contract.dumps()),
        "chain": answer.chain,
        "inputs": [(t.name, kinds[t.name], [*steps[t.name], *shapes[t.name].shape]) for t in spec.requested],
        "core": {tensor.name: kinds[tensor.name] for tensor in spec.windows},
        "output": answer.of.name,
        "answers": [(t.name, "float" if t.dtype == "FP32" else "int", len(t.shape)) for t in answer.tensors],
    }


def _wait(process: subprocess.Popen[bytes], connect: Callable[[], Caller], asked: Question, log: Path) -> None:
    """Until it answers.

    Raises:
        PeerError: it ended, or did not answer in time; with the last line that it wrote.
    """
    deadline, reason = time.monotonic() + STARTING_S, "it did not listen"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"it ended with exit code {process.returncode}: {_last(log)}")
        caller = connect()
        try:
            caller.ask([asked])
            return
        except (OSError, http.client.HTTPException, PeerError, grpcclient.InferenceServerException) as e:
            reason = str(e)
        finally:
            caller.close()
        time.sleep(0.1)
    raise PeerError(f"it did not answer within {STARTING_S:.0f} s ({reason}); its last line: {_last(log)}")


def memory(pid: int) -> float:
    """Megabytes of the process and all below it; what they share counts once (PSS)."""
    total = 0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 1e6


def version(package: str) -> str:
    """Of a package in the peers' environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()[:300]
