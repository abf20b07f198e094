import io
import json
import math
from collections import deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import HistoryError
from ensemble.learners.history import History, pad, read, read_csv, read_text
from ensemble.learners.vocabulary import Vocabulary

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
        ("h.csv", "problem_id,response\n1\n", "line 2: response is ''; a whole number is needed"),
        ("h.json", "{", "line 1: not JSON"),
        ("h.json", '[{"problem_ids": [1]}]', "entry 0: needed is an object with problem_ids and responses"),
        ("h.json", '[{"problem_ids": [1, 2], "responses": [1]}]', "2 problem_ids and 1 responses"),
        (
            "h.json",
            '[{"problem_ids": [1.5], "responses": [1]}]',
            "position 0 is 1.5; a whole number is needed",
        ),
        ("h.json", '[{"problem_ids": [[1]], "responses": [[1]]}]', "of shape [1, 1]"),
        (
            "h.json",
            '[{"problem_ids": [4294967296], "responses": [1]}]',
            "at position 0 is 4294967296, beyond INT32",
        ),
        (
            "h.csv",
            "problem_id,response\n2147483648,1\n",
            "h.csv: learner '0': problem_ids at position 0 is 2147483648",
        ),
        ("h.csv", "problem_id,response\n3.5,1\n", "line 2: problem_id is '3.5'; a whole number is needed"),
        ("h.csv", "problem_id,response\n1_0,1\n", "line 2: problem_id is '1_0'; a whole number is needed"),
        ("h.csv", "problem_id,response\n3,nan\n", "line 2: response is 'nan'; a whole number is needed"),
        ("h.csv", "problem_id,response\n" + "9" * 5000 + ",1\n", "line 2: problem_id is '9"),
        ("h.csv", "problem_id,response\n4,1,0\n", "line 2: 3 cells under a header of 2"),
        ("h.csv", "problem_id,response,response\n4,1,0\n", "line 1: 2 columns are named 'response'; keep one"),
        ("h.csv", "learner,problem_id,response\nada,4,1\n,7,0\n", "line 3: learner is empty"),
        ("h.csv", "problem_id,response\n" + "1" * 200_000 + ",1\n", "after line 1: not CSV (field larger than"),
        ("h.json", '{"problem_ids": 5, "responses": [1]}', "entry 0: problem_ids is 5; needed is a list"),
        ("h.json", '{"problem_ids": "51", "responses": [1, 1]}', "entry 0: problem_ids is '51'; needed is a list"),
        ("h.json", '{"problem_ids": [1], "responses": null}', "entry 0: responses is None; needed is a list"),
        (
            "h.json",
            '{"problem_ids": [1, NaN], "responses": [1, 1]}',
            "problem_ids at position 1 is nan; a whole number is",
        ),
        ("h.json", '{"problem_ids": [1, null], "responses": [1, 1]}', "problem_ids at position 1 is None; a whole"),
        ("h.json", '{"problem_ids": [[1], [2, 3]], "responses": [1, 1]}', "problem_ids is no plain list"),
        ("h.json", '{"problem_ids": [1e400], "responses": [1]}', "problem_ids at position 0 is inf; a whole number is"),
        (
            "h.json",
            '{"learner": {"id": 1}, "problem_ids": [], "responses": []}',
            "learner is {'id': 1}; needed is a name",
        ),
        ("h.json", "[" * 100_000, "cannot be read as JSON"),
        ("h.json", '{"problem_ids": [' + "9" * 5000 + '], "responses": [1]}', "cannot be read as JSON"),
        ("h.json", "7", "entry 0: needed is an object with problem_ids and responses"),
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


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, mark, ends):
    rows = [
        mark + "learner,problem_id,response",
        "ada, 4 ,1",
        '"ben",2.0,0.0',
        "ada,+7,True",
        "ada,9,false",
        "",
        "ben,3,1",
    ]
    path = tmp_path / "h.csv"
    path.write_bytes(ends.join(rows).encode())
    ada, ben = read(path)
    assert (ada.learner, ada.problem_ids.tolist(), ada.responses.tolist()) == ("ada", [4, 7, 9], [1, 1, 0])
    assert (ben.learner, ben.problem_ids.tolist(), ben.responses.tolist()) == ("ben", [2, 3], [0, 1])


@pytest.mark.parametrize("name", ["h.json", "H.JSON"])
def test_json_with_a_mark_whole_floats_and_a_nameless_learner_is_read(tmp_path: Path, name):
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"learner": null, "problem_ids": [3.0, 4], "responses": [true, false]}')
    (only,) = read(path)
    assert (only.learner, only.problem_ids.tolist(), only.responses.tolist()) == ("0", [3, 4], [1, 0])


