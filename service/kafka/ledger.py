"""The ledger as it lies in Kafka: records in and out of its topic, and the one producer that writes them.

The rules are `service.core.ledger`'s; here they are carried out: each record is sent, its acknowledgement
awaited, and its place told to the ownership in the order of offsets. Anything that goes wrong with a write means
that the partition is lost: its object is dead, nothing more is written, replied or committed for it, and if it is
still assigned it is taken over anew, with a new producer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from service.core.delivery import Delivered
from service.core.ledger import (
    NO_CLAIM,
    Claim,
    Intent,
    Outcome,
    Ownership,
    Past,
    fold,
    read_bookmark,
    write_bookmark,
)
from service.core.model import Dead, Reason
from service.kafka.connection import connection_arguments
from service.settings import INTENT_FRESH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiokafka import ConsumerRecord

    from service.core.delivery import Outcome as Decided
    from service.core.grouper import Partition
    from service.core.ledger import Record
    from service.core.model import Batch, Event
    from service.core.readback import Cursors
    from service.ops.metrics import Metrics
    from service.settings import KafkaSettings

log = logging.getLogger(__name__)

WRITE_SECONDS = 15.0
"""For one record to be acknowledged; then the partition is given up for lost rather than waited for."""
READ_MILLISECONDS = 200
LOG_APPEND_TIME = 1
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Not every system has a clock that goes on while it sleeps."""


class PartitionLostError(Exception):
    """Somebody else owns the partition, or it cannot be told."""


class LedgerGapError(Exception):
    """The ledger does not reach back to where it must be read from; an operator has to decide."""


class _Line(msgspec.Struct, omit_defaults=True):
    """A record of the topic, in its short names."""

    k: str
    v: int = 1
    group: str = ""
    topic: str = ""
    owner: str = ""
    c: int = NO_CLAIM
    conv: str = ""
    after: str | None = None
    ev: list[tuple[int, str]] = []
    ids: list[str] = []
    dead: dict[str, Any] | None = None
    n: int = 0


_decode_line = msgspec.json.Decoder(_Line).decode
_encode_line = msgspec.json.Encoder().encode


@dataclass(slots=True)
class TakenOver:
    """A partition with its past: where to go on reading, and what an earlier owner left."""

    position: int
    ownership: Ownership
    past: Past
    started: dict[str, float] = field(default_factory=dict)


