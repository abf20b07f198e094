import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import HistoryError
from ensemble.history import History, pad, read, read_csv, read_text

rows = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 1)), max_size=30)


@given(st.lists(rows, min_size=1, max_size=6))
def test_padding_round_trip(learners):
    histories = [History(str(i), [p for p, _ in h], [r for _, r in h]) for i, h in enumerate(learners)]
    ids, responses = pad(histories)
    assert ids.shape == responses.shape == (len(learners), max(1, *map(len, learners)) if learners else 1)
    for row, history in enumerate(histories):
        assert ids[row, : len(history)].tolist() == history.problem_ids.tolist()
        assert responses[row, : len(history)].tolist() == history.responses.tolist()
        assert (ids[row, len(history) :] == -1).all()
        assert (responses[row, len(history) :] == -1).all()


def test_csv_learners_may_interleave():
    text = "learner,problem_id,response\nada,4,1\nben,2,0\nada,7,0\n"
    ada, ben = read_csv(io.StringIO(text), "x.csv")
    assert (ada.learner, ada.problem_ids.tolist(), ada.responses.tolist()) == ("ada", [4, 7], [1, 0])
    assert (ben.learner, ben.problem_ids.tolist()) == ("ben", [2])


def test_csv_without_learners_is_one():
    (only,) = read_text("problem_id,response\n4,1\n7,0\n", "stdin")
    assert only.problem_ids.tolist() == [4, 7]


def test_json_one_or_many_and_cold_start():
    (one,) = read_text('{"problem_ids": [3], "responses": [1]}', "stdin")
    assert one.problem_ids.dtype == np.int32
    many = [{"learner": "a", "problem_ids": [], "responses": []}, {"problem_ids": [1], "responses": [0]}]
    empty, other = read_text(json.dumps(many), "stdin")
    assert (len(empty), empty.learner, other.learner) == (0, "a", "1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("h.csv", "problem,response\n1,1\n", "line 1: no column 'problem_id' in the header"),
        ("h.csv", "", "line 1: no column 'problem_id' in the header (empty file)"),
        ("h.csv", "problem_id,response\n1,1\nx,0\n", "line 3: problem_id is 'x'; a whole number is needed"),
        ("h.csv", "problem_id,response\n1\n", "line 2: response is None"),
        ("h.json", "{", "line 1: not JSON"),
        ("h.json", '[{"problem_ids": [1]}]', "entry 0: needed is an object with problem_ids and responses"),
        ("h.json", '[{"problem_ids": [1, 2], "responses": [1]}]', "2 problem_ids and 1 responses"),
        ("h.json", '[{"problem_ids": [1.5], "responses": [1]}]', "problem_ids is float64 of shape [1]"),
        ("h.json", '[{"problem_ids": [[1]], "responses": [[1]]}]', "of shape [1, 1]"),
        ("h.json", '[{"problem_ids": [4294967296], "responses": [1]}]', "values beyond INT32"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, name, content, message):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(HistoryError) as raised:
        read(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(HistoryError, match=r"cannot read .*none\.csv: No such file"):
        read(tmp_path / "none.csv")