def test_what_is_no_utf8_is_named(tmp_path: Path):
    path = tmp_path / "h.csv"
    path.write_bytes("problem_id,response\n4,1\n".encode("utf-16"))
    with pytest.raises(HistoryError, match=r"h\.csv is not UTF-8 text"):
        read(path)


def test_a_json_number_is_no_list_for_a_vocabulary_either():
    for ids in ("5", '"51"', "null"):
        with pytest.raises(HistoryError, match=r"entry 0: problem_ids is .*; needed is a list"):
            read_text(f'{{"problem_ids": {ids}, "responses": [1]}}', "stdin", Vocabulary({"5": 0, "1": 1}).number)


@pytest.mark.parametrize(
    "given",
    [
        [3, 1, 0],
        (3, 1, 0),
        [3.0, 1.0, 0.0],
        [3, True, 0.0],
        [Fraction(3), Decimal(1), np.int8(0)],
        np.array([3, 1, 0], np.uint64),
        np.array([3, 1, 0], ">i2"),
        np.array([3, 1, 0], np.float16),
        np.array([3, 1, 0], object),
        np.arange(8, dtype=np.int32)[6:-9:-1][[3, 5, 6]],
        np.ma.array([3, 1, 0]),
        memoryview(bytes([3, 1, 0])),
        deque([3, 1, 0]),
        {"a": 3, "b": 1, "c": 0}.values(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_whole_numbers_in_order_are_taken_however_they_come(given):
    history = History("ada", given, [1, 0, 1])
    assert history.problem_ids.dtype == np.int32
    assert history.problem_ids.tolist() == [3, 1, 0]


def test_what_can_be_read_once_is():
    history = History("ada", (n for n in (3, 1, 0)), iter([True, False, True]))
    assert (history.problem_ids.tolist(), history.responses.tolist()) == ([3, 1, 0], [1, 0, 1])
    bits = History("ada", range(3), np.array([True, False, True]))
    assert (bits.problem_ids.tolist(), bits.responses.tolist()) == ([0, 1, 2], [1, 0, 1])
    assert bits.responses.dtype == np.int32


@pytest.mark.parametrize("nothing", [[], (), np.zeros(0), np.zeros(0, bool), range(0), iter([])])
def test_nothing_is_a_cold_start(nothing):
    history = History("ada", nothing, [])
    assert (len(history), history.problem_ids.dtype, history.responses.dtype) == (0, np.int32, np.int32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "problem_ids is None, of type NoneType; needed is a list of whole numbers, oldest first"),
        (5, "problem_ids is 5, of type int"),
        ("123", "problem_ids is '123', of type str"),
        (b"123", "of type bytes"),
        ({1, 2, 3}, "of type set"),
        ({1: 0, 2: 1, 3: 1}, "of type dict"),
        ([[1], [2], [3]], "problem_ids is int64 of shape [3, 1]"),
        ([[1], [2, 3]], "problem_ids is no plain list"),
        (np.array(3), "problem_ids is int64 of shape []"),
        ([1, 2, 3.5], "problem_ids at position 2 is 3.5; a whole number is needed"),
        ([1, math.nan, 3], "position 1 is nan"),
        ([1, 2, math.inf], "position 2 is inf"),
        ([1, None, 3], "position 1 is None"),
        (["1", "2", "3"], "position 0 is '1'"),
        ([1, 2 + 0j, 3], "position 0 is (1+0j)"),
        ([1, 2, 2**31], "position 2 is 2147483648, beyond INT32 (-2147483648 to 2147483647)"),
        ([1, -(2**31) - 1, 3], "position 1 is -2147483649, beyond INT32"),
        ([1, 2**63, 3], "position 1 is 9.223372036854776e+18, beyond INT32"),
        ([1, 2**70, 3], "position 1 is 1180591620717411303424, beyond INT32"),
        ([1.0, 3e9, 3], "position 1 is 3000000000.0, beyond INT32"),
        (np.array([True, False, True]), "problem_ids is bool of shape [3]"),
        (np.array([1, 2, 3], "datetime64[ns]"), "problem_ids is datetime64[ns]"),
        (np.zeros(3, [("id", int)]), "position 0 is (0,)"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "problem_ids has masked values"),
        ([1, 2], "learner 'ada' has 2 problem_ids and 3 responses"),
        ([1, 2, -1], "learner 'ada' ends in -1, which stands for padding"),
    ],
)
def test_what_is_no_list_of_whole_numbers_is_explained(given, message):
    with pytest.raises(HistoryError) as raised:
        History("ada", given, [1, 0, -1])
    assert message in str(raised.value)
