"""A function of one's own: what a spec may say of it, what the build finds out about it, and what is copied."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build.repository import assembly, config, fingerprint, rehearsal
from build.repository.rehearsal import RehearsalError
from ensemble import function
from ensemble.contract import RefusedError
from ensemble.errors import SpecError
from ensemble.function import Function, FunctionError, Part
from ensemble.interface import Interface
from ensemble.spec import DEFAULT_SPEC, Spec
from tests import own, zoo

NUMBERS = {"counts": {"dtype": "INT32", "shape": [-1], "values": [0, 9]}}
DOUBLED = """
import numpy as np
def prepare(inputs):
    counts = inputs["counts"]
    return {"item_ids": np.where(counts >= 0, counts + 1, -1).astype(np.int32)}
"""


def given(folder: Path, text: str, **keys: Any) -> Any:
    """The spec of a function that this text is, of numbers that are drawn."""
    (folder / "steps.py").write_text(text)
    table = {"function": f"{folder / 'steps.py'}:prepare", **keys.pop("preprocess", {})}
    return zoo.read("sasrec", preprocess=table, request=keys.pop("request", NUMBERS), **keys)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(function).failed == 0
    assert doctest.testmod(function).attempted > 0


def test_numbers_are_drawn_and_the_function_is_asked_for_them(tmp_path):
    made = rehearsal.rehearse(given(tmp_path, DOUBLED))
    assert len(made) == rehearsal.DRAWN
    assert {request["item_ids"].shape[1] for request in made} == {1, 2, 3, 4, 5}


def test_examples_are_what_is_asked():
    made = rehearsal.rehearse(own.read())
    assert [request["item_ids"].tolist() for request in made] == [[[1, 2, 3]], [[4]], [[1] * 38], [[2, 5]], [[2]]]
    assert made[3]["candidate_ids"].tolist() == [[1, 6]]


NUMPY = "import numpy as np\n"
WRONG = {
    "no file": (None, r"preprocess.function: cannot read .*steps.py: No such file"),
    "no Python": ("def prepare(:", "steps.py cannot be imported: SyntaxError: invalid syntax"),
    "no function": ("def other(inputs): pass", "steps.py has no function prepare; it has other"),
    "no callable": ("prepare = 3", "steps.py has no function prepare; it has none"),
    "fails at import": ("1 / 0", "steps.py cannot be imported: ZeroDivisionError: division by zero"),
    "another package": (
        "def prepare(inputs):\n    import torch\n",
        "steps.py imports torch, which the step that runs it has not; allowed are numpy, Python's standard library",
    ),
    "a package's module": ("from scipy.special import expit", "steps.py imports scipy.special, which the step"),
    "a neighbour that is left out": ("from . import words", r"steps.py imports from .words, which the step"),
    "a neighbour by its bare name": ("import words", "steps.py imports words, which the step"),
    "nothing": (
        "def prepare(inputs): pass",
        r"at example 0 steps.py:prepare returned NoneType for a batch of 1; it has to return a dict of arrays: "
        r"item_ids INT32 \[batch, any\], candidate_ids INT32 \[batch, any\] \(optional\)",
    ),
    "another name": (
        NUMPY + "def prepare(inputs): return {'items': np.ones((1, 3), np.int32)}",
        r"returned items INT32 \[1, 3\] for a batch of 1; it has to return .* item_ids INT32 \[batch, any\]",
    ),
    "another type": (
        NUMPY + "def prepare(inputs): return {'item_ids': np.ones((len(inputs['counts']), 3), np.int64)}",
        r"returned item_ids INT64 \[1, 3\] for a batch of 1",
    ),
    "another shape": (
        NUMPY + "def prepare(inputs): return {'item_ids': np.ones(3, np.int32)}",
        r"returned item_ids INT32 \[3\] for a batch of 1",
    ),
    "a list": ("def prepare(inputs): return {'item_ids': [[1]]}", "returned item_ids as list for a batch of 1"),
    "what the contract refuses": (
        NUMPY + "def prepare(inputs): return {'item_ids': np.full((len(inputs['counts']), 2), 11, np.int32)}",
        "steps.py:prepare at example 0: item_ids: history 0, position 0 is 11; allowed are 1 to 10",
    ),
    "what it refuses itself": (
        "def prepare(inputs): raise ValueError('not today')",
        "steps.py:prepare at example 0: not today",
    ),
    "a mistake": (
        "def prepare(inputs): return {'item_ids': inputs['count']}",
        "steps.py:prepare failed at example 0: KeyError: 'count'; what it opens has to stand in preprocess.files",
    ),
    "a file that is left out": (
        "from pathlib import Path\ndef prepare(inputs): open(Path(__file__).with_name('words.txt'))",
        "steps.py:prepare failed at example 0: FileNotFoundError: .*words.txt.*has to stand in preprocess.files",
    ),
    "chance": (
        NUMPY + "def prepare(inputs): return {'item_ids': np.random.default_rng().integers(1, 11, (1, 50), np.int32)}",
        "answers example 0 otherwise as the copy that is served than where it lies",
    ),
    "where it is": (
        NUMPY + "from pathlib import Path\nHERE = Path(__file__).with_name('words.txt').exists()\n"
        "def prepare(inputs): return {'item_ids': np.full((1, 1), 1 + HERE, np.int32)}",
        "answers example 0 otherwise as the copy",
    ),
    "its neighbours": (
        NUMPY + "def prepare(inputs):\n    c = inputs['counts']\n    return {'item_ids': c * 0 + len(c)}",
        "answers example 0 otherwise alone than in one request with examples 5; each history's share",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_served_is_told_at_build(tmp_path, text, said):
    spec = given(tmp_path, text or "")
    for name in ("words.txt", "words.py"):
        (tmp_path / name).write_text("")
    if text is None:
        (tmp_path / "steps.py").unlink()
    with pytest.raises(RehearsalError, match=said):
        assembly.build(spec, tmp_path / "none.pt", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_lies_beside_is_copied_as_it_lies_and_imported(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "start.txt").write_text("2")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "start.py").write_text("from pathlib import Path\nfrom . import deep\nSTART = deep.START\n")
    (tmp_path / "more" / "deep.py").write_text(
        "from pathlib import Path\nSTART = int((Path(__file__).parents[1] / 'data' / 'start.txt').read_text())\n"
    )
    text = "from .more.start import START\n" + DOUBLED.replace("counts + 1", "counts % 9 + START")
    files = ["data/start.txt", "more/start.py", "more/deep.py"]
    spec = given(tmp_path, text, preprocess={"files": files})
    assert min(request["item_ids"].min() for request in rehearsal.rehearse(spec)) >= 2
    copied = {name for name in assembly.derived(spec) if "/own/" in name}
    assert copied == {f"preprocess/1/own/{name}" for name in ["steps.py", *files]}


def test_another_function_is_another_build(tmp_path):
    shutil.copytree(own.FOLDER, tmp_path / "own")
    spec, out = own.read(tmp_path / "own"), tmp_path / "models"
    weights = zoo.save(spec, tmp_path / "weights.pt")
    assert assembly.build(spec, weights, out).changed
    assert assembly.build(spec, weights, out).changed == ()
    with (tmp_path / "own" / "basket.py").open("a") as file:
        file.write("# A word more.\n")
    assert assembly.build(spec, weights, out).changed == ("preprocess/1/own/basket.py",)  # no core: it makes the same
    assembly.build(own.plain(), weights, out)
    assert not (out / "preprocess" / "1" / "own").exists()
    assert not list((out / "preprocess" / "warmup").glob("example_*"))


def test_examples_are_part_of_what_a_core_is_proven_on(tmp_path):
    weights = zoo.save(own.plain(), tmp_path / "weights.pt")
    made = rehearsal.rehearse(own.read())
    assert fingerprint.of(own.read(), weights, made) != fingerprint.of(own.read(), weights, made[:-1])


def test_a_core_that_is_wrong_for_an_example_alone_is_not_built(tmp_path, monkeypatch):
    from build.core import inference

    spec = own.read()
    rows = inference.Inference.rows

    def wrong(self: Any, request: Any) -> Any:
        found = rows(self, request)
        return [each + 1 for each in found] if request["item_ids"].tolist() == [[1, 2, 3]] else found

    monkeypatch.setattr(inference.Inference, "rows", wrong)
    with pytest.raises(inference.ParityError, match=r"parts from PyTorch by .* at lengths \[3\]"):
        assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models")


def test_a_spec_finds_the_function_beside_itself(tmp_path, monkeypatch):
    shutil.copytree(own.FOLDER, tmp_path / "own")
    table = tomlkit.parse((zoo.SPECS / "sasrec.toml").read_text())
    table["preprocess"] = {"function": "own/basket.py:prepare", "files": ["vocabulary.json"], "example": own.EXAMPLES}
    table["request"] = own.REQUEST
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(table))
    monkeypatch.chdir("/")
    spec = Spec.read(tmp_path / "spec.toml")
    assert len(rehearsal.rehearse(spec)) == len(own.EXAMPLES)
    assert str(spec.function) == "basket.py:prepare"
    assert str(tmp_path).encode() not in b"".join(assembly.derived(spec).values())


TEXT = {"text": {"dtype": "BYTES"}}
SPECS = {
    "no request": ({"request": {}}, r"\[preprocess\] function .* and \[request.<name>\].* go together"),
    "no function": ({"preprocess": None}, "go together"),
    "no name": ({"preprocess": {"function": "steps.py"}}, "String should match pattern"),
    "no Python": ({"preprocess": {"function": "steps.txt:prepare"}}, "String should match pattern"),
    "a file elsewhere": (
        {"preprocess": {"function": "steps.py:prepare", "files": ["../words.txt"]}},
        "'../words.txt' does not lie beside the function's file or below; move it there",
    ),
    "another key": (
        {"preprocess": {"function": "steps.py:prepare", "file": "words.txt"}},
        "Extra inputs are not permitted",
    ),
    "text that is not given": (
        {"request": TEXT},
        r"\[\[preprocess.example\]\] is missing: nothing says what to draw for text",
    ),
    "numbers that are not given": ({"request": {"n": {"dtype": "INT64"}}}, "nothing says what to draw for n"),
    "limits of a text": (
        {"request": {"text": {"dtype": "BYTES", "values": [0, 1]}}},
        "values is for integers, and BYTES has none",
    ),
    "all optional": (
        {"request": {"n": {"dtype": "FP32", "optional": True}}},
        r"every tensor of \[request\] is optional; needed is one",
    ),
    "the name of a history": (
        {"request": {"item_ids": {"dtype": "FP32"}}},
        "two tensors of requests and answers are named 'item_ids'",
    ),
    "a size that is none": ({"request": {"n": {"dtype": "FP32", "shape": ["width"]}}}, "request.n.shape says 'width'"),
    "an example without it": (
        {"request": TEXT, "preprocess": {"function": "steps.py:prepare", "example": [{"text": "a"}, {}]}},
        r"preprocess.example 1 lacks 'text'; \[request\] has text",
    ),
    "an example with more": (
        {"request": TEXT, "preprocess": {"function": "steps.py:prepare", "example": [{"text": "a", "n": 1}]}},
        r"preprocess.example 0 has 'n'; \[request\] has text",
    ),
}


@pytest.mark.parametrize(("keys", "said"), SPECS.values(), ids=SPECS)
def test_a_spec_that_says_something_else_is_refused(keys, said):
    table = {"preprocess": {"function": "steps.py:prepare"}, "request": NUMBERS, **keys}
    with pytest.raises(ValueError, match=said):
        zoo.read("sasrec", **table)


def test_an_example_that_is_no_request_is_refused(tmp_path):
    spec = given(tmp_path, DOUBLED, preprocess={"example": [{"counts": [1, 2]}, {"counts": [1.5]}]})
    with pytest.raises(
        RehearsalError, match=r"preprocess.example: counts: history 1, position 0 is 1.5; allowed are 0 to 9"
    ):
        rehearsal.rehearse(spec)


def test_knowledge_tracing_has_no_function(tmp_path):
    table = tomlkit.parse(DEFAULT_SPEC.read_text())
    table["preprocess"] = {"function": "steps.py:prepare"}
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(table))
    with pytest.raises(
        SpecError, match=r"nothing stands in front of their check: .* go with a spec of any sequence model"
    ):
        Spec.read(tmp_path / "spec.toml")


@pytest.mark.parametrize("layout", ["ensemble", "single"])
def test_the_configuration_is_enough_for_a_client(layout):
    spec = own.read(serve__layout=layout)
    made = config.repository(spec)["sasrec"]
    read = text_format.Parse(config.to_text(made), ModelConfig())
    assert Interface.of_config(read) == Interface.of(spec)
    assert Interface.of(spec).function is not None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"n": np.array([1, 10], np.int32)}, "n: history 1 is 10; allowed are 0 to 9"),
        ({"n": np.array([1, 2], np.int64)}, r"n has shape \[2\]; needed is INT32 \[batch\]"),
        ({"n": np.array([[1, 2]], np.int32)}, r"n has shape \[1, 2\]; needed is INT32 \[batch\] of 1 histories"),
        ({"m": np.array([1], np.int32)}, "n is missing; steps.py:prepare needs it of each history"),
    ],
)
def test_what_the_function_does_not_take_never_reaches_it(request_, said):
    of = Function("steps.py", "prepare", {"n": Part("INT32", (), (0, 9))}, {})
    with pytest.raises(RefusedError, match=said):
        of.around(pytest.fail)(request_)


def test_a_refusal_without_a_word_is_told():
    def call(inputs: Any) -> None:
        raise ValueError

    of = Function("steps.py", "prepare", {"n": Part("INT32")}, {})
    with pytest.raises(RefusedError, match=r"steps.py:prepare refuses this request, and does not say why") as refused:
        of.around(call)({"n": np.zeros(1, np.int32)})
    assert refused.value.reason == function.REASON


def test_what_is_returned_is_as_long_as_what_is_asked():
    of = Function("steps.py", "prepare", {"n": Part("INT32")}, {"ids": Part("INT32", (-1,))})
    with pytest.raises(FunctionError, match=r"returned ids INT32 \[1, 2\] for a batch of 3"):
        of.around(lambda _: {"ids": np.zeros((1, 2), np.int32)})({"n": np.zeros(3, np.int32)})
