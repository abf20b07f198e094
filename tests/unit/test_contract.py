"""What a request has to be and what the core gets of it, without a server; tests/faults asks a running one."""

from __future__ import annotations

import ast
import doctest
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble import chain, contract, window
from ensemble import values as allowed
from ensemble.contract import Contract, RefusedError, Source, Values
from ensemble.sample import random_request
from ensemble.spec import Spec

PROBLEMS, WINDOW = 50, 16


OF = Spec.read().model_copy(update={"model": Spec.read().model.model_copy(update={"problems": PROBLEMS})}).contract


def check(ids: np.ndarray, responses: np.ndarray, **limits: int) -> np.ndarray:
    return contract.check({"problem_ids": ids, "responses": responses}, OF.inputs, words=OF.words, **limits)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int]:
    """Learners of unequal history, and how much padding their request has beyond the longest."""
    histories = draw(
        st.lists(st.lists(st.tuples(st.integers(0, PROBLEMS - 1), st.integers(0, 1)), max_size=40), min_size=1)
    )
    return [[i for i, _ in h] for h in histories], [[r for _, r in h] for h in histories], draw(st.integers(0, 5))


def padded(rows: list[list[int]], extra: int) -> np.ndarray:
    width = max(map(len, rows)) + extra
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


def prepare(ids: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = check(ids, responses)
    return lengths, *(contract.recent(values, lengths, WINDOW) for values in (ids, responses))


@given(batches())
@settings(max_examples=300)
def test_keeps_the_newest_and_ignores_padding(batch):
    ids, responses, extra = batch
    lengths, recent_ids, recent_responses = prepare(padded(ids, extra), padded(responses, extra))
    assert recent_ids.shape == recent_responses.shape == (len(ids), WINDOW)
    assert recent_ids.dtype == recent_responses.dtype == lengths.dtype == np.int32
    for row, (history, answers) in enumerate(zip(ids, responses, strict=True)):
        assert lengths[row] == len(history)
        kept = history[-WINDOW:]
        assert recent_ids[row].tolist() == kept + [0] * (WINDOW - len(kept))
        assert recent_responses[row].tolist() == answers[-WINDOW:] + [0] * (WINDOW - len(kept))
        alone = prepare(padded([history], 0), padded([answers], 0))
        np.testing.assert_array_equal(alone[1][0], recent_ids[row])
        np.testing.assert_array_equal(alone[2][0], recent_responses[row])


@given(batches(), st.data())
@settings(max_examples=300)
def test_any_single_wrong_value_is_named(batch, data):
    ids, responses, extra = batch
    ids, responses = padded(ids, extra), padded(responses, extra)
    if ids.size == 0:
        return
    learner = data.draw(st.integers(0, ids.shape[0] - 1))
    position = data.draw(st.integers(0, ids.shape[1] - 1))
    which = data.draw(st.sampled_from(["problem_ids", "responses"]))
    tensor = ids if which == "problem_ids" else responses
    limits = [-(2**31), -2, 2, PROBLEMS, 2**31 - 1] if which == "responses" else [-(2**31), -2, PROBLEMS, 2**31 - 1]
    value = data.draw(st.sampled_from(limits))
    tensor[learner, position] = value
    with pytest.raises(ValueError, match=rf"^{which}: learner {learner}, position {position} is {value}; "):
        check(ids, responses)


@pytest.mark.parametrize(
    ("ids", "responses", "message"),
    [
        ([[3, -1, 4]], [[1, -1, 0]], "problem_ids: learner 0, position 1 is -1, but interactions follow it"),
        ([[3, 4], [-1, 4]], [[1, 1], [-1, 1]], "problem_ids: learner 1, position 0 is -1, but interactions follow it"),
        ([[3, 4]], [[1, -1]], "responses: learner 0, position 1 is -1; allowed are 0 (wrong) and 1 (correct)"),
        ([[3, -1]], [[1, 0]], "responses: learner 0, position 1 is 0; where problem_ids is -1 only -1 is allowed"),
        ([[3, 4]], [[1]], "problem_ids has shape [1, 2] and responses [1, 1]"),
    ],
)
def test_refusals(ids, responses, message):
    with pytest.raises(ValueError, match=r".") as raised:
        check(np.array(ids, np.int32), np.array(responses, np.int32))
    assert message in str(raised.value)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 1, 3)])
