"""The report: one HTML page that needs nothing beside it, and its pictures as PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from build import aside
from build.analyzer import result
from build.analyzer.profile import SEED_DELAY_US
from build.analyzer.result import Point, Setting
from build.bench import origin
from build.bench.ladder import waterfall
from ensemble.contract import Words
from ensemble.tables import CORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")  # told apart by everyone
SHOWN = 3  # the best settings, whose time is taken apart


@dataclass
class Section:
    """A part of the page. rows: (class, cells)."""

    title: str
    sentences: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    header: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `found` (as the analysis saves it) into `folder`: report.html and the PNGs. Returns what was written."""
    written = []
    words = {**Words()._asdict(), **found.get("words", {})}
    rate = f"{words['histories']} a second"
    sections: list[Section] = []
    for part, title in ((CORE, "The core alone"), ("single", "All steps in one model"), ("ensemble", "The ensemble")):
        if part not in found["sweeps"]:
            continue
        points = [_point(row) for row in found["sweeps"][part]]
        present = _setting(found["present"][part]) if part in found["present"] else None
        section = Section(title)
        figure = scatter(points, present, rate)
        written.append(_save(figure, folder / f"{part}.png"))
        section.pictures.append(_inline(figure))
        on_front = result.front(points)
        section.sentences.append(
            f"{len({p.setting for p in points})} configurations, {len(points)} measurements. The table has the front, where "
            "nothing that was measured has both more throughput and a lower p99, and then the 100 ms delay."
        )
        section.header = ("configuration", "callers", f"{words['histories']}/s", "mean ms", "p99 ms")
        seeds = [p for p in points if p.setting.queue_delay_us == SEED_DELAY_US]
        for point in [*on_front, *sorted(seeds, key=lambda p: p.concurrency)]:
            section.rows.append(
                {
                    "mark": "seed" if point in seeds else "chosen" if point.setting == present else "",
                    "cells": [
                        str(point.setting) + (" (the present one)" if point.setting == present else ""),
                        point.concurrency,
                        f"{point.throughput:.0f}",
                        f"{point.mean_ms:.1f}",
                        f"{point.p99_ms:.1f}",
                    ],
                }
            )
        sections.insert(0, section)
    if found["best"]:
        sections.insert(1, _best(found["best"], folder, written, words["histories"]))
    text = (
        jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
        .get_template("page.html.j2")
        .render(
            title=f"{found['model']} under Model Analyzer",
            origin=origin.sentence(found),
            version=found["version"],
            words=words,
            median=found["median_length"],
            longest=found["window"],
            sections=[vars(section) for section in sections],
            files=found["files"],
        )
    )
    aside.write(folder / "report.html", text)
    return [folder / "report.html", *written]


def _best(measured: list[dict[str, Any]], folder: Path, written: list[Path], histories: str) -> Section:
    """Where the time goes: measured once more, in turns, with the project's own client."""
    section = Section(
        "Where the time goes",
        [
            "The best configurations by throughput, the present one and the 100 ms delay, again in turns, with one caller."
        ],
        header=("configuration", "p50 ms", "p99 ms", f"{histories}/s with 16 callers"),
    )
    figure = breakdown(measured)
    written.append(_save(figure, folder / "breakdown.png"))
    section.pictures.append(_inline(figure))
    for row in measured:
        cells = [
            row["title"],
            f"{row['one']['p50_ms']:.2f}",
            f"{row['one']['p99_ms']:.2f}",
            f"{row['many']['throughput']:.0f}",
        ]
        section.rows.append({"mark": row["mark"], "cells": cells})
    return section


def scatter(points: Sequence[Point], present: Setting | None, rate: str) -> Figure:
    """Throughput against p99, one mark a measurement, coloured by the number of callers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    callers = sorted({p.concurrency for p in points})
    for colour, number in zip(COLOURS * len(callers), callers, strict=False):
        for seed in (False, True):
            drawn = [
                p for p in points if p.concurrency == number and (p.setting.queue_delay_us == SEED_DELAY_US) == seed
            ]
            if drawn:
                axes.scatter(
                    [p.p99_ms for p in drawn],
                    [p.throughput for p in drawn],
                    s=46 if seed else 30,
                    marker="X" if seed else "o",
                    color=colour,
                    alpha=0.85,
                    linewidths=0,
                    label=f"{number} caller{'s' if number > 1 else ''}{', 100 ms delay' if seed else ''}",
                )
    line = result.front(points)
    axes.plot([p.p99_ms for p in line], [p.throughput for p in line], color="#444", lw=1, zorder=0, label="front")
    now = [p for p in points if p.setting == present]
    if now:
        axes.scatter(
            [p.p99_ms for p in now],
            [p.throughput for p in now],
            s=120,
            facecolors="none",
            edgecolors="#222",
            label="the present configuration",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("p99, ms")
    axes.set_ylabel(rate)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def breakdown(measured: Sequence[dict[str, Any]]) -> Figure:
    """p50 of each configuration, from the client's part to the last step's; a bar too long for the others is cut off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1 + 0.5 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    parts = [waterfall.named(row["one"]["parts_ms"]) for row in measured]
    names = list(dict.fromkeys(name for row in parts for name in row))
    left = [0.0] * len(measured)
    for colour, name in zip(COLOURS * len(names), names, strict=False):
        widths = [row.get(name, 0.0) for row in parts]
        axes.barh(range(len(measured)), widths, left=left, color=colour, height=0.6, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    end = 1.25 * max((ms for ms, row in zip(left, measured, strict=True) if row["mark"] != "seed"), default=max(left))
    for number, ms in enumerate(left):
        side, colour = ("right", "white") if ms > end else ("left", "#222")
        axes.text(min(ms, end), number, f" {ms:.1f} ms ", va="center", fontsize=8, ha=side, color=colour)
    axes.set_xlim(0, end)
    axes.set_yticks(range(len(measured)), [textwrap.fill(row["title"], 44) for row in measured], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("p50, ms")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _inline(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    return path


def _setting(row: dict[str, Any]) -> Setting:
    instances = tuple((name, count) for name, count in row["instances"])
    return Setting(**{**row, "instances": instances, "preferred": tuple(row["preferred"])})


def _point(row: dict[str, Any]) -> Point:
    return Point(**{**row, "setting": _setting(row["setting"])})
