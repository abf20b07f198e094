"""How a report of stages is shown: in the terminal, in the README, and as a picture; all of it made from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from build.bench import machine, origin, publication
from build.bench.stages.timeline import STAGES

COLOURS = (  # one a stage, in their order
    *("#4477aa", "#66ccee", "#88ccaa", "#bbbbbb", "#aa3377", "#ddaa77", "#228833", "#99bb55", "#ccbb44", "#777711"),
    *("#eeaabb", "#ee6677", "#882255", "#3399cc", "#223366"),
)


def table(report: dict[str, Any]) -> Table:
    """The report as it is shown in a terminal."""
    shown = Table(title=f"us, one request at a time: {report['model']['title']}")
    header, *rows = _rows(report)
    for number, column in enumerate(header):
        shown.add_column(column, justify="right" if 0 < number < len(header) - 1 else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def lines(report: dict[str, Any]) -> list[str]:
    """What is said below the table: the machine, and of each step where its time goes."""
    said = [origin.sentence(report)]
    for cell in report["cells"]:
        for place, stages in cell["where_us"].items():
            told = ", ".join(f"{stage} {us:.0f}" for stage, us in stages.items())
            said.append(f"{title(cell)}: {place}: {told}")
    return said


def section(report: dict[str, Any]) -> str:
    """The section of bench's README in Markdown."""
    header, *rows = _rows(report)
    settings, cells = report["settings"], report["cells"]
    off = max(abs(cell["remainder_us"]) / cell["p50_us"] for cell in cells)
    told = [
        f"{report['model']['title']}; p50 in us of {cells[0]['requests']} requests, one at a time, in {settings['rounds']} "
        f"interleaved rounds, on {origin.sentence(report)}. A stage is the mean over the "
        f"fifth of the requests whose time is nearest to p50; together they are p50 within {off:.1%}.",
        "",
        f"| {' | '.join(header)} |",
        "|---" + "|--:" * (len(header) - 2) + "|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"![where each microsecond goes]({publication.FOLDER.name}/stages.svg)",
        "",
    ]
    return "\n".join(told)


def publish(report: dict[str, Any]) -> list[Path]:
    """Write the report into the repository: as JSON, as pictures, and into bench's README. Returns what was written."""
    file = publication.FOLDER / "stages.json"
    publication.save(report, file)
    pictures = draw(report, publication.FOLDER)
    publication.publish(publication.README, "stages", section(report))
    return [file, *pictures, publication.README]


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """The stages as stages.svg and stages.png: a bar for each layout and length."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "lastrow"
    from matplotlib import pyplot as plt

    lengths = sorted({cell["length"] for cell in report["cells"]})
    found = _stages(report)
    colours = dict(zip(STAGES, COLOURS, strict=True))
    figure, panels = plt.subplots(
        len(lengths), 1, figsize=(11, 1.5 * len(lengths) + 1.7), layout="constrained", squeeze=False
    )
    for panel, length in zip(panels[:, 0], lengths, strict=True):
        cells = [cell for cell in report["cells"] if cell["length"] == length]
        for row, cell in enumerate(cells):
            start = 0.0
            for stage, us in cell["stages_us"].items():
                panel.barh(row, us, left=start, color=colours[stage], height=0.7)
                start += us
            panel.text(start, row, f" {cell['p50_us']:,.0f} us", va="center", fontsize=8)
        panel.set_yticks(range(len(cells)), [cell["layout"] for cell in cells], fontsize=8)
        panel.set_xlim(0, 1.1 * max(cell["p50_us"] for cell in cells))
        panel.set_title(f"history of {length}", fontsize=9)
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("us")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[stage]) for stage in found]
    figure.legend(handles, found, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.suptitle(f"{report['model']['title']}: {machine.sentence(report['machine'])}", fontsize=8)
    paths = [folder / f"stages.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def title(cell: dict[str, Any]) -> str:
    """What a column is about."""
    return f"{cell['layout']}, {cell['length']}"


def _stages(report: dict[str, Any]) -> list[str]:
    """Those that any request passed, in order."""
    return [stage for stage in STAGES if any(stage in cell["stages_us"] for cell in report["cells"])]


def _rows(report: dict[str, Any]) -> list[list[str]]:
    """The header, a row a stage, and at the end the whole, the remainder, and what it is without notes."""
    cells = report["cells"]
    rows = [["stage", *map(title, cells), "what"]]
    for stage in _stages(report):
        spent = [cell["stages_us"].get(stage) for cell in cells]
        rows.append([stage, *("" if us is None else f"{us:,.0f}" for us in spent), STAGES[stage]])
    for key, name, what in (
        ("remainder_us", "remainder", "what the stages lack of p50"),
        ("p50_us", "p50", "from the call of `predict` to its answer"),
        (
            "served_us",
            "p50 without notes",
            "the same repositories, whose steps note nothing and which Triton does not trace",
        ),
    ):
        rows.append([name, *(f"{cell[key]:,.0f}" for cell in cells), what])
    return rows