def test_no_learner_is_refused(shape):
    assert contract.batch_of(np.zeros((2, 1, 3), np.int32), "problem_ids").shape == (2, 3)
    with pytest.raises(RefusedError, match=r"^responses has 0 learners; send at least 1$") as raised:
        contract.batch_of(np.zeros(shape, np.int32), "responses", words=OF.words)
    assert raised.value.reason == "shape"


@pytest.mark.parametrize("shape", [(7,), (1, 7), (0, 1, 7)])
def test_no_learner_is_refused_behind_the_core_either(shape):
    assert contract.batch_of(np.zeros((2, 1, 7)), "logits").shape == (2, 7)
    assert contract.batch_of(np.zeros((2, 1, 7, 3)), "all_logits", 2).shape == (2, 7, 3)
    with pytest.raises(RefusedError, match=r"^logits has 0 learners; send at least 1$"):
        contract.batch_of(np.zeros(shape), "logits", words=OF.words)


def test_cold_start_needs_a_model_that_can():
    nothing = np.zeros((1, 0), np.int32)
    assert check(nothing, nothing).tolist() == [0]
    with pytest.raises(ValueError, match="learner 0 has 0 interactions; this model answers from 1 on"):
        check(nothing, nothing, shortest=1)


@pytest.mark.parametrize(
    ("longest", "width"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 512), (512, 512), (900, 512)]
)
def test_the_core_sees_the_narrowest_window_that_holds_the_history(longest, width):
    assert contract.narrowest([64, 128, 512], longest) == width
    assert contract.narrowest([512], longest) == 512


@pytest.mark.parametrize(
    ("reason", "ids", "responses"),
    [
        ("shape", [[1, 2]], [[1]]),
        ("problem_id", [[50]], [[1]]),
        ("problem_id", [[-2]], [[1]]),
        ("response", [[1]], [[2]]),
        ("response", [[1]], [[-1]]),
        ("padding", [[-1, 1]], [[-1, 1]]),
        ("padding", [[-1]], [[0]]),
        ("too_long", [[1] * 9], [[1] * 9]),
        ("too_short", [[1, -1]], [[1, -1]]),
    ],
)
def test_a_refusal_has_its_reason(reason, ids, responses):
    ids, responses = (np.asarray(values, np.int32) for values in (ids, responses))
    with pytest.raises(RefusedError) as raised:
        check(ids, responses, shortest=2, longest=8)
    assert raised.value.reason == reason
    assert reason in OF.reasons


def test_as_long_as_is_allowed_is_answered():
    ids = np.ones((1, 8), np.int32)
    assert check(ids, ids, shortest=8, longest=8).tolist() == [8]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@given(st.integers(1, 100_000), st.integers(1, 3), st.integers(0, 5), st.data())
def test_any_problem_that_is_none_is_named(kind, problems, learners, time, data):
    ids = data.draw(hnp.arrays(kind, (learners, time), elements=st.integers(-1, problems - 1)))
    allowed = Values(problems, f"0 to {problems - 1}", "problem_id")
    contract.check_ids(ids, allowed, "problem_ids", OF.words)
    if ids.size == 0:
        return
    limits = np.iinfo(kind)
    value = data.draw(st.integers(int(limits.min), -2) | st.integers(problems, int(limits.max)))
    learner, position = data.draw(st.integers(0, learners - 1)), data.draw(st.integers(0, time - 1))
    ids[learner, position] = value
    with pytest.raises(RefusedError) as raised:
        contract.check_ids(ids, allowed, "problem_ids", OF.words)
    assert str(raised.value) == (
        f"problem_ids: learner {learner}, position {position} is {value}; allowed are 0 to {problems - 1}, "
        "and -1 as padding"
    )


def test_the_row_of_the_last_interaction():
    logits = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    rows = contract.last_rows(logits, np.array([1, 4], np.int32), ("lengths", "all_logits"))
    np.testing.assert_array_equal(rows, [logits[0, 0], logits[1, 3]])


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 5, 2**31 - 1])
def test_a_length_that_has_no_row_is_named(length):
    lengths = np.array([4, length], np.int32)
    with pytest.raises(RefusedError) as raised:
        contract.last_rows(np.zeros((2, 4, 3), np.float32), lengths, ("lengths", "all_logits"), OF.words)
    assert str(raised.value) == (
        f"lengths: learner 1 has {length}; all_logits has 4 rows a learner, so allowed are 1 to 4"
    )
    with pytest.raises(RefusedError, match="all_logits has 0 rows a learner, so allowed are none"):
        contract.last_rows(np.zeros((2, 0, 3), np.float32), lengths, ("lengths", "all_logits"), OF.words)


