"""How a ladder's report is shown: in the terminal, and in the READMEs; all of it made from the JSON file alone."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from build.bench import origin, publication
from build.bench.ladder import waterfall
from build.bench.ladder.figures import Figures, title

FOUR = {  # what the front page shows of the ladder, and what it calls it
    "naive Triton": "naive Triton (rung 1)",
    "PyTorch eager": "local PyTorch (rung 0)",
    "tuned": "lastrow (rung 8)",
    "int8": "lastrow in 8 bits (rung 12)",
}


def table(report: dict[str, Any]) -> Table:
    """The ladder as it is shown in a terminal."""
    figures = Figures(report)
    shown = Table(title=f"history of {figures.full}, one {figures.words['history']} at a time, unless said")
    shown.add_column("rung")
    shown.add_column("change")
    for column in _columns(figures)[2:]:
        shown.add_column(column, justify="right")
    for row in _rows(figures):
        shown.add_row(*row)
    return shown


def lines(report: dict[str, Any]) -> list[str]:
    """What is said below the table: the machine, the parts of each rung, and the figures."""
    figures = Figures(report)
    said = [origin.sentence(report)]
    for rung in figures.served():
        cell = rung["loads"][figures.full]["1"]
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in waterfall.named(cell["parts_ms"]).items() if ms >= 0.005)
        said.append(f"{title(rung)}: {parts} ms (wire and client {cell['wire_and_client_ms']:.2f})")
    best = figures.best_batch()
    if best:
        many = figures.words["histories"]
        said.append(f"ONNX Runtime by itself is fastest at {best[0]} {many} at once: {best[1]:.0f} a second")
    for rung in report["rungs"]:
        cell = figures.cell(rung["name"])
        if cell and "device_p50_ms" in cell:
            said.append(f"{title(rung)}: {cell['device_p50_ms']:.3f} ms on the device, by CUDA events")
    said += [f"{name}: {value:.3f}" for name, value in figures.summary().items()]
    return said


def section(report: dict[str, Any]) -> str:
    """The section of bench's README in Markdown."""
    figures = Figures(report)
    rows = [f"| {' | '.join(_columns(figures))} |", "|---|---" + "|--:" * (len(_columns(figures)) - 2) + "|"]
    rows += [f"| {' | '.join(row)} |" for row in _rows(figures)]
    model, settings = report["model"], report["settings"]
    told = [
        f"{model['title']}, history of {figures.full}; the mix is {model['lengths']} {figures.words['histories']}' "
        f"lengths, median {model['mix_median']}. Measured in one run of {settings['rounds']} interleaved rounds "
        f"on {origin.sentence(report)}.",
        "",
        *rows,
        "",
        f"![p50 by rung, and where it goes]({publication.FOLDER.name}/{publication.place(report, 'ladder')}.svg)",
        "",
    ]
    told += [f"- {name}: {value:.2f}" for name, value in figures.summary().items()]
    top = figures.top()
    if top and top.get("hops_bytes"):
        hops = ", ".join(f"{name} {_size(size)}" for name, size in top["hops_bytes"].items())
        told.append(f"- tensors of one {figures.words['history']} on each way: {hops}")
    return "\n".join(told) + "\n"


def four_rows(report: dict[str, Any]) -> str:
    """The front page's section: the ends of the ladder, as far as they were climbed."""
    figures = Figures(report)
    columns = ["p50 ms", "of local", "on the wire", _columns(figures)[-1]]
    names = _columns(figures)
    shown = [names.index(column) for column in columns]
    rows = [
        [FOUR[rung["name"]], *(_row(figures, rung)[column] for column in shown)]
        for name in FOUR
        if (rung := figures.rung(name))
    ]
    model = report["model"]
    told = [
        f"{model['title']}, history of {figures.full}, one {figures.words['history']} a request; on "
        f"{origin.sentence(report)}.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" + "|--:" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(told) + "\n"


def publish(report: dict[str, Any]) -> list[Path]:
    """Write the report into the repository: as JSON, as pictures, and into bench's README. Returns what was written.

    The default network's four rungs go to the front page.
    """
    name = publication.place(report, "ladder")
    file = publication.FOLDER / f"{name}.json"
    publication.save(report, file)
    written = [file, *waterfall.draw(report, publication.FOLDER, name), publication.README]
    publication.publish(publication.README, name, section(report))
    if name == "ladder":
        publication.publish(publication.FRONT, "four rungs", four_rows(report))
        written.append(publication.FRONT)
    return written


def _columns(figures: Figures) -> list[str]:
    busiest = f"{figures.words['histories']}/s at {figures.busiest}"
    return ["rung", "change", "p50 ms", "p95", "95 % interval", "of local", "on the wire", "mix p50", busiest]


def _rows(figures: Figures) -> list[list[str]]:
    """The table: a row a rung, and one for neighbours that were skipped for one reason."""
    rows = []
    for reason, neighbours in groupby(figures.report["rungs"], key=lambda rung: rung["skipped"]):
        rungs = list(neighbours)
        if reason:
            titles = dict.fromkeys((title(rungs[0]), title(rungs[-1])))
            rows.append([" to ".join(titles), f"skipped: {reason}", *_empty(figures)])
        else:
            rows += [_row(figures, rung) for rung in rungs]
    return rows


def _row(figures: Figures, rung: dict[str, Any]) -> list[str]:
    """A rung's cells of the table; empty where it was not measured."""
    one = figures.cell(rung["name"])
    if one is None:
        return [title(rung), rung["change"], *_empty(figures)]
    eager = figures.cell("PyTorch eager")
    mix, busiest = figures.cell(rung["name"], "mix"), figures.cell(rung["name"], None, figures.busiest)
    return [
        title(rung),
        rung["change"],
        f"{one['p50_ms']:.2f}",
        f"{one['p95_ms']:.2f}",
        "{:.2f} to {:.2f}".format(*one["interval_ms"]),
        f"{one['p50_ms'] / eager['p50_ms']:.3f}" if eager else "",
        _size(one.get("wire_bytes")),
        f"{mix['p50_ms']:.2f}" if mix else "",
        f"{busiest['throughput']:.0f}" if busiest else "",
    ]


def _empty(figures: Figures) -> list[str]:
    """Cells without figures, for all columns behind the first two."""
    return [""] * (len(_columns(figures)) - 2)


def _size(count: float | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB" if count >= 1e4 else f"{count:,.0f} B"
