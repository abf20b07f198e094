"""A model of the next item, served by a real tritonserver to clients that know its name alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from build.core.inference import Inference
from build.model import checkpoint, preset
from build.repository import assembly as repository
from build.server import Server, find
from ensemble.client import AsyncClient, Client
from ensemble.errors import InvalidRequestError
from ensemble.interface import Interface
from ensemble.sequence import Sequence
from ensemble.spec import DEFAULT_SPEC, Spec

ITEMS, WINDOW = 60, 12


def small() -> Sequence:
    table = Spec.read(DEFAULT_SPEC.with_name("sasrec.toml")).model_dump(by_alias=True, exclude_unset=True)
    table["model"].update(window=WINDOW, buckets=[6, WINDOW])
    table["sizes"].update(items=ITEMS, columns=ITEMS + 1)
    table["network"].update(embedding=8)
    table["batching"].update(max_batch_size=4, longest_history=50)
    spec = Spec.model_validate(table)
    assert isinstance(spec, Sequence)
    return spec


@dataclass(frozen=True)
class Built:
    author: Inference  # the model by itself, as its author asks it
    url: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    torch.manual_seed(5)
    spec, folder = small(), tmp_path_factory.mktemp("sasrec")
    model = preset.of(spec).create().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.5)
    checkpoint.save(model, folder / "model.pt")
    repository.build(spec, folder / "model.pt", folder / "models")
    loaded = checkpoint.load(folder / "model.pt", spec)
    log = folder / "server.log"
    with Server(folder / "models", arguments=find().client_shared_memory(), log=log) as server:
        yield Built(Inference.of(loaded, folder / "model.pt", spec), server.grpc_url)


def users(*lengths: int, candidates: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    given: list[dict[str, Any]] = [{"item_ids": rng.integers(1, ITEMS + 1, length)} for length in lengths]
    for number, each in enumerate(given if candidates else []):
        each["candidate_ids"] = rng.permutation(np.arange(1, ITEMS + 1))[: 1 + number % 5].tolist()
    return given


def test_the_answers_are_the_models(built: Built):
    given = users(1, 5, 12, 30, 3, 6, candidates=True)  # two requests, of two widths of the window
    wanted = ["scores", "next_items", "candidate_scores"]
    with Client(built.url, model="sasrec") as client:
        assert client.interface() == Interface.of(built.author.spec)
        answers = client.predict(given, answers=wanted)
        only = [client.predict(one, answers="next_items") for one in given]
    with Client(built.url, model="sasrec", shared_memory=True) as client:
        local = client.predict(given, answers=wanted)
    for one, answer, mine, alone in zip(given, answers, local, only, strict=True):
        (row,) = built.author.rows({"item_ids": one["item_ids"][None].astype(np.int32)})
        row = row[0]
        np.testing.assert_allclose(answer["scores"], row, rtol=1e-4, atol=1e-4 * np.abs(row).max())
        np.testing.assert_allclose(
            answer["candidate_scores"], row[one["candidate_ids"]], rtol=1e-4, atol=1e-4 * np.abs(row).max()
        )
        unseen = row.copy()
        unseen[[0, *one["item_ids"]]] = -np.inf
        assert answer["next_item_ids"].tolist() == np.argsort(-unseen)[:10].tolist() == alone["next_item_ids"].tolist()
        for name, values in answer.items():
            np.testing.assert_allclose(mine[name], values, atol=1e-5)


def test_who_has_no_candidates_is_asked_apart(built: Built):
    plain, about = users(4, 9), users(4, 9, candidates=True)
    mixed = [plain[0], about[0], plain[1], about[1]]
    with Client(built.url, model="sasrec") as client:
        answers = client.predict(mixed, answers="scores")
        alone = [client.predict(one, answers="scores") for one in mixed]
        with pytest.raises(InvalidRequestError, match="candidate_scores is about candidate_ids, which user 0 has not"):
            client.predict(mixed, answers="candidate_scores")
    for answer, single in zip(answers, alone, strict=True):
        np.testing.assert_allclose(answer["scores"], single["scores"], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"item_ids": [5, 61]}, "item_ids: user 0, position 1 is 61; allowed are 1 to 60"),
        ({"item_ids": [5, 0]}, "item_ids: user 0, position 1 is 0; allowed are 1 to 60"),
        ({"item_ids": []}, "item_ids: user 0 has 0 items; this model answers from 1 on"),
        ({"item_ids": [5] * 51}, "item_ids has shape [1, 51]; allowed are at most 50 items a user"),
        ({"item_ids": [5], "candidate_ids": [0]}, "candidate_ids: user 0, position 0 is 0; allowed are 1 to 60"),
    ],
)
async def test_a_refusal_is_the_servers_word(built: Built, given: dict[str, list[int]], message: str):
    with Client(built.url, model="sasrec") as client:
        with pytest.raises(InvalidRequestError) as own:
            client.predict(given)
        arrays = {name: np.array([values], np.int32).reshape(1, -1) for name, values in given.items()}
        if not arrays["item_ids"].size:
            arrays["item_ids"] = np.array([[-1]], np.int32)  # as the client pads it
        request = client._request(client.interface(), 0, arrays, ["scores"], carried=True)
        with pytest.raises(grpc.RpcError) as theirs:
            client._stub.ModelInfer(request.message)
    async with AsyncClient(built.url, model="sasrec") as asynchronous:
        with pytest.raises(InvalidRequestError) as awaited:
            await asynchronous.predict(given)
    assert str(own.value).startswith(message)
    assert str(awaited.value) == str(own.value)
    assert str(own.value) in theirs.value.details()
