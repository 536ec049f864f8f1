"""The metrics: one table, and the registry made from it.

A metric that is not in the table cannot be written. No label is unbounded: a conversation id is never one.
Each row says what to do about it, for the one who is woken at night.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PREFIX = "convoy_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LONG_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)
ITEMS = (1, 2, 3, 5, 8, 10, 15, 19, 20)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its name without prefix, its kind, what it says and what to do about it."""

    name: str
    kind: type[Counter | Gauge | Histogram]
    labels: tuple[str, ...]
    help: str
    action: str
    buckets: tuple[float, ...] = ()


TABLE = (
    Row("events_total", Counter, ("result",), "Records read, by what they turned out to be.",
        "invalid rising: a producer breaks the contract, see the dead letters; key_mismatch: order is at risk."),
    Row("batches_total", Counter, ("flush_reason",), "Batches cut, by why.",
        "Mostly window with few items: lengthen the window or accept more requests."),
    Row("batch_items", Histogram, (), "Items of a batch.", "Near 1 under load: conversations are too many for the window.", ITEMS),
    Row("batch_wait_seconds", Histogram, (), "From reading a batch's first event to cutting it.",
        "Well above the window: requests wait for a permit or behind their conversation's batch in flight.", SECONDS),
    Row("attempts_total", Counter, ("operation", "code", "verdict"), "Requests to the API, by status and verdict.",
        "See the verdict's row in the runbook."),
    Row("attempt_duration_seconds", Histogram, ("operation",), "How long requests take.", "Rising: the API is slow.", SECONDS),
    Row("delivered_items_total", Counter, (), "Items the API stored.", "Flat while lag grows: see the circuit."),
    Row("dead_letters_total", Counter, ("reason",), "Events given up, by reason.", "Look at them, mend the cause, send them again."),
    Row("retries_total", Counter, ("verdict",), "Batches put back, by what happened.", "Rising: see attempts by code."),
    Row("readbacks_total", Counter, ("result",), "Attempts of unknown fate, by what a look at the conversation showed.",
        "Many: the API cuts or fails requests."),
    Row("duplicates_prevented_total", Counter, (), "Items found stored that a plain retry would have sent again.", "Good news; the cause is not."),
    Row("replies_redirected_total", Counter, ("result",), "Replies whose event named a topic, by what came of it.",
        "not_allowed, unknown_topic: they went to the default topic; see CONVOY_REPLY__ALLOWED_TOPICS."),
    Row("output_failures_total", Counter, ("topic",), "Writes of outcomes that Kafka refused or did not confirm.",
        "Positions stand still until it works: look at the broker."),
    Row("event_to_delivery_seconds", Histogram, (), "From a record's timestamp to its delivery.", "Rising: see lag, permits, circuit.", LONG_SECONDS),
    Row("oldest_unsettled_event_age_seconds", Gauge, (), "Age, since it was read, of the oldest event without outcome.",
        "Growing: something waits; the status page says what."),
    Row("last_progress_timestamp_seconds", Gauge, (), "When an outcome was last stored (Unix time).", "Old while events wait: stuck."),
    Row("buffered_events", Gauge, (), "Events read and without outcome.", "At the limit: the API is slower than the topic."),
    Row("buffered_bytes", Gauge, (), "Their bytes.", "At the limit: as above."),
    Row("active_conversations", Gauge, (), "Conversations with events waiting or in flight.", "For sizing."),
    Row("attempts_in_flight", Gauge, (), "Requests under way.", "At the limit: see concurrency_limit."),
    Row("concurrency_limit", Gauge, (), "Requests in flight that the API is believed to bear.", "Low: the API throttles."),
    Row("circuit_state", Gauge, ("reason",), "1 while the circuit is open for this reason.", "Open: consumption is paused; mend the reason."),
    Row("flood_guard_state", Gauge, (), "1 while too many events would be dead-lettered.",
        "1: look at what is refused (the log names the reason); it heals once the same batch is accepted, or on restart."),
    Row("assigned_partitions", Gauge, (), "Partitions this replica owns.", "0 on all: nobody reads."),
    Row("paused_partitions", Gauge, (), "Partitions not being read, for back-pressure or an open circuit.", "For long: as buffered_events."),
    Row("consumer_lag_records", Gauge, ("topic", "partition"), "Records behind the committed position.", "Growing: scale out, or mend the API."),
    Row("commits_total", Counter, ("result",), "Commits of positions.", "failed: see the broker; what is uncommitted is read again."),
    Row("rebalances_total", Counter, (), "Assignments received.", "Many: members come and go; see session time-outs."),
    Row("drain_seconds", Histogram, (), "How long drains took.", "Near the budget: attempts are too slow for it.", SECONDS),
    Row("ledger_records_total", Counter, ("kind",), "Records written to the ledger.", "About two a batch."),
    Row("ledger_recoveries_total", Counter, ("result",), "Partitions taken over, by what was found; lost: by surprise.",
        "lost, often: members of the group do not agree who owns what; see rebalances."),
    Row("build_info", Gauge, ("version",), "1, for the version that runs.", "None."),
)  # fmt: skip
"""Every metric there is."""


class Metrics:
    """The metrics of one process, written by the names of the table."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for row in TABLE:
            more: dict[str, Any] = {"buckets": row.buckets} if row.buckets else {}
            self._made[row.name] = row.kind(PREFIX + row.name, row.help, row.labels, registry=self.registry, **more)
        self._counters: dict[tuple[str, ...], Counter] = {}

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter ``name`` with its labels, in the order of the table."""
        key = (name, *labels)
        child = self._counters.get(key)
        if child is None:
            made = self._made[name]
            assert isinstance(made, Counter)
            child = self._counters[key] = made.labels(*labels) if labels else made
        return child

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram ``name`` with its labels."""
        made = self._made[name]
        assert isinstance(made, Histogram)
        return made.labels(*labels) if labels else made

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge ``name`` with its labels."""
        made = self._made[name]
        assert isinstance(made, Gauge)
        return made.labels(*labels) if labels else made

    def gauge_of(self, name: str, read: Callable[[], float]) -> None:
        """Let the gauge ``name`` be read at scrape time."""
        self.gauge(name).set_function(read)

    def collect_with(self, name: str, read: Callable[[], dict[tuple[str, ...], float]]) -> None:
        """Let the gauge ``name`` be read at scrape time, label values included: they come and go."""
        made = self._made[name]
        row = next(row for row in TABLE if row.name == name)
        self.registry.unregister(made)
        self.registry.register(_Read(row, read))


class _Read(Collector):
    """A gauge whose samples are made when it is scraped."""

    def __init__(self, row: Row, read: Callable[[], dict[tuple[str, ...], float]]) -> None:
        self._row = row
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(PREFIX + self._row.name, self._row.help, labels=self._row.labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family
