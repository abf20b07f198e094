"""A function of one's own in front of a model, in both layouts: words in a request, the model's answers to what they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from build import ROOT
from build.core.inference import Inference
from build.repository import assembly
from build.server import Server, find
from ensemble.chain import answer
from ensemble.client import AsyncClient, Client
from ensemble.errors import InvalidRequestError, ServingError
from ensemble.interface import Interface
from ensemble.lint import lint
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from tests import own, zoo
from tests.own import basket

ANSWERS = ["scores", "next_items", "candidate_scores"]
ALLOWED = 1e-4  # of the largest number that is wanted


@dataclass(frozen=True)
class Built:
    spec: Sequence
    server: Server
    author: Inference

    def wanted(self, given: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the author's inference says of what the function makes, called where it lies."""
        inputs = {"basket": np.array([[given["basket"].encode()]], object)}
        if "skip" in given:
            inputs["skip"] = np.array([given["skip"]], np.int32)
        if "wanted" in given:
            inputs["wanted"] = np.array([[word.encode() for word in given["wanted"]]], object)
        request = basket.prepare(inputs)
        (rows,) = self.author.rows(request)
        found = {}
        for each in self.spec.answers:
            if each.name == "candidate_scores":
                of = np.take_along_axis(rows, request["candidate_ids"], 1) if "candidate_ids" in request else None
            else:
                of = rows
            if of is not None:
                values = answer(each.chain, of, request)
                found.update({tensor.name: value[0] for tensor, value in zip(each.tensors, values, strict=True)})
        return found


