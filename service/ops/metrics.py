"""The metrics: one table, and the registry made from it.

A metric that is not in the table cannot be written. No label is unbounded: a conversation id is never one.
Each row says what to do about it, for the one who is woken at night.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.core.circuit import CircuitReason
from service.core.delivery import Action
from service.core.model import FlushReason, Reason
from service.core.verdict import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PREFIX = "convoy_"
# Bounds lie close where the values do: around the default window of a second, below the default time-out of 20 s.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 30, 60)
WAIT_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 60)
LATENESS_SECONDS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 60, 300, 900, 3600)
DRAIN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 40, 60)
ITEMS = (1, 2, 3, 5, 8, 10, 15, 19, 20)


@dataclass(frozen=True, slots=True)
class Label:
    """One label: its name, and every value it may have, or what bounds their number where they cannot be listed."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its name without prefix, its kind, what it says and what to do about it."""

    name: str
    kind: type[Counter | Gauge | Histogram]
    labels: tuple[Label, ...]
    help: str
    action: str
    buckets: tuple[float, ...] = ()


EVENT_RESULT = Label("result", ("accepted", "invalid", "tombstone", "key_mismatch", "settled_before"))
FLUSH_REASON = Label("flush_reason", tuple(FlushReason))
OPERATION = Label("operation", (Action.SEND, Action.READ_BACK, Action.READ_CURSOR))
UNANSWERED = ("connect_error", "tls_error", "timeout", "connection_cut", "withdrawn", "endless_list")
"""The words of ours that stand for a status where no answer came."""
CODE = Label("code", bound=f"an HTTP status; where no answer came, {', '.join(UNANSWERED)}")
VERDICT = Label("verdict", tuple(Kind))
SETBACK = Label("verdict", tuple(kind for kind in Kind if kind is not Kind.DELIVERED))
REASON = Label("reason", tuple(Reason))
READBACK_RESULT = Label("result", ("found", "prefix", "absent", "too_early", "failed"))
REDIRECTION = Label("result", ("redirected", "default", "not_allowed", "unknown_topic"))
OUTPUT_TOPIC = Label("topic", bound="the topics named in the settings")
CIRCUIT_REASON = Label("reason", tuple(CircuitReason))
EVENTS_TOPIC = Label("topic", bound="the events topic")
PARTITION = Label("partition", bound="the partitions this replica owns")
COMMIT_RESULT = Label("result", ("ok", "refused", "failed"))
LEDGER_KIND = Label("kind", ("claim", "intent", "outcome"))
RECOVERY_RESULT = Label("result", ("clean", "open_intents", "lost"))
VERSION = Label("version", bound="one")

TABLE = (
    Row("events_total", Counter, (EVENT_RESULT,), "Records read, by what they turned out to be.",
        "invalid rising: a producer breaks the contract, see the dead letters; key_mismatch: order is at risk."),
    Row("batches_total", Counter, (FLUSH_REASON,), "Batches cut, by why.",
        "Mostly window with few items: lengthen the window or accept more requests."),
    Row("batch_items", Histogram, (), "Items of a batch.", "Near 1 under load: conversations are too many for the window.", ITEMS),
    Row("batch_wait_seconds", Histogram, (), "From reading a batch's first event to cutting it.",
        "Well above the window: requests wait for a permit or behind their conversation's batch in flight.", WAIT_SECONDS),
    Row("attempts_total", Counter, (OPERATION, CODE, VERDICT), "Requests to the API, by status and verdict.",
        "See the verdict's row in the runbook."),
    Row("attempt_duration_seconds", Histogram, (OPERATION,), "How long requests take.", "Rising: the API is slow.", REQUEST_SECONDS),
    Row("delivered_items_total", Counter, (), "Items the API stored.", "Flat while lag grows: see the circuit."),
    Row("dead_letters_total", Counter, (REASON,), "Events given up, by reason.", "Look at them, mend the cause, send them again."),
    Row("retries_total", Counter, (SETBACK,), "Batches put back, by what happened.", "Rising: see attempts by code."),
    Row("readbacks_total", Counter, (READBACK_RESULT,), "Attempts of unknown fate, by what a look at the conversation showed.",
        "Many: the API cuts or fails requests."),
    Row("duplicates_prevented_total", Counter, (), "Items found stored that a plain retry would have sent again.", "Good news; the cause is not."),
    Row("replies_redirected_total", Counter, (REDIRECTION,), "Replies whose event named a topic, by what came of it.",
        "not_allowed, unknown_topic: they went to the default topic; see CONVOY_REPLY__ALLOWED_TOPICS."),
    Row("output_failures_total", Counter, (OUTPUT_TOPIC,), "Writes of outcomes that Kafka refused or did not confirm.",
        "Positions stand still until it works: look at the broker."),
    Row("event_to_delivery_seconds", Histogram, (), "From a record's timestamp to its delivery.", "Rising: see lag, permits, circuit.", LATENESS_SECONDS),
    Row("oldest_unsettled_event_age_seconds", Gauge, (), "Age, since it was read, of the oldest event without outcome.",
        "Growing: something waits; the status page says what."),
    Row("last_progress_timestamp_seconds", Gauge, (), "When an outcome was last stored (Unix time).", "Old while events wait: stuck."),
    Row("buffered_events", Gauge, (), "Events read and without outcome.", "At the limit: the API is slower than the topic."),
    Row("buffered_bytes", Gauge, (), "Their bytes.", "At the limit: as above."),
    Row("active_conversations", Gauge, (), "Conversations with events waiting or in flight.", "For sizing."),
    Row("attempts_in_flight", Gauge, (), "Requests under way.", "At the limit: see concurrency_limit."),
    Row("concurrency_limit", Gauge, (), "Requests in flight that the API is believed to bear.", "Low: the API throttles."),
    Row("requests_per_second_limit", Gauge, (), "Requests a second that the API is believed to bear; +Inf until it throttles.",
        "Low: the account's quota is small, or shared with others; see the throttled attempts."),
    Row("circuit_state", Gauge, (CIRCUIT_REASON,), "1 while the circuit is open for this reason.", "Open: consumption is paused; mend the reason."),
    Row("flood_guard_state", Gauge, (), "1 while too many events would be dead-lettered.",
        "1: look at what is refused (the log names the reason); it heals once the same batch is accepted, or on restart."),
    Row("assigned_partitions", Gauge, (), "Partitions this replica owns.", "0 on all: nobody reads."),
    Row("paused_partitions", Gauge, (), "Partitions not being read, for back-pressure or an open circuit.", "For long: as buffered_events."),
    Row("consumer_lag_records", Gauge, (EVENTS_TOPIC, PARTITION), "Records behind the committed position.", "Growing: scale out, or mend the API."),
    Row("commits_total", Counter, (COMMIT_RESULT,), "Commits of positions.", "failed: see the broker; what is uncommitted is read again."),
    Row("rebalances_total", Counter, (), "Assignments received.", "Many: members come and go; see session time-outs."),
    Row("drain_seconds", Histogram, (), "How long drains took.", "Near the budget: attempts are too slow for it.", DRAIN_SECONDS),
    Row("ledger_records_total", Counter, (LEDGER_KIND,), "Records written to the ledger.", "About two a batch."),
    Row("ledger_recoveries_total", Counter, (RECOVERY_RESULT,), "Partitions taken over, by what was found; lost: by surprise.",
        "lost, often: members of the group do not agree who owns what; see rebalances."),
    Row("build_info", Gauge, (VERSION,), "1, for the version that runs.", "None."),
)  # fmt: skip
"""Every metric there is."""


