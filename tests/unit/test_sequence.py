"""What a spec of a sequence model may say, what is refused and how it is told, and what the contract feeds from it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from ensemble.contract import Contract, Source, Values
from ensemble.errors import SpecError
from ensemble.sample import draw
from ensemble.sequence import Sequence
from ensemble.signature import DERIVED, recognised
from ensemble.spec import Spec
from ensemble.values import RefusedError
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
            r"history\.item_ids: .*values is for integers, which need it, as in values = \[1, 9999\]",
        ),
        (
            {"history__ratings__values": [0, 5]},
            r"history\.ratings: .*floating-point numbers have none",
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


HISTORY, WINDOW = 5, 4
REQUESTED = {
    "ids": Values(9, "1 to 8", "id", 1),
    "x": Values(None, "finite numbers", "x", 0, (2,)),
}
CONTEXTS = {
    "next": Values(9, "1 to 8", "id", 1),
    "static": Values(None, "finite numbers", "static", 0, (3,)),
    "some": Values(9, "1 to 8", "id", 1, (-1,)),
    "step": Values(99, "0 to 98", "step"),
}
DERIVED_SOURCES = tuple(Source(f"the_{of}", of, start=1 if of == "positions" else 0) for of in DERIVED)
TYPES = {"x": np.float32, "static": np.float32, "the_padding": np.bool_, "ids": np.int64}


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    step = draw(st.sampled_from(["none", "append a number", "append a context", "shift"]))
    append = {"append a number": 7, "append a context": "next"}.get(step)
    histories = (
        Source("ids", "ids", append, "next" if step == "shift" else None),
        Source("x", "x", 0 if append is not None else None),
    )
    padding = draw(st.sampled_from(["right", "left", "none"]))
    return Contract(
        inputs=REQUESTED,
        core=(*histories, *DERIVED_SOURCES, Source("static", "static"), Source("columns", "some")),
        widths=draw(st.sampled_from([(WINDOW,), (2, WINDOW)])),
        shortest=1,
        left=padding == "left",
        even=padding == "none",
        fills=draw(st.sampled_from([(), (("ids", 5),)])),
        contexts=CONTEXTS,
        optional=("some",),
        select=draw(st.sampled_from(["last", "first"])),
        row=draw(st.sampled_from([None, "step"])),
    )


def alone(of: Contract, request: dict[str, np.ndarray], number: int, length: int, width: int) -> dict[str, Any]:
    """What a core of this width gets of one history, step by step; as its reader would write it down."""
    steps = {name: list(request[name][number, :length]) for name in REQUESTED}
    source = of.core[0]
    if source.shift:
        steps["ids"] = [*steps["ids"][1:], request["next"][number]]
    if source.append is not None:
        steps["ids"].append(7 if source.append == 7 else request["next"][number])
        steps["x"].append(np.zeros(2, np.float32))
    whole = len(steps["ids"])
    seen = {name: values[-width:] for name, values in steps.items()}
    count = len(seen["ids"])
    fills = {"ids": dict(of.fills).get("ids", 0), "x": np.zeros(2, np.float32)}
    blanks = width - count

    def placed(values: list[Any], blank: Any) -> list[Any]:
        return [blank] * blanks + values if of.left else values + [blank] * blanks

    first = blanks if of.left else 0
    wanted = first if of.select == "first" else first + count - 1
    if of.select == "last" and of.row:
        wanted = first + int(request["step"][number]) - (whole - count)
    return {
        "ids": placed(seen["ids"], fills["ids"]),
        "x": placed(seen["x"], fills["x"]),
        "the_lengths": count,
        "the_mask": placed([1] * count, 0),
        "the_padding": placed([False] * count, True),
        "the_positions": placed(list(range(1, count + 1)), 0),
        "the_token_types": [0] * width,
        "the_row": wanted,
        "static": request["static"][number],
        "columns": [max(int(each), 0) for each in request["some"][number]],
    }


@given(contracts(), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 99))
def test_a_core_gets_what_each_history_alone_says(of, lengths, seed):
    lengths = [lengths[0]] * len(lengths) if of.even else lengths
    request = draw(of, lengths, seed)
    request["some"][0, -1] = -1
    assert of.check(request).tolist() == lengths
    longer = of.core[0].append is not None
    longest = min(max(lengths) + longer, WINDOW)
    width = longest if of.even else next(each for each in of.widths if each >= longest)
    if of.row and of.select == "last":  # a step that the window still has
        for number, length in enumerate(lengths):
            request["step"][number] = max(length + longer - width, 0)
    fed = of.feed(request, np.asarray(lengths, np.int32), TYPES)
    assert list(fed) == [source.name for source in of.core]
    for name, values in fed.items():
        assert values.dtype == TYPES.get(name, np.int32), name
    for number, length in enumerate(lengths):
        for name, expected in alone(of, request, number, length, width).items():
            np.testing.assert_array_equal(fed[name][number], np.asarray(expected), name)


@given(contracts())
def test_a_contract_travels_as_json(of):
    assert Contract.loads(of.dumps()) == of


@pytest.mark.parametrize("changes", [{"left": True}, {"select": "first"}, {"fills": (("ids", 5),)}, {"row": "step"}])
def test_the_reference_sees_what_a_contract_says(changes):
    """Fed as another contract says, at least one of the inputs differs from what this one's reader wrote down."""
    of = Contract(REQUESTED, (Source("ids", "ids"), Source("x", "x"), *DERIVED_SOURCES), (WINDOW,), contexts=CONTEXTS)
    request = draw(of._replace(row="step"), [3, 2])
    request["step"][:] = 0
    fed = of._replace(**changes).feed(request, np.array([3, 2], np.int32), TYPES)
    expected = alone(of, request, 1, 2, WINDOW)
    assert any(not np.array_equal(fed[name][1], expected[name]) for name in fed)


