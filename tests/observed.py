"""A run to look at: the real service under load and under faults, scraped by a real Prometheus that knows the alerts.

What its panels and alerts show of it is asked while it runs and kept, for the tests and for the picture of the
dashboard. Each fault lasts until Prometheus shows it, so that nothing here depends on how fast a machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import yaml
from aiokafka import AIOKafkaProducer
from conftest import LEDGER_CONFIG, Topics
from kafka_server import create_topics, free_port
from service_process import API_KEY, CALM, Record, Trial, until

from service.emulator.faults import (
    Cut,
    FaultScript,
    Lock,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Status,
    Unauthorized,
    When,
)
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from kafka_server import KafkaServer
    from service_process import ServiceProcess

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "convoy.json").read_text())
ALERTS_FILE = DEPLOY / "prometheus" / "alerts.yaml"
VARIABLES = {"$namespace": ".*", "$release": ".*", "$__rate_interval": "5s"}
STEP_SECONDS = 1
CONVERSATIONS = 120
EVENTS_PER_SECOND = 150

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]
"""As Prometheus returns a matrix: the labels of each series, and its points (Unix time, value)."""


class Prometheus:
    """A Prometheus on loopback that scrapes every second; an `async with` starts and ends it."""

    def __init__(self, binary: Path, folder: Path, targets: Mapping[str, int]) -> None:
        self._port = free_port()
        self._folder = folder
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS_FILE)],
            "scrape_configs": [
                {
                    "job_name": "convoy",
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"pod": pod, "namespace": "chat"}}
                        for pod, port in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._command = [
            *(str(binary), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"),
            *(f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=10)

    async def __aenter__(self) -> Self:
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        await until("an answer of Prometheus", self._ready)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        await self._http.aclose()

    async def _ready(self) -> bool:
        return (await self._http.get("/-/ready")).status_code == 200

    async def _ask(self, path: str, **query: str | float) -> Any:
        answer = (await self._http.get(f"/api/v1/{path}", params=query)).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    async def now(self, expression: str) -> bool:
        """Whether an expression has a result at this moment."""
        return bool((await self._ask("query", query=expression))["result"])

    async def range(self, expression: str, start: float, end: float) -> Series:
        """What an expression was from `start` to `end`."""
        data = await self._ask("query_range", query=expression, start=start, end=end, step=STEP_SECONDS)
        return [(each["metric"], [(at, float(value)) for at, value in each["values"]]) for each in data["result"]]

    async def rules(self) -> list[dict[str, Any]]:
        """The alerting rules, each with its health."""
        return [rule for group in (await self._ask("rules"))["groups"] for rule in group["rules"]]


@dataclass(slots=True)
class Observed:
    """What was seen of the run."""

    start: float
    end: float = 0.0
    panels: dict[str, list[tuple[str, Series]]] = field(default_factory=dict)
    """By panel title: legend and series of each of its expressions."""
    annotations: dict[str, Series] = field(default_factory=dict)
    alerts: dict[str, Series] = field(default_factory=dict)
    """By alert: when its condition held."""
    alert_inputs: dict[str, Series] = field(default_factory=dict)
    """By alert: its condition as 0 or 1 for each series that it looks at."""
    firing: set[str] = field(default_factory=set)
    """Alerts that Prometheus itself says fired."""
    rules: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, Series] = field(default_factory=dict)
    """By metric of ours, all its series."""
    exposition: str = ""
    """`/metrics`, under load."""


def filled_in(expression: str) -> str:
    """An expression of the dashboard with values for its variables."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


async def observe(kafka: KafkaServer, tools: Path, folder: Path, metrics: list[str]) -> Observed:
    """Run it all, some 40 s; `metrics` are the names, without prefix, of those to look at by themselves."""
    topics = Topics(4)
    config = {topics.ledger: LEDGER_CONFIG}
    await create_topics(kafka.bootstrap_servers, dict.fromkeys(topics.names, topics.partitions), config)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(EmulatorServer(key=API_KEY, create_on_write=True, latency_seconds=0.02))
        trial = Trial(kafka.bootstrap_servers, topics, api, folder)
        first, second = (_process(trial) for _ in range(2))
        prometheus = await stack.enter_async_context(
            Prometheus(tools / "bin" / "prometheus", folder, {"convoy-0": first.port, "convoy-1": second.port})
        )
        observed = Observed(time.time())
        await stack.enter_async_context(first)
        await first.ready()
        await stack.enter_async_context(_load(trial))
        await _play(trial, prometheus, first, second, observed)
        observed.end = time.time()
        await _look(prometheus, observed, metrics)
        # Nobody is left to be scraped.
        first.kill()
        await until("the absence", lambda: prometheus.now("absent(convoy_build_info)"))
        observed.alerts["ConvoyAbsent"] = await prometheus.range(
            "absent(convoy_build_info)", observed.end, time.time() + 2
        )
    return observed


def _process(trial: Trial) -> ServiceProcess:
    return trial.process(
        **CALM
        | {
            "KAFKA__LEDGER_TOPIC": trial.topics.ledger,
            "BATCH__WINDOW_SECONDS": "0.5",
            "API__TOTAL_TIMEOUT_SECONDS": "1",
            "API__CONNECT_TIMEOUT_SECONDS": "0.5",
            "DELIVERY__SETTLE_SECONDS": "8",
            "DELIVERY__BACKOFF_MAX_SECONDS": "2",
            "DEAD_LETTER__FLOOD_RUN": "40",
        }
    )


