"""The demo's edges: what it takes its settings from, what it refuses, what it shows."""

from __future__ import annotations

import io
import re
import sys
from collections import Counter

import pytest
from pydantic import SecretStr
from rich.console import Console

from service.audit import Report
from service.commands.demo import DemoSettings, Options, run_demo
from service.commands.demo_broker import MOST_EVENTS
from service.commands.demo_view import Figures, Progress, View, summary
from service.ops.metrics import Metrics
from service.settings import ApiSettings, Settings

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def metrics_of_a_run() -> Metrics:
    metrics = Metrics()
    for result, events in (("accepted", 2990), ("invalid", 9), ("tombstone", 1), ("key_mismatch", 5)):
        metrics.counter("events_total", result).inc(events)
    for reason, batches in (("window", 571), ("size", 41)):
        metrics.counter("batches_total", reason).inc(batches)
    for items in (20, 20, 5, 3):
        metrics.histogram("batch_items").observe(items)
    for milliseconds in (40, 45, 60, 90, 200):
        metrics.histogram("attempt_duration_seconds", "create_items").observe(milliseconds / 1000)
    metrics.histogram("attempt_duration_seconds", "list_items").observe(30)
    metrics.counter("attempts_total", "create_items", "200", "delivered").inc(600)
    metrics.counter("delivered_items_total").inc(2360)
    metrics.counter("dead_letters_total", "invalid_event").inc(9)
    metrics.gauge("attempts_in_flight").set(12)
    metrics.gauge("assigned_partitions").set(4)
    metrics.gauge("consumer_lag_records", "t", "0").set(200)
    metrics.gauge("consumer_lag_records", "t", "3").set(430)
    return metrics


def progress(metrics: Metrics, *, planned: int = 4001, seen: int = 3100) -> Progress:
    return Progress(
        state="publishing",
        seconds=67.0,
        planned=planned,
        seen=seen,
        replies=2300,
        dead_letters=9,
        figures=Figures(metrics.registry),
    )


def on_a_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_nothing_of_the_environment_has_a_say_in_the_demos_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_BATCH__WINDOW_SECONDS", "no number")
    monkeypatch.setenv("CONVOY_KAFKA__GROUP_ID", "production")
    settings = DemoSettings(api=ApiSettings(base_url="http://127.0.0.1:1/v1", key=SecretStr("k")))
    monkeypatch.undo()
    assert settings.model_dump(exclude={"api"}) == Settings().model_dump(exclude={"api"})


def test_without_the_extra_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert run_demo(Options()) == 2
    said = capsys.readouterr()
    assert said.err == "convoy demo: the embedded broker is not installed: pip install 'convoy[demo]'\n"
    assert said.out == ""


def test_more_events_than_the_embedded_broker_keeps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(Options(events=MOST_EVENTS + 1)) == 2
    said = capsys.readouterr().err
    assert "--broker" in said
    assert said.count("\n") == 1


def test_progress_is_read_off_the_services_own_metrics() -> None:
    seen = progress(metrics_of_a_run())
    assert (seen.read, seen.published, seen.lag, seen.delivered, seen.settled) == (3000, 3100, 630, 2360, 2370)
    assert not seen.finished


def test_what_was_read_was_published_even_if_the_topic_was_last_seen_shorter() -> None:
    assert progress(metrics_of_a_run(), seen=2900).published == 3000


def test_a_run_is_finished_once_all_is_read_and_every_outcome_stored() -> None:
    metrics = metrics_of_a_run()
    metrics.gauge("consumer_lag_records", "t", "0").set(0)
    metrics.gauge("consumer_lag_records", "t", "3").set(0)
    assert progress(metrics, planned=3000).finished
    assert not progress(metrics, planned=3001).finished


def test_before_partitions_are_assigned_everything_published_is_behind() -> None:
    seen = progress(Metrics(), seen=500)
    assert seen.lag == 500
    assert not seen.finished


def test_a_quantile_is_estimated_within_its_bucket_and_for_one_operation_alone() -> None:
    figures = Figures(metrics_of_a_run().registry)
    assert 0.04 < figures.quantile("attempt_duration_seconds", 0.5, operation="create_items") < 0.1
    assert 0.1 < figures.quantile("attempt_duration_seconds", 0.99, operation="create_items") <= 0.25
    assert figures.mean("attempt_duration_seconds", operation="create_items") == pytest.approx(0.087)
    assert figures.quantile("event_to_delivery_seconds", 0.5) == 0


def test_a_value_beyond_the_last_bucket_counts_as_that_buckets_edge() -> None:
    metrics = Metrics()
    metrics.histogram("attempt_duration_seconds", "create_items").observe(1000)
    assert Figures(metrics.registry).quantile("attempt_duration_seconds", 0.5) == 60


def test_the_live_view_fits_80_columns_and_shows_every_figure() -> None:
    console = on_a_terminal()
    with View(console, title="convoy demo") as view:
        view.subtitle = "http://127.0.0.1:12345/metrics"
        view.show(progress(metrics_of_a_run()))
    shown = written(console)
    for figure in (
        "convoy demo: publishing, 1:07",
        "3,100 published",
        "3,000 read",
        "630 behind",
        "612 cut",
        "571 by window",
        "41 by size",
        "2,360 delivered",
        "12.0 a batch",
        "600 done",
        "12 in flight",
        "87 ms mean",
        "2,300 in Kafka",
        "9 invalid_event",
        "59 %",
        "http://127.0.0.1:12345/metrics",
    ):
        assert figure in shown, figure
    assert max(len(CONTROL.sub("", line)) for line in shown.splitlines()) == 80


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    with View(console, title="convoy demo") as view:
        for _ in range(20):
            view.show(progress(metrics_of_a_run()))
        view.show(progress(metrics_of_a_run()), last=True)
    lines = written(console).splitlines()
    assert len(lines) == 3
    assert "3,100 published, 3,000 read, 630 behind, 612 batches, 600 requests, 2,300 replies" in lines[0]
    assert "\x1b" not in written(console)


def test_the_summary_is_legible_as_plain_text() -> None:
    report = Report(events=2999, delivered=2990, replies=2990, dead_letters=Counter(invalid_event=9))
    report.lost.add("one")
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(report, Figures(metrics_of_a_run().registry), requests=600, tombstones=1))
    rows = [line.split() for line in written(console).splitlines()]
    assert [" ".join(row) for row in rows] == [
        "events 2,999 and 1 tombstone",
        "batches 612 41 by size, 571 by window",
        "mean batch 12.0 items",
        "requests 600 87 ms on average",
        "replies 2,990",
        "dead letters 9 9 invalid_event",
        "lost 1",
        "duplicated 0",
        "out of order 0",
    ]
