"""Draws the dashboard's panels from what a real Prometheus saw of the real service under load and under faults.

`make dashboard-picture` writes `docs/dashboard.png`. It is no screenshot: Grafana draws the same panels, at the same
places, from the same queries, in its own way.
"""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from kafka_server import find_kafka
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter
from observed import DASHBOARD, observe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from observed import Observed, Series

ROOT = Path(__file__).parents[1]
COLUMNS = 24
INCHES_A_COLUMN = 0.62
INCHES_A_ROW = 0.26
LEGEND_ENTRIES = 7
DARK, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#d8d9da", "#7b8087"
COLORS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#37872d", "#c4162a")
NAMED = {"green": COLORS[0], "orange": COLORS[3], "red": COLORS[4], "transparent": TEXT}

Points = list[tuple[float, float]]


def quantity(value: float, unit: str) -> str:
    """A value with its unit, as people read it."""
    if math.isnan(value) or math.isinf(value):
        return ""
    if unit == "s":
        if value >= 60:
            return f"{value / 60:.3g} min"
        return f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text}/s" if unit in {"cps", "reqps"} else text


def label(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with the series' labels in place of its braces."""
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)
    return re.sub(r" 127\.0\.0\.1:\d+$| t\w{8}\.|^t\w{8}\.", "", text)


def all_series(found: list[tuple[str, Series]], start: float) -> list[tuple[str, Points]]:
    """Name and points (seconds since the start, value) of every series of a panel."""
    return [
        (label(legend, labels), [(at - start, value) for at, value in points])
        for legend, series in found
        for labels, points in series
    ]


def draw_stat(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Points]]) -> None:
    """The last value, large, above what it was before."""
    _, points = series[0]
    values = [value for _, value in points if not math.isnan(value)]
    last = values[-1]
    defaults = panel["fieldConfig"]["defaults"]
    color = NAMED[[step["color"] for step in defaults["thresholds"]["steps"] if (step["value"] or 0) <= last][-1]]
    mapped = {value: each for mapping in defaults["mappings"] for value, each in mapping["options"].items()}
    shown = round(last, defaults["decimals"]) if "decimals" in defaults else last
    text = mapped[f"{last:g}"]["text"] if f"{last:g}" in mapped else quantity(shown, defaults["unit"])
    axes.fill_between([at for at, _ in points], [value for _, value in points], color=color, alpha=0.15, lw=0)
    axes.text(0.5, 0.5, text, color=color, fontsize=19, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_lines(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Points]]) -> None:
    """Lines, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    moving = [(name, points) for name, points in series if any(value for _, value in points)]
    if defaults["custom"]["stacking"]["mode"] == "normal":
        times = sorted({at for _, points in moving for at, _ in points})
        filled = [dict(points) for _, points in moving]
        heights = [[each.get(at, 0.0) for at in times] for each in filled]
        axes.stackplot(times, heights, labels=[name for name, _ in moving], colors=COLORS, alpha=0.8)
    else:
        for (name, points), color in zip(moving, COLORS * 5, strict=False):
            axes.plot([at for at, _ in points], [value for _, value in points], color=color, lw=1.1, label=name)
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, defaults["unit"])))
    legend(axes)


def draw_timeline(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Points]]) -> None:
    """A bar a state, red while it holds."""
    for row, (_, points) in enumerate(series):
        for at, value in points:
            axes.barh(
                row, 1, left=at, height=0.7, color=COLORS[4] if value else COLORS[0], alpha=0.9 if value else 0.25
            )
    axes.set_yticks(range(len(series)), [name for name, _ in series], fontsize=4.5)
    axes.invert_yaxis()


def draw_heatmap(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Points]]) -> None:
    """How many fell between two bounds, by time."""
    bounds = sorted(((float(name), dict(points)) for name, points in series), key=lambda bound: bound[0])
    times = sorted({at for _, points in bounds for at in points})
    rows, below = [], dict.fromkeys(times, 0.0)
    for _, points in bounds:
        rows.append([max(0.0, points.get(at, 0.0) - below[at]) or math.nan for at in times])
        below = {at: points.get(at, 0.0) for at in times}
    axes.pcolormesh(times, range(len(rows)), rows, cmap="Oranges_r", shading="nearest")
    names = ["" if math.isinf(bound) else quantity(bound, "s") for bound, _ in bounds]
    axes.set_yticks(range(0, len(rows), 2), names[::2])


def draw_table(axes: Axes, panel: dict[str, Any], series: list[tuple[str, Points]]) -> None:
    """Its rows as text."""
    axes.axis("off")
    for line, (name, _) in enumerate(series):
        axes.text(0.05, 0.8 - 0.15 * line, name, transform=axes.transAxes, fontsize=9)


def legend(axes: Axes) -> None:
    """Below the panel, the first few names."""
    handles, names = axes.get_legend_handles_labels()
    if any(names):
        axes.legend(
            handles[:LEGEND_ENTRIES],
            names[:LEGEND_ENTRIES],
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.13),
            ncols=4,
            frameon=False,
            fontsize=5.5,
            labelcolor=FAINT,
            handlelength=1.0,
            columnspacing=0.8,
        )


DRAW = {
    "stat": draw_stat,
    "timeseries": draw_lines,
    "state-timeline": draw_timeline,
    "heatmap": draw_heatmap,
    "table": draw_table,
}


def draw(observed: Observed, file: Path) -> None:
    """Write the picture: every panel at its place."""
    mpl.rcParams.update({"font.size": 6.5, "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": "#2c3235"})
    mpl.rcParams.update({"xtick.color": FAINT, "ytick.color": FAINT, "axes.facecolor": PANEL, "figure.facecolor": DARK})
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in DASHBOARD["panels"])
    width, height = COLUMNS * INCHES_A_COLUMN, rows * INCHES_A_ROW
    figure = plt.figure(figsize=(width, height))
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        if panel["type"] == "row":
            figure.text(0.008, 1 - (at["y"] + 0.75) / rows, panel["title"], fontsize=10, weight="bold")
            continue
        left, top, stat = at["x"], at["y"], panel["type"] == "stat"
        axes = figure.add_axes(
            (
                (left + (0.2 if stat else 1.15)) / COLUMNS,
                1 - (top + at["h"] - (0.3 if stat else 1.9)) / rows,
                (at["w"] - (0.4 if stat else 1.5)) / COLUMNS,
                (at["h"] - (1.4 if stat else 3.2)) / rows,
            )
        )
        axes.set_title(panel["title"], loc="left", fontsize=7.5, color=TEXT)
        if not stat:
            axes.grid(color="#2c3235", lw=0.4)
            axes.set_axisbelow(True)
        series = all_series(observed.panels[panel["title"]], observed.start)
        axes.set_xlim(0, observed.end - observed.start)
        DRAW[panel["type"]](axes, panel, series)
    figure.savefig(file, dpi=110, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    """Run it and draw what was seen."""
    mpl.use("Agg")
    tools = subprocess.run(
        [ROOT / ".ci" / "install-observability-tools"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder, find_kafka() as kafka:
        observed = asyncio.run(observe(kafka, Path(tools), Path(folder), []))
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "dashboard.png"
    draw(observed, file)
    sys.stdout.write(f"{file}: {len(observed.panels)} panels, {observed.end - observed.start:.0f} s of a real run\n")


if __name__ == "__main__":
    main()
