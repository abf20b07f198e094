"""The core on a real GPU: the answers, the graphs that replay, and the server. Skipped by name where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from build.bench.ladder import device
from build.bench.ladder.device import as_triton_says
from build.core import parity
from build.core.parity import probabilities
from build.model import checkpoint
from build.model.network import create
from build.repository import assembly as repository
from build.repository.workspace import NETWORKS
from build.server import Server
from build.server.backends.onnxruntime.lastrow_onnxruntime import binding, settings
from ensemble.client import Client
from ensemble.learners.history import windows
from ensemble.spec import Spec
from tests.conftest import answer_of, learner
from tests.unit.test_binding import no_warning

pytestmark = pytest.mark.gpu

WIDTHS, SIZES = (64, 128, 256, 512), (1, 2, 4, 8)
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}


def on_a_gpu(network: str, precision: str, graphs: bool) -> Spec:
    table = Spec.read().model_dump()
    table["network"] = NETWORKS[network]["network"]
    table["model"]["buckets"] = WIDTHS
    table["export"]["precision"] = precision
    table["reduce"]["length_aware"] = not graphs
    table["steps"]["core"] |= {"device": "gpu", "graph_batch_sizes": SIZES if graphs else ()}
    return Spec.model_validate(table)


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_answers_are_those_of_pytorch_in_float64(network, precision, graphs, tmp_path):
    spec = on_a_gpu(network, precision, graphs)
    torch.manual_seed(0)
    model = create(spec).eval()
    checkpoint.save(model, tmp_path / "model.pt")
    core = repository.build(spec, tmp_path / "model.pt", tmp_path / "models").folder / "core" / "1" / "model.onnx"
    configuration = as_triton_says(spec)
    session = settings.open_session(configuration, core, "GPU", 0, graphs)
    binder = binding.capture_all(configuration, session, "cuda", 0, no_warning)
    assert len(binder.captured) == (len(WIDTHS) * len(SIZES) if graphs else 0)
    model.double()
    for lengths in ((0,), (1,), (512,), (3, 0, 64), (512, 1, 200, 64, 65), tuple(range(20))):
        width = next(width for width in WIDTHS if width >= max(lengths))
        ids, responses, counted = parity.windows(lengths, spec, width=width)
        with torch.inference_mode():
            exact = probabilities(model.last(*(torch.from_numpy(x) for x in (ids, responses, counted))).numpy())
        feeds = {"recent_problem_ids": ids, "recent_responses": responses, "lengths": counted}
        for _ in range(2):  # a replay answers as the first run did
            (logits,) = binder.run(feeds, ["logits"])
            assert logits.dtype == np.float32
            assert np.abs(probabilities(logits) - exact).max() < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("network", ["dkt", "transformer"])
def test_a_server_answers_from_graphs(network, precision, tmp_path):
    spec = on_a_gpu(network, precision, graphs=True)
    torch.manual_seed(0)
    model = create(spec).eval()
    checkpoint.save(model, tmp_path / "model.pt")
    built = repository.build(spec, tmp_path / "model.pt", tmp_path / "models")
    log = tmp_path / "server.log"
    with Server(built.folder, log=log) as server, Client(server.grpc_url, spec=spec) as client:
        histories = [learner(length) for length in (0, 1, 64, 65, 512, 600)]
        for history, answer in zip(histories, client.predict(histories), strict=True):
            exact = answer_of(model, history, spec.model.window)
            assert np.abs(answer.probabilities - exact).max() < TOLERANCE[precision]
    assert "no CUDA graph" not in log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("kind", ["eager", "graphs", "last", "last-graphs", "last-half", "onnxruntime"])
@pytest.mark.parametrize("network", ["dkt", "transformer"])
def test_what_the_ladder_times_on_a_gpu_answers_as_the_cpu_does(network, kind, tmp_path):
    spec = on_a_gpu(network, "float32", graphs=True)
    torch.manual_seed(0)
    model = create(spec).eval()
    checkpoint.save(model, tmp_path / "model.pt")
    core = repository.build(spec, tmp_path / "model.pt", tmp_path / "models").folder / "core" / "1" / "model.onnx"
    asked = device.ask(f"gpu-{kind}", spec, tmp_path / "model.pt", core)
    history = learner(100)
    for _ in range(3):
        answer = np.asarray(asked(list(windows([history], [spec.model.window]))), np.float64)[0]
        answer = probabilities(answer) if kind == "onnxruntime" else answer
        tolerance = TOLERANCE["float16" if "half" in kind else "float32"] * 10  # PyTorch's own products may be TF32
        assert np.abs(answer - answer_of(model, history, spec.model.window)).max() < tolerance
        assert 0 < asked.device_ms < 1000
