"""A client that knows a model's name alone, and histories by input name, against a real tritonserver."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from build import ROOT
from ensemble.client import AsyncClient, Client
from ensemble.errors import InvalidRequestError, ServingError
from ensemble.interface import Interface
from tests.conftest import Served, learner

ANSWERS = ["probabilities", "next_problems"]


def mapping(length: int, seed: int = 0) -> dict[str, list[int]]:
    history = learner(length, seed)
    return {"problem_ids": history.problem_ids.tolist(), "responses": history.responses.tolist()}


def test_the_server_tells_what_the_spec_says(served: Served):
    with Client(served.server.grpc_url, model=served.spec.model.name) as named:
        assert named.interface() == Interface.of(served.spec)
        assert named.status().model_ready
    with Client(served.server.grpc_url, model="absent") as absent, pytest.raises(ServingError, match="absent"):
        absent.interface()


@pytest.mark.parametrize("shared_memory", [False, True])
async def test_mappings_answer_as_histories_do(served: Served, client: Client, shared_memory: bool):
    lengths = [0, 3, 700, 1, 512, 20] * 7  # more than one request
    expected = client.predict([learner(n, seed) for seed, n in enumerate(lengths)], next_problems=True)
    given = [mapping(n, seed) for seed, n in enumerate(lengths)]
    url, name = served.server.grpc_url, served.spec.model.name
    with Client(url, model=name, shared_memory=shared_memory) as named:
        several = [named.predict(given, answers=ANSWERS)]
    async with AsyncClient(url, model=name) as asynchronous:
        several.append(await asynchronous.predict(given, answers=ANSWERS))
        (alone,) = await asynchronous.predict([given[4]])
    for answers in several:
        for answer, learners in zip(answers, expected, strict=True):
            np.testing.assert_allclose(answer["probabilities"], learners.probabilities, atol=1e-6)
            np.testing.assert_allclose(
                answer["next_problem_probabilities"], learners.next_problem_probabilities, atol=1e-6
            )
            assert answer["next_problem_ids"].shape == learners.next_problem_ids.shape
    assert list(alone) == ["probabilities"]
    np.testing.assert_allclose(alone["probabilities"], expected[4].probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "responses"),
    [
        ([3, 14041], [1, 0]),
        ([3, -2], [1, 0]),
        ([3, 4], [1, 2]),
        ([-1, 4], [-1, 1]),
        ([3, 4], [1]),
        ([3] * 100_001, [1] * 100_001),
    ],
)
def test_a_refusal_is_the_servers_word(served: Served, ids: list[int], responses: list[int]):
    with Client(served.server.grpc_url, spec=served.spec) as client:
        with pytest.raises(InvalidRequestError) as own:
            client.predict({"problem_ids": ids, "responses": responses})
        arrays = {"problem_ids": np.array([ids], np.int32), "responses": np.array([responses], np.int32)}
        request = client._request(client.interface(), 0, arrays, ["probabilities"], carried=True)
        with grpc.insecure_channel(served.server.grpc_url, client._limits) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as theirs:
                stub.ModelInfer(request.message)
    assert str(own.value) in theirs.value.details()


def test_the_command_line_needs_no_spec(served: Served, tmp_path: Path):
    path = tmp_path / "histories.jsonl"
    path.write_text("".join(json.dumps({"learner": name, **mapping(5)}) + "\n" for name in ("ada", "ben")))
    command = [sys.executable, "-m", "ensemble", "predict", str(path), "--url", served.server.grpc_url]
    command += ["--model", served.spec.model.name, "--answers", "next_problems", "--top", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    ada, ben = json.loads(done.stdout)
    assert (ada["learner"], ben["learner"], len(ada["answers"]["next_problem_ids"])) == ("ada", "ben", 2)
    assert ada["answers"] == ben["answers"]
