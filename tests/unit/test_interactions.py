from pathlib import Path

import pytest

from build.model.interactions import DataError, problems, read_folds

GOOD = "0,77\n5,5,9,5\n1,2,1,1\n1,1,0,1\n1,78\n2,\n1,\n0,\n"


def test_ids_start_at_zero_and_repeated_rows_collapse(tmp_path: Path):
    (tmp_path / "fold1.csv").write_text(GOOD)
    ((first, second),) = read_folds(tmp_path)
    assert (first.learner, first.problem_ids.tolist(), first.responses.tolist()) == ("77", [4, 8, 4], [1, 0, 1])
    assert (second.learner, second.problem_ids.tolist(), second.responses.tolist()) == ("78", [1], [0])
    assert problems([first, second]) == 9


def test_folds_are_sorted_and_limited_evenly(tmp_path: Path):
    for name in ("fold2.csv", "fold1.csv"):
        (tmp_path / name).write_text(GOOD.replace("77", name))
    assert [fold[0].learner for fold in read_folds(tmp_path)] == ["fold1.csv", "fold2.csv"]
    assert [len(fold) for fold in read_folds(tmp_path, learners=3)] == [2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,77\n5\n1\n", "has 3 lines; it takes 4 a learner"),
        ("", "has 0 lines"),
        ("0,77\n5,x\n1,1\n1,1\n", "line 2: invalid literal"),
        ("0,77\n5,6\n1,1\n1\n", "line 4: 1 responses for 2 problem ids in line 2"),
        ("0,77\n0\n1\n1\n", "line 2: problem id 0; ids start at 1"),
        ("0,77\n5\n1\n2\n", "line 4: response 2; allowed are 0 (wrong) and 1 (correct)"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path: Path, content, message):
    (tmp_path / "fold1.csv").write_text(content)
    with pytest.raises(DataError) as raised:
        read_folds(tmp_path)
    assert message in str(raised.value)
    assert "fold1.csv" in str(raised.value)


def test_nothing_to_read_is_explained(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no \*\.csv files"):
        read_folds(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_folds(tmp_path / "absent")
