"""A real process of the service, and the trial it stands: topics of its own, an emulated API, and the audit.

Nothing here looks inside the service: a trial publishes to Kafka, reads what HTTP shows, sends signals, and is
judged by `service.evidence.audit_run` from what Kafka and the API hold at the end.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import httpx
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from discretion import betrayed
from kafka_server import free_port
from prometheus_client.parser import text_string_to_metric_families

from service.evidence import audit_run, read_dump
from service.kafka.reading import committed_positions, read_topic
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from conftest import Topics

    from service.audit import Report
    from service.emulator.server import EmulatorServer

T = TypeVar("T")

API_KEY = "sk-of-the-tests-4711"
POLL_SECONDS = 0.03
PATIENCE_SECONDS = 30.0
"""What a busy machine may take for what takes a second; a test that fails shows what it waited for."""
CALM = {
    "KAFKA__HEARTBEAT_SECONDS": "0.2",
    "KAFKA__SESSION_TIMEOUT_SECONDS": "6",
    "KAFKA__COMMIT_INTERVAL_SECONDS": "0.2",
    "BATCH__WINDOW_SECONDS": "0.05",
}
"""Settings of a trial where it says nothing else: what production waits for seconds, a test waits for less."""


@overload
async def until(
    what: str, condition: Callable[[], Awaitable[T]], within_seconds: float = ..., *, every_seconds: float = ...
) -> T: ...
@overload
async def until(
    what: str, condition: Callable[[], T], within_seconds: float = ..., *, every_seconds: float = ...
) -> T: ...
async def until(
    what: str,
    condition: Callable[[], Any],
    within_seconds: float = PATIENCE_SECONDS,
    *,
    every_seconds: float = POLL_SECONDS,
) -> Any:
    """Return what `condition` gives as soon as that is true; fail after a while, saying what never came.

    A process whose HTTP does not answer (yet) makes it not true.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
        except httpx.TransportError as silence:
            found, last = None, silence
        else:
            last = found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_seconds:g} s: {what} (last seen: {last!r})"
        await asyncio.sleep(every_seconds)


