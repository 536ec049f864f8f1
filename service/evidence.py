"""Gathers what the audit judges: the topics as they lie in Kafka, the items as the emulator holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from service.audit import HeldItem, Place, PublishedEvent, SeenDeadLetter, SeenReply, audit
from service.core.model import Refusal
from service.core.readback import likeness
from service.kafka.codec import decode
from service.kafka.reading import committed_positions, read_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.audit import Report
    from service.settings import KafkaSettings


class _Source(msgspec.Struct):
    partition: int
    offset: int


class _Identified(msgspec.Struct):
    id: str = ""


class _Reply(msgspec.Struct):
    conversation_id: str
    status: str
    source: _Source
    item: _Identified | None = None


class DumpedItem(msgspec.Struct):
    """An item as the emulator's ``/_emulator/dump`` tells of it."""

    id: str
    role: str
    text: str


class DumpedConversation(msgspec.Struct):
    """A line of the dump."""

    conversation_id: str
    items: list[DumpedItem]


def read_dump(dump: bytes) -> dict[str, list[HeldItem]]:
    """Read the emulator's dump (a JSON object a line)."""
    decode_line = msgspec.json.Decoder(DumpedConversation).decode
    conversations = (decode_line(line) for line in dump.splitlines() if line)
    return {
        conversation.conversation_id: [
            HeldItem(item.id, (item.role, (("text", item.text),))) for item in conversation.items
        ]
        for conversation in conversations
    }


async def published_events(settings: KafkaSettings) -> list[PublishedEvent]:
    """Every record of the events topic that is not a tombstone."""
    events = []
    async for records in read_topic(settings, settings.events_topic):
        for record in records:
            if record.value is None:
                continue
            place = Place(record.partition, record.offset)
            event = decode(record)
            if isinstance(event, Refusal):
                events.append(PublishedEvent(place, None))
            else:
                events.append(PublishedEvent(place, event.conversation_id, likeness(event.item)))
    return events


async def seen_replies(settings: KafkaSettings) -> list[SeenReply]:
    """Every record of the reply topic."""
    decode_reply = msgspec.json.Decoder(_Reply).decode
    replies = []
    async for records in read_topic(settings, settings.reply_topic):
        for record in records:
            reply = decode_reply(record.value or b"")
            place = Place(reply.source.partition, reply.source.offset)
            replies.append(SeenReply(place, reply.conversation_id, reply.status, reply.item.id if reply.item else ""))
    return replies


async def seen_dead_letters(settings: KafkaSettings) -> list[SeenDeadLetter]:
    """Every record of the dead-letter topic."""
    letters = []
    async for records in read_topic(settings, settings.dead_letter_topic):
        for record in records:
            headers = {name: value.decode() for name, value in record.headers if name.startswith("dlq.")}
            if "dlq.reason" not in headers:
                # A redrive's mark.
                continue
            place = Place(int(headers["dlq.original.partition"]), int(headers["dlq.original.offset"]))
            letters.append(SeenDeadLetter(place, headers["dlq.reason"]))
    return letters


async def audit_run(settings: KafkaSettings, held: Mapping[str, Iterable[HeldItem]]) -> Report:
    """Gather everything and judge it.

    The positions come first: in a run that still goes on, what is read after them can only show more outcomes.
    """
    positions = await committed_positions(settings)
    return audit(
        await published_events(settings),
        held,
        await seen_replies(settings),
        await seen_dead_letters(settings),
        positions,
    )