@contextlib.asynccontextmanager
async def _load(trial: Trial) -> AsyncIterator[None]:
    """Conversations that go on and on, among them now and then a record that is not as it should be."""

    async def publish() -> None:
        async with AIOKafkaProducer(bootstrap_servers=trial.bootstrap_servers, enable_idempotence=True) as producer:
            number = 0
            while True:
                for record in _records(number, EVENTS_PER_SECOND // 10):
                    sent = await trial._send(producer, record)
                await sent
                number += EVENTS_PER_SECOND // 10
                await asyncio.sleep(0.1)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _records(first: int, count: int) -> list[Record]:
    found = []
    for number in range(first, first + count):
        conversation_id = f"conv_{number % CONVERSATIONS:03}"
        event = {"conversation_id": conversation_id, "role": "user", "content": f"this is message {number}"}
        key = conversation_id.encode()
        headers: list[tuple[str, bytes | None]] = []
        match number % 100:
            case 1:
                found.append(Record(key, None))
            case 2:
                found.append(Record(key, b"{ this is no JSON"))
            case 3:
                event["content"] += " with a forbidden word"
            case 4:
                key = b"another-key"
            case 5:
                headers = [("reply_to", b"somewhere.else")]
            case 6:
                event["content"] += " and it is long" * 400
        found.append(Record(key, json.dumps(event).encode(), headers))
    return found


async def _play(
    trial: Trial, prometheus: Prometheus, first: ServiceProcess, second: ServiceProcess, observed: Observed
) -> None:
    """One fault after the other, each until Prometheus shows it."""

    async def shows(expression: str) -> None:
        await until(f"Prometheus to show {expression}", lambda: prometheus.now(expression), every_seconds=0.2)

    play = trial.emulator.play
    await shows("convoy_delivered_items_total > 300")
    observed.exposition = (await first.get("/metrics")).text

    # Trouble of many kinds at once, and one conversation locked.
    play(
        FaultScript(
            (
                Rule(Lock(), Match(conversation="conv_007")),
                Rule(Moderation(), Match(text="forbidden")),
                Rule(Cut(stores="all"), Match(operations=("create_items",)), When(every=15)),
                Rule(Status(status=503, message="overloaded"), Match(operations=("create_items",)), When(every=11)),
            )
        )
    )
    await shows("convoy_duplicates_prevented_total > 0")
    await shows('convoy_dead_letters_total{reason="rejected"} > 0')
    await shows('convoy_retries_total{verdict="busy"} > 0')
    await shows("convoy_oldest_unsettled_event_age_seconds > 3")

    # Too many a second.
    play(FaultScript((Rule(Moderation(), Match(text="forbidden")), Rule(RateThrottle(requests_per_second=20)))))
    await shows("convoy_requests_per_second_limit < Inf")
    await shows("rate(convoy_attempts_total{verdict='throttled'}[5s]) > 0")

    # A broker that finds large replies too large; and a second replica that comes and goes.
    play(FaultScript((Rule(Moderation(), Match(text="forbidden")),)))
    await trial.configure(trial.topics.replies, max_message_bytes="2000")
    await shows("convoy_output_failures_total > 0")
    await trial.configure(trial.topics.replies)
    async with second:
        await second.ready()
        await shows('sum(convoy_assigned_partitions{pod="convoy-1"}) > 0')
        assert await second.stop() == 0
    await shows("convoy_assigned_partitions == 4")
    await shows("convoy_drain_seconds_count > 0")

    # A key that is rejected for a while.
    play(FaultScript((Rule(Unauthorized()),)))
    await shows('convoy_circuit_state{reason="key_rejected"} == 1')
    await shows("convoy_paused_partitions > 0")
    await shows("time() - convoy_last_progress_timestamp_seconds > 3 and convoy_buffered_events > 0")
    play(FaultScript())
    await shows("sum(convoy_circuit_state) == 0")

    # Everything is refused: the flood guard stops that.
    refused = Status(status=400, code="InvalidParameter", message="no more of this")
    play(FaultScript((Rule(refused, Match(operations=("create_items",))),)))
    await shows("convoy_flood_guard_state == 1")
    play(FaultScript())
    await shows("sum(convoy_circuit_state) == 0")
    await shows("max_over_time(convoy_flood_guard_state[3s]) == 0")


async def _look(prometheus: Prometheus, observed: Observed, metrics: list[str]) -> None:
    """Ask for everything that dashboard and alerts show."""
    start, end = observed.start, observed.end
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            observed.panels[panel["title"]] = [
                (target["legendFormat"], await prometheus.range(filled_in(target["expr"]), start, end))
                for target in panel["targets"]
            ]
    for annotation in DASHBOARD["annotations"]["list"]:
        observed.annotations[annotation["name"]] = await prometheus.range(filled_in(annotation["expr"]), start, end)
    observed.rules = await prometheus.rules()
    for rule in observed.rules:
        observed.alerts[rule["name"]] = await prometheus.range(rule["query"], start, end)
        # A comparison that does not filter shows that there is something to compare.
        head, unless, tail = rule["query"].partition(" unless ")
        for operator in (" > ", " == "):
            head = head.replace(operator, f"{operator}bool ").replace("[15m:1m]", "[15m:1s]")
        observed.alert_inputs[rule["name"]] = await prometheus.range(head + unless + tail, start, end)
    fired = await prometheus.range('ALERTS{alertstate="firing"}', start, end)
    observed.firing = {labels["alertname"] for labels, _ in fired}
    for name in metrics:
        observed.names[name] = await prometheus.range(f'{{__name__=~"convoy_{name}(_count)?"}}', start, end)