class ServiceProcess:
    """`convoy run` (or another command) as a process; it is killed at the end of the `async with`, if need be.

    Its environment holds the settings given and no others: none of this machine's, no `.env` file.
    """

    def __init__(
        self, settings: Mapping[str, str], folder: Path, *, command: Sequence[str] = ("convoy", "run")
    ) -> None:
        self.port = free_port()
        program = Path(sys.executable).with_name(command[0])
        self._command = [str(program), *command[1:]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVOY_", "DASHSCOPE_"))}
        defaults = {"OPS__HOST": "127.0.0.1", "OPS__PORT": str(self.port)}
        given = {f"CONVOY_{name}": value for name, value in (defaults | dict(settings)).items()}
        # What the interpreter warns of, a connection left open for one, comes out as a line that is no JSON.
        self._environment = kept | given | {"PYTHONWARNINGS": "default::ResourceWarning"}
        self._settings = dict(settings)
        self._folder = folder
        self._log = folder / f"{command[0]}-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=5)

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"--- log of process {self.pid} ---\n{self.log()[-20_000:]}")  # noqa: T201 - pytest shows it
        self.kill()
        await self._http.aclose()
        if kind is None:
            found = betrayed(self.log(), self._settings)
            assert not found, f"its log tells what it must not: {found}"

    # Its life

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environment,
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once (SIGKILL), whatever it is doing."""
        self.process.kill()
        self.process.wait()

    async def ended(self, within_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; returns the exit code."""
        await until("the end of the process", lambda: self.process.poll() is not None, within_seconds)
        return self.process.returncode

    async def stop(self, within_seconds: float = PATIENCE_SECONDS) -> int:
        """Tell it to stop (SIGTERM) and wait until it did; returns the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(within_seconds)

    # What it shows

    def resident_kib(self) -> int:
        """Memory that it occupies."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def complaints(self) -> list[str]:
        """Every line that is no JSON, a traceback or a warning of the interpreter, and every line above INFO.

        Not aiokafka's warnings: it has one for each rebalance and each broker that is not up yet.
        """

        def is_harmless(line: str) -> bool:
            if not line.startswith("{"):
                return False
            record = json.loads(line)
            return record["level"] in {"debug", "info"} or (
                record["level"] == "warning" and record["logger"].startswith("aiokafka")
            )

        return [line for line in self.log().splitlines() if not is_harmless(line)]

    async def get(self, path: str) -> httpx.Response:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()[-4000:]}"
        return await self._http.get(path)

    async def answers(self) -> bool:
        """Whether its HTTP answers."""
        try:
            await self.get("/livez")
        except httpx.TransportError:
            return False
        return True

    async def ready(self, within_seconds: float = PATIENCE_SECONDS) -> Self:
        """Wait until it says that it is ready."""

        async def is_ready() -> bool:
            return await self.answers() and (await self.get("/readyz")).status_code == 200

        await until("readiness", is_ready, within_seconds)
        return self

    async def readiness(self) -> tuple[int, str]:
        """Status code and words of `/readyz`; without an answer, 0."""
        if not await self.answers():
            return 0, ""
        answer = await self.get("/readyz")
        return answer.status_code, answer.json()["status"]

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.get("/status")).json()
        return status

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric (without the prefix) that carry these labels."""
        text = (await self.get("/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"convoy_{name}" and labels.items() <= sample.labels.items()
        )


async def delivered(service: ServiceProcess, count: int) -> None:
    """Wait until this process says that it delivered so many items."""

    async def enough() -> bool:
        return await service.metric("delivered_items_total") >= count

    await until(f"{count} items delivered", enough)


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be published."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None


def chat(conversations: int, turns: int, *, first: int = 0, words: str = "") -> Iterator[Record]:
    """Events of so many conversations, one turn of each after the other; each has a text of its own.

    Every other event is written in the short form.
    """
    for turn in range(first, first + turns):
        for number in range(conversations):
            conversation_id = f"conv_{number:03}"
            item = {"role": "user" if turn % 2 else "assistant", "content": f"{conversation_id} says {turn}{words}"}
            body: dict[str, Any] = item if (turn + number) % 2 else {"item": item}
            event = {"conversation_id": conversation_id, "event_id": f"{conversation_id}-{turn}", **body}
            yield Record(conversation_id.encode(), json.dumps(event).encode())


@dataclass(slots=True)
class Trial:
    """One run of the service from the first event to the audit, however many processes take part in it."""

    bootstrap_servers: str
    topics: Topics
    emulator: EmulatorServer
    folder: Path
    ends: dict[int, int] = field(default_factory=dict)
    """By partition, the offset after the last record published."""

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=self.bootstrap_servers,
            group_id=self.topics.group,
            events_topic=self.topics.events,
            reply_topic=self.topics.replies,
            dead_letter_topic=self.topics.dead_letters,
        )

    def settings(self, **settings: str) -> dict[str, str]:
        """The settings of a process of this trial, by name without prefix."""
        return {
            "KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KAFKA__GROUP_ID": self.topics.group,
            "KAFKA__EVENTS_TOPIC": self.topics.events,
            "KAFKA__REPLY_TOPIC": self.topics.replies,
            "KAFKA__DEAD_LETTER_TOPIC": self.topics.dead_letters,
            "API__BASE_URL": self.emulator.base_url,
            "API__KEY": API_KEY,
            **CALM,
            **settings,
        }

    def process(self, *, command: Sequence[str] = ("convoy", "run"), **settings: str) -> ServiceProcess:
        """A process of the service, not started yet."""
        return ServiceProcess(self.settings(**settings), self.folder, command=command)

    async def publish(self, records: Iterable[Record]) -> int:
        """Publish in this order, acknowledged; returns how many."""
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, enable_idempotence=True) as producer:
            sent = [await self._send(producer, record) for record in records]
            for stored in await asyncio.gather(*sent):
                self.ends[stored.partition] = max(self.ends.get(stored.partition, 0), stored.offset + 1)
        return len(sent)

    async def _send(self, producer: AIOKafkaProducer, record: Record) -> asyncio.Future[Any]:
        topic, headers = self.topics.events, list(record.headers)
        stored: asyncio.Future[Any]
        if record.key is not None or record.value is not None:
            stored = await producer.send(topic, record.value, record.key, record.partition, headers=headers)
        else:
            # aiokafka's `send` refuses what has neither; other clients do not.
            batch = producer.create_batch()
            batch.append(key=None, value=None, timestamp=None, headers=headers)
            stored = await producer.send_batch(batch, topic, partition=record.partition or 0)
        return stored

    async def committed(self) -> dict[int, int]:
        """The positions of the group, by partition."""
        return await committed_positions(self.kafka)

    async def finished(self, within_seconds: float = 60.0) -> None:
        """Wait until the positions stand behind all that was published."""

        async def at_the_end() -> bool:
            return await self.committed() == self.ends

        # Each look is a connection of its own to the broker.
        await until(f"positions at {self.ends}", at_the_end, within_seconds, every_seconds=0.2)

    async def configure(self, topic: str, **config: str) -> None:
        """Change settings of a topic (dots as underscores); those not named go back to their defaults."""
        resource = ConfigResource(
            ConfigResourceType.TOPIC, topic, {name.replace("_", "."): value for name, value in config.items()}
        )
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            await admin.alter_configs([resource])
        finally:
            await admin.close()

    async def records(self, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
        """All records of a topic, partition by partition."""
        return [record async for records in read_topic(self.kafka, topic) for record in records]

    async def replies(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in await self.records(self.topics.replies)]

    async def audit(self) -> Report:
        """Judge what Kafka and the API hold now."""
        async with httpx.AsyncClient() as http:
            dump = (await http.get(f"{self.emulator.origin}/_emulator/dump")).content
        return await audit_run(self.kafka, read_dump(dump))
