"""A run under faults: a real service, an emulated API that misbehaves by a script, and the figures of both.

One run: topics of its own, events with unique texts, `convoy emulator` as one process and `convoy run` as another,
a wait until each event has its outcome, SIGTERM, and the audit from all sides. Nothing here looks inside the
service: the figures come from `/metrics`, the emulator's statistics and what it holds.

`python tests/fault_run.py --table` makes `docs/faults.md` from the figures of all runs of `tests/fault`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import httpx
import msgspec
from aiokafka import AIOKafkaProducer
from kafka_server import free_port
from service_process import CALM, ServiceProcess, until
from switches import SOAK

from service.emulator.faults import FaultScript
from service.evidence import audit_run, read_dump
from service.kafka.reading import committed_positions, read_topic
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from conftest import Topics

    from service.audit import Report

FIGURES = "CONVOY_TEST_FIGURES"
"""Names the file that gathers the figures of all runs, a JSON object a line."""
API_KEY = "sk-of-the-tests-4712"
QUICK = {
    **CALM,
    "API__CONNECT_TIMEOUT_SECONDS": "1",
    "API__TOTAL_TIMEOUT_SECONDS": "2",
    "DELIVERY__SETTLE_SECONDS": "4",
}
"""Settings of a run where it says nothing else. What is unheard of after 2 s has landed after 4 s, or never will."""
POSITIONS_SECONDS = 0.25
"""Between two looks at the committed positions."""


def soak(long: float, short: float) -> float:
    """The measure of a run: the long one where the long forms are wanted."""
    return long if SOAK else short


# --- What is published ---


@dataclass(frozen=True, slots=True)
class Message:
    """One event to publish."""

    conversation_id: str
    text: str

    @property
    def value(self) -> bytes:
        event = {"conversation_id": self.conversation_id, "role": "user", "content": self.text}
        return json.dumps(event).encode()


def messages(conversations: Iterable[str], turns: int, *, first: int = 0) -> Iterator[Message]:
    """`turns` messages of each conversation, one of each after the other; no two texts are the same."""
    names = list(conversations)
    for turn in range(first, first + turns):
        for name in names:
            yield Message(name, f"{name} says {turn}")


def named(prefix: str, count: int) -> list[str]:
    """So many conversation ids."""
    return [f"conv_{prefix}_{number:04}" for number in range(count)]


# --- The API ---


class EmulatorProcess:
    """`convoy emulator` as a process of its own, killed at the end of the `async with`."""

    def __init__(self, folder: Path, script: FaultScript, *, latency_seconds: float, seed: int) -> None:
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self._script = folder / f"faults-{self.port}.json"
        self._script.write_bytes(msgspec.json.encode(script))
        self._log = folder / f"emulator-{self.port}.log"
        self._command = [
            *(str(Path(sys.executable).with_name("convoy")), "emulator", "--create-on-write", "--key", API_KEY),
            *("--port", str(self.port), "--latency", str(latency_seconds), "--seed", str(seed)),
            *("--faults", str(self._script)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.AsyncClient(base_url=f"{self.origin}/_emulator", timeout=30)

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it is back in a millisecond
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        await until("an answer of the emulator", self._answers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        await self._http.aclose()

    async def play(self, script: FaultScript) -> float:
        """Play another script from its beginning; returns when it was asked to (seconds since the epoch)."""
        asked = time.time()
        (await self._http.put("/faults", content=msgspec.json.encode(script))).raise_for_status()
        return asked

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self._http.get("/stats")).json()
        return stats

    async def dump(self) -> bytes:
        return (await self._http.get("/dump")).content

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the emulator ended:\n{self._log.read_text(errors='replace')}"
        try:
            await self._http.get("/stats")
        except httpx.TransportError:
            return False
        return True


class Gate:
    """A port before the emulator's that can be closed: connections are cut and new ones are refused.

    The API goes away and comes back at the same address, and knows what it knew: what it was sent and stored
    before is stored.
    """

    def __init__(self, behind: int) -> None:
        self.port = free_port()
        self._behind = behind
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> float:
        """Let connections through; returns when (seconds since the epoch)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Passage(self._behind, self._passing), "127.0.0.1", self.port)
        return time.time()

    async def close(self) -> None:
        """Refuse every connection and cut those there are."""
        if self._server is None:
            return
        self._server.close()
        for transport in list(self._passing):
            transport.abort()
        await self._server.wait_closed()
        self._server = None


