"""A peer's process: started, waited for, and ended with all that it started."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tritonclient.utils import triton_to_np_dtype

from build import ROOT
from build.bench import question, reply
from build.bench.caller import Caller
from build.bench.peers.caller import GrpcPeer, HttpPeer
from build.bench.peers.peer import Encoding, Peer, PeerError
from build.bench.question import Question
from build.server import free_ports, reaper
from ensemble.errors import ServingError
from ensemble.spec import Spec
from ensemble.tables import Tensor

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SERVERS = Path(__file__).parent / "servers"
STARTING_S, STOPPING_S = 120.0, 20.0


@dataclass(frozen=True)
class Running:
    """A server that answers. started_s: how long it took until then. connect: makes a connection to it."""

    started_s: float
    pid: int
    connect: Callable[[], Caller]


@contextmanager
def serving(peer: Peer, encoding: Encoding, threads: int, core: Path, spec: Spec, folder: Path) -> Iterator[Running]:
    """A peer that answers in one encoding, and whatever it starts: gone at the end.

    threads: of one run of the core; 0: ONNX Runtime's own choice. core: the ONNX file.

    Raises:
        PeerError: it does not serve here.
    """
    (port,) = free_ports(1)
    about = folder / "about.json"
    about.write_text(json.dumps(described(spec, core)), encoding="utf-8")
    command = [str(PYTHON), str(SERVERS / peer.file), "--about", str(about), "--port", str(port)]
    command += ["--threads", str(threads), "--max-batch-size", str(spec.batching.max_batch_size)]
    command += ["--encoding", encoding, *peer.arguments]
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

        def connect() -> Caller:
            if encoding == "gRPC":
                return GrpcPeer(port, spec)
            path = peer.paths[peer.encodings.index(encoding)].format(name=spec.model.name)
            return HttpPeer(port, encoding, path, spec)

        _wait(process, connect, question.drawn(spec, [3])[0], log)
        yield Running(time.perf_counter() - began, process.pid, connect)
    finally:
        reaper.reap(mark, STOPPING_S)
        process.wait()


def described(spec: Spec, core: Path) -> dict[str, Any]:
    """What a peer has to know of a model: its core, its contract, its chain, and what requests and answers are."""
    answer = reply.whole(spec)
    shapes = {**spec.contract.inputs, **spec.contract.contexts}
    steps = {name: [-1] if name in spec.contract.inputs else [] for name in shapes}

    def kind(tensor: Tensor) -> str:
        return np.dtype(triton_to_np_dtype(tensor.dtype)).str

    return {
        "name": spec.model.name,
        "package": str(ROOT / "ensemble"),
        "core": str(core.resolve()),
        "contract": json.loads(spec.contract.dumps()),
        "chain": answer.chain,
        "inputs": [(t.name, kind(t), [*steps[t.name], *shapes[t.name].shape]) for t in spec.requested],
        "types": {tensor.name: kind(tensor) for tensor in spec.windows},
        "output": answer.of.name,
        "answers": [(tensor.name, kind(tensor), spec.dims(tensor)) for tensor in answer.tensors],
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
        except (OSError, http.client.HTTPException, PeerError, ServingError) as e:
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
