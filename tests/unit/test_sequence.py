"""What a spec of a sequence model may say, what is refused, and how that is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from build import ROOT
from ensemble.contract import Contract
from ensemble.errors import SpecError
from ensemble.sequence import Sequence
from ensemble.signature import DERIVED, recognised
from ensemble.spec import Spec
from tests import zoo

WHOLE = """
[model]
name = "any"
window = 6

[network]
type = "onnx"

[sizes]
items = 9

[history.item_ids]
values = [1, "items"]

[history.ratings]
dtype = "FP32"

[context.next_item]
values = [1, "items"]

[context.candidates]
values = [1, "items"]
shape = [-1]

[context.step]
values = [0, 99]

[inputs]
ids = "item_ids"
stars = "ratings"

[outputs.logits]
shape = [10]

[outputs.hidden]
shape = [2, 3]

[[answer]]
name = "scores"

[batching]
max_batch_size = 4
longest_history = 20
"""


def changed(**keys: Any) -> dict[str, Any]:
    """The whole spec with other values: `model__padding="left"`; None takes a key away."""
    table: dict[str, Any] = tomlkit.parse(WHOLE).unwrap()
    for path, value in keys.items():
        *outer, last = path.split("__")
        inner = table
        for name in outer:
            inner = inner.setdefault(name, {})
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return table


def read(tmp_path, table: dict[str, Any]) -> Sequence:
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(table))
    found = Spec.read(tmp_path / "spec.toml")
    assert isinstance(found, Sequence)
    return found


def test_the_whole_one_is_allowed(tmp_path):
    found = read(tmp_path, changed())
    assert [tensor.name for tensor in found.requested] == ["item_ids", "ratings", "next_item", "candidates", "step"]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_spec_of_the_zoo_is_read_and_its_contract_travels_as_json(name):
    of = zoo.read(name).contract
    assert Contract.loads(of.dumps()) == of


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"inputs__ids": "item_id"},
            r"inputs\.ids\.from is 'item_id'; allowed are item_ids, ratings, next_item, candidates, step, lengths, mask",
        ),
        ({"history__item_ids__values": [1, "itmes"]}, r"history\.item_ids\.values says 'itmes'; \[sizes\] has items"),
        ({"outputs__logits__shape": ["columns"]}, r"outputs\.logits\.shape says 'columns'; \[sizes\] has items"),
        ({"sizes": None}, r"history\.item_ids\.values says 'items'; \[sizes\] has nothing"),
        (
            {"inputs__ids": {"from": "item_ids", "append": 0}},
            "append adds a step to each input that comes from a history, or to none",
        ),
        (
            {"inputs__ids": {"from": "item_ids", "append": "next"}},
            r"inputs\.ids\.append is 'next'; allowed is next_item or candidates or step",
        ),
        ({"inputs__n": {"from": "lengths", "append": 0}}, r"inputs\.n\.append is for a history, and lengths is none"),
        (
            {"inputs__ids": {"from": "item_ids", "shift": "ratings"}},
            r"inputs\.ids\.shift is 'ratings'; allowed is next_item",
        ),
        ({"inputs": {"n": "lengths"}}, r"no input of the model comes from a history \(item_ids, ratings\)"),
        ({"inputs__ids": {"form": "item_ids"}}, r"inputs\.ids\.from: Field required"),
        ({"answer": [{"name": "next", "chain": [{"top": 11}]}]}, "answer next picks 11 of 10 columns"),
        (
            {"answer": [{"name": "next", "of": "hidden", "chain": [{"top": 2}]}]},
            r"answer next: columns are picked from an output of shape \[columns\] alone",
        ),
        (
            {"answer": [{"name": "some", "chain": [{"at": "next_item"}]}]},
            r"answer some: at is 'next_item'; needed is a context of integers of shape \[-1\]",
        ),
        (
            {"answer": [{"name": "some", "of": "hidden", "chain": [{"at": "candidates"}]}]},
            r"answer some: columns are picked from an output of shape \[columns\] alone",
        ),
        ({"answer": [{"name": "x", "of": "logit"}]}, "answer x: of is 'logit'; allowed are logits, hidden"),
        (
            {"answer": [{"name": "x", "chain": [{"leave_out": "ratings"}, {"top": 2}]}]},
            "answer x: leave_out is 'ratings'; needed is a history of integers",
        ),
        (
            {"answer": [{"name": "x", "chain": [{"top": 2}, "softmax"]}]},
            "x: top or nearest picks columns, and so ends a chain",
        ),
        (
            {"answer": [{"name": "x", "chain": ["softmax", {"at": "candidates"}]}]},
            "x: at stands first, and before sigmoid, exp and scale alone",
        ),
        (
            {"answer": [{"name": "x", "tensors": ["a", "b"]}]},
            "x: tensors has 2 names; this chain makes 1",
        ),
        ({"answer": [{"name": "x", "chain": [{"top": 2, "scale": 2.0}]}]}, "a link is one of "),
        (
            {"model__padding": "left", "row": {"select": "mean"}},
            r'row\.select = "mean" is of windows padded on the right; model\.padding is "left"',
        ),
        (
            {"model__padding": "none", "model__buckets": [3, 6]},
            r'model\.padding = "none" has each history as long as it is: model\.buckets are for padded ones',
        ),
        (
            {"answer": [{"name": "item_ids"}]},
            "two tensors of requests and answers are named 'item_ids'; each needs a name of its own",
        ),
        (
            {"answer": [{"name": "x"}, {"name": "x", "chain": ["softmax"]}]},
            "two tensors of requests and answers are named 'x'",
        ),
        (
            {"history__item_ids__values": None},
            r"history\.item_ids: .*integers need values, the lowest and the highest of them, as in values = \[1, 9999\]",
        ),
        (
            {"history__ratings__values": [5, 0.5]},
            r"history\.ratings\.values is \[5, 0\.5\]; needed are two numbers, the lowest comes first",
        ),
        ({"row": {"select": "index"}}, "index names the context that says which step"),
        (
            {"row": {"select": "index", "index": "steps"}},
            r"row\.index is 'steps'; allowed is next_item or candidates or step",
        ),
        (
            {"row": {"select": "index", "index": "candidates"}},
            r"row\.index is 'candidates'; needed is a context of one integer a history",
        ),
        (
            {"inputs__ids": {"from": "item_ids", "shift": "candidates"}},
            r"inputs\.ids\.shift is 'candidates'; needed is a context that is as a step of item_ids",
        ),
        (
            {"inputs__stars": {"from": "ratings", "shift": "next_item"}},
            r"inputs\.stars\.shift is 'next_item'; needed is a context that is as a step of ratings",
        ),
        ({"model__padding": "both"}, r"model\.padding = 'both': Input should be 'right', 'left' or 'none'"),
        ({"reduce": {"where": "postprocess"}}, 'reduce.where = "postprocess" is knowledge tracing\'s; set "core"'),
        ({"model__name": "core"}, "model.name is 'core', which is a step of the ensemble"),
        ({"batching__longest_history": 5}, "batching.longest_history is 5, less than the window of 6"),
        ({"answer": []}, "answer = .*at least 1 item"),
        ({"history": {}}, "history: .*at least 1 item"),
        ({"paddings": 1}, "paddings = 1: Extra inputs are not permitted"),
    ],
)
def test_a_rule_that_is_broken_is_named_and_what_is_allowed(tmp_path, keys, said):
    with pytest.raises(SpecError, match=said) as raised:
        read(tmp_path, changed(**keys))
    assert str(raised.value).startswith(f"{tmp_path / 'spec.toml'}: ")


@pytest.mark.parametrize(
    ("names", "histories", "contexts", "found"),
    [
        (["item_seq", "item_seq_len"], ["items"], [], ["items", "lengths"]),
        (["input_ids", "attention_mask"], ["tokens"], [], ["tokens", "mask"]),
        (
            ["input_ids", "attention_mask", "token_type_ids", "position_ids"],
            ["tokens"],
            [],
            ["tokens", "mask", "token_types", "positions"],
        ),
        (["src", "src_key_padding_mask"], ["tokens"], [], ["tokens", "padding"]),
        (["static", "x", "lengths"], ["series"], ["static"], ["static", "series", "lengths"]),
        (["r", "q"], ["q", "r"], [], ["r", "q"]),  # by name, whatever the order
        (["mask"], ["mask"], [], ["mask"]),  # a history of this name comes first
        (["Attention_Mask", "ids"], ["ids"], [], ["mask", "ids"]),
        (["a", "b"], ["a", "b"], [], ["a", "b"]),
    ],
)
def test_what_an_input_is_called_tells_what_it_gets(names, histories, contexts, found):
    assert recognised(names, histories, contexts) == dict(zip(names, found, strict=True))


def test_every_derived_kind_is_recognised_by_each_of_its_names():
    for kind, names in DERIVED.items():
        for name in names:
            assert recognised([name, "ids"], ["ids"], []) == {name: kind, "ids": "ids"}


def test_a_list_of_inputs_is_recognised_in_a_spec(tmp_path):
    found = read(tmp_path, changed(history={"tokens": {"values": [1, 9]}}, inputs=["input_ids", "attention_mask"]))
    assert {name: source.of for name, source in found.fed.items()} == {"input_ids": "tokens", "attention_mask": "mask"}


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a", "c"], ["ids", "other"]])
def test_what_nothing_tells_is_asked_for(tmp_path, names):
    with pytest.raises(SpecError, match=r"nothing tells what .* should get; write it, as in .*allowed are ids, "):
        read(tmp_path, changed(history={"ids": {"values": [1, 9]}}, inputs=names))


def test_the_spec_on_the_front_page_is_one(tmp_path: Path):
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "spec.toml").write_text(text)
    spec = Spec.read(tmp_path / "spec.toml")
    assert [tensor.name for tensor in spec.answered] == ["next_ids", "next_values"]
    assert {name: source.of for name, source in spec.fed.items()} == {
        "items": "item_ids",
        "attention_mask": "mask",
        "user_age": "age",
    }
