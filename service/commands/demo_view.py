"""What the demo shows: the run as it goes, and the summary at its end.

All figures are read from outside: the service's own metrics, the ends of the topics, the emulator's statistics.
Decides how they look, on a terminal and elsewhere; it judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.ops.metrics import PREFIX

if TYPE_CHECKING:

    from prometheus_client import CollectorRegistry


WIDTH = 80
PLAIN_SECONDS = 1.0
"""Between lines of progress where there is no terminal."""

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
    planned: int
    published: int
    replies: int
    figures: Figures
    seconds: float

    @property
    def read(self) -> int:
        """Records the service has read."""
        return round(self.figures.total("events_total")) - round(
            self.figures.total("events_total", result="key_mismatch")
        )

    @property
    def lag(self) -> int:
        """Records behind the committed position; before there is one, all of them."""
        if not self.figures.total("assigned_partitions"):
            return self.published
        return round(self.figures.total("consumer_lag_records"))

    @property
    def settled(self) -> int:
        """Events that have an outcome."""
        return round(self.figures.total("delivered_items_total") + self.figures.total("dead_letters_total"))
