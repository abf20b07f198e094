import numpy as np
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
