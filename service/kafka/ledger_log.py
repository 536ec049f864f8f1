"""The ledger's topic in Kafka: one producer that appends, readers made for each take-over.

Decides nothing but how long each question may take. Acknowledgements rest on an idempotent producer with
``acks=all``; it holds at most one request a partition under way, so what it wrote lies in the order written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from service.kafka.connection import connection_arguments
from service.kafka.ledger import LogError, Stored
from service.kafka.together import Together, patience

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence

    from aiokafka import ConsumerRecord

    from service.settings import KafkaSettings

WRITE_SECONDS = 15.0
"""For one record to be acknowledged; then the partition is given up for lost rather than waited for."""
ASK_SECONDS = 15.0
"""For one question, a new connection included; also the longest a read may go on without a record."""
CLOSE_SECONDS = 5.0
READ_MILLISECONDS = 200
PATIENCE_SECONDS = 0.005
"""How long a record that nobody waits to send behind may wait for company: each request costs us and the broker more
than the records in it."""
MAX_REQUEST_BYTES = 256 << 10
"""Of one request a partition: some thousand records."""
LOG_APPEND_TIME = 1
TROUBLE = (KafkaError, OSError, TimeoutError)


@dataclass(slots=True)
class _Queue:
    """Records of one partition that wait for the request under way to be answered."""

    waiting: deque[tuple[bytes, asyncio.Future[tuple[int, int | None]]]] = field(default_factory=deque)
    sender: asyncio.Task[None] | None = None
    hurry: bool = False
    """Whether the next request is to follow the one under way at once."""
    timer: asyncio.TimerHandle | None = None
    """When what waits is sent, if nothing in a hurry comes before."""


class KafkaLedgerLog:
    """The ledger topic of a cluster, and the positions of the group beside it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topic = settings.ledger_topic
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._queues: dict[int, _Queue] = {}
        self._twins: Together[None, frozenset[int]] = Together(self._ask_twins)
        self._committed: Together[int, tuple[int, str]] = Together(self._ask_committed)
        self._bounds: Together[int, tuple[int, int]] = Together(self._ask_bounds)

    async def start(self) -> None:
        """Connect."""
        try:
            await self._current()
        except TROUBLE as error:
            raise LogError(repr(error)) from error

    async def stop(self) -> None:
        """Close every connection."""
        for queue in self._queues.values():
            _stop_timer(queue)
        await self.distrust()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def twins(self) -> frozenset[int]:
        """The partitions that the topic has."""
        return await self._twins.ask(None)

    async def _ask_twins(self, asked: Sequence[None]) -> Sequence[frozenset[int]]:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                metadata = await (await self._current()).client.fetch_all_metadata()
        except TROUBLE as error:
            raise LogError(repr(error)) from error
        return [frozenset(metadata.partitions_for_topic(self._topic) or ())] * len(asked)

    async def committed(self, number: int) -> tuple[int, str]:
        """The group's position in an events partition, and the text beside it."""
        return await self._committed.ask(number)

    async def _ask_committed(self, numbers: Sequence[int]) -> Sequence[tuple[int, str]]:
        places = [TopicPartition(self._settings.events_topic, number) for number in numbers]
        admin = AIOKafkaAdminClient(**connection_arguments(self._settings))
        try:
            async with asyncio.timeout(patience(numbers, ASK_SECONDS)):
                await admin.start()
                # Offset and text in one answer: two could straddle somebody's commit.
                answer = await admin.list_consumer_group_offsets(self._settings.group_id, partitions=places)
        except (*TROUBLE, AttributeError) as error:
            # aiokafka trips over an answer that carries an error.
            raise LogError(repr(error)) from error
        finally:
            await _close(admin.close())
        if not answer.keys() >= set(places):
            # A coordinator that is not ready names no partition at all; one that knows no position names it with -1.
            raise LogError("the group's coordinator did not answer for the partition")
        return [(answer[place].offset, answer[place].metadata or "") for place in places]

    async def bounds(self, number: int) -> tuple[int, int]:
        """Where the partition begins and ends."""
        return await self._bounds.ask(number)

    async def _ask_bounds(self, numbers: Sequence[int]) -> Sequence[tuple[int, int]]:
        places = [TopicPartition(self._topic, number) for number in numbers]
        try:
            async with self._consumer() as consumer, asyncio.timeout(patience(numbers, ASK_SECONDS)):
                begins = await consumer.beginning_offsets(places)
                ends = await consumer.end_offsets(places)
        except TROUBLE as error:
            raise LogError(repr(error)) from error
        return [(begins[place], ends[place]) for place in places]

    def append(self, number: int, value: bytes, *, patient: bool = False) -> asyncio.Future[tuple[int, int | None]]:
        """Write one record, acknowledged; those that come while a request is under way share the next one."""
        queue = self._queues.get(number)
        if queue is None:
            queue = self._queues[number] = _Queue()
        acknowledged: asyncio.Future[tuple[int, int | None]] = asyncio.get_running_loop().create_future()
        queue.waiting.append((value, acknowledged))
        if not patient:
            queue.hurry = True
            self._send(number, queue)
        elif queue.sender is None:
            self._send_soon(number, queue)
        return acknowledged

    def _send(self, number: int, queue: _Queue) -> None:
        if queue.sender is None and queue.waiting:
            queue.sender = asyncio.create_task(self._send_all(number, queue), name=f"ledger {number}")

    def _send_soon(self, number: int, queue: _Queue) -> None:
        if queue.timer is None:
            queue.timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._patience_ends, number, queue)

    def _patience_ends(self, number: int, queue: _Queue) -> None:
        # Not cancelled where a record in a hurry took the others along: that costs more than to look in vain.
        queue.timer = None
        self._send(number, queue)

    async def _send_all(self, number: int, queue: _Queue) -> None:
        sent: list[tuple[bytes, asyncio.Future[tuple[int, int | None]]]] = []
        try:
            while queue.waiting:
                written = await self._send_some(number, queue, sent)
                timestamp = written.timestamp if written.timestamp_type == LOG_APPEND_TIME else None
                for index, (_, acknowledged) in enumerate(sent):
                    # Without a first offset (-1) none of them has one.
                    place = written.offset + index if written.offset >= 0 else written.offset
                    if not acknowledged.done():
                        acknowledged.set_result((place, timestamp))
                sent.clear()
                if queue.waiting and not queue.hurry:
                    self._send_soon(number, queue)
                    break
        except TROUBLE as error:
            # What was under way is of unknown fate, and what waits behind it would lie after that.
            for _, acknowledged in (*sent, *queue.waiting):
                if not acknowledged.done():
                    acknowledged.set_exception(LogError(repr(error)))
            queue.waiting.clear()
            _stop_timer(queue)
        finally:
            queue.sender = None

    async def _send_some(
        self, number: int, queue: _Queue, sent: list[tuple[bytes, asyncio.Future[tuple[int, int | None]]]]
    ) -> Any:
        """Send what fits into one request; ``sent`` holds it from the moment it may be under way."""
        async with asyncio.timeout(WRITE_SECONDS):
            producer = await self._current()
            try:
                batch = producer.create_batch()
                while queue.waiting:
                    if batch.append(timestamp=None, key=None, value=queue.waiting[0][0]) is None:
                        break
                    sent.append(queue.waiting.popleft())
                queue.hurry = bool(queue.waiting)
                batch.close()
                return await (await producer.send_batch(batch, self._topic, partition=number))
            except BaseException:
                # After an error, or without an answer, its sequence numbers are not to be trusted.
                self._forget(producer)
                raise

    async def distrust(self) -> None:
        """Write what follows with another producer."""
        if self._producer is not None:
            self._forget(self._producer)

    async def read(self, number: int, start: int, end: int) -> AsyncGenerator[Sequence[Stored], None]:
        """Read ``[start, end)``."""
        place = TopicPartition(self._topic, number)
        now = asyncio.get_running_loop().time
        try:
            async with self._consumer() as consumer:
                consumer.assign([place])
                consumer.seek(place, start)
                position, deadline = start, now() + ASK_SECONDS
                while position < end:
                    async with asyncio.timeout_at(deadline):
                        records = (await consumer.getmany(place, timeout_ms=READ_MILLISECONDS)).get(place, ())
                        reached = await consumer.position(place)
                    yield [_stored(record) for record in records if record.offset < end]
                    if reached > position:
                        position, deadline = reached, now() + ASK_SECONDS
        except TROUBLE as error:
            raise LogError(repr(error)) from error

    @contextlib.asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **connection_arguments(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=READ_MILLISECONDS,
        )
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await consumer.start()
            yield consumer
        finally:
            await _close(consumer.stop())

    async def _current(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._connecting:
            producer = self._producer
            if producer is None:
                producer = AIOKafkaProducer(
                    **connection_arguments(self._settings),
                    client_id="convoy-ledger",
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=MAX_REQUEST_BYTES,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _close(producer.stop())
                    raise
                self._producer = producer
            return producer

    def _forget(self, producer: AIOKafkaProducer) -> None:
        """Let go of a producer; what it still has under way may be written, or not."""
        stop = producer.stop
        if self._producer is producer:
            self._producer = None
            closing = asyncio.create_task(_close(stop()), name="close a ledger producer")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _stop_timer(queue: _Queue) -> None:
    if queue.timer is not None:
        queue.timer.cancel()
        queue.timer = None


def _stored(record: ConsumerRecord[bytes, bytes]) -> Stored:
    by_broker = record.timestamp_type == LOG_APPEND_TIME
    return Stored(record.offset, record.timestamp if by_broker else None, record.value or b"")


async def _close(closing: Coroutine[Any, Any, None]) -> None:
    """Close a client; without brokers that may never end."""
    task = asyncio.ensure_future(closing)
    done, _ = await asyncio.wait({task}, timeout=CLOSE_SECONDS)
    if not done:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