class _Passage(asyncio.Protocol):
    """One end of a connection through the gate; what arrives here leaves at the other end."""

    def __init__(self, behind: int, passing: set[asyncio.Transport], other: _Passage | None = None) -> None:
        self._behind = behind
        self._passing = passing
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early = b""
        self._reaching: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._passing.add(transport)
        if self.other is None:
            self._reaching = asyncio.create_task(self._reach())

    async def _reach(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(
                lambda: _Passage(self._behind, self._passing, self), "127.0.0.1", self._behind
            )
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.other = other
        assert other.transport is not None
        if self.transport is None:
            other.transport.abort()
        elif self._early:
            other.transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self._passing.discard(self.transport)
            self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


# --- What came of it ---


@dataclass(slots=True)
class Figures:
    """The figures of one run."""

    scenario: str
    long: bool
    events: int
    conversations: int
    requests: int
    """All that reached the API, reads included."""
    retries: int
    readbacks: int
    duplicates_prevented: int
    throttled_share: float
    """Of all requests, those answered 429."""
    seconds: float
    """From the first item stored to the last."""
    events_per_second: float
    lost: int
    duplicated: int
    out_of_order: int
    dead_letters: dict[str, int]
    recovery_seconds: float | None = None
    """From the healing of the API until the last conversation that waited was served again."""
    notes: dict[str, str] = field(default_factory=dict)
    """What this scenario is about, as figures with a name."""

    def line(self) -> str:
        """All of it in one line."""
        dead = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dead_letters.items()))
        parts = {
            "events": self.events,
            "conversations": self.conversations,
            "requests": self.requests,
            "retries": self.retries,
            "read-backs": self.readbacks,
            "duplicates prevented": self.duplicates_prevented,
            "429": f"{self.throttled_share:.1%}",
            "events/s": f"{self.events_per_second:.0f}",
            **({"recovery": f"{self.recovery_seconds:.1f} s"} if self.recovery_seconds is not None else {}),
            "lost": self.lost,
            "duplicated": self.duplicated,
            "out of order": self.out_of_order,
            "dead letters": dead or "0",
            **self.notes,
        }
        return f"{self.scenario}: " + ", ".join(f"{name} {value}" for name, value in parts.items())


@dataclass(frozen=True, slots=True)
class Span:
    """What the API saw in a part of a run."""

    seconds: float
    answers: Counter[str]
    mean_in_flight: float

    @property
    def goodput(self) -> float:
        """Requests a second that were answered as they should be."""
        return self.answers["200"] / self.seconds

    @property
    def throttled_share(self) -> float:
        """Of all requests, those answered 429."""
        return self.answers["429"] / max(1, self.answers.total())


