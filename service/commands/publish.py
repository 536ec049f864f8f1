"""`convoy publish FILE`: JSON lines to the events topic, each keyed by its conversation."""

from __future__ import annotations

import asyncio
import sys
from typing import IO, TYPE_CHECKING

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.settings import KafkaSettings

IN_FLIGHT = 1000


class _Keyed(msgspec.Struct):
    conversation_id: str | None = None


class PublishError(Exception):
    """What cannot be published, and why."""


def publish(settings: KafkaSettings, lines: IO[bytes]) -> int:
    """Publish every line, in order, acknowledged by all replicas; returns the exit code."""
    try:
        count = asyncio.run(_publish(settings, lines))
    except PublishError as error:
        sys.stderr.write(f"convoy publish: {error}\n")
        return 2
    except (KafkaError, OSError) as error:
        sys.stderr.write(f"convoy publish: {settings.bootstrap_servers}: {error}\n")
        return 1
    sys.stdout.write(f"{count} events published to {settings.events_topic}\n")
    return 0


async def _publish(settings: KafkaSettings, lines: IO[bytes]) -> int:
    producer = AIOKafkaProducer(
        **connection_arguments(settings), client_id="convoy-publish", acks="all", enable_idempotence=True
    )
    await producer.start()
    metadata = await producer.client.fetch_all_metadata()
    if not metadata.partitions_for_topic(settings.events_topic):
        await producer.stop()
        raise PublishError(f"topic {settings.events_topic} does not exist (create it: convoy topics)")
    count = 0
    try:
        sent: list[asyncio.Future[object]] = []
        for key, value in _records(lines):
            sent.append(await producer.send(settings.events_topic, value=value, key=key))
            count += 1
            if len(sent) >= IN_FLIGHT:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return count


def _records(lines: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for number, line in enumerate(lines, 1):
        value = line.strip()
        if not value:
            continue
        try:
            event = msgspec.json.decode(value, type=_Keyed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PublishError(f"line {number}: {error}") from None
        if not event.conversation_id:
            raise PublishError(f"line {number}: conversation_id: missing")
        yield event.conversation_id.encode(), value
