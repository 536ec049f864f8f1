"""Where outcomes are stored: replies and dead letters, written so that a position may rest on them.

Decides how records are gathered into produce requests and what happens when one fails. Each topic
partition has one request under way; what comes meanwhile is gathered into the next one, because requests
queue one behind the other and many small ones would time out. Records of one key stay in order. Nothing is
given up: a failed request is made again, after a pause, with a new producer where the old one is done for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner

from service.kafka.access import refusal
from service.kafka.codec import OutgoingRecord
from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from service.kafka.codec import Headers
    from service.ops.metrics import Metrics
    from service.settings import KafkaSettings

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 512 << 10
"""Of one produce request a partition; well below a broker's default limit of 1 MiB."""
RETRY_FIRST_SECONDS = 0.1
RETRY_MAX_SECONDS = 5.0
METADATA_SECONDS = 10.0
"""To learn who leads a partition."""
PARTITIONS_KNOWN = 10_000
"""Conversations a topic whose partition is remembered: hashing a key costs more than writing its record."""
KNOWN_KEY_BYTES = 256
"""No conversation id is longer; the keys of records that are no events may be of any length."""

_choose_partition = DefaultPartitioner()


@dataclass(slots=True)
class Outgoing:
    """Records of one key to store, in their order.

    ``write`` makes them, value and headers of each, from the one with that number on. It is called when they go into a
    request, so that tens of thousands that wait are not in memory twice, and again if that fails: it must always
    make the same. ``lean`` leaves something out of one that the broker finds too large, and says whether there was
    something. ``stored`` is called once the last of them is acknowledged by all in-sync replicas.
    """

    key: bytes | None
    count: int
    write: Callable[[int], Iterable[tuple[bytes | None, Headers]]]
    lean: Callable[[OutgoingRecord], bool]
    stored: Callable[[], None] | None = None
    done: int = 0
    """How many of them are stored."""


def single(
    record: OutgoingRecord, lean: Callable[[OutgoingRecord], bool], stored: Callable[[], None] | None
) -> Outgoing:
    """One record to store."""
    return Outgoing(record.key, 1, lambda _: ((record.value, record.headers),), lean, stored)


@dataclass(slots=True)
class _Queue:
    """What waits for one topic partition."""

    topic: str
    partition: int
    waiting: deque[Outgoing] = field(default_factory=deque)
    sender: asyncio.Task[None] | None = None


