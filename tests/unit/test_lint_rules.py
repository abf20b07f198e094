"""Every rule finds what shows it, has a page, and can be ignored with a reason; and every form says what was found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ensemble.__main__ import app
from ensemble.lint import lint
from ensemble.lint.finding import Finding
from ensemble.lint.report import FORMATS, explain
from ensemble.lint.repository import LintError, read
from ensemble.lint.rules import RULES
from tests.configurations import delayed, model, write
from tests.rules_shown import SHOWN, Shown


@pytest.mark.parametrize("rule", [rule.id for rule in RULES])
def test_each_rule_finds_what_shows_it(tmp_path: Path, rule: str):
    found = lint(SHOWN[rule].write(tmp_path), cores=2, triton=(24, 10) if rule == "onnx-opset" else None)
    if rule == "onnx-opset":
        assert found == []  # opset 21 is what 24.10 runs
        found = lint(tmp_path, triton=(24, 3))
    own = [finding for finding in found if finding.rule == rule]
    assert own, [str(finding) for finding in found]
    assert all(finding.why and finding.instead and finding.line >= 1 for finding in own)
    if SHOWN[rule].refused and rule != "onnx-unread":
        assert any(finding.severity == "error" for finding in found)


def test_each_has_a_case_and_a_page_of_its_own():
    ids = [rule.id for rule in RULES]
    assert sorted(ids) == sorted(SHOWN)
    assert len(set(ids)) == len(ids) > 50
    for rule in RULES:
        page = explain(rule.id)
        assert page.startswith(f"{rule.id}: ")
        assert "https://" in page
        assert len(page.splitlines()) > 3
        assert f"{rule.id}: {rule.title}" in explain("all")
    with pytest.raises(LintError, match=r"is it tensor-dims\?"):
        explain("tensor-dim")


def test_a_finding_says_on_which_line_it_is(tmp_path: Path):
    (found,) = lint(write(tmp_path, m=model(size=0).replace("FP32 dims: [0]", "FP32 dims: [4]", 1)))
    assert (tmp_path / "m" / "config.pbtxt").read_text().splitlines()[found.line - 1].startswith("output")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["lint", *arguments])
    if isinstance(done.exception, LintError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def test_what_is_ignored_with_a_reason_is_a_note(tmp_path: Path):
    folder = str(write(tmp_path, slow=model(more=delayed(100_000)), late=model(more=delayed(100_000))))
    assert run(folder, "--strict")[0] == 1
    with (tmp_path / "slow" / "config.pbtxt").open("a") as file:
        file.write("# lint: ignore delay-too-long: its batches take two seconds\n")
    code, said = run(folder, "--strict")
    assert code == 1
    assert "(ignored: its batches take two seconds)" in said
    (tmp_path / ".lintignore").write_text("# all that is late\nla* delay-too-long: so is this one's\n")
    assert run(folder, "--strict")[0] == 0
    (tmp_path / ".lintignore").write_text("la* delay-too-long\n")
    code, said = run(folder, "--strict")
    assert code == 1
    assert ".lintignore: warning: ignore: an ignore has no rule and reason" in said
    (tmp_path / ".lintignore").write_text("* delay-to-long: a typing error\n")
    assert "there is no rule delay-to-long" in run(folder)[1]


def test_the_forms(tmp_path: Path):
    folder = SHOWN["tensor-dims"].write(tmp_path)
    found = json.loads(run(str(folder), "--format", "json")[1])
    assert found["triton_asked"] is False
    assert {entry["rule"] for entry in found["findings"]} == {"tensor-dims"}
    (one,) = json.loads(run(str(folder), "--format", "sarif")[1])["runs"]
    assert {rule["id"] for rule in one["tool"]["driver"]["rules"]} == set(SHOWN)
    assert one["results"][0]["level"] == "error"
    assert one["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 4
    said = run(str(folder), "--format", "github")[1]
    assert said.startswith(
        f"::error file={folder}/dims/config.pbtxt,line=4,title=tensor-dims::input.dims (x): [0] has 0"
    )
    assert "not asked: whether Triton loads it" in said
    assert "not asked: whether Triton loads it" in run(str(folder))[1]
    code, said = run(str(folder), "--format", "xml")
    assert code == 2
    assert set(FORMATS) <= set(said.replace(",", "").split())


def test_a_line_of_a_workflow_stays_one(tmp_path: Path):
    finding = Finding(tmp_path / "a,b", "k", "two\nlines, 100%", "c", "error", "r")
    said = FORMATS["github"](tmp_path, [finding], True)
    assert said == f"::error file={tmp_path}/a%2Cb,line=1,title=r::k: two%0Alines, 100%25. Instead: c."


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "lint what"),
        (["{folder}", "--triton", "2.51"], "YY.MM"),
        (["{folder}", "--typical", "x"], "a tensor's name and a size"),
        (["{folder}/none"], "no model repository"),
    ],
)
def test_what_cannot_be_looked_at_is_exit_code_2(tmp_path: Path, arguments: list[str], why: str):
    folder = write(tmp_path, m=model())
    code, said = run(*(argument.format(folder=folder) for argument in arguments))
    assert (code, why in said) == (2, True)


def test_what_a_version_and_a_flag_settle(tmp_path: Path):
    folder = SHOWN["stuck-requests"].write(tmp_path)
    assert "stuck-requests" in {finding.rule for finding in lint(folder, triton=(26, 2))}
    assert "stuck-requests" not in {finding.rule for finding in lint(folder, triton=(26, 3))}
    limited = SHOWN["rate-limiter"].write(tmp_path / "limited")
    assert lint(limited, flags=["--rate-limit=execution_count"]) == []


@pytest.mark.skipif(os.geteuid() != 0 and not hasattr(os, "mkfifo"), reason="needs a file that cannot be read")
def test_a_folder_in_the_place_of_a_configuration_is_one_finding(tmp_path: Path):
    write(tmp_path, m=model())
    (tmp_path / "folder" / "config.pbtxt").mkdir(parents=True)
    assert [finding.rule for finding in lint(tmp_path)] == ["unreadable"]
    assert list(read(tmp_path).models) == ["m"]


def test_shown_is_of_one_rule_each():
    names = [name for shown in SHOWN.values() for name in (*shown.models, *shown.broken)]
    assert len(names) == len(set(names))
    assert isinstance(SHOWN["versions"], Shown)