@pytest.fixture(scope="module", params=["ensemble", "single"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    # A request waits for others: those that are sent together are one batch.
    spec = own.read(serve__layout=request.param, steps__core__queue_delay_us=5000)
    folder = tmp_path_factory.mktemp(request.param)
    assembly.build(spec, zoo.save(spec, folder / "weights.pt"), folder / "models")
    author = Inference.of(zoo.make(spec), Path("none.onnx"), spec)
    arguments = find().client_shared_memory()
    with Server(folder / "models", arguments=arguments, log=folder / "server.log") as server:
        yield Built(spec, server, author)


def compare(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, values in found.items():
        if name.endswith("_ids"):
            np.testing.assert_array_equal(values[values >= 0], wanted[name][wanted[name] >= 0])
        else:
            expected = wanted[name] if values.shape == wanted[name].shape else wanted[name][: len(values)]
            np.testing.assert_allclose(values, expected, atol=ALLOWED * np.abs(expected).max(), err_msg=name)


GIVEN = [
    {"basket": "tea milk bread", "wanted": ["jam", "salt"]},
    {"basket": "nuts", "wanted": ["tea", "tea"]},
    {"basket": "rice oats eggs figs jam", "skip": 3, "wanted": ["nuts", "oats", "milk"]},
    {"basket": " ".join(basket.WORDS[:6] * 7), "wanted": ["jam"]},
    {"basket": "tea milk", "skip": 1, "wanted": ["salt"]},
]


@pytest.mark.parametrize("shared_memory", [False, True])
def test_the_answers_are_the_authors(built: Built, shared_memory: bool):
    with Client(built.server.grpc_url, spec=built.spec, shared_memory=shared_memory) as client:
        for given, found in zip(GIVEN, client.predict(GIVEN, answers=ANSWERS), strict=True):
            assert list(found) == ["scores", "next_items_ids", "next_items_values", "candidate_scores"]
            compare(found, built.wanted(given))
        for given in GIVEN:
            alone = {name: value for name, value in given.items() if name != "wanted"}
            compare(client.predict(alone, answers="next_items"), built.wanted(alone))
            compare(client.predict(alone), built.wanted(alone))


def test_many_are_asked_in_few_requests(built: Built):
    words = basket.WORDS
    given = [{"basket": " ".join(words[n % 7 : n % 7 + 1 + n % 4])} for n in range(20)]  # a request has eight at most
    with Client(built.server.grpc_url, model="sasrec") as client:
        assert client.interface() == Interface.of(built.spec)
        for each, found in zip(given, client.predict(given, answers="next_items"), strict=True):
            compare(found, built.wanted(each))


async def test_the_other_client_asks_so_too(built: Built):
    async with AsyncClient(built.server.grpc_url, model="sasrec") as client:
        compare(await client.predict(GIVEN[0], answers=ANSWERS), built.wanted(GIVEN[0]))


def sent(given: dict[str, Any]) -> list[grpcclient.InferInput]:
    values = {"basket": np.array([[given["basket"]]], object)}
    if "skip" in given:
        values["skip"] = np.array([[given["skip"]]], np.int32)
    if "wanted" in given:
        values["wanted"] = np.array([given["wanted"]], object)
    inputs = []
    for name, value in values.items():
        kind = "INT32" if name == "skip" else "BYTES"
        inputs.append(grpcclient.InferInput(name, list(value.shape), kind))
        inputs[-1].set_data_from_numpy(value)
    return inputs


def test_any_client_of_tritons_asks_so(built: Built):
    with grpcclient.InferenceServerClient(built.server.grpc_url) as client:
        for given in GIVEN:
            found = client.infer("sasrec", sent(given), client_timeout=30)
            wanted = built.wanted(given)
            for name in ("scores", "next_items_ids", "candidate_scores"):
                np.testing.assert_allclose(
                    found.as_numpy(name)[0], wanted[name], atol=ALLOWED * np.abs(wanted[name]).max()
                )


def test_who_names_no_columns_gets_all_other_answers(built: Built):
    with grpcclient.InferenceServerClient(built.server.grpc_url) as client:
        found = client.infer("sasrec", sent({"basket": "tea jam"}), client_timeout=30)
        assert found.as_numpy("scores").shape == (1, 11)
        assert found.as_numpy("next_items_ids")[0, :8].min() > 0
        np.testing.assert_array_equal(found.as_numpy("candidate_scores"), [[0.0]])


BAD = {
    "what it raises": (
        {"basket": "tea cake"},
        "basket 0 has 'cake', which is none of 10 known words",
        "INVALID_ARGUMENT",
    ),
    "what it makes": (
        {"basket": "tea", "skip": 1},
        "of what basket.py:prepare made of the request, item_ids: history 0 has 0 steps; this model answers from 1 on",
        "INVALID_ARGUMENT",
    ),
    "too much": (
        {"basket": "tea " * 65},
        r"of what basket.py:prepare made of the request, item_ids has shape \[1, 65\]; allowed are at most 64 steps",
        "INVALID_ARGUMENT",
    ),
    "a mistake": ({"basket": "!"}, "failed at this request: KeyError: .a mistake of the function's", "INTERNAL"),
    "what is sent": ({"basket": "tea", "skip": 9}, "skip: history 0 is 9; allowed are 0 to 3", "INVALID_ARGUMENT"),
    "no text at all": ({"basket": ""}, "item_ids: history 0 has 0 steps", "INVALID_ARGUMENT"),
    "no UTF-8": ({"basket": b"\xff"}, "'utf-8' codec can't decode byte 0xff", "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_request_is_told_why_and_its_neighbours_are_answered(built: Built, bad: tuple[dict[str, Any], str, str]):
    given, said, status = bad
    with grpcclient.InferenceServerClient(built.server.grpc_url) as client, ThreadPoolExecutor(8) as pool:

        def ask(each: dict[str, Any]) -> Any:
            try:
                found = client.infer("sasrec", sent(each), client_timeout=30)
            except InferenceServerException as e:
                return e
            return {name: found.as_numpy(name)[0] for name in ("scores", "next_items_ids")}

        *answers, refused = pool.map(ask, [*GIVEN, given])
    assert isinstance(refused, InferenceServerException)
    assert re.search(said, str(refused.message())), refused
    assert refused.status() == f"StatusCode.{status}"
    for each, found in zip(GIVEN, answers, strict=True):
        assert isinstance(found, dict), found
        compare(found, built.wanted(each))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"basket": "tea", "skip": 9}, "skip: user 1 is 9; allowed are 0 to 3"),
        ({"basket": 7}, "basket: history 1 has 7; needed is text"),
        ({"basket": ["tea", "jam"]}, r"basket: history 1 has shape \[2\]; needed is text of shape \[1\]"),
        ({"basket": "tea", "item_ids": [1]}, "'item_ids' is no input of sasrec; it takes basket, skip"),
        ({"skip": 1}, r"basket is missing; this model needs it of each history \(history 1 of the call\)"),
        ({"basket": "tea", "skip": 1.5}, "skip: history 1 is 1.5; allowed are 0 to 3"),
        ({"basket": "tea", "wanted": "jam"}, r"wanted: history 1 has shape \[\]; needed is text of shape \[-1\]"),
    ],
)
def test_the_client_refuses_what_the_function_does_not_take(built: Built, given: dict[str, Any], said: str):
    with Client(built.server.grpc_url, spec=built.spec) as client, pytest.raises(InvalidRequestError) as refused:
        client.predict([{"basket": "tea"}, given])
    assert re.match(said.replace("user", "history"), str(refused.value)), refused.value


def test_the_functions_refusal_reaches_who_asked(built: Built):
    with Client(built.server.grpc_url, spec=built.spec) as client:
        with pytest.raises(InvalidRequestError, match="basket 0 has 'cake', which is none of 10 known words"):
            client.predict({"basket": "cake"})
        with pytest.raises(ServingError, match="KeyError"):
            client.predict({"basket": "!"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("asked.jsonl", '{"history": "ada", "basket": "tea jam", "skip": 1}\n{"history": "ben", "basket": "salt"}\n'),
        ("asked.csv", "history,basket,skip\nada,tea jam,1\nben,salt,\n"),
    ],
    ids=["json", "csv"],
)
def test_a_command_asks_what_stands_in_a_file(built: Built, tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "ensemble", "predict", str(tmp_path / name), "--model", "sasrec"]
    command += ["--url", built.server.grpc_url, "--answers", "next_items"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    ada, ben = json.loads(done.stdout)
    assert (ada["history"], ben["history"]) == ("ada", "ben")
    compare({n: np.array(v) for n, v in ada["answers"].items()}, built.wanted({"basket": "tea jam", "skip": 1}))
    compare({n: np.array(v) for n, v in ben["answers"].items()}, built.wanted({"basket": "salt"}))
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "ada" in shown
    assert "next_items" in shown


def test_refusals_of_the_function_are_counted(built: Built):
    with Client(built.server.grpc_url, spec=built.spec) as client, pytest.raises(InvalidRequestError):
        client.predict({"basket": "cake"})
    pattern = r'^lastrow_refusals_total{.*reason="function".*} ([0-9.e+]+)$'
    for _ in range(30):  # handed over once a second
        with urllib.request.urlopen(built.server.metrics_url) as page:
            found = re.search(pattern, page.read().decode(), re.MULTILINE)
        if found and float(found[1]) > 0:
            return
    pytest.fail("no refusal of the function was counted")


def test_what_is_served_is_warmed_up_and_as_the_linter_wants_it(built: Built):
    folder = built.server.repository
    assert not [found for found in lint(folder) if "max_queue_delay" not in found.key]  # which the tests want
    step = folder / ("sasrec" if built.spec.serve.layout == "single" else "preprocess")
    assert {file.name for file in (step / "1" / "own").iterdir() if file.is_file()} == {"basket.py", "vocabulary.json"}
    assert len(list((step / "warmup").glob("example_*_basket"))) == len(own.EXAMPLES)


README = (ROOT / "ensemble" / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("layout", ["ensemble", "single"])
def test_the_example_that_people_read_is_served(tmp_path: Path, layout: str):
    (tmp_path / "my_steps.py").write_text(block("py"))
    (tmp_path / "vocabulary.json").write_text(block("json"))
    written = block("toml").replace("my_model:make", "tests.zoo.models:GRU4Rec")
    (tmp_path / "spec.toml").write_text(f'{written}\n[serve]\nlayout = "{layout}"\n')
    spec = Spec.read(tmp_path / "spec.toml")
    assert isinstance(spec, Sequence)
    assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models")
    assert not lint(tmp_path / "models")
    author = Inference.of(zoo.make(spec), Path("none.onnx"), spec)
    (asked,) = re.findall(
        r"^echo '(.*)' \| python -m ensemble predict - --model reader$", block("console"), re.MULTILINE
    )
    with Server(tmp_path / "models", log=tmp_path / "server.log") as server:
        command = [sys.executable, "-m", "ensemble", "predict", "-", "--model", "reader", "--json"]
        done = subprocess.run(
            [*command, "--url", server.grpc_url], cwd=ROOT, input=asked, capture_output=True, text=True, check=True
        )
        (found,) = json.loads(done.stdout)
        (rows,) = author.rows({"tokens": np.array([[0, 3, 4, 7, 1]], np.int32)})  # the train ##s was late
        ids, values = answer(spec.answers[0].chain, rows, {})
        assert found["answers"]["next_tokens_ids"] == ids[0].tolist()
        np.testing.assert_allclose(found["answers"]["next_tokens_values"], values[0], atol=1e-5)
        with Client(server.grpc_url, spec=spec) as client:
            with pytest.raises(
                InvalidRequestError, match="text: of 'trainz' the vocabulary has nothing that begins '##z'"
            ):
                client.predict({"text": "the trainz"})
            with pytest.raises(
                InvalidRequestError, match=r"my_steps.py:prepare made of the request, tokens: history 1 has 0"
            ):
                client.predict([{"text": "the"}, {"text": ""}])
