import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble import chain


@given(hnp.arrays(np.float32, 20, elements=st.floats(-200, 200, width=32)))
def test_sigmoid_is_finite_and_right(logits):
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    answer = chain.sigmoid(logits)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@given(
    hnp.arrays(np.float32, (3, 8), elements=st.floats(width=32)),
    st.sampled_from([None, np.nan, np.inf, -np.inf]),
    st.integers(0, 2),
)
def test_damage_is_what_is_not_finite(logits, bad, learner):
    if bad is not None:
        logits[learner, 5] = bad
    wrong = ~np.isfinite(logits)
    message = chain.damage(logits, "scores", "learner")
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
def test_next_problems_are_the_nearest_unanswered(probabilities, answered, target, count):
    wanted = [["leave_out", "problem_ids", 0], ["nearest", target, count]]
    ids, chances = chain.answer(wanted, probabilities[None], {"problem_ids": np.array([answered], np.int32)})
    ids, chances = ids[0], chances[0]
    distance = np.abs(probabilities - np.float32(target))
    open_ones = [i for i in range(len(probabilities)) if i not in answered]
    expected = sorted(open_ones, key=lambda i: (distance[i], i))[:count]
    assert ids.tolist() == expected + [-1] * (count - len(expected))
    assert chances[: len(expected)].tolist() == probabilities[expected].tolist()
    assert not chances[len(expected) :].any()


@given(
    hnp.arrays(np.float32, (2, 9), elements=st.sampled_from([-2.0, 0.0, 0.5, 3.0])),
    st.lists(st.integers(-1, 8), min_size=3, max_size=3),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_the_top_are_the_largest_unseen_from_the_first_id_on(rows, seen, start, count):
    seen = np.array([seen, [-1, -1, -1]], np.int32)
    ids, values = chain.answer([["leave_out", "seen", start], ["top", count]], rows, {"seen": seen})
    for row, left_out, found, scores in zip(rows, seen, ids, values, strict=True):
        open_ones = [i for i in range(start, 9) if i not in left_out]
        expected = sorted(open_ones, key=lambda i: (-row[i], i))[:count]
        assert found.tolist() == expected + [-1] * (count - len(expected))
        assert scores.tolist() == row[expected].tolist() + [0.0] * (count - len(expected))


@given(hnp.arrays(np.float32, (2, 5), elements=st.floats(-80, 80, width=32)))
def test_activations_are_right_and_leave_the_cores_rows_alone(rows):
    given_rows, exact = rows.copy(), rows.astype(np.float64)
    weights = np.exp(exact - exact.max(1, keepdims=True))
    for links, expected in (
        ([["softmax"]], weights / weights.sum(1, keepdims=True)),
        ([["scale", 0.5], ["exp"]], np.exp(exact / 2)),
        ([], exact),
    ):
        (answer,) = chain.answer(links, rows, {})
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(rows, given_rows)


def test_a_link_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="no link 'sigmod'"):
        chain.answer([["sigmod"]], np.zeros((1, 2), np.float32), {})