def refused(of: Contract, request: dict[str, np.ndarray]) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        of.feed(request, of.check(request), TYPES)
    assert raised.value.reason in of.reasons
    return raised.value


WITH_CONTEXTS = Contract(
    REQUESTED, (Source("ids", "ids"), Source("the_row", "row")), (WINDOW,), 1, 20, contexts=CONTEXTS, optional=("some",)
)


@pytest.mark.parametrize(
    ("name", "value", "reason", "said"),
    [
        ("next", [3, 9], "id", "next: history 1 is 9; allowed are 1 to 8"),
        ("next", [[3], [8]], "shape", r"next has shape \[2, 1\]; needed is \[\] for each of 2 histories"),
        ("static", [[1, 2, 3], [4, np.inf, 6]], "static", "static: history 1, position 1 is inf; allowed are finite"),
        ("static", [[1, 2], [3, 4]], "shape", r"static has shape \[2, 2\]; needed is \[3\] for each of 2 histories"),
        ("static", [[1, 2, 3]], "shape", r"static has shape \[1, 3\]; needed is \[3\] for each of 2 histories"),
        ("some", [[3, -1], [0, 1]], "id", "some: history 1, position 0 is 0; allowed are 1 to 8, and -1 as padding"),
        ("next", None, "shape", "next is missing; this model needs it of each history"),
        ("some", None, "", ""),
    ],
)
def test_a_context_that_is_not_allowed_is_named(name, value, reason, said):
    request = draw(WITH_CONTEXTS, [3, 2])
    if value is None:
        del request[name]
    else:
        request[name] = np.asarray(value, request[name].dtype)
    if not said:
        assert WITH_CONTEXTS.check(request).tolist() == [3, 2]
        return
    error = refused(WITH_CONTEXTS, request)
    assert error.reason == reason
    assert re.search(said, str(error))


@pytest.mark.parametrize(("step", "seen"), [(5, "1 to 4"), (0, "1 to 4"), (98, "1 to 4")])
def test_a_row_outside_of_the_window_is_named_with_those_that_are_there(step, seen):
    of = WITH_CONTEXTS._replace(row="step")
    request = draw(of, [2, HISTORY])
    request["step"][:] = [1, step]
    error = refused(of, request)
    assert str(error) == f"step: history 1 has {step}; of its 5 steps the model sees {seen}, and answers one of these"


def test_histories_of_unequal_length_are_told_to_come_apart():
    error = refused(WITH_CONTEXTS._replace(even=True), draw(WITH_CONTEXTS, [3, 2]))
    assert str(error) == (
        "ids: history 1 has 2 steps, and history 0 has 3; this model is not padded: send those of one length together"
    )
