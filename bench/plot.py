"""Draw the figures that `bench/run.py --json` wrote: `python bench/plot.py FIGURES.json PICTURE.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"convoy": "#1f6f8b", "with ledger": "#6f9fd8", "floor": "#99a8b2", "plain": "#d98032"}
Figures = dict[str, list[dict[str, Any]]]


def bars(axes: Axes, rows: list[dict[str, Any]], figure: str, title: str) -> None:
    """One bar a program."""
    programs = [row["program"] for row in rows]
    drawn = axes.bar(programs, [row[figure] for row in rows], color=[COLOURS[program] for program in programs])
    axes.bar_label(drawn, fmt="{:,.0f}")
    axes.set_title(title)
    axes.margins(y=0.15)


def line(axes: Axes, rows: list[dict[str, Any]], across: str, figure: str, title: str, *, log: bool = False) -> None:
    """A figure of the service against a size."""
    axes.plot([row[across] for row in rows], [row[figure] for row in rows], marker="o", color=COLOURS["convoy"])
    if log:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_title(title)
    axes.grid(alpha=0.3)


def draw(figures: Figures, picture: Path) -> None:
    """Six panels, those without figures left empty."""
    drawing, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    (rate, requests, cost), (conversations, buffered, sizes) = panels
    if "dense" in figures:
        bars(rate, figures["dense"], "events_per_second", "dense: events/s")
        bars(cost, figures["dense"], "cpu_microseconds_per_event", "dense: CPU µs an event")
    if "sparse" in figures:
        bars(requests, figures["sparse"], "requests_per_second", "sparse: requests/s")
    if found := figures.get("memory against conversations"):
        line(conversations, found, "conversations", "peak resident MB", "peak resident MB", log=True)
    if found := figures.get("memory against buffered events"):
        line(buffered, found, "buffered events", "resident MB", "resident MB, API stalled, 1 kB each")
    if found := figures.get("cost against batch size"):
        line(sizes, found, "size", "CPU µs per event", "CPU µs an event against batch size")
    drawing.savefig(picture, dpi=110)
    plt.close(drawing)


def main() -> int:
    source, picture = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
