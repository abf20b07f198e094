"""What answers on a GPU without a server: PyTorch in its forms, and the core as the embedded backend runs it.

Device time is what lies between two CUDA events on the stream that computes: without copies to and from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.json_format import MessageToDict

from build.repository import config
from build.server.backends.onnxruntime.lastrow_onnxruntime import binding, settings
from build.server.backends.onnxruntime.lastrow_onnxruntime.errors import ConfigError
from ensemble.contract import narrowest
from ensemble.errors import LastrowError
from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.spec import Spec
from ensemble.tables import CORE

PREFIX = "gpu-"  # of the kinds below, as rungs name them
ENGINE = "onnxruntime"
Array = np.ndarray


class DeviceError(LastrowError):
    """Something cannot be run on a GPU; becomes the reason for which its rung is skipped."""


class Asked:
    """A model on the GPU: called with windows, FP32 [learners, problems] come back; device_ms is the last call's."""

    def __init__(self, run: Callable[[list[Array]], Callable[[], Array]], stream: torch.cuda.Stream) -> None:
        """run: takes windows, starts the computation on `stream`, and returns what brings the answer to the host."""
        self._run = run
        self._stream = stream
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.device_ms = 0.0

    def __call__(self, windows: list[Array]) -> Array:
        with torch.cuda.stream(self._stream):
            self._events[0].record()
            fetch = self._run(windows)
            self._events[1].record()
            answer = fetch()
        self._events[1].synchronize()
        self.device_ms = self._events[0].elapsed_time(self._events[1])
        return answer


def ask(kind: str, spec: KnowledgeTracing, checkpoint: Path, core: Path) -> Asked:
    """What a rung's kind names: "gpu-onnxruntime", or "gpu-" and words of eager, compile, graphs, last, half.

    Raises:
        DeviceError: there is no GPU, or the model has not what the kind asks for.
    """
    if not torch.cuda.is_available():
        raise DeviceError("no GPU on this machine")
    stream = torch.cuda.Stream()
    words = kind.removeprefix(PREFIX).split("-")
    return Asked(_core(spec, core, stream) if ENGINE in words else _torch(words, spec, checkpoint, stream), stream)


def _torch(
    words: list[str], spec: KnowledgeTracing, checkpoint: Path, stream: torch.cuda.Stream
) -> Callable[[list[Array]], Callable[[], Array]]:
    from build.model import checkpoint as checkpoints
    from build.model.network import Network

    torch.set_grad_enabled(False)
    model = checkpoints.load(checkpoint, spec).eval().cuda()
    if "half" in words:
        model = model.half()
    if "last" in words and not isinstance(model, Network):
        raise DeviceError("a module of one's own says nothing of its head")
    last = getattr(model, "last", None) if "last" in words else None
    own = isinstance(model, Network)
    forward: Callable[..., Any] = torch.compile(model) if "compile" in words else model

    def answer(ids: torch.Tensor, responses: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if last is not None:
            return last(ids, responses, lengths).sigmoid().float()
        every = (forward(ids, responses) if own else forward(ids.long(), responses.long())).sigmoid()
        row = (lengths.long() - 1).clamp(min=0)[:, None, None].expand(-1, 1, every.shape[-1])
        return every.gather(1, row)[:, 0].float()

    def run(windows: list[Array]) -> Callable[[], Array]:
        given = [torch.from_numpy(x).cuda(non_blocking=True) for x in windows]
        computed = answer(*given)
        return lambda: computed.cpu().numpy()

    graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    def replay(windows: list[Array]) -> Callable[[], Array]:
        shape = windows[0].shape
        if shape not in graphs:
            held = [torch.from_numpy(x).cuda() for x in windows]
            for _ in range(3):  # libraries allocate their workspaces, which a capture may not
                answer(*held)
            graph = torch.cuda.CUDAGraph()
            stream.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                computed = answer(*held)
            graphs[shape] = graph, held, computed
        graph, held, computed = graphs[shape]
        for buffer, value in zip(held, windows, strict=True):
            buffer.copy_(torch.from_numpy(value), non_blocking=True)
        graph.replay()
        return lambda: computed.cpu().numpy()

    return replay if "graphs" in words else run


def _core(
    spec: KnowledgeTracing, core: Path, stream: torch.cuda.Stream
) -> Callable[[list[Array]], Callable[[], Array]]:
    """The core through the embedded backend's own session and buffers; its narrowest width, as the first step chooses it."""
    configuration = as_triton_says(spec)
    (cuda,) = (
        accelerator
        for accelerator in configuration["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
        if accelerator["name"] == "cuda"
    )
    cuda["parameters"]["user_compute_stream"] = str(stream.cuda_stream)
    sizes = bool(spec.steps.core.graph_batch_sizes)
    refused: list[str] = []
    try:
        session = settings.open_session(configuration, core, "GPU", torch.cuda.current_device(), sizes)
        binder = binding.capture_all(configuration, session, "cuda", torch.cuda.current_device(), refused.append)
    except ConfigError as e:
        raise DeviceError(str(e)) from e
    if refused:
        raise DeviceError(refused[0])
    tensors = (spec.tensors.recent_problem_ids, spec.tensors.recent_responses, spec.tensors.lengths)
    wanted = [spec.core_output.name]

    def run(windows: list[Array]) -> Callable[[], Array]:
        ids, responses, lengths = windows
        width = narrowest(spec.model.widths, lengths.max())
        named = zip(tensors, (ids[:, :width], responses[:, :width], lengths), strict=True)
        feeds = {tensor.name: value for tensor, value in named}
        if not spec.steps.core.io_binding:
            (logits,) = session.run(wanted, feeds, binding.run_options(None))
            return lambda: logits
        bound = binder.bound(feeds)
        bound.compute(feeds)
        return lambda: bound.fetch(len(lengths), wanted)[0]

    return run


def as_triton_says(spec: Spec) -> dict[str, Any]:
    """The core's configuration in the form in which Triton hands it to a Python-based backend."""
    return MessageToDict(config.repository(spec)[CORE], preserving_proto_field_name=True)
