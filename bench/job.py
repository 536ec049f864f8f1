"""One run of a program: topics made anew, events published, an API stand-in, the program beside it, figures.

Programs: ``convoy`` (the service), ``blind`` (the service without metrics and logs), ``floor`` and ``plain``
(bench/programs). All are given the same environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kafka_server import create_topics, free_port

from service.evidence import audit_run, read_dump
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
DEADLINE_SECONDS = 1200
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 60
POLL_SECONDS = 0.05
AUDITED = ("convoy", "blind")
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 12 << 30
"""More than a whole bench leaves in the broker's log."""

COMMANDS = {
    "convoy": [sys.executable, "-m", "service", "run"],
    "blind": [sys.executable, str(HERE / "blind.py"), "run"],
    "floor": [sys.executable, str(HERE / "programs" / "floor.py")],
    "plain": [sys.executable, str(HERE / "programs" / "plain.py")],
}


@dataclass(frozen=True, slots=True)
class Job:
    """What there is to do, and how the API answers."""

    events: int
    conversations: int
    latency_seconds: float = 0.05
    spread: str = "uniform"
    """``uniform`` and ``zipf`` choose conversations at random, ``once`` gives each event the next one."""
    partitions: int = 12
    padding: int = 0
    """Bytes added to each text."""
    settings: dict[str, str] = field(default_factory=dict)
    ledger: bool = False
    processes: int = 1
    seed: int = 1

    def choices(self) -> Sequence[int]:
        """The conversation of each event."""
        chance = random.Random(self.seed)
        everyone = range(self.conversations)
        if self.spread == "once":
            return [number % self.conversations for number in range(self.events)]
        if self.spread == "zipf":
            weights = [1 / (rank + 1) for rank in everyone]
            return chance.choices(everyone, weights, k=self.events)
        return [chance.randrange(self.conversations) for _ in range(self.events)]

    def message(self, number: int, conversation: int) -> bytes:
        """The value of event ``number``."""
        return (
            b'{"conversation_id":"conv_%07d","item":{"type":"message","role":"user",'
            b'"content":"message %d: could you tell me where my parcel is?%b"},"event_id":"evt-%d"}'
        ) % (conversation, number, b"x" * self.padding, number)


@dataclass(slots=True)
class Run:
    """The figures of one run."""

    program: str
    events: int
    seconds: float
    """From the first to the last item that reached the API."""
    requests: int
    cpu_seconds: float
    """Of the program, from the first item to the last."""
    start_seconds: float
    """From the start of the process to the first item."""
    peak_resident_mb: float
    sound: bool = True
    """The audit's verdict: nothing lost, doubled or out of order, everything committed; only of what is `AUDITED`."""
    audit: str = ""

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def mean_batch(self) -> float:
        return self.events / self.requests

    @property
    def cpu_microseconds_per_event(self) -> float:
        return self.cpu_seconds / self.events * 1e6


def settle_log() -> str:
    """Let the broker keep its log in memory where there is room; returns where it will be.

    The first writes to new partitions keep a disk busy; each run has new ones, a service does not.
    """
    if MEMORY.is_dir():
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        if min(available, shutil.disk_usage(MEMORY).free) >= MEMORY_BYTES:
            tempfile.tempdir = str(MEMORY)
            return "memory"
    return "disk"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return bytes(answer.read())


def cpu_seconds(pid: int) -> float:
    """What a process has used since its start, as user and for it in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_mb(pid: int | str, which: str = "VmRSS") -> float:
    """What a process has in memory; ``VmHWM`` is the most it ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(which))