@dataclass(frozen=True, slots=True)
class Arrival:
    """An item as the API holds it, and when it was stored (seconds since the epoch)."""

    conversation_id: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it lies in its topic."""

    conversation_id: str
    text: str
    headers: Mapping[str, str]

    @property
    def reason(self) -> str:
        return self.headers["dlq.reason"]


@dataclass(slots=True)
class Ended:
    """A run that is over: what the audit says, and what may be asked beyond it."""

    report: Report
    arrivals: list[Arrival]
    letters: list[Letter]
    stats: dict[str, Any]
    exit_code: int
    complaints: list[str]

    def asked(self, rule: str) -> int:
        """How many requests the fault rules of this name did something to."""
        return sum(fault["applied"] for fault in self.stats["faults"] if fault["rule"] == rule)

    def dead(self) -> set[tuple[str, str]]:
        """The texts dead-lettered, each with its reason."""
        return {(letter.text, letter.reason) for letter in self.letters}

    def held(self, conversation_id: str) -> list[str]:
        """The texts of a conversation, as the API holds them."""
        return [arrival.text for arrival in self.arrivals if arrival.conversation_id == conversation_id]

    def assert_sound(self) -> None:
        """Nothing lost, doubled, out of order, answered wrongly or left uncommitted; a clean end."""
        assert self.report.content, self.report.lines()
        assert self.report.uncommitted == 0, self.report.lines()
        assert self.exit_code == 0


class FaultRun:
    """One run, as an async context manager around its processes."""

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Topics,
        folder: Path,
        script: FaultScript = FaultScript(),  # noqa: B008 - frozen
        *,
        latency_seconds: float = 0.01,
        gated: bool = False,
        seed: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.kafka = KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            group_id=topics.group,
            events_topic=topics.events,
            reply_topic=topics.replies,
            dead_letter_topic=topics.dead_letters,
        )
        self.api = EmulatorProcess(folder, script, latency_seconds=latency_seconds, seed=seed)
        self.gate = Gate(self.api.port)
        port = self.gate.port if gated else self.api.port
        self._settings = {
            "KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "KAFKA__GROUP_ID": topics.group,
            "KAFKA__EVENTS_TOPIC": topics.events,
            "KAFKA__REPLY_TOPIC": topics.replies,
            "KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
            "API__BASE_URL": f"http://127.0.0.1:{port}/v1",
            "API__KEY": API_KEY,
            **QUICK,
            **(settings or {}),
        }
        self._gated = gated
        self._folder = folder
        self.service = ServiceProcess(self._settings, folder)
        self.published: list[Message] = []
        self.published_at: dict[str, float] = {}
        """By text, when the event was published (seconds since the epoch)."""
        self._ends: dict[int, int] = {}
        self._earlier: Counter[str] = Counter()
        """What processes counted that were restarted since."""
        self._parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as parts:
            await parts.enter_async_context(self.api)
            if self._gated:
                await parts.enter_async_context(self.gate)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.__aexit__(kind, error, trace)

    async def start(self) -> None:
        """Start the service; return when it is ready."""
        await self._parts.enter_async_context(self.service)
        await self.service.ready()

    async def restart(self) -> None:
        """Tell the service to stop, wait until it did, and start another in its place."""
        self._earlier += await self._counts()
        assert await self.service.stop() == 0
        self.service = ServiceProcess(self._settings, self._folder)
        await self.start()

    # Publishing

    @contextlib.asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        """A producer to this run's topic; at the end all it was given is stored."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap_servers, enable_idempotence=True)
        async with producer:
            publisher = Publisher(self, producer)
            yield publisher
            await publisher.stored()

    @contextlib.asynccontextmanager
    async def traffic(self, published: Iterable[Message], per_second: float) -> AsyncIterator[None]:
        """Publish these at this rate meanwhile; at the end, wait until all of it is stored."""
        async with self.publishing() as publisher:
            steady = asyncio.create_task(publisher.steadily(published, per_second))
            try:
                yield
                await steady
            finally:
                steady.cancel()
                await asyncio.gather(steady, return_exceptions=True)

    async def publish(self, published: Iterable[Message]) -> None:
        """Publish all of these in this order, acknowledged."""
        async with self.publishing() as publisher:
            for message in published:
                await publisher.send(message)

    # The run

    async def span(self, seconds: float) -> Span:
        """Watch the API for a while."""
        before = await self.api.stats()
        await asyncio.sleep(seconds)
        after = await self.api.stats()
        passed = after["uptime_seconds"] - before["uptime_seconds"]
        busy = after["in_flight_seconds"] - before["in_flight_seconds"]
        return Span(passed, _answers(after) - _answers(before), busy / passed)

    # The end

    async def finished(self, within_seconds: float = 60.0) -> None:
        """Wait until the positions stand behind all that was published: each event has its outcome."""
        deadline = time.monotonic() + within_seconds
        while not self._ends.items() <= (positions := await committed_positions(self.kafka)).items():
            assert self.service.process.poll() is None, f"the service ended:\n{self.service.log()[-4000:]}"
            if time.monotonic() > deadline:
                status = json.dumps(await self.service.status(), indent=1)
                raise AssertionError(f"not within {within_seconds:g} s: {positions} is short of {self._ends}\n{status}")
            await asyncio.sleep(POSITIONS_SECONDS)

    async def end(
        self,
        scenario: str,
        *,
        within_seconds: float = 60.0,
        healed_at: float | None = None,
        **notes: str | Callable[[Ended], str],
    ) -> Ended:
        """Wait for all outcomes, stop the service, judge the run and tell its figures.

        `notes` are what else is to be told, by name: a text, or what makes one of the run that is over.
        """
        await self.finished(within_seconds)
        counts = self._earlier + await self._counts()
        exit_code = await self.service.stop()
        await until("the landing of what is late", self._landed)
        stats, dump = await self.api.stats(), await self.api.dump()
        report = await audit_run(self.kafka, read_dump(dump))
        arrivals = read_arrivals(dump)
        ended = Ended(report, arrivals, await self._letters(), stats, exit_code, self.service.complaints())
        answers = _answers(stats)
        seconds = max(arrival.at for arrival in arrivals) - min(arrival.at for arrival in arrivals) if arrivals else 0
        figures = Figures(
            scenario,
            long=SOAK,
            events=report.events,
            conversations=len({message.conversation_id for message in self.published}),
            requests=answers.total(),
            retries=counts["retries_total"],
            readbacks=counts["readbacks_total"],
            duplicates_prevented=counts["duplicates_prevented_total"],
            throttled_share=answers["429"] / max(1, answers.total()),
            seconds=seconds,
            events_per_second=report.delivered / seconds if seconds else 0.0,
            lost=report.lost.count,
            duplicated=report.duplicated.count,
            out_of_order=report.out_of_order.count,
            dead_letters=dict(report.dead_letters),
            recovery_seconds=self.recovery_seconds(arrivals, healed_at) if healed_at is not None else None,
            notes={
                name.replace("_", " "): note if isinstance(note, str) else note(ended) for name, note in notes.items()
            },
        )
        tell(figures)
        return ended

    def recovery_seconds(self, arrivals: Sequence[Arrival], healed_at: float) -> float:
        """From the healing until each conversation with an event waiting then had one stored."""
        first: dict[str, float] = {}
        for arrival in arrivals:
            published_at = self.published_at[arrival.text]
            if published_at <= healed_at <= arrival.at:
                first[arrival.conversation_id] = min(first.get(arrival.conversation_id, math.inf), arrival.at)
        return max(first.values(), default=healed_at) - healed_at

    async def _landed(self) -> bool:
        return not (await self.api.stats())["late_landings"]

    async def _counts(self) -> Counter[str]:
        names = ("retries_total", "readbacks_total", "duplicates_prevented_total")
        return Counter({name: int(await self.service.metric(name)) for name in names})

    async def _letters(self) -> list[Letter]:
        letters = []
        async for records in read_topic(self.kafka, self.kafka.dead_letter_topic):
            for record in records:
                event = json.loads(record.value or b"{}")
                headers = {name: value.decode() for name, value in record.headers if name.startswith("dlq.")}
                letters.append(Letter(event["conversation_id"], event["content"], headers))
        return letters


class MakeRun(Protocol):
    """What the fixture `fault_run` gives: `async with fault_run(script, settings=…) as run`, on fresh topics."""

    def __call__(
        self, script: FaultScript = ..., *, partitions: int = 4, **options: Any
    ) -> AbstractAsyncContextManager[FaultRun]: ...


class Publisher:
    """Publishes events of one run, one after the other."""

    def __init__(self, run: FaultRun, producer: AIOKafkaProducer) -> None:
        self._run = run
        self._producer = producer
        self._sent: list[asyncio.Future[Any]] = []

    async def send(self, message: Message) -> None:
        """Publish one event; it is acknowledged later."""
        run = self._run
        run.published.append(message)
        run.published_at[message.text] = time.time()
        key = message.conversation_id.encode()
        self._sent.append(await self._producer.send(run.kafka.events_topic, message.value, key))

    async def steadily(self, published: Iterable[Message], per_second: float) -> None:
        """Publish these at this rate; who falls behind catches up."""
        began = time.monotonic()
        for number, message in enumerate(published):
            wait = began + number / per_second - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            await self.send(message)

    async def stored(self) -> None:
        """Wait until Kafka has stored all of it."""
        for record in await asyncio.gather(*self._sent):
            ends = self._run._ends
            ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
        self._sent.clear()


def read_arrivals(dump: bytes) -> list[Arrival]:
    """Read the emulator's dump: every item, with when it was stored."""
    return [
        Arrival(conversation["conversation_id"], item["text"], item["created_ms"] / 1000)
        for conversation in map(json.loads, dump.splitlines())
        for item in conversation["items"]
    ]


def _answers(stats: Mapping[str, Any]) -> Counter[str]:
    """Requests by what their client saw, over all operations."""
    answers: Counter[str] = Counter()
    for outcomes in stats["requests"].values():
        answers.update(outcomes)
    return answers


# --- The table ---

TOLD: list[Figures] = []
"""The figures of this process's runs; shown when the tests are over."""


def tell(figures: Figures) -> None:
    """Keep the figures of a run for the end of the tests, and for the table where one is being made."""
    TOLD.append(figures)
    if path := os.environ.get(FIGURES):
        with Path(path).open("a") as lines:
            lines.write(json.dumps(asdict(figures)) + "\n")


HEADING = """\
# Under faults

What the service does while the API throttles, locks, fails, falls silent, answers nonsense or goes away, and while
replicas are killed, restarted and stopped, and brokers go away. Each row is a run of `tests/fault`: a real Kafka,
`convoy run` as one process or several, and the emulated API, misbehaving by a script, as another; then the audit
looks at the events, what the API holds, the replies, the dead letters and the committed positions. Made by `make
faults-table` from short forms, which run with every change, and *long* ones, which `make soak` runs.

- *Requests* are all that reached the API, reads included; *429* is the share of them that it turned away.
- *Retries* are batches put back for any reason; *read-backs* are looks at a conversation after an attempt of unknown
  fate; *prevented* are items found stored that a plain retry would have sent again.
- *Recovery* is the time from the API's healing until the last conversation that waited is served again.
- A request is given up after 2 s here and not after 20, and is settled after 4 s and not after 27.
"""
TABLE = (
    *("random_trouble", "limits", "outages", "refusals", "locks", "strange_answers"),
    *("kill", "rebalance", "broker", "backpressure"),
)
"""The tests whose figures make the page, in its order."""
COLUMNS = (
    *("what goes wrong", "events", "conversations", "requests", "retries", "read-backs", "prevented", "429"),
    *("recovery", "lost", "doubled", "out of order", "dead letters", "also"),
)


def page(told: Sequence[Figures]) -> str:
    """The page of all runs, in the order they were made."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for figures in told:
        recovery = "" if figures.recovery_seconds is None else f"{figures.recovery_seconds:.1f} s"
        dead = "<br>".join(f"{count:,} {reason}" for reason, count in sorted(figures.dead_letters.items()))
        cells = (
            f"{figures.scenario} (*long*)" if figures.long else figures.scenario,
            f"{figures.events:,}",
            f"{figures.conversations:,}",
            f"{figures.requests:,}",
            f"{figures.retries:,}",
            f"{figures.readbacks:,}",
            f"{figures.duplicates_prevented:,}",
            f"{figures.throttled_share:.1%}",
            recovery,
            figures.lost,
            figures.duplicated,
            figures.out_of_order,
            dead or "0",
            "<br>".join(f"{name}: {note}" for name, note in figures.notes.items()),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return HEADING + "\n" + "\n".join(lines) + "\n"


def main() -> int:
    """Run what there is in `tests/fault` and make a page of its figures, if all of it holds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--table", action="store_true", required=True, help="make docs/faults.md")
    parser.add_argument("--of", type=Path, help=f"of runs that were made already, with {FIGURES} naming this file")
    options = parser.parse_args()
    tests = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        told = options.of or Path(folder) / "figures"
        if options.of is None and (failed := _run_all(tests, told, folder)):
            return failed
        figures = [Figures(**json.loads(line)) for line in told.read_text().splitlines()]
    # Of a run that was made twice the second counts.
    latest = {one.scenario: one for one in figures}
    (tests.parent / "docs" / "faults.md").write_text(page(list(latest.values())))
    return 0


def _run_all(tests: Path, told: Path, folder: str) -> int:
    runs = [str(tests / "fault" / f"test_{name}.py") for name in TABLE]
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={folder}/cache", *runs]
    environment = {**os.environ, FIGURES: str(told)}
    done = subprocess.run(command, cwd=tests.parent, env=environment, check=False)
    if done.returncode:
        # Once more by itself, as everywhere: a machine that is busy with other things is late.
        done = subprocess.run([*command, "--last-failed"], cwd=tests.parent, env=environment, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
