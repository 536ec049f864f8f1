"""What the demo shows: the run as it goes, and the summary at its end.

All figures are read from outside: the service's own metrics, the ends of the topics, the emulator's statistics.
Decides how they look, on a terminal and elsewhere; it judges nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.ops.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from prometheus_client import CollectorRegistry
    from rich.console import Console, RenderableType

    from service.audit import Report

WIDTH = 80
UNIT_WIDTHS = (10, 13, 8)
PACE_SECONDS = 2.0
PLAIN_SECONDS = 1.0
"""Between lines of progress where there is no terminal."""

WRITING = {"operation": "create_items"}
"""The requests whose time is shown."""
READ_AS = ("accepted", "invalid", "tombstone")
"""What a record can turn out to be; ``key_mismatch`` comes on top of the first."""

Labels = frozenset[tuple[str, str]]


class Figures:
    """One look at a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in registry.collect():
            for sample in family.samples:
                self._samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` (without prefix) that carry these labels."""
        wanted = labels.items()
        return sum(value for given, value in self._samples.get(PREFIX + name, {}).items() if wanted <= given)

    def by(self, name: str, label: str) -> dict[str, int]:
        """The samples of ``name`` that are not zero, by the value of one label."""
        found: dict[str, int] = {}
        for given, value in self._samples.get(PREFIX + name, {}).items():
            if value:
                found[dict(given)[label]] = found.get(dict(given)[label], 0) + round(value)
        return dict(sorted(found.items()))

    def mean(self, name: str, **labels: str) -> float:
        """The mean of what a histogram observed; 0 before the first."""
        return self.total(name + "_sum", **labels) / (self.total(name + "_count", **labels) or 1)

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """The value that ``share`` of the observations stay below, estimated within its bucket as Prometheus does."""
        buckets: dict[float, float] = {}
        for given, value in self._samples.get(f"{PREFIX}{name}_bucket", {}).items():
            if labels.items() <= given:
                edge = float(dict(given)["le"])
                buckets[edge] = buckets.get(edge, 0) + value
        return _quantile(sorted(buckets.items()), share)


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    if not buckets or not buckets[-1][1]:
        return 0.0
    rank = share * buckets[-1][1]
    below, edge_below = 0.0, 0.0
    for edge, count in buckets:
        if count >= rank and edge != float("inf"):
            return edge_below + (edge - edge_below) * (rank - below) / ((count - below) or 1)
        below, edge_below = count, edge if edge != float("inf") else edge_below
    return edge_below


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run: what it set out to do, and how far it is."""

    state: str
    seconds: float
    planned: int
    """Records to be published in all."""
    seen: int
    """Records in the events topic when it was last looked at."""
    replies: int
    dead_letters: int
    figures: Figures

    @property
    def published(self) -> int:
        """Records in the events topic; what has been read since the last look is there as well."""
        return max(self.seen, self.read)

    @property
    def read(self) -> int:
        """Records the service has read."""
        return sum(round(self.figures.total("events_total", result=result)) for result in READ_AS)

    @property
    def lag(self) -> int:
        """Records behind the position that may be committed; while no partition is assigned, those without outcome."""
        if not self.figures.total("assigned_partitions"):
            return self.published - self.settled
        return round(self.figures.total("consumer_lag_records"))

    @property
    def finished(self) -> bool:
        """Whether all that was planned has been read, and every outcome stored."""
        return self.read >= self.planned and self.lag == 0

    @property
    def delivered(self) -> int:
        """Items the API has stored."""
        return round(self.figures.total("delivered_items_total"))

    @property
    def settled(self) -> int:
        """Records that have their outcome."""
        dead = self.figures.total("dead_letters_total")
        return self.delivered + round(dead + self.figures.total("events_total", result="tombstone"))


class View:
    """Shows progress: on a terminal a panel that is drawn anew, elsewhere a line a second."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self.subtitle = ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line = 0.0
        self._history: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._console.print()

    def show(self, progress: Progress, *, last: bool = False) -> None:
        """Show one look at the run."""
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._panel(progress, self._pace(now, progress.delivered)), refresh=True)
        elif now >= self._next_line or last:
            self._next_line = now + PLAIN_SECONDS
            self._console.print(_line(progress), soft_wrap=True, highlight=False)

    def _pace(self, now: float, delivered: int) -> float:
        """Items delivered a second, of late."""
        history = self._history
        history.append((now, delivered))
        while len(history) > 2 and history[1][0] <= now - PACE_SECONDS:
            history.popleft()
        then, before = history[0]
        return (delivered - before) / (now - then) if now > then else 0.0

    def _panel(self, progress: Progress, pace: float) -> RenderableType:
        figures = progress.figures
        reasons = figures.by("batches_total", "flush_reason")
        dead = figures.by("dead_letters_total", "reason")
        took = "attempt_duration_seconds"
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=12, style="bold")
        for width in UNIT_WIDTHS:
            grid.add_column(width=7, justify="right", style="cyan", no_wrap=True)
            grid.add_column(width=width, style="dim", no_wrap=True)
        _row(grid, "events", (progress.published, "published"), (progress.read, "read"), (progress.lag, "behind"))
        _row(
            grid,
            "batches",
            (sum(reasons.values()), "cut"),
            (reasons.get("window", 0), "by window"),
            (reasons.get("size", 0), "by size"),
        )
        _row(
            grid,
            "items",
            (progress.delivered, "delivered"),
            (f"{figures.mean('batch_items'):.1f}", "a batch"),
            (round(pace), "a second"),
        )
        _row(
            grid,
            "requests",
            (round(figures.total("attempts_total")), "done"),
            (round(figures.total("attempts_in_flight")), "in flight"),
            (round(figures.total("retries_total")), "again"),
        )
        _row(
            grid,
            "API latency",
            (_duration(figures.quantile(took, 0.5, **WRITING), about=True), "median"),
            (_duration(figures.mean(took, **WRITING)), "mean"),
            (_duration(figures.quantile(took, 0.99, **WRITING), about=True), "p99"),
        )
        _row(grid, "replies", (progress.replies, "in Kafka"))
        _row(grid, "dead letters", (progress.dead_letters, "in Kafka"), *((n, reason) for reason, n in dead.items()))
        bar = Table.grid(padding=(0, 1))
        bar.add_column(width=WIDTH - 13)
        bar.add_column(width=5, justify="right")
        bar.add_row(ProgressBar(total=progress.planned, completed=progress.settled), _percent(progress))
        clock = f"{int(progress.seconds) // 60}:{int(progress.seconds) % 60:02}"
        panel = Panel(
            Group(grid, Text(), bar),
            title=f"[bold]{self._title}[/]: {progress.state}, {clock}",
            title_align="left",
            subtitle=f"[dim]{self.subtitle}[/]",
            subtitle_align="right",
            box=box.ROUNDED,
            padding=(0, 2),
            width=WIDTH,
        )
        # The terminal echoes Ctrl-C where the cursor is: below, not behind the frame, where it would break the line.
        return Group(panel, Text())


def _row(grid: Table, label: str, *cells: tuple[float | str, str]) -> None:
    texts: list[str] = []
    for value, unit in cells[:3]:
        texts += [f"{value:,}" if isinstance(value, int) else str(value), unit]
    grid.add_row(label, *texts)


def _line(progress: Progress) -> str:
    figures = progress.figures
    head = f"{progress.seconds:5.1f} s {_percent(progress):>5}  {progress.published:,} published"
    if not progress.read:
        return f"{head}, {progress.state}"
    return (
        f"{head}, {progress.read:,} read, {progress.lag:,} behind, "
        f"{round(figures.total('batches_total')):,} batches, {round(figures.total('attempts_total')):,} requests, "
        f"{progress.replies:,} replies, {progress.dead_letters:,} dead letters"
    )


def _percent(progress: Progress) -> str:
    return f"{min(100, 100 * progress.settled // max(1, progress.planned))} %"


def _duration(seconds: float, *, about: bool = False) -> str:
    if not seconds:
        return "-"
    text = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return f"~{text}" if about else text


def summary(report: Report, figures: Figures, *, requests: int, tombstones: int) -> RenderableType:
    """The run in a table: what went through, and what the audit found."""
    reasons = figures.by("batches_total", "flush_reason")
    dead = dict(sorted(report.dead_letters.items()))
    rows: list[tuple[str, int | str, str]] = [
        ("events", report.events, f"and {tombstones} tombstone" if tombstones else ""),
        ("batches", sum(reasons.values()), _listed(reasons, "by ")),
        ("mean batch", f"{figures.mean('batch_items'):.1f}", "items"),
        ("requests", requests, f"{_duration(figures.mean('attempt_duration_seconds', **WRITING))} on average"),
        ("replies", report.replies, ""),
        ("dead letters", report.dead_letters.total(), _listed(dead)),
        ("lost", report.lost.count, ""),
        ("duplicated", report.duplicated.count, ""),
        ("out of order", report.out_of_order.count, ""),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for label, value, note in rows:
        faulty = label in {"lost", "duplicated", "out of order"} and value
        shown = f"{value:,}" if isinstance(value, int) else value
        table.add_row(label, shown, note, style="red" if faulty else None)
    return table


def _listed(counts: Mapping[str, int], before: str = "") -> str:
    return ", ".join(f"{count:,} {before}{name}" for name, count in counts.items())


def addresses(found: Mapping[str, str]) -> RenderableType:
    """Where to look while it stays up."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for label, address in found.items():
        grid.add_row(label, address)
    return Group(Text("still running; Ctrl-C ends it"), grid)