class Bench:
    """Topics of one job, and the stand-in; as a context manager."""

    def __init__(self, bootstrap_servers: str, job: Job) -> None:
        prefix = f"bench.{uuid.uuid4().hex[:6]}"
        self.job = job
        self.kafka = KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            events_topic=f"{prefix}.events",
            reply_topic=f"{prefix}.replies",
            dead_letter_topic=f"{prefix}.dead-letters",
            group_id=prefix,
            ledger_topic=f"{prefix}.ledger" if job.ledger else "",
        )

    async def make_topics(self) -> None:
        kafka = self.kafka
        names = [kafka.events_topic, kafka.reply_topic, kafka.dead_letter_topic]
        configs = {}
        if kafka.ledger_topic:
            names.append(kafka.ledger_topic)
            configs[kafka.ledger_topic] = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
        await create_topics(kafka.bootstrap_servers, dict.fromkeys(names, self.job.partitions), configs)

    async def publish(self) -> None:
        """All events, as full batches a partition, each conversation where its key puts it."""
        job = self.job
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            enable_idempotence=True,
            max_batch_size=512 << 10,
            linger_ms=20,
        )
        partitions = list(range(job.partitions))
        # Remembered: the producer would hash the key of each event anew.
        partition_of = lru_cache(100_000)(lambda key: DefaultPartitioner()(key, partitions, partitions))
        async with producer:
            sent = []
            for number, conversation in enumerate(job.choices()):
                key = b"conv_%07d" % conversation
                sent.append(
                    await producer.send(
                        self.kafka.events_topic,
                        job.message(number, conversation),
                        key=key,
                        partition=partition_of(key),
                    )
                )
                if len(sent) >= 20_000:
                    await asyncio.gather(*sent)
                    sent.clear()
            await asyncio.gather(*sent)

    @contextmanager
    def standing_in(self) -> Iterator[str]:
        """The API; yields its origin."""
        standin = subprocess.Popen(
            [sys.executable, HERE / "standin.py", "--latency", str(self.job.latency_seconds)], stdout=subprocess.PIPE
        )
        assert standin.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(standin.stdout.readline())}"
        finally:
            standin.terminate()
            standin.wait()

    def environment(self, url: str, port: int) -> dict[str, str]:
        kafka = self.kafka
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONVOY_")},
            "CONVOY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "CONVOY_KAFKA__EVENTS_TOPIC": kafka.events_topic,
            "CONVOY_KAFKA__REPLY_TOPIC": kafka.reply_topic,
            "CONVOY_KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
            "CONVOY_KAFKA__GROUP_ID": kafka.group_id,
            "CONVOY_KAFKA__LEDGER_TOPIC": kafka.ledger_topic,
            "CONVOY_API__BASE_URL": f"{url}/v1",
            "CONVOY_API__KEY": "bench",
            "CONVOY_OPS__HOST": "127.0.0.1",
            "CONVOY_OPS__PORT": str(port),
            "CONVOY_LOG__LEVEL": "warning",
            **self.job.settings,
        }

    def run(self, program: str, *, publish: bool = True) -> Run:
        """Do the whole job with one program."""
        asyncio.run(self.make_topics())
        if publish:
            asyncio.run(self.publish())
        with self.standing_in() as url, running(program, self.job.processes, self, url) as processes:
            stats, began = self._wait(url, processes)
            cpu = sum(process.cpu_seconds() for process in processes) - began
            resident = max(process.resident_mb("VmHWM") for process in processes)
            codes = [process.stop() for process in processes]
            found = Run(
                program,
                self.job.events,
                max(stats["last"] - stats["first"], 1e-9),
                stats["requests"],
                cpu,
                stats["first"] - processes[0].started_at,
                resident,
            )
            if program in AUDITED:
                report = asyncio.run(audit_run(self.kafka, read_dump(get(f"{url}/dump"))))
                found.sound = report.content and not report.uncommitted and codes == [0] * len(codes)
                found.sound = found.sound and report.replies == self.job.events
                found.audit = ", ".join(f"{name} {value}" for name, value in report.lines())
            return found

    def _wait(self, url: str, processes: Sequence[Process]) -> tuple[dict[str, Any], float]:
        """Until every item is at the API; returns its figures, and what the start had cost in CPU seconds."""
        began: float | None = None
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            stats = json.loads(get(f"{url}/stats"))
            if began is None and stats["first"] is not None:
                began = sum(process.cpu_seconds() for process in processes)
            if stats["items"] >= self.job.events:
                return stats, began or 0.0
            for process in processes:
                process.check()
            if time.monotonic() > deadline:
                raise SystemExit("not done in time")
            # The stand-in answers between two looks: a look costs it something.
            time.sleep(POLL_SECONDS if began is None else 4 * POLL_SECONDS)


class Process:
    """A program at work."""

    def __init__(self, program: str, environment: dict[str, str], folder: str, port: int) -> None:
        self.program = program
        self.port = port
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(COMMANDS[program], env=environment, cwd=folder)

    def check(self) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"{self.program} ended with {self._process.returncode}")

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._process.pid)

    def resident_mb(self, which: str = "VmRSS") -> float:
        return resident_mb(self._process.pid, which)

    def metric(self, name: str) -> float:
        """A gauge of the service without labels; 0 while it does not answer yet."""
        with suppress(OSError):
            for line in get(f"http://127.0.0.1:{self.port}/metrics").decode().splitlines():
                if line.startswith(f"convoy_{name} "):
                    return float(line.split()[1])
        return 0.0

    def stop(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS if self.program in AUDITED else 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running(program: str, count: int, bench: Bench, url: str) -> Iterator[list[Process]]:
    """So many processes of a program, killed at the end unless stopped before."""
    processes: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _ in range(count):
                port = free_port()
                processes.append(Process(program, bench.environment(url, port), folder, port))
            yield processes
        finally:
            for process in processes:
                process.kill()
