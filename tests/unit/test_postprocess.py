import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@given(hnp.arrays(np.float32, 20, elements=st.floats(-200, 200, width=32)))
def test_sigmoid_is_finite_and_right(postprocess, logits):
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    answer = postprocess.sigmoid(logits)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@given(
    hnp.arrays(np.float32, (3, 8), elements=st.floats(width=32)),
    st.sampled_from([None, np.nan, np.inf, -np.inf]),
    st.integers(0, 2),
)
def test_damage_is_what_is_not_finite(postprocess, logits, bad, learner):
    if bad is not None:
        logits[learner, 5] = bad
    wrong = ~np.isfinite(logits)
    message = postprocess.damage(logits, "scores")
    if not wrong.any():
        assert message is None  # sums of large numbers may overflow and are no damage
        return
    first = int(wrong.any(axis=1).argmax())
    assert message.startswith(
        f"scores has {wrong[first].sum()} values that are not finite for learner {first}; allowed are"
    )


@given(
    # Few distinct values, so that ties are common.
    hnp.arrays(np.float32, st.integers(5, 30), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    st.lists(st.integers(-1, 4), max_size=12),
    st.floats(0.05, 0.95),
    st.integers(1, 5),
)
@settings(max_examples=300)
def test_next_problems_are_the_nearest_unanswered(postprocess, probabilities, answered, target, count):
    ids, chances = postprocess.next_problems(probabilities, np.array(answered, np.int32), target, count)
    distance = np.abs(probabilities - np.float32(target))
    open_ones = [i for i in range(len(probabilities)) if i not in answered]
    expected = sorted(open_ones, key=lambda i: (distance[i], i))[:count]
    assert ids.tolist() == expected + [-1] * (count - len(expected))
    assert chances[: len(expected)].tolist() == probabilities[expected].tolist()
    assert not chances[len(expected) :].any()


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@given(st.integers(1, 100_000), st.integers(1, 3), st.integers(0, 5), st.data())
def test_any_problem_that_is_none_is_named(postprocess, kind, problems, learners, time, data):
    ids = data.draw(hnp.arrays(kind, (learners, time), elements=st.integers(-1, problems - 1)))
    postprocess.check_answered(ids, problems, "problem_ids")
    if ids.size == 0:
        return
    limits = np.iinfo(kind)
    value = data.draw(st.integers(int(limits.min), -2) | st.integers(problems, int(limits.max)))
    learner, position = data.draw(st.integers(0, learners - 1)), data.draw(st.integers(0, time - 1))
    ids[learner, position] = value
    with pytest.raises(postprocess.RefusedError) as raised:
        postprocess.check_answered(ids, problems, "problem_ids")
    assert str(raised.value) == (
        f"problem_ids: learner {learner}, position {position} is {value}; allowed are 0 to {problems - 1}, "
        "and -1 as padding"
    )


def test_the_row_of_the_last_interaction(postprocess):
    logits = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    rows = postprocess.last_rows(logits, np.array([1, 4], np.int32), ("lengths", "all_logits"))
    np.testing.assert_array_equal(rows, [logits[0, 0], logits[1, 3]])


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 5, 2**31 - 1])
def test_a_length_that_has_no_row_is_named(postprocess, length):
    lengths = np.array([4, length], np.int32)
    with pytest.raises(postprocess.RefusedError) as raised:
        postprocess.last_rows(np.zeros((2, 4, 3), np.float32), lengths, ("lengths", "all_logits"))
    assert str(raised.value) == (
        f"lengths: learner 1 has {length}; all_logits has 4 rows a learner, so allowed are 1 to 4"
    )
    with pytest.raises(postprocess.RefusedError, match="all_logits has 0 rows a learner, so allowed are none"):
        postprocess.last_rows(np.zeros((2, 0, 3), np.float32), lengths, ("lengths", "all_logits"))


@pytest.mark.parametrize("shape", [(7,), (1, 7), (0, 1, 7)])
def test_no_learner_is_refused(postprocess, shape):
    assert postprocess.rows(np.zeros((2, 1, 7)), 1, "logits").shape == (2, 7)
    assert postprocess.rows(np.zeros((2, 1, 7, 3)), 2, "all_logits").shape == (2, 7, 3)
    with pytest.raises(postprocess.RefusedError, match=r"^logits has 0 learners; send at least 1$"):
        postprocess.rows(np.zeros(shape), 1, "logits")