class Distribution:
    """One series of a histogram, written by one thread.

    Each batch is observed four times, and the library's histogram takes two locks and goes through the bounds one by one.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values at most as large as each bound and larger than the one before, and those above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Distributions(Collector):
    """The series of one histogram, by the values of their labels."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._series: dict[tuple[str, ...], Distribution] = {}
        if not row.labels:
            self.labelled(())

    def labelled(self, values: tuple[str, ...]) -> Distribution:
        if len(values) != len(self._row.labels):
            raise ValueError(f"{self._row.name}: {len(self._row.labels)} labels, not {len(values)}")
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Distribution(self._row.buckets)
        return series

    def describe(self) -> Iterable[Metric]:
        yield self._family()

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        bounds = [*map(floatToGoString, self._row.buckets), "+Inf"]
        for values, series in self._series.items():
            up_to = itertools.accumulate(series.counts)
            family.add_metric(values, list(zip(bounds, up_to, strict=True)), series.total)
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(
            PREFIX + self._row.name, self._row.help, labels=[label.name for label in self._row.labels]
        )


class Metrics:
    """The metrics of one process, written by the names of the table."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._made: dict[str, Counter | Gauge | _Distributions] = {}
        self._rows = {row.name: row for row in TABLE}
        for row in TABLE:
            if issubclass(row.kind, Histogram):
                self._made[row.name] = distributions = _Distributions(row)
                self.registry.register(distributions)
            else:
                names = [label.name for label in row.labels]
                self._made[row.name] = row.kind(PREFIX + row.name, row.help, names, registry=self.registry)
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._histograms: dict[tuple[str, ...], Distribution] = {}
        for row in TABLE:
            # A series that begins at 1 has not increased: the first dead letter would wake nobody.
            for values in itertools.product(*(label.values for label in row.labels)):
                self._child(row.name, values)

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter ``name`` with its labels, in the order of the table."""
        key = (name, *labels)
        child = self._counters.get(key)
        if child is None:
            made = self._child(name, labels)
            assert isinstance(made, Counter)
            child = self._counters[key] = made
        return child

    def histogram(self, name: str, *labels: str) -> Distribution:
        """The histogram ``name`` with its labels."""
        key = (name, *labels)
        child = self._histograms.get(key)
        if child is None:
            made = self._child(name, labels)
            assert isinstance(made, Distribution)
            child = self._histograms[key] = made
        return child

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge ``name`` with its labels."""
        made = self._child(name, labels)
        assert isinstance(made, Gauge)
        return made

    def _child(self, name: str, values: tuple[str, ...]) -> Counter | Gauge | Distribution:
        made, row = self._made[name], self._rows[name]
        for label, value in zip(row.labels, values, strict=False):
            if label.values and value not in label.values:
                raise ValueError(f"{name}: the label {label.name} is never {value!r}")
        if isinstance(made, _Distributions):
            return made.labelled(values)
        return made.labels(*values) if values else made

    def gauge_of(self, name: str, read: Callable[[], float]) -> None:
        """Let the gauge ``name`` be read at scrape time."""
        self.gauge(name).set_function(read)

    def collect_with(self, name: str, read: Callable[[], dict[tuple[str, ...], float]]) -> None:
        """Let the gauge ``name`` be read at scrape time, label values included: they come and go."""
        self.registry.unregister(self._made[name])
        self.registry.register(_Read(self._rows[name], read))


class _Read(Collector):
    """A gauge whose samples are made when it is scraped."""

    def __init__(self, row: Row, read: Callable[[], dict[tuple[str, ...], float]]) -> None:
        self._row = row
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            PREFIX + self._row.name, self._row.help, labels=[label.name for label in self._row.labels]
        )
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family
