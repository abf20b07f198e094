from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PROBLEMS, WINDOW = 50, 16


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


@pytest.fixture(scope="module")
def prepare(preprocess: ModuleType):
    def run(ids: np.ndarray, responses: np.ndarray):
        lengths = preprocess.check(ids, responses, PROBLEMS)
        return lengths, preprocess.recent(ids, lengths, WINDOW), preprocess.recent(responses, lengths, WINDOW)

    return run


@given(batches())
@settings(max_examples=300)
def test_keeps_the_newest_and_ignores_padding(prepare, batch):
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
def test_any_single_wrong_value_is_named(preprocess, batch, data):
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
        preprocess.check(ids, responses, PROBLEMS)


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
def test_refusals(preprocess, ids, responses, message):
    with pytest.raises(ValueError, match=r".") as raised:
        preprocess.check(np.array(ids, np.int32), np.array(responses, np.int32), PROBLEMS)
    assert message in str(raised.value)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 1, 3)])
def test_no_learner_is_refused(preprocess, shape):
    assert preprocess.rows(np.zeros((2, 1, 3), np.int32), "problem_ids").shape == (2, 3)
    with pytest.raises(preprocess.RefusedError, match=r"^responses has 0 learners; send at least 1$") as raised:
        preprocess.rows(np.zeros(shape, np.int32), "responses")
    assert raised.value.reason == "shape"


def test_cold_start_needs_a_model_that_can(preprocess):
    nothing = np.zeros((1, 0), np.int32)
    assert preprocess.check(nothing, nothing, PROBLEMS).tolist() == [0]
    with pytest.raises(ValueError, match="learner 0 has 0 interactions; this model answers from 1 on"):
        preprocess.check(nothing, nothing, PROBLEMS, shortest_history=1)


@pytest.mark.parametrize(
    ("longest", "width"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 512), (512, 512), (900, 512)]
)
def test_the_core_sees_the_narrowest_window_that_holds_the_history(preprocess, longest, width):
    assert preprocess.narrowest([64, 128, 512], longest) == width
    assert preprocess.narrowest([512], longest) == 512
