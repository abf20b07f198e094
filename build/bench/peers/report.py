"""How the peers' report is shown: in the terminal, and in bench's README; all of it made from the JSON file alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from build.bench import origin, publication
from build.bench.peers.comparison import BUSY, OURS
from build.bench.peers.peer import PEERS

LEFT = 3  # columns of text


def columns(report: dict[str, Any]) -> list[str]:
    """What the table's columns are called."""
    rate = f"{report['model']['words']['histories']}/s at {BUSY}"
    return ["server", "version", "encoding", "p50 ms at 1", "p95", rate, "memory MB", "start s"]


def table(report: dict[str, Any]) -> Table:
    """The peers as they are shown in a terminal."""
    model = report["model"]
    shown = Table(title=f"the same core, history of {model['window']}, one {model['words']['history']} a request")
    for number, name in enumerate(columns(report)):
        shown.add_column(name, justify="left" if number < LEFT else "right")
    for row in rows(report):
        shown.add_row(*row)
    return shown


def rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """The table's rows, one a server and encoding."""
    for server in report["servers"]:
        if server["error"]:
            yield [server["name"], server["version"], f"does not serve here: {server['error']}", *([""] * 5)]
        for encoding, one in server["encodings"].items():
            yield [
                server["name"],
                server["version"],
                _encoding(encoding, one.get("threads", 0)),
                f"{one['p50_ms']:.2f}",
                f"{one['p95_ms']:.2f}",
                f"{one['throughput']:.0f}",
                f"{server['memory_mb']:.0f}",
                f"{server['start_s']:.1f}",
            ]


def _encoding(name: str, threads: int) -> str:
    """With the threads of one run of the core, where they were chosen."""
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}" if threads else name


def summary(report: dict[str, Any]) -> dict[str, float]:
    """The ensemble beside the best peer: in any encoding, and in the quick starts' own (JSON; PyTriton's is binary)."""
    ours = next(s for s in report["servers"] if s["name"] == OURS)["encodings"]
    if not ours:
        return {}
    (mine,) = ours.values()
    found = {}
    own = {peer.name: peer.encodings[0] for peer in PEERS}
    for label, quick_start in (("best peer", False), ("best peer as its quick start has it", True)):
        theirs = [
            one
            for server in report["servers"]
            if server["name"] in own
            for encoding, one in server["encodings"].items()
            if not quick_start or encoding == own[server["name"]]
        ]
        if theirs:
            found[f"p50 at 1 over the {label}"] = mine["p50_ms"] / min(one["p50_ms"] for one in theirs)
            found[f"throughput at {BUSY} over the {label}"] = mine["throughput"] / max(
                one["throughput"] for one in theirs
            )
    return found


def section(report: dict[str, Any]) -> str:
    """The section of bench's README in Markdown."""
    names, model = columns(report), report["model"]
    lines = [f"| {' | '.join(names)} |", "|---" * LEFT + "|--:" * (len(names) - LEFT) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    batching = ", ".join(f"{server['name']}: {server['batching']}" for server in report["servers"])
    said = [
        f"A history of {model['window']}, one {model['words']['history']} a request, "
        f"{report['settings']['rounds']} rounds in turns on {origin.sentence(report)}. Memory is of the whole process "
        f"tree. Batching: {batching}.",
        "",
        *lines,
        "",
        *(f"- {name}: {value:.2f}" for name, value in summary(report).items()),
    ]
    return "\n".join(said) + "\n"


def publish(report: dict[str, Any]) -> list[Path]:
    """Write the report into the repository: as JSON and into bench's README. Returns what was written."""
    name = publication.place(report, "peers")
    file = publication.FOLDER / f"{name}.json"
    publication.save(report, file)
    publication.publish(publication.README, name, section(report))
    return [file, publication.README]
