"""p50 by rung and where it goes, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build.bench import machine
from build.bench.ladder.figures import Figures, title

# Parts of a request's time, from the client inwards, and their colours in the picture.
PARTS = {
    "client": "#4477aa",
    "wire": "#66ccee",
    "queue": "#bbbbbb",
    "preprocess": "#228833",
    "core": "#ccbb44",
    "postprocess": "#ee6677",
    "hand-over": "#aa3377",
    "one model": "#222255",
}
MODEL = "#ccbb44"  # a local model is all core


def named(parts: dict[str, float]) -> dict[str, float]:
    """The parts in the picture's order; a naive deployment's only model counts as the core.

    What has any other name is one model that does it all, which has the served model's.
    """
    merged: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for name, ms in parts.items():
        # A step for each answer, and for answers about wanted columns a core each: postprocess_scores, core_scores.
        step = next((part for part in ("core", "postprocess") if name.startswith(f"{part}_")), name)
        step = {"naive": "core", "propose": "postprocess"}.get(step, step)
        merged[step if step in PARTS else "one model"] += ms
    return merged


def draw(report: dict[str, Any], folder: Path, name: str = "ladder") -> list[Path]:
    """The waterfall as an SVG and a PNG of that name: p50 by rung and where it goes, and the fast rungs again, larger."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "lastrow"
    from matplotlib import pyplot as plt

    figures = Figures(report)
    rungs = [r for r in report["rungs"] if r["loads"].get(figures.full, {}).get("1")]
    values = [r["loads"][figures.full]["1"]["p50_ms"] for r in rungs]
    figure, panels = plt.subplots(
        1, 2, figsize=(12, 0.42 * len(rungs) + 1.6), sharey=True, layout="constrained", width_ratios=(2, 3)
    )
    small = [v for r, v in zip(rungs, values, strict=True) if r["number"] not in ("0", "1", "2", "3")]
    limits = (max(values) * 1.25, max(small or values) * 1.25)
    for panel, limit in zip(panels, limits, strict=True):
        for row, (rung, p50) in enumerate(zip(rungs, values, strict=True)):
            parts = rung["loads"][figures.full]["1"].get("parts_ms")
            start = 0.0
            for part, ms in named(parts).items() if parts else [("model", p50)]:
                panel.barh(row, max(ms, 0.0), left=start, color=PARTS.get(part, MODEL), height=0.7)
                start += max(ms, 0.0)
            panel.text(
                min(p50, limit * 0.88) + limit * 0.01, row, f"{p50:.1f} ms", va="center", fontsize=8, clip_on=True
            )
        panel.set_xlim(0, limit)
        panel.set_xlabel("p50, ms")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rungs)), [title(r) for r in rungs], fontsize=8)
    panels[0].invert_yaxis()
    panels[0].set_title("all rungs", fontsize=9)
    panels[1].set_title("the fast ones", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in PARTS.values()]
    figure.legend(handles, PARTS, loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    figure.suptitle(
        f"One {figures.words['history']}, history of {figures.full}: {machine.sentence(report['machine'])}", fontsize=8
    )
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths
