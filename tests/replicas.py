"""Several real processes of the service that share one group, under load, while things happen to them.

One run: topics of its own, `convoy emulator` as a process, replicas that are started, stopped, killed and stopped
in their tracks, events with unique texts at a steady rate, and at the end the audit from all sides. Nothing here
looks inside the service: what a moment was like is read from `/metrics`, from Kafka and from the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import httpx
from aiokafka import AIOKafkaProducer, TopicPartition
from fault_run import API_KEY, QUICK, EmulatorProcess, Figures, Message, named, read_arrivals, tell
from kafka_server import free_port
from service_process import ServiceProcess, until
from switches import SOAK

from service.emulator.faults import FaultScript
from service.evidence import audit_run, read_dump, seen_replies
from service.kafka import above
from service.kafka.reading import committed_offsets, committed_positions
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from conftest import Topics
    from fault_run import Arrival

    from service.audit import Report

CONVERSATIONS = 1000
PER_SECOND = 1000.0
TICK_SECONDS = 0.01
STEADY = {
    **QUICK,
    "KAFKA__HEARTBEAT_SECONDS": "0.5",
    "KAFKA__SESSION_TIMEOUT_SECONDS": "8",
    "KAFKA__COMMIT_INTERVAL_SECONDS": "1",
    "BATCH__WINDOW_SECONDS": "1",
}
"""Settings of the replicas: commits and window as shipped, only failures are noticed sooner."""
WITH_LEDGER = {"DELIVERY__SETTLE_SECONDS": "9"}
"""The least that is accepted beside an API time-out of 2 s."""


@dataclass(slots=True)
class Sight:
    """What a replica showed of itself at one moment, beside what it showed when its partitions were last given."""

    numbers: dict[str, float]
    since_assigned: float

    @property
    def in_flight(self) -> int:
        return int(self.numbers["attempts_in_flight"])


class Replica:
    """One place in the fleet: a name that stays, and the processes that take it one after the other."""

    def __init__(self, number: int, make: Callable[[], ServiceProcess]) -> None:
        self.number = number
        self._make = make
        self._assigned: tuple[float, float] = (0, 0)
        self._parts = contextlib.AsyncExitStack()
        self.processes: list[ServiceProcess] = []
        self.counted: Counter[str] = Counter()
        """What processes that ended had counted when last looked at."""
        self._last: dict[str, float] = {}

    @property
    def process(self) -> ServiceProcess:
        return self.processes[-1]

    @property
    def running(self) -> bool:
        return bool(self.processes) and self.process.process.poll() is None

    async def start(self) -> None:
        """Start a process in this place; it is not ready yet."""
        assert not self.running
        self.counted.update({name: int(value) for name, value in self._last.items() if name.endswith("_total")})
        self._assigned, self._last = (0, 0), {}
        self.processes.append(await self._parts.enter_async_context(self._make()))

    async def look(self) -> Sight | None:
        """What it shows now; nothing while it does not answer."""
        assert self.process.process.poll() is None, f"replica {self.number} ended:\n{self.process.log()[-4000:]}"
        try:
            text = (await self.process.get("/metrics")).text
        except httpx.TransportError:
            return None
        numbers: dict[str, float] = defaultdict(float)
        for line in text.splitlines():
            if line.startswith("convoy_"):
                name, _, value = line.rpartition(" ")
                numbers[name.partition("{")[0].removeprefix("convoy_")] += float(value)
        delivered, rebalances = numbers["delivered_items_total"], numbers["rebalances_total"]
        if rebalances != self._assigned[0]:
            # The count of the moment it was first seen with these partitions: some may have been delivered before.
            self._assigned = (rebalances, delivered)
        self._last = numbers
        return Sight(numbers, delivered - self._assigned[1])

    async def at_work(self, items: int) -> Sight:
        """Wait until it has attempts in flight and delivered so many items since it was given its partitions."""

        seen: list[Sight] = []

        async def busy() -> bool:
            sight = await self.look()
            if sight is None or sight.since_assigned < items or not sight.in_flight:
                return False
            seen.append(sight)
            return True

        await until(f"replica {self.number} at work", busy, within_seconds=60)
        return seen[-1]

    def counts(self, name: str) -> int:
        """The sum of a counter over all processes of this place, as far as they told."""
        return self.counted[name] + int(self._last.get(name, 0))

    async def close(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.signal(signal.SIGCONT)
        await self._parts.aclose()


class Fleet:
    """Replicas, topics, the API and the load of one run, as an async context manager around all processes."""

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Topics,
        folder: Path,
        *,
        replicas: int,
        ledger: bool = False,
        static: bool = True,
        latency_seconds: float = 0.05,
        script: FaultScript = FaultScript(),  # noqa: B008 - frozen
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kafka = KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            group_id=topics.group,
            events_topic=topics.events,
            reply_topic=topics.replies,
            dead_letter_topic=topics.dead_letters,
        )
        self.partitions = topics.partitions
        self.ledger = ledger
        self.api = EmulatorProcess(folder, script, latency_seconds=latency_seconds, seed=1)
        self._folder = folder
        self._static = static
        self.ports: dict[int, int] = {}
        """By replica, the port it reaches the API at, where that is not the API's own."""
        self._settings = {
            "KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "KAFKA__GROUP_ID": topics.group,
            "KAFKA__EVENTS_TOPIC": topics.events,
            "KAFKA__REPLY_TOPIC": topics.replies,
            "KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
            "API__KEY": API_KEY,
            **STEADY,
            **({"KAFKA__LEDGER_TOPIC": topics.ledger, **WITH_LEDGER} if ledger else {}),
            **settings,
        }
        self.replicas = [Replica(number, self._maker(number)) for number in range(replicas)]
        self.published_at: dict[str, float] = {}
        """By text, when the event was handed to Kafka (seconds since the epoch)."""
        self.place_of: dict[str, tuple[int, int]] = {}
        """By text, partition and offset of the event."""
        self._ends: dict[int, int] = {}
        self._parts = contextlib.AsyncExitStack()

    def _maker(self, number: int) -> Callable[[], ServiceProcess]:
        def make() -> ServiceProcess:
            port = self.ports.get(number, self.api.port)
            own = {"KAFKA__GROUP_INSTANCE_ID": f"replica-{number}"} if self._static else {}
            url = f"http://127.0.0.1:{port}/v1"
            return ServiceProcess(self._settings | own | {"API__BASE_URL": url}, self._folder)

        return make

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as parts:
            await parts.enter_async_context(self.api)
            for replica in self.replicas:
                parts.push_async_callback(replica.close)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for replica in self.replicas:
                for process in replica.processes:
                    print(f"--- replica {replica.number}, process {process.pid} ---\n{process.log()[-8000:]}")  # noqa: T201
        await self._parts.__aexit__(kind, error, trace)

    async def start(self, *numbers: int) -> None:
        """Start these replicas (all by default); return when each is ready."""
        chosen = [self.replicas[number] for number in numbers] or self.replicas
        for replica in chosen:
            await replica.start()
        for replica in chosen:
            await replica.process.ready()

    @property
    def running(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.running]

    async def shared(self) -> None:
        """Wait until the running replicas have all partitions among them, and each has one."""

        async def all_at_work() -> bool:
            sights = [await replica.look() for replica in self.running]
            owned = [sight.numbers["assigned_partitions"] if sight is not None else 0 for sight in sights]
            return sum(owned) == self.partitions and min(owned) > 0

        await until("partitions shared out", all_at_work)

    async def partitions_of(self, replica: Replica) -> list[int]:
        return [int(number) for number in (await replica.process.status())["partitions"]]

    # The load

    @contextlib.asynccontextmanager
    async def load(
        self, conversations: int = CONVERSATIONS, per_second: float = PER_SECOND, *, prefix: str = "load"
    ) -> AsyncIterator[None]:
        """Publish to conversations chosen by chance, at this rate, from now until the end of the `async with`."""
        names = named(prefix, conversations)
        chances = random.Random(7)
        ending = asyncio.Event()

        async def publish(producer: AIOKafkaProducer) -> list[tuple[str, asyncio.Future[Any]]]:
            sent: list[tuple[str, asyncio.Future[Any]]] = []
            began = time.monotonic()
            while not ending.is_set():
                while len(sent) < (time.monotonic() - began) * per_second:
                    name = chances.choice(names)
                    message = Message(name, f"{name} says {len(sent)}")
                    sent.append((message.text, await self._send(producer, message)))
                await asyncio.sleep(TICK_SECONDS)
            return sent

        # A broker may be away for a while: the load waits for it rather than lose an event of its own.
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            enable_idempotence=True,
            linger_ms=5,
            request_timeout_ms=120_000,
        )
        async with producer:
            publishing = asyncio.create_task(publish(producer))
            try:
                yield
            finally:
                ending.set()
                sent = await publishing
                await self._stored(sent)

    async def publish(self, messages: Iterable[Message]) -> None:
        """Publish all of these in this order, acknowledged."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            enable_idempotence=True,
            max_batch_size=1 << 20,
            max_request_size=4 << 20,
        )
        async with producer:
            await self._stored([(message.text, await self._send(producer, message)) for message in messages])

    async def _send(self, producer: AIOKafkaProducer, message: Message) -> asyncio.Future[Any]:
        self.published_at[message.text] = time.time()
        key = message.conversation_id.encode()
        sent: asyncio.Future[Any] = await producer.send(self.kafka.events_topic, message.value, key)
        return sent

    async def _stored(self, sent: Iterable[tuple[str, asyncio.Future[Any]]]) -> None:
        for text, storing in sent:
            record = await storing
            self.place_of[text] = (record.partition, record.offset)
            self._ends[record.partition] = max(self._ends.get(record.partition, 0), record.offset + 1)

    # The end

    async def finished(self, within_seconds: float = 60.0) -> None:
        """Wait until the positions stand behind all that was published: each event has its outcome."""

        async def at_the_end() -> bool:
            for replica in self.running:
                await replica.look()
            return await committed_positions(self.kafka) == self._ends

        await until("positions behind all events", at_the_end, within_seconds)

    async def end(
        self,
        scenario: str,
        *,
        within_seconds: float = 60.0,
        noting: Callable[[Ended], dict[str, object]] = lambda _: {},
        **notes: object,
    ) -> Ended:
        """Wait for all outcomes, stop every replica, judge the run and tell its figures, those of ``noting`` too."""
        await self.finished(within_seconds)
        for replica in self.running:
            await replica.process.ready()
        exit_codes = await asyncio.gather(*(replica.process.stop() for replica in self.running))

        async def landed() -> bool:
            return not (await self.api.stats())["late_landings"]

        await until("the landing of what is late", landed)
        stats, dump = await self.api.stats(), await self.api.dump()
        report = await audit_run(self.kafka, read_dump(dump))
        ended = Ended(report, read_arrivals(dump), self.published_at, exit_codes)
        self._tell(scenario, ended, stats, notes | noting(ended))
        return ended

    def _tell(self, scenario: str, ended: Ended, stats: dict[str, Any], notes: dict[str, object]) -> None:
        answers: Counter[str] = Counter()
        for outcomes in stats["requests"].values():
            answers.update(outcomes)
        report, arrivals = ended.report, ended.arrivals
        seconds = max(arrival.at for arrival in arrivals) - min(arrival.at for arrival in arrivals)
        figures = Figures(
            scenario,
            long=SOAK,
            events=report.events,
            conversations=len({arrival.conversation_id for arrival in arrivals}),
            requests=answers.total(),
            retries=sum(replica.counts("retries_total") for replica in self.replicas),
            readbacks=sum(replica.counts("readbacks_total") for replica in self.replicas),
            duplicates_prevented=sum(replica.counts("duplicates_prevented_total") for replica in self.replicas),
            throttled_share=answers["429"] / max(1, answers.total()),
            seconds=seconds,
            events_per_second=report.delivered / seconds if seconds else 0.0,
            lost=report.lost.count,
            duplicated=report.duplicated.count,
            out_of_order=report.out_of_order.count,
            dead_letters=dict(report.dead_letters),
            notes={
                "longest pause": f"{ended.longest_pause_seconds():.1f} s",
                "duplicate replies": str(report.duplicate_replies.count),
                **{name.replace("_", " "): str(note) for name, note in notes.items()},
            },
        )
        tell(figures)
        print(figures.line())  # noqa: T201 - pytest shows it


@dataclass(slots=True)
class Ended:
    """A run that is over."""

    report: Report
    arrivals: list[Arrival]
    published_at: dict[str, float]
    exit_codes: list[int]

    def longest_pause_seconds(self) -> float:
        """How long the unluckiest event waited from its publishing until the API had it."""
        return max(arrival.at - self.published_at[arrival.text] for arrival in self.arrivals)

    def copies(self) -> dict[str, list[float]]:
        """By text, when each of its copies was stored."""
        found: dict[str, list[float]] = defaultdict(list)
        for arrival in self.arrivals:
            found[arrival.text].append(arrival.at)
        return found

    def assert_sound(self, *, duplicates: bool = False) -> None:
        """Nothing lost, out of order, answered wrongly, left uncommitted or, where not allowed, doubled."""
        report = self.report
        if duplicates:
            report.duplicated.count, doubled = 0, report.duplicated.count
            assert report.content, report.lines()
            report.duplicated.count = doubled
        assert duplicates or report.content, report.lines()
        assert report.uncommitted == 0, report.lines()
        assert not report.dead_letters, report.lines()
        assert self.exit_codes == [0] * len(self.exit_codes)


class Tap:
    """A port before the API's that passes everything on, and notes when each write came through."""

    def __init__(self, behind: int) -> None:
        self.port = free_port()
        self.writes: list[float] = []
        """Seconds since the epoch."""
        self._behind = behind
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for passing in self._passing:
            passing.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(passing)
        passing.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            await asyncio.gather(self._copy(reader, back, self.writes), self._copy(there, writer))
        finally:
            for end in (writer, back):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    @staticmethod
    async def _copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, writes: list[float] | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if writes is not None and data.startswith(b"POST "):
                    writes.append(time.time())
                writer.write(data)
                await writer.drain()
            writer.write_eof()