@pytest.mark.parametrize("lengths", [[3, 0, 20], [1], [7, 7]])
def test_a_random_request_is_one(lengths):
    of = OF.inputs
    request = random_request(of, lengths, seed=1)
    assert contract.check(request, of).tolist() == lengths
    noise = random_request(of, lengths, seed=1, padded=False)
    assert contract.check(noise, of).tolist() == [max(lengths)] * len(lengths)
    for name, values in request.items():
        assert (noise[name][values >= 0] == values[values >= 0]).all()


ANY = Contract(
    inputs={"items": Values(9, "3 to 8", "item", start=3), "features": Values(None, "finite numbers", "feature")},
    core=(Source("x", "features"), Source("ids", "items"), Source("n", "lengths")),
    widths=(4, 6),
    fills=(("items", 2),),
)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_any_models_windows_are_what_each_history_alone_says(lengths, extra, left, seed):
    of = ANY._replace(left=left)
    request = random_request(of.inputs, lengths, max(*lengths, 1) + extra, seed, shapes={"features": (2,)})
    assert of.check(request).tolist() == lengths
    fed = of.feed(request, of.check(request), {"x": np.float32, "ids": np.int64})
    width = 4 if max(lengths) <= 4 else 6
    assert {name: (value.dtype, value.shape) for name, value in fed.items()} == {
        "x": (np.float32, (len(lengths), width, 2)),
        "ids": (np.int64, (len(lengths), width)),
        "n": (np.int32, (len(lengths),)),
    }
    for row, length in enumerate(lengths):
        kept = min(length, width)
        valid = slice(width - kept, None) if left else slice(0, kept)
        assert fed["n"][row] == kept
        for name, given_as, fill in (("ids", "items", 2), ("x", "features", 0)):
            expected = np.full_like(fed[name][row], fill)
            expected[valid] = request[given_as][row, length - kept : length]
            np.testing.assert_array_equal(fed[name][row], expected)


@pytest.mark.parametrize(
    ("items", "features", "reason", "message"),
    [
        (
            [3, 2],
            [1, 1],
            "item",
            "items: history 0, position 1 is 2; allowed are 3 to 8, and -1 as padding after the last step",
        ),
        ([3, 9], [1, 1], "item", "items: history 0, position 1 is 9; allowed are 3 to 8"),
        (
            [3, 8],
            [1, np.inf],
            "feature",
            "features: history 0, position 1 is inf; allowed are finite numbers, and NaN where",
        ),
        ([3, 8], [1, np.nan], "feature", "features: history 0, position 1 is nan; allowed are finite numbers"),
        ([3, -1], [1, 5], "padding", "features: history 0, position 1 is 5.0; where items is -1 only NaN is allowed"),
        (
            [-1, 3],
            [np.nan, 1],
            "padding",
            "items: history 0, position 0 is -1, but steps follow it; -1 is allowed only as",
        ),
    ],
)
def test_any_models_refusals(items, features, reason, message):
    with pytest.raises(RefusedError) as raised:
        ANY.check({"items": np.array([items], np.int32), "features": np.array([features], np.float32)})
    assert (raised.value.reason, message in str(raised.value)) == (reason, True), raised.value
    assert reason in ANY.reasons


def test_where_floats_come_first_nan_tells_the_length():
    of = Contract({"x": Values(None, "finite numbers", "x")}, (Source("x", "x"),), (3,))
    rows = np.array([[[1, 2], [3, np.inf], [np.nan, np.nan]]], np.float32)
    with pytest.raises(
        RefusedError, match=r"^x: history 0, position 1 is \[3.0, inf\]; allowed are finite numbers, and NaN as"
    ):
        of.check({"x": rows})
    rows[0, 1, 1] = 4
    assert of.check({"x": rows}).tolist() == [2]


@pytest.mark.parametrize(
    "module",
    [
        "ensemble.contract",
        "ensemble.values",
        "ensemble.window",
        "ensemble.chain",
        "ensemble.sample",
        "ensemble.learners.history",
        "ensemble.client.retry",
    ],
)
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("module", [chain, contract, allowed, window])
def test_it_travels_into_older_containers(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
    beside = {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
    assert beside <= {"values", "window"}
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "numpy"}
