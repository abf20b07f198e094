"""All steps in one model: it answers, refuses and counts as the ensemble does."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from build.core.inference import Inference
from build.core.reduce.file import load, save
from build.model import checkpoint
from build.repository import assembly as repository
from build.repository import workspace
from build.server import Server, find, free_ports
from build.server.errors import ServerError
from build.server.supervisor import DRAIN_S
from ensemble.chain import answer
from ensemble.client import Client
from ensemble.errors import ServingError
from ensemble.interface import Interface
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.lint import lint
from ensemble.sample import draw
from ensemble.spec import Spec
from tests import zoo
from tests.conftest import learner, small_document, untrained

PROBLEMS, WINDOW = 40, 32


def described(layout: str) -> KnowledgeTracing:
    document = small_document()
    document["model"]["buckets"] = [8, WINDOW]
    document.update({"candidates": {}, "serve": {"layout": layout}})
    return narrowed(Spec.model_validate(document.unwrap()))


@dataclass(frozen=True)
class Built:
    spec: Spec
    server: Server


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Built, Built]]:
    folder = tmp_path_factory.mktemp("layouts")
    ensemble, single = described("ensemble"), described("single")
    checkpoint.save(untrained(ensemble), folder / "model.pt")
    for spec in (ensemble, single):
        repository.build(spec, folder / "model.pt", folder / spec.serve.layout)
    arguments = find().client_shared_memory()
    with (
        Server(folder / "ensemble", arguments=arguments, log=folder / "ensemble.log") as first,
        Server(folder / "single", arguments=arguments, log=folder / "single.log") as second,
    ):
        yield Built(ensemble, first), Built(single, second)


def test_one_model_is_all_that_the_repository_has(both):
    folder = both[1].server.repository
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["knowledge_tracing"]
    assert not lint(folder)


def test_clients_see_no_difference(both):
    ensemble, single = both
    assert Interface.of(ensemble.spec) == Interface.of(single.spec)
    with Client(single.server.grpc_url, model="knowledge_tracing") as client:
        assert client.interface() == Interface.of(ensemble.spec)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_it_answers_as_the_ensemble_does(both, shared_memory):
    histories = [learner(n, problems=PROBLEMS) for n in (20, 0, 1, 8, 9, WINDOW, WINDOW + 9, 3, 100)]
    asked = {"probabilities": True, "next_problems": True, "candidates": [7, 39, 0]}
    answers = []
    for built in both:
        with Client(built.server.grpc_url, spec=built.spec, shared_memory=shared_memory) as client:
            answers.append([client.predict(histories, **asked), [client.predict(each, **asked) for each in histories]])
    for ensemble, single in zip(*answers, strict=True):
        for wanted, got in zip(ensemble, single, strict=True):
            for name in ("probabilities", "next_problem_ids", "next_problem_probabilities", "candidate_probabilities"):
                np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=1e-6, err_msg=name)


def test_only_what_is_asked_for_is_sent(both):
    with grpcclient.InferenceServerClient(both[1].server.grpc_url) as client:
        inputs = made(problem_ids=np.array([[1, 2]], np.int32), responses=np.array([[1, 0]], np.int32))
        found = client.infer("knowledge_tracing", inputs, outputs=[grpcclient.InferRequestedOutput("next_problem_ids")])
        assert [output.name for output in found.get_response().outputs] == ["next_problem_ids"]


def made(**values: np.ndarray) -> list[grpcclient.InferInput]:
    inputs = []
    for name, value in values.items():
        inputs.append(grpcclient.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
    return inputs


def ids(*rows: list[int], dtype: type = np.int32) -> np.ndarray:
    return np.array(rows, dtype)


BAD = {
    "an id above": {"problem_ids": ids([1, PROBLEMS]), "responses": ids([1, 0])},
    "an id below": {"problem_ids": ids([1, -2]), "responses": ids([1, 0])},
    "a response": {"problem_ids": ids([1, 3]), "responses": ids([1, 2])},
    "a hole": {"problem_ids": ids([1, -1, 3]), "responses": ids([1, -1, 0])},
    "padding that differs": {"problem_ids": ids([1, 2]), "responses": ids([1, -1])},
    "other lengths": {"problem_ids": ids([1, 2]), "responses": ids([1])},
    "other batches": {"problem_ids": ids([1], [2]), "responses": ids([1])},
    "a candidate": {"problem_ids": ids([1]), "responses": ids([1]), "candidate_ids": ids([3, PROBLEMS])},
    "no history": {"problem_ids": np.zeros((0, 2), np.int32), "responses": np.zeros((0, 2), np.int32)},
    "one input": {"problem_ids": ids([1])},
    "another type": {"problem_ids": ids([1], dtype=np.int64), "responses": ids([1])},
    "another shape": {"problem_ids": np.zeros((1, 2, 2), np.int32), "responses": ids([1])},
    "another input": {"problem_ids": ids([1]), "responses": ids([1]), "item_ids": ids([1])},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_it_refuses_as_the_ensemble_does(both, values):
    said = []
    for built in both:
        with (
            grpcclient.InferenceServerClient(built.server.grpc_url) as client,
            pytest.raises(InferenceServerException) as refused,
        ):
            client.infer("knowledge_tracing", made(**values), client_timeout=20)
        # Triton numbers requests, and says which step of an ensemble an error is of.
        message = re.sub(r"in ensemble '\w+', |\[request id: [^\]]*\] ", "", str(refused.value.message()))
        said.append((refused.value.status(), message.replace("'preprocess'", "'knowledge_tracing'")))
    assert said[0] == said[1]


@pytest.mark.parametrize("layout", [0, 1])
def test_who_names_no_answer_gets_all_there_are(both, layout):
    """As a client that knows nothing of the spec does; candidates that it does not name are answered as padding is."""
    with grpcclient.InferenceServerClient(both[layout].server.grpc_url) as client:
        inputs = made(problem_ids=ids([1, 2], [3, -1]), responses=ids([1, 0], [0, -1]))
        found = client.infer("knowledge_tracing", inputs, client_timeout=20)
        assert found.as_numpy("probabilities").shape == (2, PROBLEMS)
        assert found.as_numpy("next_problem_ids").shape == (2, 10)
        np.testing.assert_array_equal(found.as_numpy("candidate_probabilities"), np.zeros((2, 1)))


def test_neighbours_of_a_bad_request_answer_as_alone(both):
    single = both[1]
    histories = [learner(n, problems=PROBLEMS) for n in (3, 20, 9, 0, 31, 7, 100, 12)]
    with Client(single.server.grpc_url, spec=single.spec) as client:
        alone = [client.predict(each).probabilities for each in histories]

        def ask(number: int) -> np.ndarray | Exception:
            if number % 3 == 2:
                with grpcclient.InferenceServerClient(single.server.grpc_url) as other:
                    try:
                        other.infer("knowledge_tracing", made(**BAD["an id above"]))
                    except InferenceServerException as e:
                        return e
            return client.predict(histories[number % len(histories)]).probabilities

        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(ask, range(240)))
    for number, got in enumerate(found):
        if number % 3 == 2:
            assert "allowed are 0 to 39" in str(got)
        else:
            np.testing.assert_allclose(got, alone[number % len(histories)], atol=1e-6)


def test_told_to_stop_it_finishes_what_is_under_way(both, tmp_path: Path):
    spec, (http, grpc, metrics) = both[1].spec, free_ports(3)
    program = f"""
