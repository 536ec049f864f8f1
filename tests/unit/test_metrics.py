"""One table: what is not in it cannot be written, and each row says what to do about it."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.conversations.client import WITHDRAWN
from service.ops.metrics import PREFIX, TABLE, UNANSWERED, WAIT_SECONDS, Metrics, Row

SERVICE = Path(__file__).parents[2] / "service"


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def written_names() -> set[str]:
    """The names by which the service writes metrics, from its source."""
    found = set()
    for file in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"counter", "gauge", "histogram", "gauge_of", "collect_with"}:
                found.add(str(node.args[0].value))
    # `gauge` is also what the application calls `gauge_of`.
    return found


def test_every_metric_that_is_written_is_in_the_table_and_the_other_way_round() -> None:
    assert written_names() == {row.name for row in TABLE}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_is_fit_to_be_read(row: object) -> None:
    name, kind, help_, action = (getattr(row, field) for field in ("name", "kind", "help", "action"))
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert help_.endswith(".")
    assert action
    # Prometheus's own conventions: base units at the end, and `total` on what only rises.
    assert (kind is Counter) == name.endswith("_total")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", name)
    if kind is Histogram:
        buckets = getattr(row, "buckets")  # noqa: B009 - one object for all rows
        assert list(buckets) == sorted(set(buckets))


def test_names_are_unique_and_no_label_is_without_bound() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    labels = {label for row in TABLE for label in row.labels}
    assert all(label.bound or label.values for label in labels)
    assert not {label.name for label in labels} & {
        "conversation",
        "conversation_id",
        "event_id",
        "item_id",
        "key",
        "message",
        "url",
    }


def test_the_words_that_stand_for_a_status_are_those_that_the_client_has() -> None:
    found = set()
    for file in (SERVICE / "conversations").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Unanswered":
                found |= {each.value for each in ast.walk(node.args[1]) if isinstance(each, ast.Constant)}
                found |= {WITHDRAWN for each in ast.walk(node.args[1]) if getattr(each, "id", "") == "WITHDRAWN"}
    assert found == set(UNANSWERED)


def test_what_is_not_in_the_table_cannot_be_written() -> None:
    metrics = Metrics()
    for write in (metrics.counter, metrics.gauge, metrics.histogram):
        with pytest.raises(KeyError):
            write("surprises_total")


def test_a_metric_is_written_by_its_kind_and_with_all_its_labels() -> None:
    metrics = Metrics()
    with pytest.raises(AssertionError):
        metrics.gauge("events_total", "accepted")
    with pytest.raises(AssertionError):
        metrics.counter("buffered_events")
    with pytest.raises(ValueError, match="label"):
        metrics.counter("attempts_total", "create_items")


@pytest.mark.parametrize("row", [row for row in TABLE if row.labels], ids=lambda row: row.name)
def test_a_label_never_has_a_value_that_the_table_does_not_know(row: Row) -> None:
    known = [label.values[0] if label.values else "x" for label in row.labels]
    write = {Counter: Metrics().counter, Gauge: Metrics().gauge, Histogram: Metrics().histogram}[row.kind]
    write(row.name, *known)
    for place, label in enumerate(row.labels):
        if label.values:
            with pytest.raises(ValueError, match="surprise"):
                write(row.name, *known[:place], "surprise", *known[place + 1 :])


def test_a_series_whose_labels_are_known_is_there_from_the_start_so_that_its_first_rise_is_one() -> None:
    seen = scrape(Metrics())
    for row in TABLE:
        if row.kind is Counter and all(label.values for label in row.labels):
            for values in itertools.product(*(label.values for label in row.labels)):
                labels = tuple(sorted(zip((label.name for label in row.labels), values, strict=True)))
                assert seen[PREFIX + row.name, labels] == 0
    assert seen[f"{PREFIX}circuit_state", (("reason", "key_rejected"),)] == 0


def test_what_is_written_is_what_is_scraped() -> None:
    metrics = Metrics()
    metrics.counter("events_total", "accepted").inc(3)
    metrics.counter("events_total", "accepted").inc()
    metrics.histogram("batch_items").observe(20)
    metrics.gauge("build_info", "1.2.3").set(1)
    level = 7.0
    metrics.gauge_of("buffered_events", lambda: level)
    seen = scrape(metrics)
    assert seen[f"{PREFIX}events_total", (("result", "accepted"),)] == 4
    assert seen[f"{PREFIX}batch_items_sum", ()] == 20
    assert seen[f"{PREFIX}build_info", (("version", "1.2.3"),)] == 1
    assert seen[f"{PREFIX}buffered_events", ()] == 7
    level = 8.0
    assert scrape(metrics)[f"{PREFIX}buffered_events", ()] == 8


def test_a_gauge_that_is_collected_shows_the_labels_there_are_and_forgets_those_that_went() -> None:
    metrics = Metrics()
    lag: dict[tuple[str, ...], float] = {("events", "0"): 5.0, ("events", "1"): 0.0}
    metrics.collect_with("consumer_lag_records", lambda: lag)
    name = f"{PREFIX}consumer_lag_records"
    assert {key: value for key, value in scrape(metrics).items() if key[0] == name} == {
        (name, (("partition", "0"), ("topic", "events"))): 5,
        (name, (("partition", "1"), ("topic", "events"))): 0,
    }
    del lag["events", "0"]
    assert [key for key in scrape(metrics) if key[0] == name] == [(name, (("partition", "1"), ("topic", "events")))]


def test_two_registries_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.counter("delivered_items_total").inc()
    assert scrape(two)[f"{PREFIX}delivered_items_total", ()] == 0


def test_the_process_itself_is_measured() -> None:
    names = {name for name, _ in scrape(Metrics())}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_info"} <= names


def test_every_kind_of_row_is_one_of_three() -> None:
    assert {row.kind for row in TABLE} == {Counter, Gauge, Histogram}
    assert all(bool(row.buckets) == (row.kind is Histogram) for row in TABLE)


@given(st.lists(st.one_of(st.sampled_from((*WAIT_SECONDS, 0.0)), st.floats(0, 100)), max_size=50))
def test_a_histogram_shows_what_the_librarys_own_would(values: list[float]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    library = Histogram(f"{PREFIX}batch_wait_seconds", "", registry=registry, buckets=WAIT_SECONDS)
    for value in values:
        metrics.histogram("batch_wait_seconds").observe(value)
        library.observe(value)
    expected = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    seen = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        if family.name == f"{PREFIX}batch_wait_seconds"
        for sample in family.samples
    }
    assert seen == expected


def test_a_histogram_of_several_series_keeps_them_apart() -> None:
    metrics = Metrics()
    metrics.histogram("attempt_duration_seconds", "create_items").observe(0.01)
    metrics.histogram("attempt_duration_seconds", "list_items").observe(3)
    seen = scrape(metrics)
    name = f"{PREFIX}attempt_duration_seconds"
    assert seen[f"{name}_sum", (("operation", "create_items"),)] == 0.01
    assert seen[f"{name}_bucket", (("le", "2.5"), ("operation", "list_items"))] == 0
    assert seen[f"{name}_count", (("operation", "list_items"),)] == 1
    with pytest.raises(ValueError, match="labels"):
        metrics.histogram("attempt_duration_seconds")
