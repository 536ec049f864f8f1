"""The main job, measured: a backlog of events waits in a real Kafka, one `convoy run` forwards it.

Prints events a second from the first to the last item that reached the API, the mean batch, replies, lag,
the CPU the service used, and the audit; exits 1 unless the audit is content.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kafka_server import KafkaServer, create_topics, find_kafka, free_port

from service.evidence import audit_run, read_dump
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from service.audit import Report

HERE = Path(__file__).resolve().parent
DEADLINE_SECONDS = 600
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


async def publish(settings: KafkaSettings, count: int, conversations: int, partitions: int, seed: int) -> None:
    """Spread `count` events over `conversations` in random order, as full batches a partition."""
    chance = random.Random(seed)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, enable_idempotence=True, max_batch_size=512 << 10, linger_ms=20
    )
    await producer.start()
    try:
        sent = []
        for number in range(count):
            conversation = chance.randrange(conversations)
            value = (
                b'{"conversation_id":"conv_%06d","item":{"type":"message","role":"user",'
                b'"content":"message %d: could you tell me where my parcel is?"},"event_id":"evt-%d"}'
            ) % (conversation, number, number)
            partition = conversation % partitions
            sent.append(
                await producer.send(settings.events_topic, value, key=b"conv_%06d" % conversation, partition=partition)
            )
            if len(sent) >= 20_000:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def wait_for_items(url: str, count: int, service: subprocess.Popen[bytes]) -> list[tuple[int, float]]:
    """Returns, look by look, how many items the API had and how much CPU the service had used by then."""
    looks: list[tuple[int, float]] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not looks or looks[-1][0] < count:
        looks.append((json.loads(get(f"{url}/stats"))["items"], cpu_seconds(service.pid)))
        if service.poll() is not None:
            raise SystemExit(f"the service ended with {service.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit("not done in time")
        time.sleep(0.2)
    return looks


def measure(kafka: KafkaServer, options: argparse.Namespace) -> tuple[dict[str, Any], Report]:
    """Run it once; returns its figures and what the audit says."""
    prefix = f"bench.{uuid.uuid4().hex[:6]}"
    settings = KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        events_topic=f"{prefix}.events",
        reply_topic=f"{prefix}.replies",
        dead_letter_topic=f"{prefix}.dead-letters",
        group_id=prefix,
        ledger_topic=f"{prefix}.ledger" if options.ledger else "",
    )
    names = [settings.events_topic, settings.reply_topic, settings.dead_letter_topic]
    configs = {}
    if options.ledger:
        names.append(settings.ledger_topic)
        configs[settings.ledger_topic] = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
    asyncio.run(create_topics(kafka.bootstrap_servers, dict.fromkeys(names, options.partitions), configs))
    asyncio.run(publish(settings, options.events, options.conversations, options.partitions, options.seed))
    standin = subprocess.Popen(
        [sys.executable, HERE / "standin.py", "--latency", str(options.latency)], stdout=subprocess.PIPE
    )
    assert standin.stdout is not None
    url = f"http://127.0.0.1:{int(standin.stdout.readline())}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONVOY_")},
        "CONVOY_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "CONVOY_KAFKA__EVENTS_TOPIC": settings.events_topic,
        "CONVOY_KAFKA__REPLY_TOPIC": settings.reply_topic,
        "CONVOY_KAFKA__DEAD_LETTER_TOPIC": settings.dead_letter_topic,
        "CONVOY_KAFKA__GROUP_ID": settings.group_id,
        "CONVOY_KAFKA__LEDGER_TOPIC": settings.ledger_topic,
        "CONVOY_API__BASE_URL": f"{url}/v1",
        "CONVOY_API__KEY": "bench",
        "CONVOY_OPS__HOST": "127.0.0.1",
        "CONVOY_OPS__PORT": str(free_port()),
        "CONVOY_LOG__LEVEL": "warning",
        **dict(setting.split("=", 1) for setting in options.set),
    }
    command = [sys.executable, *(["-m", "service"] if not options.blind else [str(HERE / "blind.py")]), "run"]
    with tempfile.TemporaryDirectory() as folder:
        service = subprocess.Popen(command, env=environment, cwd=folder)
        try:
            looks = wait_for_items(url, options.events, service)
            cpu, resident = cpu_seconds(service.pid), resident_mb(service.pid)
            service.terminate()
            code = service.wait(60)
            stats = json.loads(get(f"{url}/stats"))
            report = asyncio.run(audit_run(settings, read_dump(get(f"{url}/dump"))))
        finally:
            service.kill()
            standin.terminate()
            standin.wait()
    seconds = stats["last"] - stats["first"]
    before, started = max((look for look in looks if look[0] < options.events / 4), default=(0, 0.0))
    figures: dict[str, Any] = {
        "events": options.events,
        "seconds": round(seconds, 2),
        "events_per_second": round(options.events / seconds),
        "requests": stats["requests"],
        "requests_per_second": round(stats["requests"] / seconds),
        "mean_batch": round(options.events / stats["requests"], 2),
        "replies": report.replies,
        "not_committed": report.uncommitted,
        "cpu_seconds": cpu,
        "cpu_microseconds_per_event": round(cpu / options.events * 1e6, 1),
        "under_way_without_start": round((cpu - started) / (options.events - before) * 1e6, 1),
        "peak_resident_mb": round(resident),
        "exit_code": code,
    }
    return figures, report


def run(kafka: KafkaServer, options: argparse.Namespace) -> int:
    figures, report = measure(kafka, options)
    for name, value in figures.items():
        print(f"{name:28} {value}")
    for name, value in report.lines():
        print(f"{name:28} {value}")
    return 0 if report.content and figures["exit_code"] == 0 and not report.uncommitted else 1


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--events", type=int, default=120_000)
    parser.add_argument("--conversations", type=int, default=2_000)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--latency", type=float, default=0.05, help="of the API, seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", action="store_true", help="with the ledger on")
    parser.add_argument("--set", action="append", default=[], help="CONVOY_…=value, more than once")
    parser.add_argument("--blind", action="store_true", help="without metrics and logs, to see what they cost")
    return parser


def main() -> int:
    options = arguments(__doc__).parse_args()
    with find_kafka() as kafka:
        return run(kafka, options)


if __name__ == "__main__":
    sys.exit(main())