def digest_of(record: ConsumerRecord[bytes, bytes]) -> str:
    """What tells a record from another at the same offset of a topic made anew."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (str(record.timestamp).encode(), record.key or b"", record.value or b""):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.hexdigest()


class Ledger:
    """The ledger of all partitions this process owns."""

    def __init__(
        self,
        settings: KafkaSettings,
        cursors: Cursors,
        metrics: Metrics,
        *,
        lost: Callable[[Partition], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._topic = settings.ledger_topic
        self._cursors = cursors
        self._metrics = metrics
        self._lost = lost
        self._clock = clock
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()
        self._order: dict[Partition, asyncio.Lock] = {}
        self.twins: frozenset[int] = frozenset()
        """Partitions the ledger topic has; an events partition without its twin is not read."""

    async def start(self) -> None:
        """Connect, and learn which partitions the topic has."""
        if self._producer is None:
            self._producer = await self._new_producer()
        metadata = await self._producer.client.fetch_all_metadata()
        self.twins = frozenset(metadata.partitions_for_topic(self._topic) or ())

    async def stop(self) -> None:
        """Close the connection."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await _close(producer)

    # Taking over

    async def take_over(
        self, partition: Partition, commit: Callable[[Partition, int, str], Any], beginning: int
    ) -> TakenOver:
        """Claim ``partition`` and learn its past.

        ``commit`` must commit an offset with metadata, or raise. ``beginning`` is where the events partition begins.

        Raises:
            PartitionLostError: somebody else owns it; another assignment is on its way.
            LedgerGapError: the ledger is cut short of what has to be read.
            KafkaError: the broker does not answer; try again.
        """
        number = partition.number
        committed, metadata = await self._committed(number)
        position = max(committed, beginning) if committed >= 0 else beginning
        log_start, log_end = await self._bounds(number)
        bookmark = read_bookmark(metadata)
        start, in_force = bookmark if bookmark is not None else (log_start, NO_CLAIM)
        if not log_start <= start <= log_end:
            raise LedgerGapError(
                f"{self._topic}-{number} holds [{log_start}, {log_end}), and has to be read from {start}"
            )
        line = _Line("claim", group=self._settings.group_id, topic=self._settings.events_topic, owner=self._owner)
        claimed = await self._produce(number, line)
        asked = self._clock()
        records = await self._read(number, start, claimed.offset)
        past = fold(records, in_force)
        ownership = Ownership(claimed.offset, past, in_force)
        await commit(partition, position, write_bookmark(*ownership.bookmark(position)))
        for conversation_id, after in past.after.items():
            self._cursors.learn(conversation_id, after)
        append_time = claimed.timestamp_type == LOG_APPEND_TIME
        started = {
            conversation_id: asked - (max(0, claimed.timestamp - intent.timestamp) / 1000 if append_time else 0.0)
            for conversation_id, intent in past.open.items()
        }
        self._order[partition] = asyncio.Lock()
        self._metrics.counter("ledger_recoveries_total", "open_intents" if past.open else "clean").inc()
        log.info(
            "partition taken over",
            extra={"partition": number, "claim": claimed.offset, "read": len(records), "open_intents": len(past.open)},
        )
        return TakenOver(position, ownership, past, started)

    # The two seams of the pump

    async def before_attempt(self, batch: Batch) -> Callable[[], bool] | None:
        """Record that ``batch`` is about to be sent.

        Returns what is to be asked before the first byte leaves, or ``None``: it must not be sent, its partition is
        lost. A process that was stopped meanwhile, and woken, must not send: its intent is too old by then.
        """
        partition = batch.lane.partition
        ownership = partition.ownership
        after = self._cursors.get(batch.conversation_id)
        if ownership is None or not partition.alive or after is None:
            return None
        started = boot_time()
        batch.after = after
        line = _Line(
            "intent",
            c=ownership.claim,
            conv=batch.conversation_id,
            after=after,
            ev=[(event.offset, event.digest) for event in batch.events],
        )
        if not await self._write(partition, line, batch.events):
            return None
        return lambda: not ownership.lost and partition.alive and boot_time() - started <= INTENT_FRESH_SECONDS

    async def after_outcome(self, batch: Batch, outcomes: Sequence[Decided]) -> bool:
        """Record what became of events; false: their partition is lost, and nothing may be said of them."""
        partition = batch.lane.partition
        for outcome in outcomes:
            ownership = partition.ownership
            if ownership is None or not partition.alive:
                return False
            line = _Line(
                "outcome",
                c=ownership.claim,
                conv=batch.conversation_id,
                after=self._cursors.get(batch.conversation_id) or batch.after or "",
                ev=[(event.offset, event.digest) for event in outcome.events],
                n=batch.attempts,
            )
            if isinstance(outcome, Delivered):
                line.ids = [_item_id(item) for item in outcome.items]
            else:
                dead = outcome.dead
                line.dead = {
                    "reason": dead.reason.value,
                    "code": dead.code,
                    "message": dead.message,
                    "status": dead.status,
                    "attempts": dead.attempts,
                }
            if not await self._write(partition, line, outcome.events):
                return False
        return True

    def metadata(self, partition: Partition, position: int) -> str:
        """The bookmark to commit with ``position``."""
        ownership = partition.ownership
        return write_bookmark(*ownership.bookmark(position)) if ownership is not None else ""

    def forget(self, partition: Partition) -> None:
        """Drop what is kept of a partition that was given up."""
        self._order.pop(partition, None)

    # Writing

    async def _write(self, partition: Partition, line: _Line, events: Iterable[Event]) -> bool:
        ownership = partition.ownership
        order = self._order.get(partition)
        if ownership is None or order is None or ownership.lost:
            return False
        ownership.about_to_write([event.offset for event in events])
        try:
            written = await self._produce(partition.number, line)
            # Acknowledgements arrive in the order of offsets, and the lock is handed on in the order asked for.
            async with order:
                gap = ownership.acknowledged(written.offset)
                if gap is not None:
                    ownership.gap_read(gap, await self._read(partition.number, gap.start, gap.end))
        except (KafkaError, OSError, TimeoutError) as error:
            ownership.lost = True
            log.warning("a ledger write failed", extra={"partition": partition.number, "error": repr(error)})
        if ownership.lost:
            if partition.alive and partition.ownership is ownership:
                partition.ownership = None
                self._metrics.counter("ledger_recoveries_total", "lost").inc()
                self._lost(partition)
            return False
        return partition.alive

    async def _produce(self, number: int, line: _Line) -> Any:
        producer = self._producer
        if producer is None:
            raise KafkaError("the ledger is closed")
        try:
            acknowledged = await producer.send(self._topic, _encode_line(line), partition=number)
            written = await asyncio.wait_for(acknowledged, WRITE_SECONDS)
        except (KafkaError, OSError, TimeoutError):
            await self._renew(producer)
            raise
        self._metrics.counter("ledger_records_total", line.k).inc()
        return written

    async def _renew(self, failed: AIOKafkaProducer) -> None:
        """After an error the producer's sequence numbers are not to be trusted: a new one, or none for now."""
        async with self._renewing:
            if self._producer is not failed:
                return
            self._producer = await self._new_producer()
        await _close(failed)

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **connection_arguments(self._settings), client_id="convoy-ledger", acks="all", enable_idempotence=True
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    # Reading

    async def _committed(self, number: int) -> tuple[int, str]:
        place = TopicPartition(self._settings.events_topic, number)
        admin = AIOKafkaAdminClient(**connection_arguments(self._settings))
        await admin.start()
        try:
            # Offset and metadata in one answer: two could straddle somebody's commit.
            found = (await admin.list_consumer_group_offsets(self._settings.group_id, partitions=[place])).get(place)
        finally:
            await admin.close()
        return (found.offset, found.metadata or "") if found is not None else (-1, "")

    async def _bounds(self, number: int) -> tuple[int, int]:
        place = TopicPartition(self._topic, number)
        consumer = await self._new_consumer()
        try:
            beginnings = await consumer.beginning_offsets([place])
            ends = await consumer.end_offsets([place])
        finally:
            await consumer.stop()
        return beginnings[place], ends[place]

    async def _read(self, number: int, start: int, end: int) -> list[Record]:
        """Read the ledger's records in ``[start, end)``."""
        if start >= end:
            return []
        place = TopicPartition(self._topic, number)
        consumer = await self._new_consumer()
        records: list[Record] = []
        try:
            consumer.assign([place])
            consumer.seek(place, start)
            while await consumer.position(place) < end:
                for found in (await consumer.getmany(place, timeout_ms=READ_MILLISECONDS)).values():
                    records += [_read_record(record) for record in found if record.offset < end]
        finally:
            await consumer.stop()
        return records

    async def _new_consumer(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection_arguments(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=READ_MILLISECONDS,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer


def boot_time() -> float:
    """Seconds since boot, those of a suspended machine included."""
    return time.clock_gettime(BOOT_CLOCK)


def _read_record(record: ConsumerRecord[bytes, bytes]) -> Record:
    line = _decode_line(record.value or b"")
    if line.k == "claim":
        return Claim(record.offset, record.timestamp, line.owner)
    events = tuple((offset, digest) for offset, digest in line.ev)
    if line.k == "intent":
        return Intent(record.offset, record.timestamp, line.c, line.conv, line.after or "", events)
    dead = None
    if line.dead is not None:
        told = line.dead
        dead = Dead(Reason(told["reason"]), told["code"], told["message"], told["status"], told["attempts"])
    return Outcome(
        record.offset, record.timestamp, line.c, line.conv, line.after or "", events, tuple(line.ids), dead, line.n
    )


class _Identified(msgspec.Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_Identified).decode


def _item_id(item: Any) -> str:
    return _decode_id(item).id


async def _close(producer: AIOKafkaProducer) -> None:
    closing = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait({closing}, timeout=5.0)
    if not done:
        closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