@dataclass(slots=True)
class Exposure:
    """What stood where when a replica without a ledger was killed: by this evidence some of it is sent again."""

    positions: dict[int, int]
    """Of the partitions it had."""
    noted: set[tuple[int, int]]
    """Events above these positions that the commit notes as settled."""
    replied: set[tuple[int, int]]
    """Events whose reply was stored."""
    replaced_at: float = math.inf
    """Before the next process in its place sends anything; what the API stored by then came of the dead one."""

    def of(self, ended: Ended, place_of: dict[str, tuple[int, int]]) -> Bound:
        """Sort the events that were at the API by then, and that no position covers."""
        found = Bound()
        for text, times in ended.copies().items():
            partition, offset = place = place_of[text]
            if offset < self.positions.get(partition, math.inf) or min(times) >= self.replaced_at:
                continue
            if place in self.noted:
                found.noted.add(place)
            elif place in self.replied:
                found.settled.add(place)
            else:
                found.in_flight.add(place)
        return found


@dataclass(slots=True)
class Bound:
    """What may be at the API twice after one kill, event by event."""

    in_flight: set[tuple[int, int]] = field(default_factory=set)
    """Stored by the API, its reply not yet in Kafka."""
    settled: set[tuple[int, int]] = field(default_factory=set)
    """Settled since the last commit."""
    noted: set[tuple[int, int]] = field(default_factory=set)
    """Settled above the oldest unsettled event at the last commit; noted beside it, so not to be sent again."""


async def exposure(kafka: KafkaSettings, partitions: Sequence[int]) -> Exposure:
    """Gather the evidence for these partitions; their owner is dead."""
    places = [TopicPartition(kafka.events_topic, number) for number in partitions]
    # Positions first: what is settled between the two looks counts as not covered.
    committed = await committed_offsets(kafka, places)
    replied = {(reply.place.partition, reply.place.offset) for reply in await seen_replies(kafka)}
    positions, noted = {}, set()
    for place in places:
        position, text = committed.get(place, (0, ""))
        positions[place.partition] = position
        noted |= {(place.partition, offset) for offset in above.read(position, text)}
    return Exposure(positions, noted, replied)
