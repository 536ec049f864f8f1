"""The benchmark: what the service does a second and what it costs, beside a floor and a plain program, in one run.

Prints absolute figures and ratios, writes them as JSON, and draws them. Exits 1 if the service lost, doubled or
reordered anything in any of its runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from job import Bench, Job, Run, get, resident_mb, running, settle_log
from kafka_server import find_kafka

from service.core.readback import Cursors
from service.settings import LimitsSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

QUIET = {"CONVOY_LOG__LEVEL": "error"}
BUFFERED = (1_000, 10_000, 50_000)
CONVERSATIONS = (1_000, 10_000, 100_000, 1_000_000)
WAITING = 5_000
EVENTS_AT_LEAST = 100_000
BATCH_SIZES = (1, 2, 5, 10, 20)
LATENCY_PER_SECOND = 200
WINDOW_SECONDS = 1.0
FULL = 0.9
"""Of a limit on buffered events: keys fill partitions unevenly, and none may take more than its share."""
FILLED_WITHIN_SECONDS = 60.0
WITH_LEDGER = "with ledger"
COMPARED = (
    *("events_per_second", "requests_per_second", "mean_batch"),
    *("cpu_microseconds_per_event", "start_seconds", "peak_resident_mb"),
)
SETTLED_SECONDS = 2.0


class Results:
    """What was measured, by scenario; prints as it comes."""

    def __init__(self) -> None:
        self.scenarios: dict[str, Any] = {}
        self.sound = True

    def add(self, scenario: str, figures: dict[str, Any]) -> None:
        self.scenarios.setdefault(scenario, []).append(figures)
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())
        print(f"{scenario}: {shown}", flush=True)

    def judge(self, run: Run) -> None:
        if not run.sound:
            self.sound = False
            print(f"NOT SOUND: {run.audit}", flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def beside(
    results: Results, servers: str, scenario: str, job: Job, *, repeat: int, plain_events: int, ledger: bool = False
) -> None:
    """The service, with the ledger too if asked, the floor and the plain program in turn, so often: medians, ratios."""
    jobs = {"convoy": job, "floor": job, "plain": replace(job, events=min(job.events, plain_events))}
    if ledger:
        jobs[WITH_LEDGER] = replace(job, ledger=True)
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for _ in range(repeat):
        for name, found in runs.items():
            found.append(Bench(servers, jobs[name]).run("convoy" if name == WITH_LEDGER else name))
            results.judge(found[-1])
    medians = {name: _medians(found) for name, found in runs.items()}
    for name, found in runs.items():
        results.add(scenario, {"program": name, "runs": repeat, "events": found[0].events, **medians[name]})
    convoy, floor, plain = medians["convoy"], medians["floor"], medians["plain"]
    ratios = {
        "rate to plain": convoy["events_per_second"] / plain["events_per_second"],
        "rate to floor": convoy["events_per_second"] / floor["events_per_second"],
        "CPU to floor": convoy["cpu_microseconds_per_event"] / floor["cpu_microseconds_per_event"],
    }
    if ledger:
        exact = medians[WITH_LEDGER]
        ratios["rate with the ledger to without"] = exact["events_per_second"] / convoy["events_per_second"]
    results.add(f"{scenario} ratios", ratios)


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    return {name: statistics.median(getattr(run, name) for run in runs) for name in COMPARED}


def alone(results: Results, servers: str, scenario: str, job: Job, **shown: Any) -> Run:
    """The service alone, once."""
    run = Bench(servers, job).run("convoy")
    results.judge(run)
    results.add(
        scenario,
        {
            **shown,
            "events": run.events,
            "events per second": run.events_per_second,
            "requests per second": run.requests_per_second,
            "mean batch": run.mean_batch,
            "CPU µs per event": run.cpu_microseconds_per_event,
            "peak resident MB": run.peak_resident_mb,
        },
    )
    return run


def dense(results: Results, servers: str, options: argparse.Namespace) -> None:
    job = Job(int(400_000 * options.scale), int(4_000 * options.scale))
    plain_events = int(20_000 * options.scale)
    beside(results, servers, "dense", job, repeat=options.repeat, plain_events=plain_events, ledger=True)


def sparse(results: Results, servers: str, options: argparse.Namespace) -> None:
    count = int(30_000 * options.scale)
    job = Job(count, count, spread="once")
    beside(results, servers, "sparse", job, repeat=options.repeat, plain_events=int(3_000 * options.scale))


def zipf(results: Results, servers: str, options: argparse.Namespace) -> None:
    alone(results, servers, "zipf", Job(int(100_000 * options.scale), int(10_000 * options.scale), spread="zipf"))


def no_latency(results: Results, servers: str, options: argparse.Namespace) -> None:
    job = Job(int(200_000 * options.scale), int(4_000 * options.scale), latency_seconds=0)
    alone(results, servers, "API without latency", job)


def latency(results: Results, servers: str, options: argparse.Namespace) -> None:
    """From publishing to arrival, less the window, of events that come one by one.

    Twice over the same conversations: new ones, which the ledger has to ask the API about first, and known ones.
    """
    for with_ledger in (False, True):
        count = int(LATENCY_PER_SECOND * 30 * options.scale)
        bench = Bench(servers, Job(count, count, spread="once", ledger=with_ledger))
        asyncio.run(bench.make_topics())
        with bench.standing_in() as url, running("convoy", 1, bench, url) as (process,):
            while not process.metric("assigned_partitions"):
                time.sleep(SETTLED_SECONDS / 10)
            for number, kind in enumerate(("new", "known"), 1):
                published = asyncio.run(_publish_paced(bench))
                while json.loads(get(f"{url}/stats"))["items"] < count * number:
                    process.check()
                    time.sleep(SETTLED_SECONDS / 10)
                arrived = json.loads(get(f"{url}/arrivals"))
                beyond = sorted(arrived[name] - at - WINDOW_SECONDS for name, at in published.items())
                results.add(
                    "latency beyond the window",
                    {
                        "ledger": "on" if with_ledger else "off",
                        "conversations": kind,
                        "events": count,
                        "events per second": LATENCY_PER_SECOND,
                        "p50 ms": beyond[len(beyond) // 2] * 1000,
                        "p99 ms": beyond[int(len(beyond) * 0.99)] * 1000,
                    },
                )
            process.stop()


async def _publish_paced(bench: Bench) -> dict[str, float]:
    """One event to each conversation; returns when each was handed to the producer."""
    published: dict[str, float] = {}
    producer = AIOKafkaProducer(bootstrap_servers=bench.kafka.bootstrap_servers, enable_idempotence=True)
    async with producer:
        sent = []
        began = time.monotonic()
        for number in range(bench.job.events):
            name = f"conv_{number:07}"
            await asyncio.sleep(max(0.0, began + number / LATENCY_PER_SECOND - time.monotonic()))
            published[name] = time.monotonic()
            value = bench.job.message(number, number)
            sent.append(await producer.send(bench.kafka.events_topic, value, key=name.encode()))
        await asyncio.gather(*sent)
    return published


def conversations(results: Results, servers: str, options: argparse.Namespace) -> None:
    """Memory with as many events waiting in each case: what grows is what is kept of conversations gone by."""
    settings = {"CONVOY_LIMITS__MAX_BUFFERED_EVENTS": str(WAITING)}
    for count in CONVERSATIONS:
        if count <= CONVERSATIONS[-1] * options.scale:
            job = Job(max(count, EVENTS_AT_LEAST), count, spread="once", latency_seconds=0, settings=settings)
            with ProcessPoolExecutor(1, get_context("spawn")) as another:
                known = another.submit(cursors_mb, count).result()
            shown = {"conversations": count, "the cursors kept of them, MB": known}
            alone(results, servers, "memory against conversations", job, **shown)


def cursors_mb(count: int) -> float:
    """What the bounded table of cursors takes after so many conversations, with nothing else in the process."""
    before = resident_mb("self")
    cursors = Cursors(LimitsSettings().max_known_conversations)
    for number in range(count):
        cursors.learn(f"conv_{number:07}", f"msg_{number}")
    return resident_mb("self") - before


def buffered(results: Results, servers: str, _: argparse.Namespace) -> None:
    """Memory with the buffer full, behind an API that does not answer."""
    for limit in BUFFERED:
        settings = {"CONVOY_LIMITS__MAX_BUFFERED_EVENTS": str(limit), **QUIET}
        events = int(max(2 * limit, 20_000))
        job = Job(events, 1_000, latency_seconds=600, padding=1_000, settings=settings)
        bench = Bench(servers, job)
        asyncio.run(bench.make_topics())
        asyncio.run(bench.publish())
        with bench.standing_in() as url, running("convoy", 1, bench, url) as (process,):
            give_up_at = time.monotonic() + FILLED_WITHIN_SECONDS
            while (buffered := process.metric("buffered_events")) < FULL * limit:
                process.check()
                if time.monotonic() > give_up_at:
                    raise SystemExit(f"no more than {buffered:,.0f} of {limit:,} events were buffered")
                time.sleep(SETTLED_SECONDS / 10)
            time.sleep(SETTLED_SECONDS)
            figures = {
                "limit": limit,
                "buffered events": int(process.metric("buffered_events")),
                "buffered MB": process.metric("buffered_bytes") / 1e6,
                "resident MB": process.resident_mb(),
            }
        results.add("memory against buffered events", figures)


def batch_sizes(results: Results, servers: str, options: argparse.Namespace) -> None:
    for size in BATCH_SIZES:
        settings = {"CONVOY_BATCH__MAX_ITEMS": str(size)}
        job = Job(int(5_000 * size * options.scale), int(100 * options.scale) * 20, settings=settings)
        alone(results, servers, "cost against batch size", job, size=size)


def processes(results: Results, servers: str, options: argparse.Namespace) -> None:
    for count in (1, 2):
        job = Job(int(200_000 * options.scale), int(4_000 * options.scale), processes=count)
        alone(results, servers, "processes", job, processes=count)


def start(results: Results, servers: str, options: argparse.Namespace) -> None:
    # The window of an event that waits is part of the time to its delivery: without one, the start alone is measured.
    job = Job(2_000, 100, settings={"CONVOY_BATCH__WINDOW_SECONDS": "0"})
    runs = [Bench(servers, job).run("convoy") for _ in range(options.repeat)]
    results.add("start", {"to first delivery, s": statistics.median(run.start_seconds for run in runs)})


SCENARIOS: dict[str, Callable[[Results, str, argparse.Namespace], None]] = {
    "dense": dense,
    "sparse": sparse,
    "zipf": zipf,
    "no-latency": no_latency,
    "latency": latency,
    "conversations": conversations,
    "buffered": buffered,
    "batch-sizes": batch_sizes,
    "processes": processes,
    "start": start,
}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {"processors": len(models), "model": models[0] if models else "?", "python": platform.python_version()}


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="these scenarios; more than once")
    parser.add_argument("--repeat", type=int, default=5, help="runs whose medians are shown beside the others")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of events; below 1 for a quick look")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(None if arguments is None else list(arguments))
    # Of topics just made, partitions have no leader yet: its retries are not worth a line each.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    results = Results()
    results.add("machine", {**machine(), "broker's log": settle_log()})
    with find_kafka() as kafka:
        for name in options.only or SCENARIOS:
            SCENARIOS[name](results, kafka.bootstrap_servers, options)
    if options.json:
        options.json.write_text(json.dumps(results.scenarios, indent=2) + "\n")
    return 0 if results.sound else 1


if __name__ == "__main__":
    sys.exit(main())
