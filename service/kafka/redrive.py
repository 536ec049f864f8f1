"""Dead letters read back and sent again.

A redrive publishes the original record and a *mark* in one Kafka transaction, so that what was sent again is known
to be, whatever is interrupted. The mark lies in the dead-letter topic: a record without value whose headers name
the event (``dlq.original.*``) and say ``dlq.mark: redriven``. Dead letters are published at least once, so one for
each ``dlq.original.*`` is taken. A record goes back to the partition it came from: clients hash keys differently,
and its conversation must not end up on two partitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from service.core.model import Refusal
from service.kafka.codec import decode
from service.kafka.connection import connection_arguments
from service.kafka.dead_letters import PREFIX, REDRIVES_HEADER
from service.kafka.reading import read_topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aiokafka import ConsumerRecord

    from service.kafka.codec import Headers
    from service.settings import KafkaSettings

MARK_HEADER = "dlq.mark"
REDRIVEN = b"redriven"
PARKED = b"parked"
STYLE_PREFIXES = (PREFIX, "__connect.errors.", "kafka_dlt-")
TRANSACTION_MILLISECONDS = 60_000
CHUNK = 100
"""Dead letters a transaction."""

Origin = tuple[str, int, int]
"""Topic, partition and offset of the event."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event in the dead-letter topic."""

    partition: int
    offset: int
    origin: Origin
    reason: str
    code: str
    message: str
    failed_at: str
    redrives: int
    conversation_id: str
    event_id: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def place(self) -> str:
        """Its name for people: partition and offset in the dead-letter topic."""
        return f"{self.partition}-{self.offset}"


async def read_dead_letters(settings: KafkaSettings) -> tuple[list[DeadLetter], dict[Origin, str]]:
    """Read the dead-letter topic: one letter an event, in the order of its origin, and what was marked how.

    Raises:
        KafkaError: no broker answers.
    """
    letters: dict[Origin, DeadLetter] = {}
    marks: dict[Origin, str] = {}
    async for records in read_topic(settings, settings.dead_letter_topic):
        for record in records:
            told = {name: value or b"" for name, value in record.headers if name.startswith(PREFIX)}
            origin = _origin(told)
            if origin is None:
                continue
            if MARK_HEADER in told:
                marks[origin] = told[MARK_HEADER].decode("utf-8", "replace")
            else:
                letters.setdefault(origin, _letter(record, told, origin))
    return sorted(letters.values(), key=lambda letter: letter.origin), marks


async def redrive(
    settings: KafkaSettings,
    letters: Sequence[DeadLetter],
    *,
    topic: str | None,
    parking_topic: str | None,
    cap: int,
    chunk_size: int = CHUNK,
) -> AsyncIterator[tuple[DeadLetter, str]]:
    """Send letters again, a transaction a chunk; yields each, once it is committed, with where it went.

    To its origin, or to ``topic``. One redriven ``cap`` times already goes to ``parking_topic`` instead, or nowhere.

    Raises:
        KafkaError: the transaction failed; what was yielded stands, the rest was not sent.
    """
    arguments: dict[str, Any] = connection_arguments(settings)
    producer = AIOKafkaProducer(
        **arguments,
        client_id="convoy-redrive",
        acks="all",
        # One name for the group: a second redrive fences the first, and both cannot send the same letter.
        transactional_id=f"convoy-redrive-{settings.group_id}",
        transaction_timeout_ms=TRANSACTION_MILLISECONDS,
    )
    await producer.start()
    try:
        for start in range(0, len(letters), chunk_size):
            chunk = letters[start : start + chunk_size]
            sent: list[tuple[DeadLetter, str]] = []
            async with producer.transaction():
                for letter in chunk:
                    target = await _send(producer, settings, letter, topic, parking_topic, cap)
                    sent.append((letter, target))
            for one in sent:
                yield one
    finally:
        await producer.stop()


async def _send(
    producer: AIOKafkaProducer,
    settings: KafkaSettings,
    letter: DeadLetter,
    topic: str | None,
    parking_topic: str | None,
    cap: int,
) -> str:
    worn_out = letter.redrives >= cap
    if worn_out and parking_topic is None:
        return "left: redriven too often"
    target = parking_topic if worn_out and parking_topic is not None else topic or letter.origin[0]
    partition = letter.origin[1] if target == letter.origin[0] else None
    kept = [(name, value) for name, value in letter.headers if not name.startswith(STYLE_PREFIXES)]
    redrives = letter.redrives + (0 if worn_out else 1)
    headers = [*kept, (REDRIVES_HEADER, str(redrives).encode())]
    await producer.send(target, value=letter.value, key=letter.key, partition=partition, headers=headers)
    mark = [
        (MARK_HEADER, PARKED if worn_out else REDRIVEN),
        ("dlq.original.topic", letter.origin[0].encode()),
        ("dlq.original.partition", str(letter.origin[1]).encode()),
        ("dlq.original.offset", str(letter.origin[2]).encode()),
    ]
    await producer.send(
        settings.dead_letter_topic, key=letter.key or b"", value=None, partition=letter.partition, headers=mark
    )
    return target


def _origin(told: dict[str, bytes]) -> Origin | None:
    try:
        return (
            told["dlq.original.topic"].decode(),
            int(told["dlq.original.partition"]),
            int(told["dlq.original.offset"]),
        )
    except (KeyError, ValueError):
        return None


def _letter(record: ConsumerRecord[bytes, bytes], told: dict[str, bytes], origin: Origin) -> DeadLetter:
    def text(name: str) -> str:
        return told.get(name, b"").decode("utf-8", "replace")

    conversation_id = (record.key or b"").decode("utf-8", "replace")
    event_id = "-".join(str(part) for part in origin)
    if record.value is not None:
        event = decode(record)
        if not isinstance(event, Refusal):
            conversation_id = event.conversation_id
            own = f"{record.topic}-{record.partition}-{record.offset}"
            event_id = event_id if event.event_id == own else event.event_id
    redrives = text(REDRIVES_HEADER)
    return DeadLetter(
        record.partition,
        record.offset,
        origin,
        text("dlq.reason"),
        text("dlq.error.code"),
        text("dlq.error.message"),
        text("dlq.failed_at"),
        int(redrives) if redrives.isdecimal() else 0,
        conversation_id,
        event_id,
        record.key,
        record.value,
        list(record.headers),
    )
