"""Files of histories for any model, and the command line that reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ensemble import requests
from ensemble.__main__ import app
from ensemble.errors import HistoryError, LastrowError
from ensemble.interface import Interface
from tests.unit.test_client_mapping import Servicer, serving
from tests.unit.test_interface import next_item

OF = Interface.of(next_item())
ADA = {"item_ids": [5, 9, 3], "prices": [[1, 0.5], [2, 0.5], [1, 1]], "profile": [0, 0, 1.5], "age": 30}
BEN = {"item_ids": [7], "prices": [[1, 1]], "profile": [1, 0, 0]}
CSV = """\
user,item_ids,prices,profile,age
ada,5 9 3,1 0.5; 2 0.5;1 1,0 0 1.5,30
"ben, who is new",7,1 1,1 0 0,
"""


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"user": "ada", **ADA}, {"user": "ben, who is new", **BEN, "age": None}]),
        json.dumps({"user": "ada", **ADA}) + "\n\n" + json.dumps({**BEN, "user": "ben, who is new"}) + "\n",
        CSV,
        "\ufeff" + CSV.replace("\n", "\r\n"),
    ],
    ids=["json", "lines", "csv", "csv of Windows"],
)
def test_every_format_says_the_same(text: str):
    assert requests.read(text.encode(), "file", OF) == [("ada", ADA), ("ben, who is new", BEN)]


def test_one_object_over_several_lines_and_no_name():
    assert requests.read(json.dumps(BEN, indent=1).encode(), "file", OF) == [("0", BEN)]
    assert requests.read(b"item_ids,prices\n,\n7,1 1\n", "file", OF) == [
        ("0", {"item_ids": [], "prices": []}),
        ("1", {"item_ids": [7], "prices": [[1, 1]]}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file, line 1: no header; needed are columns named item_ids, prices, candidate_ids"),
        (b"item_ids,item_ids\n1,2\n", "file, line 1: 2 columns are named 'item_ids'"),
        (b"item_ids,age\n1\n", "file, line 2: 1 cells under a header of 2"),
        (b"item_ids,age\n1,2,3\n", "file, line 2: 3 cells under a header of 2"),
        (b"item_ids\n5 x 3\n", "file, line 2: item_ids is '5 x 3'; 'x' is no number"),
        (b"prices\n1 2; 3 y\n", "file, line 2: prices is '1 2; 3 y'; 'y' is no number"),
        (b"age\nold\n", "file, line 2: age is 'old'; 'old' is no number"),
        (b'{"item_ids": [5]}\n{"item_ids": [5}\n', "file, line 2: not JSON (Expecting"),
        (b'{\n"item_ids": [5\n}\n', "file, line 3: not JSON (Expecting"),
        (b"[5, 9]", "file, entry 0 is 5; needed is an object with item_ids, prices"),
        (b'{"user": ["ada"], "item_ids": [5]}', "file, entry 0: user is ['ada']; needed is a name or a number"),
        (b"\xff\xfe1", "file is neither UTF-8 text nor Parquet"),
        (b"[" * 100_000, "file"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, message: str):
    with pytest.raises(HistoryError) as raised:
        requests.read(content, "file", OF)
    assert str(raised.value).startswith(message)


def test_a_name_is_no_input_where_an_input_is_called_so():
    words = {"history": "item_ids", "histories": "users", "step": "item", "steps": "items"}
    of = Interface.of(next_item(words=words))
    assert requests.label(of) is None
    assert requests.read(json.dumps(BEN).encode(), "file", of) == [("0", BEN)]


def test_parquet_is_the_same_or_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HistoryError, match=r"^file is a Parquet file, which pyarrow reads: install it with `pip"):
        requests.read(b"PAR1 and more", "file", OF)
    monkeypatch.undo()
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([{"user": "ada", **ADA}, {"user": "ben", **BEN}])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "file.parquet")
    content = (tmp_path / "file.parquet").read_bytes()
    assert requests.read(content, "file", OF) == [("ada", ADA), ("ben", BEN)]
    with pytest.raises(HistoryError, match=r"^file cannot be read as Parquet"):
        requests.read(content[:40], "file", OF)


@pytest.fixture
def csv_file(tmp_path: Path) -> str:
    (tmp_path / "users.csv").write_text(CSV)
    return str(tmp_path / "users.csv")


def test_the_command_line_asks_for_any_model(csv_file: str):
    with serving(Servicer(next_item())) as url:
        predict = ["predict", csv_file, "--url", url, "--model", "sasrec"]
        shown = CliRunner().invoke(app, predict)
        told = CliRunner().invoke(app, [*predict, "--json", "--answers", "next_items, scores", "--top", "2"])
        table = CliRunner().invoke(app, [*predict, "--answers", "next_items", "--top", "3"])
    assert (shown.exit_code, told.exit_code, table.exit_code) == (0, 0, 0), (shown, told, table)
    for part in ("ada", "ben, who is new", "scores", "[101]", "39, 40, 41, 42, ..."):
        assert part in shown.stdout
    ada, ben = json.loads(told.stdout)
    assert (ada["user"], list(ada["answers"])) == ("ada", ["next_items_ids", "next_items_values", "scores"])
    assert ada["answers"]["next_items_ids"] == [100, 99]
    assert ben["answers"]["next_items_values"] == [103, 102]
    assert len(ben["answers"]["scores"]) == 101
    assert [line.split("│")[4].strip() for line in table.stdout.splitlines() if "│" in line] == ["100", "99", "98"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sasrec", "--spec", "a.toml"], "--spec a.toml and --model sasrec both say what is asked"),
        (
            ["--model", "sasrec", "--probabilities"],
            "--probabilities and --vocabulary go with a spec of knowledge tracing",
        ),
        (["--model", "sasrec", "--answers", "score"], "answers has 'score'; sasrec has scores, next_items"),
    ],
)
def test_options_that_do_not_go_together(csv_file: str, options: list[str], message: str):
    with serving(Servicer(next_item())) as url:
        done = CliRunner().invoke(app, ["predict", csv_file, "--url", url, *options])
    assert isinstance(done.exception, LastrowError)
    assert message in str(done.exception)
