import json

import pytest

from ensemble.errors import VocabularyError
from ensemble.learners.history import read, read_text
from ensemble.learners.vocabulary import Vocabulary

NUMBERS = {"P51": 0, "P7": 1, "12": 2}


def test_histories_and_proposals_in_ones_own_names(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(NUMBERS))
    vocabulary = Vocabulary.read(tmp_path / "names.json", 3)
    history = vocabulary.history("ada", ["P7", 12, "P51"], [1, 0, 1])
    assert history.problem_ids.tolist() == [1, 2, 0]
    assert vocabulary.names(history.problem_ids) == ["P7", "12", "P51"]
    (tmp_path / "ada.csv").write_text("problem_id,response\nP7,1\n12,0\n")
    assert read(tmp_path / "ada.csv", vocabulary.number)[0].problem_ids.tolist() == [1, 2]
    (entry,) = read_text('{"problem_ids": ["P51", 12], "responses": [1, 1]}', "stdin", vocabulary.number)
    assert entry.problem_ids.tolist() == [0, 2]
    with pytest.raises(
        VocabularyError, match=r"stdin, line 3: problem 'P8' is not among the 3 of .*names\.json: .* never"
    ):
        read_text("problem_id,response\nP7,1\nP8,1\n", "stdin", vocabulary.number)
    with pytest.raises(VocabularyError, match=r"stdin, entry 0: problem 'P8' is not among the 3 of .*names\.json"):
        read_text('{"problem_ids": ["P8"], "responses": [1]}', "stdin", vocabulary.number)


def test_the_section_that_the_model_counts_is_found(tmp_path):
    path = tmp_path / "keyid2idx.json"
    path.write_text(
        json.dumps({"questions": NUMBERS, "concepts": {"a": 0, "b": 1}, "uid": {"u": 0}, "max_concepts": 4})
    )
    assert Vocabulary.read(path, 3).number("P7") == 1
    assert Vocabulary.read(path, 2).number("b") == 1
    with pytest.raises(VocabularyError, match="has 3 questions, 2 concepts; the model has 9 problems"):
        Vocabulary.read(path, 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q2idx.pkl", "", "is a pickle, and opening one runs what it holds"),
        ("missing.json", None, "cannot read"),
        ("text.json", "names", "cannot read"),
        ("list.json", "[1, 2]", "is no object of names and numbers"),
        ("high.json", '{"a": 3}', "'a' has number 3; allowed are 0 to 2"),
        ("word.json", '{"a": "1"}', "'a' has number '1'"),
        ("twice.json", '{"a": 1, "b": 1}', "'a' and 'b' both have number 1"),
    ],
)
def test_what_is_no_vocabulary_is_explained(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(VocabularyError) as raised:
        Vocabulary.read(tmp_path / name, 3)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
