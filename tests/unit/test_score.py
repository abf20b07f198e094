"""Scoring without a server: what is answered, what is refused, what a run leaves, and how one goes on that was killed."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build import ROOT
from build.model import checkpoint
from build.repository import assembly
from build.score import Scorer, run, table
from build.score.repository import ScoringError
from ensemble.errors import InvalidRequestError
from ensemble.knowledge_tracing import narrowed
from ensemble.spec import Spec
from tests.conftest import answer_of, learner, small_document, untrained

PROBLEMS, WINDOW = 40, 32
LENGTHS = (20, 0, 1, 8, 9, WINDOW, WINDOW + 9, 3, 100)
LAYOUTS = ("ensemble", "single", "rows")


def described(layout: str) -> Spec:
    document = small_document()
    document["model"]["buckets"] = [8, WINDOW]
    if layout == "rows":
        document["reduce"]["where"] = "postprocess"
    else:
        document.update({"candidates": {}, "serve": {"layout": layout}})
    return narrowed(Spec.model_validate(document.unwrap()))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("scored"), {}
    for layout in LAYOUTS:
        spec = described(layout)
        checkpoint.save(untrained(spec), folder / "model.pt")
        made[layout] = assembly.build(spec, folder / "model.pt", folder / layout).folder
    return made


@pytest.fixture(scope="module")
def model():
    return untrained(described("ensemble"))


def histories(layout: str = "ensemble"):
    """A model that answers every row has none for a cold start."""
    return [learner(length, problems=PROBLEMS) for length in LENGTHS if length or layout != "rows"]


def columns(count: int = len(LENGTHS)) -> dict[str, list[np.ndarray]]:
    several = [learner(LENGTHS[n % len(LENGTHS)], n, PROBLEMS) for n in range(count)]
    return {
        "problem_ids": [np.asarray(each.problem_ids) for each in several],
        "responses": [np.asarray(each.responses) for each in several],
    }


def given(layout: str = "ensemble") -> dict[str, np.ndarray]:
    """As Ray Data hands lists of unequal length over."""
    found = {}
    for name in ("problem_ids", "responses"):
        values = [getattr(each, name) for each in histories(layout)]
        found[name] = np.empty(len(values), object)
        found[name][:] = values
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_column_is_the_models(repositories, model, layout: str):
    scorer = Scorer(repositories[layout], everything=True, together=4)
    found = scorer(given(layout))["probabilities"]
    assert found.dtype == np.float16
    for each, probabilities in zip(histories(layout), found, strict=True):
        np.testing.assert_allclose(probabilities, answer_of(model, each, WINDOW), atol=6e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_answers_that_pick_are_chosen_where_nothing_is(repositories, model, layout: str):
    found = Scorer(repositories[layout])(given(layout))
    assert {name: value.shape for name, value in found.items()} == {
        "next_problem_ids": (len(histories(layout)), 10),
        "next_problem_probabilities": (len(histories(layout)), 10),
    }
    for each, ids, chances in zip(histories(layout), *found.values(), strict=True):
        left = np.array(answer_of(model, each, WINDOW))
        left[each.problem_ids] = np.inf
        wanted = np.argsort(np.abs(left - 0.7), kind="stable")[: min(10, np.isfinite(left).sum())]
        assert ids.tolist() == [*wanted, *[-1] * (10 - len(wanted))]
        np.testing.assert_allclose(chances[: len(wanted)], left[wanted], atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_or_more_of_them_and_some_columns(repositories, model, layout: str):
    scorer = Scorer(repositories[layout], top=3, candidates=[7, 39, 0])
    found = scorer(given(layout))
    assert found["next_problem_ids"].shape == (len(histories(layout)), 3)
    (name,) = [name for name in found if "candidate" in name]
    for each, chances in zip(histories(layout), found[name], strict=True):
        np.testing.assert_allclose(chances, answer_of(model, each, WINDOW)[[7, 39, 0]], atol=1e-5)


def test_columns_as_others_hand_them_over(repositories):
    scorer = Scorer(repositories["ensemble"])
    wanted = scorer(given())
    padded = {name: np.full((len(LENGTHS), 100), -1) for name in wanted and given()}
    for name, rows in given().items():
        for row, values in zip(padded[name], rows, strict=True):
            row[: len(values)] = values
    again = pickle.loads(pickle.dumps(scorer))  # noqa: S301 its own
    for found in (scorer(padded), scorer(*padded.values()), again(given())):
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)
    kept = scorer({**given(), "learner": np.arange(len(LENGTHS))})
    assert kept["learner"].tolist() == list(range(len(LENGTHS)))


def test_what_breaks_the_contract_is_said_and_spoils_nobody(repositories):
    scorer = Scorer(repositories["ensemble"])
    good = [{name: values[n] for name, values in columns().items()} for n in range(len(LENGTHS))]
    wanted, _ = scorer.answer(good)
    bad = [
        {"problem_ids": [PROBLEMS], "responses": [1]},
        {"problem_ids": [3, 4], "responses": [1]},
        {"problem_ids": [3]},
        {"problem_ids": ["x"], "responses": [1]},
        {"problem_ids": 5, "responses": 1},
    ]
    found, refused = scorer.answer([*good[:4], *bad, *good[4:]])
    assert sorted(refused) == [4, 5, 6, 7, 8]
    assert "allowed are 0 to 39" in refused[4]
    assert "responses is missing" in refused[6]
    assert (found["next_problem_ids"][4:9] == -1).all()
    for name, values in wanted.items():
        np.testing.assert_allclose(np.delete(found[name], range(4, 9), 0), values, atol=1e-6)
    with pytest.raises(InvalidRequestError, match="allowed are 0 to 39"):
        scorer({"problem_ids": [[1], [PROBLEMS]], "responses": [[1], [1]]})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 41}, "top is 41; knowledge_tracing has 1 to 40 columns"),
        ({"candidates": [3, 40]}, "candidate 1 is 40; allowed are columns, 0 to 39"),
        ({"candidates": []}, "there is no candidate"),
    ],
)
def test_what_the_model_does_not_have(repositories, options, said: str):
    with pytest.raises(ScoringError, match=said):
        Scorer(repositories["ensemble"], **options)


def test_a_first_step_of_ones_own_is_refused(repositories, tmp_path: Path):
    shutil.copytree(repositories["ensemble"], tmp_path / "own")
    with (tmp_path / "own" / "preprocess" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "function" value { string_value: "{}" } }\n')
    with pytest.raises(ScoringError, match="has a first step of one's own"):
        Scorer(tmp_path / "own")


def test_what_is_no_repository(tmp_path: Path, repositories):
    with pytest.raises(ScoringError, match="is no repository that `make repo` wrote"):
        Scorer(tmp_path)
    with pytest.raises(
        ScoringError, match="there is no column responses; knowledge_tracing takes problem_ids, responses"
    ):
        Scorer(repositories["single"])({"problem_ids": [[1]]})


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    file = folder / f"learners.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        lines = [",".join(rows[0])]
        cells = [" ".join(map(str, v)) if isinstance(v, list) else f'"{v}"' for row in rows for v in row.values()]
        lines += [",".join(cells[n : n + len(rows[0])]) for n in range(0, len(cells), len(rows[0]))]
        file.write_text("\ufeff" + "\n".join(lines) + "\n")
    return file


def tabled(count: int) -> list[dict]:
    found = columns(count)
    return [
        {
            "learner": f"l{n}",
            "country": "a, b\nc",
            "problem_ids": found["problem_ids"][n].tolist(),
            "responses": found["responses"][n].tolist(),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_run_over_a_table(repositories, tmp_path: Path, kind: str):
    rows = tabled(45)
    rows[11]["problem_ids"] = [PROBLEMS, 1]
    rows[11]["responses"] = [1, 1]
    rows[40]["responses"] = [*rows[40]["responses"], 1]
    file, out = write(tmp_path, kind, rows), tmp_path / "out"
    said = []
    scorer = Scorer(repositories["ensemble"])
    count = run.score([file], out, scorer, 2, 20, lambda share, note: said.append((share, note)))
    assert (count.scored, count.refused) == (43, 2)
    parts = sorted(out.glob("*.parquet"))
    assert [(part.name, pq.read_metadata(part).num_rows) for part in parts] == [
        ("learners-00000.parquet", 19), ("learners-00001.parquet", 20), ("learners-00002.parquet", 4),
    ]  # fmt: skip
    found = pa.concat_tables(map(pq.read_table, parts))
    kept = [row for number, row in enumerate(rows) if number not in (11, 40)]
    assert found["learner"].to_pylist() == [row["learner"] for row in kept]
    wanted, _ = scorer.answer([{name: row[name] for name in ("problem_ids", "responses")} for row in kept])
    assert found["next_problem_ids"].to_pylist() == wanted["next_problem_ids"].tolist()
    refused = [
        json.loads(line) for path in sorted(out.glob("*.refused.jsonl")) for line in path.read_text().splitlines()
    ]
    assert [(each["row"], each["name"]) for each in refused] == [(11, "l11"), (40, "l40")]
    assert "allowed are 0 to 39" in refused[0]["reason"]
    assert said[-1][1].startswith("43 scored, 2 refused, ")
    assert max(share for share, _ in said) == 1


def test_rows_that_cannot_be_read(repositories, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"problem_ids": [1], "responses": [1]}\n{"problem_ids": [1\nnothing\n[1]\n')
    (tmp_path / "b.csv").write_bytes(b"problem_ids,responses\n1 2,1 0\n1 2\n1 \xff,1 0\n1,x\n")
    count = run.score([tmp_path], tmp_path / "out", Scorer(repositories["ensemble"]), 1)
    assert (count.scored, count.refused) == (2, 6)
    assert pq.read_table(tmp_path / "out" / "a-00000.parquet")["learner"].to_pylist() == ["0"]
    lines = (tmp_path / "out" / "b-00000.refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2, 3]


def test_a_part_without_a_sound_row_has_the_others_columns(repositories, tmp_path: Path):
    rows = [{"problem_ids": [1], "responses": [1]}, {"problem_ids": [99], "responses": [1]}]
    file = write(tmp_path, "parquet", rows)
    run.score([file], tmp_path / "out", Scorer(repositories["ensemble"]), 1, 1)
    schemas = [pq.read_schema(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.parquet", b"nothing", "cannot be read as parquet"),
        ("x.txt", b"", "is of no format that is read; give .parquet, .jsonl, .csv"),
        (
            "x.csv",
            b"problem_ids,answers\n1,1\n",
            "has no column responses; knowledge_tracing takes problem_ids, responses",
        ),
    ],
)
def test_tables_that_are_none(repositories, tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoringError, match=said):
        run.score([tmp_path / name], tmp_path / "out", Scorer(repositories["ensemble"]), 1)


def test_parts_of_two_runs_do_not_mix(repositories, tmp_path: Path):
    file = write(tmp_path, "jsonl", tabled(3))
    run.score([file], tmp_path / "out", Scorer(repositories["ensemble"]), 1)
    with pytest.raises(ScoringError, match="has the parts of another run: its choice is"):
        run.score([file], tmp_path / "out", Scorer(repositories["ensemble"], top=2), 1)
    write(tmp_path, "jsonl", tabled(4))
    with pytest.raises(ScoringError, match="its files is"):
        run.score([file], tmp_path / "out", Scorer(repositories["ensemble"]), 1)
    with run._alone(tmp_path / "out"), pytest.raises(ScoringError, match="another run writes into"):
        run.score([file], tmp_path / "out", Scorer(repositories["ensemble"]), 1)


def test_a_run_that_is_killed_goes_on_where_it_stopped(repositories, tmp_path: Path):
    file = write(tmp_path, "parquet", tabled(900))

    def command(out: str) -> list[str]:
        words = [sys.executable, "-m", "build", "score", str(file), "--out", str(tmp_path / out), "--window", "10"]
        return [*words, "--repository", str(repositories["ensemble"]), "--workers", "2"]

    subprocess.run(command("whole"), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 3 <= len(before) < 90
    deadline = time.monotonic() + 30  # the killed run's workers see that it is gone
    again = subprocess.run(command("killed"), cwd=ROOT, check=True, capture_output=True, text=True)
    assert "900 histories scored" in again.stderr
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in parts.iterdir() if path.is_file()} == wanted
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == before  # not made again
    assert not list(parts.glob(run.LEFT_BEHIND))


def test_windows_are_even_whatever_row_groups_are(repositories, tmp_path: Path):
    file = write(tmp_path, "parquet", tabled(45))
    interface = Scorer(repositories["ensemble"]).interface
    found = [(window.first, window.rows) for window in table.windows(file, interface, 20)]
    assert found == [(0, 20), (20, 20), (40, 5)]
