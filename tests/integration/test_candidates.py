"""Knowledge tracing asked about some problems: they alone are computed and sent, and are what all have of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from build.core import parity
from build.core.export import export
from build.core.parity import ParityError
from build.core.reduce.file import load, save
from build.model import checkpoint
from build.model.network import Network
from build.repository import assembly as repository
from build.server import Server, find
from ensemble.client import AsyncClient, Client
from ensemble.errors import InvalidRequestError
from ensemble.interface import Interface
from ensemble.knowledge_tracing import KnowledgeTracing, narrowed
from ensemble.learners.history import History
from ensemble.spec import Spec
from tests.conftest import answer_of, learner, small_document, untrained

PROBLEMS, WINDOW = 40, 32


def described(**tables: object) -> KnowledgeTracing:
    document = small_document()
    document.update({"candidates": {}, **tables})
    return narrowed(Spec.model_validate(document.unwrap()))


@dataclass(frozen=True)
class Built:
    spec: Spec
    model: Network
    server: Server


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    spec, folder = described(), tmp_path_factory.mktemp("candidates")
    model = untrained(spec)
    checkpoint.save(model, folder / "model.pt")
    repository.build(spec, folder / "model.pt", folder / "models")
    with Server(folder / "models", arguments=find().client_shared_memory(), log=folder / "server.log") as server:
        yield Built(spec, model, server)


@pytest.fixture
def client(built: Built) -> Iterator[Client]:
    with Client(built.server.grpc_url, spec=built.spec) as client:
        yield client


def learners(*lengths: int) -> list[History]:
    return [learner(length, problems=PROBLEMS) for length in lengths]


LENGTHS = (20, 0, 1, WINDOW, WINDOW + 9, *range(2, 34))  # two requests of at most 32 learners


@pytest.mark.parametrize("candidates", [[7], [39, 0, 7, 7], list(range(PROBLEMS)), np.array([3, 5], np.int64)])
def test_candidates_have_the_models_probabilities(built, client, candidates):
    for history, answer in zip(
        learners(*LENGTHS), client.predict(learners(*LENGTHS), candidates=candidates), strict=True
    ):
        wanted = answer_of(built.model, history, WINDOW)[list(candidates)]
        np.testing.assert_allclose(answer.candidate_probabilities, wanted, atol=1e-6)
        assert answer.probabilities is None
        assert answer.next_problem_ids is None


def test_who_asks_for_all_gets_all(built, client):
    (history,) = learners(20)
    both = client.predict(history, candidates=[4, 9], probabilities=True, next_problems=True)
    alone = client.predict(history, next_problems=True)
    np.testing.assert_array_equal(both.probabilities, alone.probabilities)
    np.testing.assert_array_equal(both.next_problem_ids, alone.next_problem_ids)
    np.testing.assert_allclose(both.candidate_probabilities, alone.probabilities[[4, 9]], atol=1e-6)
    assert alone.candidate_probabilities is None


def test_each_learner_of_a_request_may_have_other_candidates(built):
    histories = learners(5, 12, 0)
    asked = [[1, 2, 3], [39], [0, 17]]
    given = [
        {"problem_ids": h.problem_ids, "responses": h.responses, "candidate_ids": ids}
        for h, ids in zip(histories, asked, strict=True)
    ]
    with Client(built.server.grpc_url, model="knowledge_tracing") as client:
        assert client.interface() == Interface.of(built.spec)
        answers = client.predict(given, answers="candidates")
    for history, ids, answer in zip(histories, asked, answers, strict=True):
        wanted = answer_of(built.model, history, WINDOW)[ids]
        np.testing.assert_allclose(answer["candidate_probabilities"], wanted, atol=1e-6)


async def test_the_other_clients_answer_alike(built, client):
    (history,) = learners(20)
    wanted = client.predict(history, candidates=[7, 9]).candidate_probabilities
    async with AsyncClient(built.server.grpc_url, spec=built.spec) as other:
        answer = await other.predict(history, candidates=[7, 9])
    with Client(built.server.grpc_url, spec=built.spec, shared_memory=True) as local:
        own = local.predict(history, candidates=[7, 9])
    np.testing.assert_array_equal(answer.candidate_probabilities, wanted)
    np.testing.assert_array_equal(own.candidate_probabilities, wanted)


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ([3, PROBLEMS], r"candidate_ids: learner 0, position 1 is 40; allowed are 0 to 39"),
        ([-1], r"candidate_ids: learner 0, position 0 is -1; allowed are 0 to 39"),
        ([[3]], r"candidate_ids: learner 0 has shape \[1, 1\]; needed is \[-1\]"),
        (["ada"], r"candidate_ids: learner 0, position 0 is 'ada'"),
    ],
)
def test_what_is_no_problem_is_refused_before_it_is_sent(client, candidates, said):
    with pytest.raises(InvalidRequestError, match=said):
        client.predict(learners(5)[0], candidates=candidates)


def test_a_model_without_candidates_says_how_to_have_them(small_spec):
    with (
        Client("127.0.0.1:1", spec=small_spec) as client,
        pytest.raises(InvalidRequestError, match=r"no answer for candidates; write \[candidates\] into its spec"),
    ):
        client.predict(learners(5)[0], candidates=[1])


def test_a_core_of_other_columns_is_seen(built, tmp_path: Path):
    spec, files = described(), {}
    for core in spec.cores:
        files[core.step] = built.server.repository / core.step / "1" / "model.onnx"
    shifted = load(files["core_candidates"])
    asked = next(value for value in shifted.graph.inputs if value.name == "candidate_ids_columns")
    readers = list(asked.uses())
    one = ir.node("Constant", [], {"value": ir.tensor(np.array(1, np.int32))})
    next_one = ir.node("Sub", [asked, one.outputs[0]])
    for reader, number in readers:
        reader.replace_input_with(number, next_one.outputs[0])
    shifted.graph.insert_before(shifted.graph[0], [one, next_one])
    save(shifted, tmp_path / "shifted.onnx")
    full = tmp_path / "full.onnx"
    save(export(built.model, spec).model, full)
    parity.check(built.model, full, files["core"], spec, cores=files)
    with pytest.raises(ParityError, match="ONNX core core_candidates"):
        parity.check(
            built.model, full, files["core"], spec, cores={**files, "core_candidates": tmp_path / "shifted.onnx"}
        )


def test_names_that_are_taken_and_rows_that_postprocess_selects_are_refused():
    with pytest.raises(ValueError, match=r"candidates.ids is 'responses', which a tensor of \[tensors\] is named"):
        described(candidates={"ids": "responses"})
    with pytest.raises(ValueError, match=r'\[candidates\] needs reduce.where = "core"'):
        described(reduce={"where": "postprocess"})