import sys
from pathlib import Path
from build.server.supervisor import Ports, Supervisor
ports = Ports({http}, {grpc}, {metrics})
sys.exit(Supervisor(Path({str(both[1].server.repository)!r}), "knowledge_tracing", ports).run())
"""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
    stopped, outcomes = threading.Event(), []

    def ask() -> None:
        with Client(f"127.0.0.1:{grpc}", spec=spec, retries=0) as client:
            while not stopped.is_set():
                begun = time.monotonic()
                try:
                    client.predict(learner(WINDOW, problems=PROBLEMS))
                    outcomes.append((begun, time.monotonic(), None))
                except ServingError as e:
                    outcomes.append((begun, time.monotonic(), str(e)))

    try:
        with Client(f"127.0.0.1:{grpc}", spec=spec) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    if client.status().model_ready:
                        break
                except ServingError:
                    assert time.monotonic() < deadline
                time.sleep(0.1)
        with ThreadPoolExecutor(16) as pool:
            for _ in range(16):
                pool.submit(ask)
            time.sleep(1.0)
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
            stopped.set()
    finally:
        process.kill()
    assert code == 0, (tmp_path / "log").read_text()
    assert time.monotonic() - told < DRAIN_S
    assert all(said is None for _, ended, said in outcomes if ended < told)
    under_way = [said for begun, ended, said in outcomes if begun < told < ended]
    assert all(said is None or "the server is stopping" in said for said in under_way)
    assert any("the server is stopping" in str(said) for _, _, said in outcomes)


def test_it_counts_as_the_first_step_does(both):
    text = urllib.request.urlopen(both[1].server.metrics_url).read().decode()
    for name in ("lastrow_learners_total", "lastrow_refusals_total", "lastrow_history_length_bucket"):
        assert re.search(rf'^{name}{{.*model="knowledge_tracing".*}} |^{name}', text, re.MULTILINE), name


def test_a_damaged_core_is_not_served(tmp_path: Path):
    spec = described("single")
    checkpoint.save(untrained(spec), tmp_path / "model.pt")
    built = repository.build(spec, tmp_path / "model.pt", tmp_path / "models")
    core = repository.core_file(spec, built.folder)
    with Server(built.folder, log=tmp_path / "server.log") as server, Client(server.grpc_url, spec=spec) as client:
        client.predict(learner(5, problems=PROBLEMS))
    model = load(core)
    for weights in model.graph.initializers.values():
        if weights.dtype == ir.DataType.FLOAT:
            weights.const_value = ir.tensor(np.full_like(weights.const_value.numpy(), np.nan), name=weights.name)
    save(model, core)
    # What Triton warms it up with is answered by no number; where that fails, Triton 2.51 ends, or crashes.
    with pytest.raises(ServerError), Server(built.folder, log=tmp_path / "server.log"):
        pass


@pytest.mark.parametrize("name", ["sasrec", "deepar", "tagger", "bert_every_row"])
def test_any_sequence_model_is_served_so(name, tmp_path: Path):
    spec = zoo.read(name, serve__layout="single")
    zoo.save(spec, tmp_path / "model.pt")
    repository.build(spec, tmp_path / "model.pt", tmp_path / "models")
    assert not lint(tmp_path / "models")
    author = Inference.of(zoo.make(spec), Path("none.onnx"), spec)
    with (
        Server(tmp_path / "models", log=tmp_path / "server.log") as server,
        Client(server.grpc_url, spec=spec) as client,
    ):
        for seed, length in enumerate((max(spec.shortest_history, 1), 5, spec.model.window)):
            request = draw(spec.contract, (length,), seed)
            given = {name: values[0] for name, values in request.items()}
            rows = author.rows(request)
            for number, each in enumerate(spec.answers):
                if any(core.columns for core in spec.cores if each.of in core.outputs):
                    continue
                of = spec.cores[0].outputs.index(each.of)
                wanted = answer(each.chain, rows[of] if rows[of].ndim > 1 else rows[of][:, None], request)[-1][0]
                got = client.predict(given, answers=each.name)[each.tensors[-1].name]
                scale = max(float(np.abs(wanted).max()), 1e-6)
                np.testing.assert_allclose(got, wanted[: len(got)], atol=1e-4 * scale, err_msg=f"{number} {each.name}")


def test_another_layout_in_the_same_place_leaves_nothing_of_the_first(tmp_path: Path):
    checkpoint.save(untrained(described("single")), tmp_path / "model.pt")
    for layout, models in (("single", 1), ("ensemble", 7), ("single", 1)):
        repository.build(described(layout), tmp_path / "model.pt", tmp_path / "models")
        found = sorted(path.name for path in (tmp_path / "models").iterdir() if path.is_dir())
        assert len(found) == models, found
        assert len(list((tmp_path / "models").rglob("*.onnx"))) == 2


def test_the_layout_of_a_command_is_that_of_its_spec(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(workspace, "ARTIFACTS", tmp_path)
    opened = workspace.open_workspace(layout="single")
    assert opened.spec.serve.layout == "single"
    assert opened.out != workspace.open_workspace().out
    with pytest.raises(Exception, match="there is no layout 'double'; there are ensemble and single"):
        workspace.open_workspace(layout="double")
