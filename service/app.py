"""The composition root: every part is made here, started and stopped here, and nowhere else.

`create_app` gives FastStream an application to run (``convoy run``, or
``faststream run service.app:create_app --factory``). Its hooks: before the broker starts, HTTP is served and
Kafka is waited for; before the broker stops, partitions are drained and positions committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from faststream import FastStream

from service import __version__
from service.conversations.client import Conversations
from service.core.circuit import Circuit, CircuitReason
from service.core.delivery import Delivery, Policy
from service.core.flood import FloodGuard
from service.core.grouper import Grouper
from service.core.limiter import Limiter
from service.core.readback import Cursors
from service.kafka.access import Right, Topic, needed, opened
from service.kafka.connection import KafkaError
from service.kafka.diagnosis import why_unreachable
from service.kafka.intake import Intake
from service.kafka.ledger import Ledger, LogError
from service.kafka.ledger_log import KafkaLedgerLog
from service.kafka.membership import Membership
from service.kafka.outlet import Outlet, TopicMissingError
from service.ops import logs
from service.ops.asgi import AsgiListener
from service.ops.health import Health
from service.ops.http import OpsApp
from service.ops.metrics import Metrics
from service.pump import Pump
from service.schemas import asyncapi
from service.settings import Settings, SettingsError, load, read_key, traces_wanted

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.core.grouper import Partition
    from service.ops.tracing import Tracing

log = logging.getLogger(__name__)

CONNECT_RETRY_SECONDS = 2.0
CONNECT_RETRY_MAX_SECONDS = 15.0
"""Where brokers refuse our credentials: asking often may lock an account."""
ASK_SECONDS = 15.0
"""To learn which topics and rights there are."""
CREDENTIALS_LOOK_SECONDS = 5.0
KEY_LOOK_SECONDS = 2.0
"""Between looks at the file that holds the API's key."""
STOP_SECONDS = 5.0
"""To leave the group and close connections, once drained: a broker that is away must not keep us."""
REGULATE_SECONDS = 0.25
STATUS_CONVERSATIONS = 10
BEGUN_LANES = 10_000
"""Conversations whose cursor may still be read ahead; of more that arrive at once the first read their own."""


class _NotAllowedError(Exception):
    """Topics or rights are missing; the message says which and what to do."""


