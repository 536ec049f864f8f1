"""`convoy publish FILE`: JSON lines to the events topic, each keyed by its conversation."""

from __future__ import annotations

import asyncio
import sys
from typing import IO, TYPE_CHECKING

import msgspec

from service.kafka.connection import KafkaError
from service.kafka.outlet import TopicMissingError
from service.kafka.publishing import publish as publish_records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.settings import KafkaSettings


class _Keyed(msgspec.Struct):
    conversation_id: str | None = None


class LineError(Exception):
    """A line that is no event; the message names it."""


def publish(settings: KafkaSettings, lines: IO[bytes]) -> int:
    """Publish every line, in order, acknowledged by all replicas; returns the exit code."""
    topic = settings.events_topic
    try:
        count = asyncio.run(publish_records(settings, topic, _records(lines)))
    except LineError as error:
        sys.stderr.write(f"convoy publish: {error}\n")
        return 2
    except TopicMissingError as missing:
        sys.stderr.write(f"convoy publish: topic {missing} does not exist (create it: convoy topics)\n")
        return 1
    except (KafkaError, OSError) as error:
        sys.stderr.write(f"convoy publish: {settings.bootstrap_servers}: {error}\n")
        return 1
    sys.stdout.write(f"{count} events published to {topic}\n")
    return 0


def _records(lines: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for number, line in enumerate(lines, 1):
        value = line.strip()
        if not value:
            continue
        try:
            event = msgspec.json.decode(value, type=_Keyed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LineError(f"line {number}: {error}") from None
        if not event.conversation_id:
            raise LineError(f"line {number}: conversation_id: missing")
        yield event.conversation_id.encode(), value
