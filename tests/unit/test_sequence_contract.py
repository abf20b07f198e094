"""What a sequence model's contract feeds a core, against a reader of one history at a time; and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.contract import Contract, Source, Values
from ensemble.sample import draw
from ensemble.signature import DERIVED
from ensemble.values import RefusedError

HISTORY, WINDOW = 5, 4
REQUESTED = {
    "ids": Values(9, "1 to 8", "id", 1),
    "x": Values(None, "finite numbers", "x", 0, (2,)),
    "ago": Values(4, "-4 to 3", "ago", -4),
    "pairs": Values(2**40, "0 to 2 ** 40 - 1", "pair", 0, (2,)),
}
CONTEXTS = {
    "next": Values(9, "1 to 8", "id", 1),
    "static": Values(None, "finite numbers", "static", 0, (3,)),
    "some": Values(9, "1 to 8", "id", 1, (-1,)),
    "step": Values(99, "0 to 98", "step"),
    "signed": Values(6, "-5 to 5", "signed", -5, (2,)),
    "several": Values(9, "-3 to 8", "several", -3, (-1,)),
    "points": Values(None, "finite numbers", "points", 0, (-1, 2)),
    "maybe": Values(6, "-5 to 5", "maybe", -5, (2,)),
}
DERIVED_SOURCES = tuple(Source(f"the_{of}", of, start=1 if of == "positions" else 0) for of in DERIVED)
TYPES = {
    "the_additive_mask": np.float32,
    "x": np.float32, "static": np.float32, "the_padding": np.bool_, "ids": np.int64, "pairs": np.int64, "points": np.float32
}  # fmt: skip
TAKEN = (
    Source("static", "static"),
    Source("columns", "some", columns=True),
    *map(Source, *[["signed", "several", "points", "maybe"]] * 2),
)
PADS = (("several", 7), ("points", 0.5))


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    step = draw(st.sampled_from(["none", "append a number", "append a context", "shift"]))
    append = {"append a number": 7, "append a context": "next"}.get(step)
    histories = (
        Source("ids", "ids", append, "next" if step == "shift" else None),
        Source("x", "x", 0 if append is not None else None),
        Source("ago", "ago", 0 if append is not None else None),
        Source("pairs", "pairs", 0 if append is not None else None),
    )
    padding = draw(st.sampled_from(["right", "left", "none"]))
    return Contract(
        inputs=REQUESTED,
        core=(*histories, *DERIVED_SOURCES, *TAKEN),
        widths=draw(st.sampled_from([(WINDOW,), (2, WINDOW)])),
        shortest=1,
        left=padding == "left",
        even=padding == "none",
        fills=draw(st.sampled_from([(), (("ids", 5),)])),
        contexts=CONTEXTS,
        optional=("some", "maybe"),
        defaults=(("maybe", [-5, 4]),),
        pads=draw(st.sampled_from([(), PADS])),
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
        steps["ago"].append(0)
        steps["pairs"].append(np.zeros(2, np.int64))
    whole = len(steps["ids"])
    seen = {name: values[-width:] for name, values in steps.items()}
    count = len(seen["ids"])
    fills = {
        "ids": dict(of.fills).get("ids", 0),
        "x": np.zeros(2, np.float32),
        "ago": 0,
        "pairs": np.zeros(2, np.int64),
    }
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
        "ago": placed(seen["ago"], fills["ago"]),
        "pairs": placed(seen["pairs"], fills["pairs"]),
        "the_lengths": count,
        "the_mask": placed([1] * count, 0),
        "the_padding": placed([False] * count, True),
        "the_additive_mask": placed([0] * count, np.finfo(np.float32).min),
        "the_positions": placed(list(range(1, count + 1)), 0),
        "the_token_types": [0] * width,
        "the_row": wanted,
        "static": request["static"][number],
        "columns": [max(int(each), 0) for each in request["some"][number]],
        "signed": request["signed"][number],
        "several": [7 if each == -4 else each for each in request["several"][number]],
        "points": [[0.5, 0.5] if np.isnan(each).all() else each for each in request["points"][number]],
        "maybe": request["maybe"][number] if "maybe" in request else [-5, 4],
    }


@settings(deadline=None)
@given(contracts(), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 99))
def test_a_core_gets_what_each_history_alone_says(of, lengths, seed):
    lengths = [lengths[0]] * len(lengths) if of.even else lengths
    request = draw(of, lengths, seed)
    request["some"][0, -1] = -1
    if seed % 2:
        del request["maybe"]
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


@pytest.mark.parametrize(
    "changes",
    [
        {"left": True},
        {"select": "first"},
        {"fills": (("ids", 5),)},
        {"row": "step"},
        {"pads": (*PADS[1:], ("several", 0))},
        {"pads": (*PADS[:1], ("points", 0))},
        {"defaults": (("maybe", [0, 4]),)},
    ],
)
def test_the_reference_sees_what_a_contract_says(changes):
    """Fed as another contract says, at least one of the inputs differs from what this one's reader wrote down."""
    core = (*(Source(name, name) for name in REQUESTED), *DERIVED_SOURCES, *TAKEN)
    of = Contract(
        REQUESTED, core, (WINDOW,), contexts=CONTEXTS, pads=PADS, optional=("maybe",), defaults=(("maybe", [-5, 4]),)
    )
    request = draw(of._replace(row="step"), [3, 2])
    del request["maybe"]
    request["several"], request["points"] = np.array([[3, 4], [-3, -4]]), np.full((2, 2, 2), np.nan, np.float32)
    request["points"][:, 0] = 1
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
    REQUESTED,
    (Source("ids", "ids"), Source("the_row", "row"), *TAKEN),
    (WINDOW,),
    1,
    20,
    contexts=CONTEXTS,
    optional=("some", "maybe"),
    defaults=(("maybe", [-5, 4]),),
    pads=PADS[1:],
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
        ("maybe", None, "", ""),
        ("signed", [[-5, 5], [0, -6]], "signed", "signed: history 1, position 1 is -6; allowed are -5 to 5"),
        (
            "several",
            [[1, 2, -4], [-3, -4, -4]],
            "shape",
            "several: history 1 has 1, and history 0 has 2; the model knows no ",
        ),
        ("several", [[1, -4, -4], [-3, -4, -4]], "", ""),
        (
            "several",
            [[1, 2], [-4, 1]],
            "shape",
            "several: history 1 has -4 before its last one; that is allowed only as ",
        ),
        ("several", [[1, 2], [-4, -4]], "shape", "several: history 1 has none; send at least 1"),
        (
            "several",
            [[1, 2], [1, -5]],
            "several",
            "several: history 1, position 1 is -5; allowed are -3 to 8, and -4 as padd",
        ),
        ("points", [[[1, 2]] * 2, [[1, 2], [np.nan] * 2]], "", ""),
        (
            "points",
            [[[1, 2]], [[np.nan, 2]]],
            "points",
            r"points: history 1, position 0 is \[nan, 2.0\]; allowed are finite",
        ),
        ("ago", [[-4, 3, 0], [-1, -1, -5]], "", ""),
        (
            "ago",
            [[-4, 3, 0], [-5, -1, -5]],
            "ago",
            "ago: history 1, position 0 is -5; allowed are -4 to 3, and -5 where ids is -1",
        ),
        (
            "pairs",
            [[[2**40 - 1, 2]] * 3, [[0, 2**40]] * 2 + [[-1, -1]]],
            "pair",
            r"pairs: history 1, position 0 is \[0, 109",
        ),
    ],
)
def test_a_context_that_is_not_allowed_is_named(name, value, reason, said):
    request = draw(WITH_CONTEXTS, [3, 2])
    if value is None:
        del request[name]
    else:
        request[name] = np.asarray(value, request[name].dtype)
    if name == "several":
        request["points"] = request["points"][:, :1] * 0 + np.float32(1)
    if not said:
        assert WITH_CONTEXTS.check(request).tolist() == [3, 2]
        WITH_CONTEXTS.feed(request, np.array([3, 2], np.int32), TYPES)
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


def test_floats_with_ends_are_drawn_over_all_of_them_and_refused_beyond():
    values = Values(None, "numbers from 0.1 to 3600", "gap", 0, (), (0.1, 3600.0))
    of = Contract({"gaps": values}, (Source("gaps", "gaps"),), (64,), contexts={"age": values})
    assert Contract.loads(of.dumps()) == of
    request = draw(of, [64, 20, 64], seed=1)
    assert 0.1 <= np.nanmin(request["gaps"]) < 200
    assert 3400 < np.nanmax(request["gaps"]) <= 3600
    assert of.check(request).tolist() == [64, 20, 64]
    for wrong in (-0.5, 3601.0, np.inf, np.nan):
        for lengths in ([3], [3, 2]):
            request = draw(of, lengths)
            request["gaps"][0, 1] = wrong
            with pytest.raises(RefusedError, match=r"gaps: history 0, position 1 is .*(3600|follow it)"):
                of.check(request)
            request = {**draw(of, lengths), "age": np.full(len(lengths), wrong, np.float32)}
            with pytest.raises(RefusedError, match=r"age: history 0 is .*; allowed are numbers from 0\.1 to 3600"):
                of.check(request)
