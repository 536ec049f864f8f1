"""What it costs to be observed: the dense benchmark blind, as it is, and traced at 1 %, in turns.

Prints the best of each, and what it costs over the one before in time and in CPU; exits 1 if the CPU is
above the bound. As it is means metrics scraped every second and logs at their default level; traced, somebody takes the
spans.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from job import Bench, Job, Run, get, settle_log
from kafka_server import KafkaServer, find_kafka, free_port
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from service.core.delivery import Action, Delivered
from service.core.grouper import Grouper
from service.core.model import Event
from service.core.verdict import Kind, Verdict
from service.ops.metrics import Metrics
from service.ops.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 20
SAMPLED_AT_1_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
VARIANTS = BLIND, AS_IT_IS, TRACED = ("blind", "as it is", "traced at 1 %")
CONVERSATIONS = 2_000
SCRAPE_SECONDS = 1.0


class Receiver(BaseHTTPRequestHandler):
    """Takes OTLP and forgets it."""

    taken = 0

    def do_POST(self) -> None:
        Receiver.taken += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        pass


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_SECONDS):
            with contextlib.suppress(urllib.error.URLError, OSError):
                get(f"http://127.0.0.1:{port}/metrics")

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(kafka: KafkaServer, variant: str, events: int, endpoint: str) -> Run:
    port = free_port()
    settings = {"CONVOY_OPS__PORT": str(port), "CONVOY_LOG__LEVEL": "info"}
    if variant == TRACED:
        settings |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **SAMPLED_AT_1_PERCENT}
    job = Job(events, CONVERSATIONS, settings=settings)
    with scraped(port):
        run = Bench(kafka.bootstrap_servers, job).run("blind" if variant == BLIND else "convoy")
    assert run.sound, run.audit
    rate, cpu = run.events_per_second, run.cpu_microseconds_per_event
    print(f"  {variant:14} {events:8,} events {rate:8,.0f} events/s {cpu:5.1f} µs CPU an event", flush=True)
    return run


def best_microseconds(call: Callable[[], object], repeats: int = 2_000) -> float:
    """CPU of one call, the best of several series."""
    series = []
    for _ in range(5):
        before = time.process_time()
        for _ in range(repeats):
            call()
        series.append((time.process_time() - before) / repeats * 1e6)
    return min(series)


def calls() -> None:
    """Print what the calls themselves take, which no other work on the machine disturbs."""
    metrics = Metrics()
    counters = [("batches_total", "size"), ("attempts_total", "create_items", "200", "delivered")]
    histograms = [("batch_items",), ("batch_wait_seconds",), ("event_to_delivery_seconds",)]

    def count() -> None:
        for name in counters:
            metrics.counter(*name).inc()
        for name in histograms:
            metrics.histogram(*name).observe(1.0)
        metrics.histogram("attempt_duration_seconds", "create_items").observe(0.05)
        metrics.counter("delivered_items_total").inc(BATCH)

    os.environ.update(SAMPLED_AT_1_PERCENT)
    tracing = Tracing(
        InMemorySpanExporter(), version="bench", events_topic="events", group_id="bench", base_url="http://localhost/v1"
    )
    for name in SAMPLED_AT_1_PERCENT:
        del os.environ[name]
    grouper = Grouper(max_items=BATCH, max_bytes=1 << 20, window_seconds=0)
    partition = grouper.assign(0)
    for offset in range(BATCH):
        grouper.add(partition, Event(0, offset, "conv", "event", b"{}", 10), 0.0)
    batch = grouper.take(1.0)
    assert batch is not None
    verdict = Verdict(Kind.DELIVERED, status=200, code="")
    outcome = Delivered(batch.events, [b"{}"] * BATCH, BATCH, 0, 1, read_back=False)

    def trace() -> None:
        span = tracing.begin(batch, 1.0)
        if span is not None:
            span.attempt(Action.SEND).answered(verdict)
            sending = span.outcome(outcome, batch.events, "replies")
            for event in batch.events:
                sending.carry(event, [("correlation_id", b""), ("content-type", b"")])
            sending.stored()

    print(f"the calls alone, for a batch of {BATCH}: metrics {best_microseconds(count):.1f} µs,", end=" ")
    print(f"traces at 1 % {best_microseconds(trace):.1f} µs;", end=" ")
    print(f"a scrape {best_microseconds(lambda: generate_latest(metrics.registry), 20) / 1000:.1f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bound", type=float, default=5.0, help="percent")
    options = parser.parse_args()
    found: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    settle_log()
    with find_kafka() as kafka:
        for number in range(options.rounds):
            # Whoever goes first has it easier or harder; so nobody always does.
            for variant in VARIANTS if number % 2 else reversed(VARIANTS):
                found[variant].append(measure(kafka, variant, options.events, endpoint))
    assert Receiver.taken, "no span arrived"
    within = True
    before: tuple[float, float] | None = None
    print(f"best of {options.rounds} rounds of {options.events:,} events each")
    for variant, runs in found.items():
        # What else a machine does only adds.
        rate = max(run.events_per_second for run in runs)
        cpu = min(run.cpu_microseconds_per_event for run in runs)
        cost = ""
        if before is not None:
            slower, dearer = (before[0] / rate - 1) * 100, (cpu / before[1] - 1) * 100
            within = within and dearer <= options.bound
            cost = f"   {slower:+.1f} % time, {dearer:+.1f} % CPU"
        print(f"{variant:14} {rate:8,.0f} events/s  {cpu:5.1f} µs CPU an event{cost}")
        before = rate, cpu
    calls()
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
