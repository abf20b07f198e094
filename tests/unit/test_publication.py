"""What of the figures is published, and that the pages show it."""

from __future__ import annotations

import json

import pytest

from build.bench import costs, origin, publication
from build.bench.ladder import report, waterfall
from build.bench.peers import comparison, peer
from build.bench.peers import report as peers
from build.core.reduce.cost import RATES


def published(name: str) -> dict[str, object]:
    return json.loads((publication.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_the_readmes_show_the_published_ladder(tmp_path):
    found = published("ladder")
    whole, front = (path.read_text(encoding="utf-8") for path in (publication.README, publication.FRONT))
    assert publication.published(whole, "ladder", report.section(found)) == whole
    assert publication.published(front, "four rungs", report.four_rows(found)) == front
    assert (publication.README.parent / "published" / "ladder.svg").is_file()
    assert [path.name for path in waterfall.draw(found, tmp_path)] == ["ladder.svg", "ladder.png"]
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_the_readme_shows_the_published_peers():
    found, readme = published("peers"), publication.README.read_text(encoding="utf-8")
    assert publication.published(readme, "peers", peers.section(found)) == readme
    names = [server["name"] for server in found["servers"]]
    assert comparison.OURS in names
    assert set(names) <= {comparison.OURS, *(p.name for p in peer.PEERS)}  # a peer may be newer than the figures


def test_every_published_rung_adds_up():
    for found in published("ladder")["rungs"]:
        for cells in found["loads"].values():
            for cell in cells.values():
                if "parts_ms" in cell:
                    assert sum(cell["parts_ms"].values()) == pytest.approx(cell["p50_ms"])


@pytest.mark.parametrize(("network", "name"), [("sasrec", "sasrec"), ("gru", "gru"), ("dkt", "ladder")])
def test_each_network_has_a_file_and_a_section_of_its_own(
    network: str, name: str, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    for key in ("README", "FRONT"):
        path = tmp_path / f"{key}.md"
        path.write_text(getattr(publication, key).read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(publication, key, path)
    before, front = publication.README.read_text(), publication.FRONT.read_text()
    found = published("ladder")
    found["model"] = {**found["model"], "network": network, "title": f"another {network}"}
    monkeypatch.setattr(publication, "FOLDER", tmp_path)
    for _ in range(2):  # again, it takes the place of the first
        written = report.publish(found)
    after = publication.README.read_text()
    assert written[0] == tmp_path / f"{name}.json"
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{k}" for k in ("json", "svg", "png")} | {
        "README.md",
        "FRONT.md",
    }
    assert after.count(f"another {network},") == 1
    assert publication.published(after, name, report.section(found)) == after
    if network != "dkt":
        assert all(line in after for line in before.splitlines())
    assert (publication.FRONT.read_text() != front) is (network == "dkt")


def test_a_readme_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place for the ladder"):
        publication.published("nothing", "ladder", "text")


def test_figures_name_the_commit_and_whether_it_was_that_alone():
    found = origin.record()
    assert set(found) == {"machine", "commit", "dirty", "time"}
    for commit, dirty, said in (
        ("1234567", False, "; commit 1234567, "),
        ("1234567", True, "; commit 1234567, with changes on top, "),
        ("1234567", None, "; commit 1234567, changes on top not recorded, "),
        (None, None, "; a tree without git, "),
    ):
        assert origin.sentence({**found, "commit": commit, "dirty": dirty}).endswith(said + found["time"][:10])


def test_the_readme_of_the_pass_shows_the_published_costs():
    found, readme = published("costs"), publication.REDUCE.read_text(encoding="utf-8")
    assert publication.published(readme, "costs", costs.section(found)) == readme


def test_the_rates_are_fitted_to_the_published_costs_and_put_the_models_in_order():
    models = published("costs")["models"]
    for name, rate in costs.fit(models).items():
        assert RATES[name] == pytest.approx(rate, rel=0.06, abs=1e-6), name
    assert costs.correlation([m["ms"] for m in models], [costs.predicted(m) for m in models]) >= 0.9