def boot_clock() -> float:
    """Seconds since boot, those of a suspended machine included where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Service:
    """All parts of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = time.monotonic
        self.error: BaseException | None = None
        """What broke the loop; the process then ends with exit code 1."""
        self.finished = True
        """Whether the drain stored and committed all that was in flight."""
        self.metrics = Metrics()
        self.health = Health(self.clock, ready_needs_api=settings.ops.ready_needs_api)
        self.circuit = Circuit()
        delivery = settings.delivery
        reads_first = delivery.read_cursor_first or bool(settings.kafka.ledger_topic)
        self.grouper = Grouper(
            max_items=settings.batch.max_items,
            max_bytes=settings.batch.max_bytes,
            window_seconds=settings.batch.window_seconds,
            begun_lanes=BEGUN_LANES if reads_first else 0,
        )
        self.limiter = Limiter(
            start_concurrency=delivery.start_concurrency,
            max_concurrency=delivery.max_concurrency,
            max_requests_per_second=delivery.max_requests_per_second,
        )
        policy = Policy(
            max_attempts=delivery.max_attempts,
            max_age_seconds=delivery.max_age_seconds,
            backoff_initial_seconds=delivery.backoff_initial_seconds,
            backoff_max_seconds=delivery.backoff_max_seconds,
            settle_seconds=settings.settle_seconds,
            read_cursor_first=reads_first,
            exact=bool(settings.kafka.ledger_topic),
        )
        cursors = Cursors(settings.limits.max_known_conversations)
        self.tracing = _tracing(settings)
        propagate = None if self.tracing is None else self.tracing.propagate
        self.conversations = Conversations(settings.api, version=__version__, propagate=propagate)
        self.outlet = Outlet(settings.kafka, self.metrics, fatal=self.fail)
        self.ledger = (
            Ledger(
                settings.kafka,
                KafkaLedgerLog(settings.kafka),
                cursors,
                self.metrics,
                lost=self._lost,
                clock=self.clock,
                boot_clock=boot_clock,
            )
            if settings.kafka.ledger_topic
            else None
        )
        flood = FloodGuard(
            share=settings.dead_letter.flood_share,
            run=settings.dead_letter.flood_run,
            window_seconds=settings.dead_letter.flood_window_seconds,
        )
        membership = Membership(settings.kafka, self.clock, boot_clock, broken=self.fail)
        self.health.idle_seconds = membership.idle_seconds
        self.lease_valid = membership.lease_valid
        self.pump = Pump(
            settings,
            self.grouper,
            self.limiter,
            Delivery(policy, self.circuit, cursors, random.random, flood),
            self.conversations,
            self.outlet,
            self.metrics,
            self.health,
            lease=membership.lease_valid,
            circuit_changed=self._regulate,
            fatal=self.fail,
            clock=self.clock,
            journal=self.ledger,
            tracing=self.tracing,
        )
        self.intake = Intake(
            settings,
            self.grouper,
            self.metrics,
            self.health,
            membership,
            refuse=self.pump.refuse,
            repeat=self.pump.repeat,
            arrived=self.pump.wake,
            drain=self.pump.drain,
            fatal=self.fail,
            clock=self.clock,
            given_up=cursors.clear,
            ledger=self.ledger,
        )
        self.health.problem = self.intake.problem
        self.intake.held = self._hold
        self.outlet.refused = lambda topic, why: self.health.trouble(f"writing {topic}", why)
        self.outlet.stored = lambda topic: self.health.mended(f"writing {topic}")
        self.health.circuit_reason = lambda: self.circuit.reason
        self.listener = AsgiListener(
            OpsApp(self.metrics.registry, self.health, self.status, lambda: asyncapi(settings.kafka, __version__)),
            settings.ops.host,
            settings.ops.port,
        )
        self.app: FastStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listening = False
        self._declare_gauges()

    # The life of the process

    async def start(self) -> None:
        """Serve HTTP, wait for Kafka, start the loop."""
        self.health.started()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.pump.flood_over)
        await self.listener.__aenter__()
        self._listening = True
        await self.conversations.__aenter__()
        self._spawn(self.pump.run(), "pump")
        self._spawn(self._watch_key(), "key")
        await self._connect()
        self.health.waiting_for = "the consumer group"
        self._spawn(self._keep_house(), "housekeeping")
        self._spawn(self._watch_credentials(), "credentials")
        self._spawn(self.intake.watch_ends(), "ends of partitions")

    async def drain(self) -> None:
        """Stop reading, finish what is in flight, store, commit."""
        self.health.draining = True
        self.intake.regulate()
        if self.error is None:
            self.finished = await self.intake.revoked(list(self.grouper.partitions))

    async def close(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pump.stop()
        closing = [self.outlet.stop(STOP_SECONDS)]
        if self.ledger is not None:
            closing.append(self.ledger.stop())
        if self.tracing is not None:
            closing.append(self.tracing.stop(STOP_SECONDS))
        # Side by side: each takes its whole time when no broker answers, and the pod's grace period is short.
        await asyncio.gather(*closing)
        await self.conversations.__aexit__()
        if self._listening:
            await self.listener.__aexit__(None, None, None)

    def fail(self, error: BaseException) -> None:
        """End the process: what broke cannot be mended by going on, and Kafka redelivers."""
        if self.error is None:
            self.error = error
            log.critical("stopping: the loop broke", exc_info=error)
        if self.app is not None:
            self.app.exit()

    async def _connect(self) -> None:
        kafka = self.settings.kafka
        told = ""
        pause = CONNECT_RETRY_SECONDS
        while True:
            try:
                reply_topics = await self._look_whether_allowed()
                await self.outlet.start(list(needed(kafka)))
                await self.outlet.learn(reply_topics)
                if self.ledger is not None:
                    await self.ledger.start()
            except TopicMissingError as missing:
                waiting_for = f"topic {missing} (create it: convoy topics)"
            except _NotAllowedError as gaps:
                waiting_for = str(gaps)
            except (KafkaError, OSError, LogError, TimeoutError) as error:
                trouble = await why_unreachable(kafka)
                waiting_for = f"a broker: {trouble or f'{kafka.bootstrap_servers} ({type(error).__name__})'}"
                if trouble is not None and trouble.is_ours:
                    pause = min(pause * 2, CONNECT_RETRY_MAX_SECONDS)
            else:
                return
            self.health.waiting_for = waiting_for
            if waiting_for != told:
                log.warning("waiting", extra={"for": waiting_for})
                told = waiting_for
            await asyncio.sleep(pause)

    async def _look_whether_allowed(self) -> list[str]:
        """Look for topics and rights before anything is begun: who may not write replies must not read events.

        Returns the topics that requesters may name and that we may write to, if they are there: a reply to another
        would be tried for ever.
        """
        kafka = self.settings.kafka
        async with asyncio.timeout(ASK_SECONDS), opened(kafka) as access:
            gaps = await access.missing(needed(kafka), kafka.group_id)
            optional = sorted(self.settings.allowed_reply_topics - needed(kafka).keys())
            found = await access.topics(optional) if optional else {}
        if gaps:
            raise _NotAllowedError("; ".join(map(str, gaps)))
        closed = {name for name, topic in found.items() if isinstance(topic, Topic) and not topic.may(Right.WRITE)}
        for name in sorted(closed):
            log.warning(
                "we may not write to an allowed reply topic; its replies go to the default", extra={"topic": name}
            )
        return sorted(self.settings.allowed_reply_topics - closed)

    async def _watch_credentials(self) -> None:
        """Where the group has not heard us for a session, tell whether brokers refuse who we are."""
        told = None
        while True:
            await asyncio.sleep(CREDENTIALS_LOOK_SECONDS)
            trouble = None
            if self.health.waiting_for is None and not self.lease_valid():
                trouble = await why_unreachable(self.settings.kafka)
            if trouble is None or not trouble.is_ours:
                if self.health.mended("credentials"):
                    log.info("brokers let us in again")
                    told = None
            elif self.health.trouble("credentials", str(trouble)) and trouble != told:
                log.error("brokers do not let us in, trying again", extra={"error": str(trouble)})
                told = trouble

    async def _watch_key(self) -> None:
        """Use a key that was changed in its file from the next request on."""
        file, key = self.settings.api.key_file, self.settings.api.key.get_secret_value()
        told = ""
        while file is not None:
            await asyncio.sleep(KEY_LOOK_SECONDS)
            try:
                fresh = await asyncio.to_thread(read_key, file)
            except ValueError as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("the key file cannot be used; the key read before is used on", extra={"error": told})
                continue
            told = ""
            if fresh != key:
                key = fresh
                self.conversations.use_key(key)
                log.info("the API key was changed")

    async def _keep_house(self) -> None:
        """Commit and regulate, each at its own pace."""
        next_commit = self.clock() + self.settings.kafka.commit_interval_seconds
        while True:
            await asyncio.sleep(min(REGULATE_SECONDS, self.settings.kafka.commit_interval_seconds))
            self.intake.regulate()
            now = self.clock()
            if now >= next_commit:
                next_commit = now + self.settings.kafka.commit_interval_seconds
                await self.intake.commit()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def finished(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.fail(error)

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(finished)
        self._tasks.append(task)

    def _lost(self, partition: Partition) -> None:
        self.intake.lost(partition)

    def _hold(self) -> bool:
        """Whether reading is to stop: we are stopping, or the circuit is open and something waits to probe it with.

        Where attempts failed, that must be something not tried yet: if only conversations wait that failed, they may
        be the sick ones, and nothing would ever close the circuit if nothing else were read. In a flood of records
        that are no events nothing waits, and reading on would drain the topic into the dead letters.
        """
        reason = self.circuit.reason
        if reason is None or self.health.draining:
            return self.health.draining
        if reason is CircuitReason.FLOOD_GUARD and self.settings.dead_letter.flood_counts_invalid:
            return True
        lanes = (lane for partition in self.grouper.partitions.values() for lane in partition.lanes.values())
        return any(reason is not CircuitReason.API_UNAVAILABLE or not lane.parts for lane in lanes)

    def _regulate(self) -> None:
        self.intake.regulate()

    # What it shows

    def _declare_gauges(self) -> None:
        partitions = self.grouper.partitions
        gauge = self.metrics.gauge_of
        gauge("buffered_events", lambda: sum(p.buffered_events for p in partitions.values()))
        gauge("buffered_bytes", lambda: sum(p.buffered_bytes for p in partitions.values()))
        gauge("active_conversations", lambda: sum(len(p.lanes) for p in partitions.values()))
        gauge("assigned_partitions", lambda: len(partitions))
        gauge("paused_partitions", lambda: self.intake.paused)
        gauge("attempts_in_flight", lambda: self.limiter.in_flight)
        gauge("concurrency_limit", lambda: self.limiter.concurrency_limit)
        gauge("requests_per_second_limit", lambda: self.limiter.pace or math.inf)
        gauge("oldest_unsettled_event_age_seconds", lambda: self.grouper.oldest_age(self.clock()))
        gauge("last_progress_timestamp_seconds", lambda: self.health.last_progress)
        self.metrics.gauge("build_info", __version__).set(1)
        self.metrics.collect_with("consumer_lag_records", self._lag)

    def _lag(self) -> dict[tuple[str, ...], float]:
        topic = self.settings.kafka.events_topic
        return {(topic, str(number)): lag for number, lag in self.intake.lag().items()}

    def status(self) -> dict[str, Any]:
        """What the process is doing now; conversations as hashes, no content."""
        now = self.clock()
        lag = self.intake.lag()
        lanes = sorted(self.grouper.oldest_lanes(STATUS_CONVERSATIONS), key=lambda found: found[0])
        return {
            "version": __version__,
            "ready": self.health.ready()[1],
            "circuit": {"reason": self.circuit.reason or "closed", "detail": self.circuit.detail},
            "limiter": {
                "in_flight": self.limiter.in_flight,
                "concurrency_limit": self.limiter.concurrency_limit,
                "pace_per_second": self.limiter.pace,
            },
            "partitions": {
                str(number): {
                    "position": partition.watermark.position,
                    "lag": lag.get(number),
                    "buffered_events": partition.buffered_events,
                    "conversations": len(partition.lanes),
                    "draining": partition.draining,
                    "taking_over": partition.taking_over,
                    "stopped": self.intake.stopped.get(number),
                }
                for number, partition in sorted(self.grouper.partitions.items())
            },
            "longest_waiting": [
                {
                    "conversation": hashlib.blake2b(lane.conversation_id.encode(), digest_size=8).hexdigest(),
                    "partition": lane.partition.number,
                    "waiting_seconds": round(now - read_at, 3),
                    "state": lane.state.value,
                    "attempts": lane.parts[0].attempts if lane.parts else 0,
                    "reading_back": bool(lane.parts and lane.parts[0].unsettled),
                }
                for read_at, lane in lanes
            ],
            "outcomes_being_stored": self.outlet.waiting(),
        }


def _tracing(settings: Settings) -> Tracing | None:
    if not traces_wanted(os.environ):
        return None
    from service.ops.tracing import otlp_tracing  # noqa: PLC0415 - the extra that it needs may not be installed

    kafka = settings.kafka
    return otlp_tracing(
        version=__version__,
        events_topic=kafka.events_topic,
        group_id=kafka.group_id,
        base_url=settings.api.base_url,
    )


def create_app(settings: Settings | None = None) -> FastStream:
    """Make the application; without ``settings`` they are read from the environment.

    The process exits with code 2 and one clear line when they cannot be used.
    """
    if settings is None:
        try:
            settings = load()
        except SettingsError as error:
            print(f"convoy: {error}", file=sys.stderr)  # noqa: T201 - there is no logging before settings
            raise SystemExit(2) from None
    logs.set_up(settings.log)
    return make(settings)[0]


def make(settings: Settings) -> tuple[FastStream, Service]:
    """Make the application and its parts."""
    service = Service(settings)
    app = FastStream(
        service.intake.broker,
        logger=None,
        on_startup=[service.start],
        on_shutdown=[service.drain],
        after_shutdown=[service.close],
    )
    service.app = app
    return app, service
