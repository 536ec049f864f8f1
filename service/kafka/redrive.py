"""Dead letters read back and sent again.

A redrive publishes the original record and a *mark* in one Kafka transaction, so that what was sent again is known
to be, whatever is interrupted. The mark lies in the dead-letter topic: a record without value whose headers name
the event (``dlq.original.*``) and say ``dlq.mark: redriven``. Dead letters are published at least once, so one for
each ``dlq.original.*`` is taken. A record goes back to the partition it came from: clients hash keys differently,
and its conversation must not end up on two partitions. One whose value was too large for the dead letters is
fetched from where it lies.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, MessageSizeTooLargeError, ProducerFenced
from aiokafka.partitioner import DefaultPartitioner

from service.core.model import Refusal
from service.kafka.codec import decode
from service.kafka.connection import connection_arguments
from service.kafka.dead_letters import MAX_REDRIVES_DIGITS, OMITTED_HEADER, PREFIX, REDRIVES_HEADER
from service.kafka.outlet import TopicMissingError
from service.kafka.reading import read_record, read_topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType

    from aiokafka import ConsumerRecord

    from service.kafka.codec import Headers
    from service.settings import KafkaSettings

MARK_HEADER = "dlq.mark"
REDRIVEN = b"redriven"
PARKED = b"parked"
TRANSACTION_MILLISECONDS = 60_000
CHUNK = 100
"""Dead letters a transaction."""
MAX_REQUEST_BYTES = 1 << 30

Origin = tuple[str, int, int]
"""Topic, partition and offset of the event."""

_choose_partition = DefaultPartitioner()


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
    def omitted(self) -> bool:
        """Whether its value was too large for the broker; what was sent lies at its origin."""
        return any(name == OMITTED_HEADER for name, _ in self.headers)

    @property
    def place(self) -> str:
        """Its name for people: partition and offset in the dead-letter topic."""
        return f"{self.partition}-{self.offset}"


async def read_dead_letters(
    settings: KafkaSettings, takes: Callable[[DeadLetter], bool] = lambda _: True, *, whole: bool = True
) -> tuple[list[DeadLetter], dict[Origin, str]]:
    """Read the dead-letter topic: one letter an event, in the order of its origin, and what was marked how.

    Of the letters only those are kept that ``takes`` says, unless ``whole`` without their key, value and headers:
    after a flood there are more than memory holds.

    Raises:
        KafkaError: no broker answers.
    """
    seen: set[Origin] = set()
    letters: list[DeadLetter] = []
    marks: dict[Origin, str] = {}
    async for records in read_topic(settings, settings.dead_letter_topic):
        for record in records:
            told = {name: value or b"" for name, value in record.headers if name.startswith(PREFIX)}
            origin = _origin(told)
            if origin is None:
                continue
            if MARK_HEADER in told:
                marks[origin] = told[MARK_HEADER].decode("utf-8", "replace")
            elif origin not in seen:
                seen.add(origin)
                letter = _letter(record, told, origin)
                if takes(letter):
                    letters.append(letter if whole else replace(letter, key=None, value=None, headers=[]))
    return sorted(letters, key=lambda letter: letter.origin), marks


@dataclass(frozen=True, slots=True)
class Aim:
    """Where letters go: back to where they came from, or to ``topic``.

    One redriven ``cap`` times already goes to ``parking_topic`` instead, or nowhere.
    """

    topic: str | None
    parking_topic: str | None
    cap: int

    def target(self, letter: DeadLetter) -> str | None:
        """The topic that ``letter`` goes to, ``None`` for nowhere."""
        return self.parking_topic if self.parks(letter) else self.topic or letter.origin[0]

    def parks(self, letter: DeadLetter) -> bool:
        """Whether ``letter`` was redriven too often."""
        return letter.redrives >= self.cap


class Left(NamedTuple):
    """Why a letter was not sent."""

    why: str


class Redriver:
    """The one who may redrive from this dead-letter topic, while entered.

    Entering fences whoever did before and ends what it had open, so that the marks read from then on are final.

    Raises:
        KafkaError: no broker answers, or another redrive has begun meanwhile.
        TopicMissingError: a topic to send to does not exist.
    """

    def __init__(self, settings: KafkaSettings, aim: Aim) -> None:
        self._settings = settings
        self._aim = aim
        self._partitions: dict[str, list[int]] = {}
        self._producer = self._new_producer()

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
            await self._learn([self._settings.dead_letter_topic, self._aim.topic, self._aim.parking_topic])
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def send(
        self, letters: Sequence[DeadLetter], *, chunk_size: int = CHUNK
    ) -> AsyncIterator[tuple[DeadLetter, str | Left]]:
        """Send letters again, in order, a transaction a chunk; yields each once committed, with the topic it went to.

        When this raises, what was yielded stands; of the chunk after it, all was sent or nothing.
        """
        await self._learn({letter.origin[0] for letter in letters} if self._aim.topic is None else ())
        for start in range(0, len(letters), chunk_size):
            chunk = letters[start : start + chunk_size]
            try:
                sent = await self._send_all(chunk)
            except MessageSizeTooLargeError:
                # The marks and numbers of the failed transaction are void; a fresh producer begins behind them.
                await self._renew()
                sent = [await self._send_alone(letter) for letter in chunk]
            for one in zip(chunk, sent, strict=True):
                yield one

    async def _send_all(self, letters: Sequence[DeadLetter]) -> list[str | Left]:
        producer = self._producer
        results: list[str | Left] = []
        records = [await self._record(letter) for letter in letters]
        under_way: list[asyncio.Future[Any]] = []
        try:
            async with producer.transaction():
                for letter, record in zip(letters, records, strict=True):
                    if isinstance(record, Left):
                        results.append(record)
                        continue
                    under_way.append(await producer.send(**record))
                    under_way.append(await producer.send(**self._mark(letter)))
                    results.append(record["topic"])
                await asyncio.gather(*under_way)
        except (AssertionError, IllegalOperation) as error:
            # aiokafka's words for what it is asked to end after another producer has fenced it.
            raise ProducerFenced from error
        finally:
            for one in under_way:
                # Looked at or not: those behind the first failure fail too.
                if one.done() and not one.cancelled():
                    one.exception()
        return results

    async def _send_alone(self, letter: DeadLetter) -> str | Left:
        try:
            (result,) = await self._send_all([letter])
        except MessageSizeTooLargeError:
            await self._renew()
            return Left("too large for the topic")
        return result

    async def _record(self, letter: DeadLetter) -> dict[str, Any] | Left:
        """What is to be sent for a letter."""
        target = self._aim.target(letter)
        if target is None:
            return Left("redriven too often")
        partitions = self._partitions.get(target, [])
        partition = letter.origin[1]
        if target != letter.origin[0]:
            # Not left to the client, which spreads records without a key: one conversation, one partition.
            lane = letter.key or letter.conversation_id.encode()
            partition = _choose_partition(lane, partitions, partitions)
        elif partition not in partitions:
            return Left("the partition it came from is gone")
        key, value = letter.key, letter.value
        # What stands behind the first header of ours is ours too.
        headers = list(itertools.takewhile(lambda header: not header[0].startswith(PREFIX), letter.headers))
        if letter.omitted:
            original = await read_record(self._settings, *letter.origin)
            if original is None or original.value is None:
                return Left("its value was left out, and the original is gone")
            key, value = original.key, original.value
            headers = [header for header in original.headers if not header[0].startswith(PREFIX)]
        redrives = letter.redrives + (0 if self._aim.parks(letter) else 1)
        headers.append((REDRIVES_HEADER, str(redrives).encode()))
        return {"topic": target, "value": value, "key": key, "partition": partition, "headers": headers}

    def _mark(self, letter: DeadLetter) -> dict[str, Any]:
        topic, partition, offset = letter.origin
        headers = [
            (MARK_HEADER, PARKED if self._aim.parks(letter) else REDRIVEN),
            ("dlq.original.topic", topic.encode()),
            ("dlq.original.partition", str(partition).encode()),
            ("dlq.original.offset", str(offset).encode()),
        ]
        return {
            "topic": self._settings.dead_letter_topic,
            "value": None,
            "key": letter.key or b"",
            "partition": letter.partition,
            "headers": headers,
        }

    async def _learn(self, topics: Iterable[str | None]) -> None:
        metadata = await self._producer.client.fetch_all_metadata()
        for topic in topics:
            if topic is None or topic in self._partitions:
                continue
            partitions = metadata.partitions_for_topic(topic)
            if not partitions:
                # aiokafka would wait for it.
                raise TopicMissingError(topic)
            self._partitions[topic] = sorted(partitions)

    async def _renew(self) -> None:
        await self._producer.stop()
        self._producer = self._new_producer()
        await self._producer.start()

    def _new_producer(self) -> AIOKafkaProducer:
        arguments: dict[str, Any] = connection_arguments(self._settings)
        return AIOKafkaProducer(
            **arguments,
            client_id="convoy-redrive",
            acks="all",
            # One name for the topic that holds the marks: a second redrive fences the first.
            transactional_id=f"convoy-redrive-{self._settings.dead_letter_topic}",
            transaction_timeout_ms=TRANSACTION_MILLISECONDS,
            # What is too large is the broker's to say.
            max_request_size=MAX_REQUEST_BYTES,
        )


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
        int(redrives) if redrives.isdecimal() and len(redrives) <= MAX_REDRIVES_DIGITS else 0,
        conversation_id,
        event_id,
        record.key,
        record.value,
        list(record.headers),
    )