class Outlet:
    """The producer of a process, and what waits for it."""

    def __init__(self, settings: KafkaSettings, metrics: Metrics, *, fatal: Callable[[BaseException], None]) -> None:
        self._arguments = connection_arguments(settings)
        self._metrics = metrics
        self._fatal = fatal
        self.refused: Callable[[str, str], bool] = lambda _topic, _why: True
        """Told when we may not write to a topic, and why; says whether that is news."""
        self.stored: Callable[[str], object] = lambda _topic: None
        """Told when something was stored."""
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()
        self._partitions: dict[str, list[int]] = {}
        self._partition_of: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
        self._queues: dict[tuple[str, int], _Queue] = {}
        for topic in (settings.reply_topic, settings.dead_letter_topic):
            self._writes_to(topic)

    async def start(self, topics: Sequence[str]) -> None:
        """Connect, and learn how many partitions each topic has.

        Raises:
            KafkaError: no broker answers.
            TopicMissingError: one of the topics does not exist.
        """
        producer = self._producer
        if producer is None:
            producer = self._new_producer()
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        metadata = await producer.client.fetch_all_metadata()
        for topic in topics:
            partitions = metadata.partitions_for_topic(topic)
            if not partitions:
                raise TopicMissingError(topic)
            self._partitions[topic] = sorted(partitions)
            await producer.partitions_for(topic)

    async def learn(self, topics: Iterable[str]) -> None:
        """Learn the partitions of topics that may be written to and need not exist."""
        assert self._producer is not None
        metadata = await self._producer.client.fetch_all_metadata()
        for topic in topics:
            partitions = metadata.partitions_for_topic(topic)
            if partitions:
                self._writes_to(topic)
                self._partitions[topic] = sorted(partitions)
                await self._producer.partitions_for(topic)
            else:
                log.warning("an allowed reply topic does not exist", extra={"topic": topic})

    def _writes_to(self, topic: str) -> None:
        # Made before the first failure: a series that begins at 1 has not increased.
        self._metrics.counter("output_failures_total", topic)

    def partitions_of(self, topic: str) -> Sequence[int]:
        """The partitions of a topic; none when it is not known."""
        return self._partitions.get(topic, ())

    def partition_for(self, topic: str, key: bytes | None) -> int:
        """The partition that Java's default partitioner gives ``key``; keyless records share the first."""
        if key is None:
            return self._partitions[topic][0]
        known = self._partition_of[topic]
        partition = known.get(key)
        if partition is None:
            all_partitions = self._partitions[topic]
            partition = _choose_partition(key, all_partitions, all_partitions)
            if len(key) <= KNOWN_KEY_BYTES:
                if len(known) >= PARTITIONS_KNOWN:
                    known.clear()
                known[key] = partition
        return partition

    def store(self, topic: str, partition: int, outgoing: Outgoing) -> None:
        """Store this behind what waits for the same partition; returns at once."""
        place = (topic, partition)
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = _Queue(topic, partition)
        queue.waiting.append(outgoing)
        if queue.sender is None:
            queue.sender = asyncio.create_task(self._send_all(queue), name=f"outlet {topic}-{partition}")

    def waiting(self) -> int:
        """Records not yet acknowledged."""
        return sum(outgoing.count - outgoing.done for queue in self._queues.values() for outgoing in queue.waiting)

    async def stop(self, timeout_seconds: float) -> None:
        """Close the connection; what is not stored by then is read again by the partition's next owner."""
        senders = [queue.sender for queue in self._queues.values() if queue.sender is not None]
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        if self._producer is not None:
            await _stop(self._producer, timeout_seconds)
            self._producer = None

    async def _send_all(self, queue: _Queue) -> None:
        try:
            pause = RETRY_FIRST_SECONDS
            limit = None
            while queue.waiting:
                producer = self._producer
                assert producer is not None
                try:
                    count = await self._send_some(producer, queue, limit)
                except (TimeoutError, KafkaError, OSError) as error:
                    if isinstance(error, MessageSizeTooLargeError) and self._make_room(queue, limit):
                        limit = 1
                        await self._renew(producer)
                        continue
                    self._metrics.counter("output_failures_total", queue.topic).inc()
                    why = refusal(error)
                    if why is None or self.refused(queue.topic, why):
                        log.warning(
                            "outcomes cannot be stored, trying again",
                            extra={"topic": queue.topic, "partition": queue.partition, "error": why or repr(error)},
                        )
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, RETRY_MAX_SECONDS)
                    await self._renew(producer)
                else:
                    pause, limit = RETRY_FIRST_SECONDS, None
                    self.stored(queue.topic)
                    _note_stored(queue.waiting, count)
        except Exception as error:  # noqa: BLE001 - a bug here must end the process, not stall a partition unseen
            self._fatal(error)
        finally:
            queue.sender = None

    async def _send_some(self, producer: AIOKafkaProducer, queue: _Queue, limit: int | None) -> int:
        """Send what fits in one request, at most ``limit`` records; returns how many."""
        batch = producer.create_batch()
        count = _fill(batch, queue.waiting, limit)
        batch.close()
        # One that another queue found failed and stopped meanwhile would keep us waiting for its metadata for ever.
        adding = producer.send_batch(batch, queue.topic, partition=queue.partition)
        acknowledged = await asyncio.wait_for(adding, METADATA_SECONDS)
        await acknowledged
        return count

    def _make_room(self, queue: _Queue, limit: int | None) -> bool:
        """After a request too large for the broker: send one at a time, and that one without its bulk.

        False: one record without any bulk was too large, and only who set the topic's limit can help.
        """
        if limit != 1:
            return True
        self._metrics.counter("output_failures_total", queue.topic).inc()
        waiting = queue.waiting
        outgoing = waiting[0]
        record = OutgoingRecord(outgoing.key, *next(iter(outgoing.write(outgoing.done))))
        if not outgoing.lean(record):
            return False
        if outgoing.done + 1 == outgoing.count:
            waiting[0] = single(record, outgoing.lean, outgoing.stored)
        else:
            outgoing.done += 1
            waiting.appendleft(single(record, outgoing.lean, None))
        log.warning("an outcome is too large for the broker, its bulk is left out", extra={"topic": queue.topic})
        return True

    async def _renew(self, failed: AIOKafkaProducer) -> None:
        """Replace a producer that failed: after an error its sequence numbers may be out of step for good."""
        async with self._renewing:
            if self._producer is not failed:
                return
            fresh = self._new_producer()
            try:
                await fresh.start()
            except (TimeoutError, KafkaError, OSError):
                await fresh.stop()
                return
            await self._prepare(fresh)
            self._producer = fresh
        await _stop(failed, RETRY_MAX_SECONDS)

    async def _prepare(self, fresh: AIOKafkaProducer) -> None:
        """Have a producer learn the topics it will write to, those that are gone excepted."""
        learning = [asyncio.ensure_future(fresh.partitions_for(topic)) for topic in self._partitions]
        _, late = await asyncio.wait(learning, timeout=METADATA_SECONDS)
        for one in late:
            one.cancel()
        await asyncio.gather(*learning, return_exceptions=True)

    def _new_producer(self) -> AIOKafkaProducer:
        arguments: dict[str, Any] = {
            **self._arguments,
            "client_id": "convoy",
            "acks": "all",
            "enable_idempotence": True,
            "max_batch_size": MAX_REQUEST_BYTES,
        }
        return AIOKafkaProducer(**arguments)


def _fill(batch: Any, waiting: Iterable[Outgoing], limit: int | None) -> int:
    """Write what waits into a request, as much as fits and at most ``limit`` records; returns how many."""
    append = batch.append
    count = 0
    for outgoing in waiting:
        key = outgoing.key
        for value, headers in outgoing.write(outgoing.done):
            # aiokafka writes headers of any sequence; a null value is a null value.
            if append(timestamp=None, key=key, value=value, headers=headers) is None:
                return count
            count += 1
            if count == limit:
                return count
    return count


def _note_stored(waiting: deque[Outgoing], count: int) -> None:
    """Take the first ``count`` records off the queue."""
    while count:
        outgoing = waiting[0]
        left = outgoing.count - outgoing.done
        if count < left:
            outgoing.done += count
            return
        count -= left
        waiting.popleft()
        if outgoing.stored is not None:
            outgoing.stored()


class TopicMissingError(Exception):
    """A topic does not exist; the argument is its name."""


async def _stop(producer: AIOKafkaProducer, timeout_seconds: float) -> None:
    # A producer without brokers waits for ever to flush what it holds.
    stopping = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait({stopping}, timeout=timeout_seconds)
    if not done:
        stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
