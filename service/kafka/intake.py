"""Where events come in: subscription, rebalances, back-pressure and commits.

Decides which partitions are read, paused or given up, and when positions are committed; what becomes of an
event is none of its business. FastStream's batch subscriber hands over raw records: its own parser decodes
header values and loses every record whose header is binary or null.

From aiokafka handing over records to their place in a lane nothing is awaited, so no rebalance can come
between; a test holds FastStream to that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    OffsetMetadataTooLargeError,
)
from aiokafka.structs import OffsetAndMetadata
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaMessage

from service.core.recovery import Recovery
from service.kafka import above
from service.kafka.access import refusal
from service.kafka.codec import NO_EVENT, event_of, key_matches, refusal_of
from service.kafka.connection import connection_arguments
from service.kafka.ledger import LedgerStoppedError, LogError, NotOwnerError, digest_of
from service.kafka.reading import committed_offsets
from service.kafka.together import Together, patience

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from service.core.grouper import Grouper, Partition
    from service.core.ledger import Settled
    from service.core.model import Event, Refusal
    from service.kafka.ledger import Ledger, TakenOver
    from service.kafka.membership import Membership
    from service.ops.health import Health
    from service.ops.metrics import Metrics
    from service.settings import Settings

log = logging.getLogger(__name__)

POLL_MILLISECONDS = 20
"""FastStream sleeps as long again after an empty poll, so this bounds what a quiet topic adds to latency."""
POLL_RECORDS = 4000
"""Bounds how long one hand-over keeps the loop: some 20 ms. Smaller ones keep the buffer, and so batches, smaller."""
FETCH_BYTES = 16 << 20
"""Of one answer of a broker: what is fetched ahead is in memory beside the buffer."""
PARTITION_FETCH_BYTES = 512 << 10
"""Of one partition in it; a larger record comes alone."""
POLL_SHARE = 0.1
"""Of the buffer limit, at most so much is handed over at once: by so much the limit can be overrun."""
COMMIT_SECONDS = 5.0
"""aiokafka retries a commit for ever; what is not committed by then is tried again later, or read again."""
RECALL_SECONDS = 10.0
"""To learn what earlier owners settled above the positions; without it, that is sent again."""
ENDS_SECONDS = 2.0
"""Between questions for the ends of partitions."""
RESUME_BELOW = 0.5
"""Pausing throws prefetched records away, so a paused partition resumes well below its share."""
HELD_SECONDS = 2.0
"""A partition above its share is not polled, which costs nothing. One that stays so is paused, which frees memory."""
NOWHERE = -1
"""A partition that is none: a poll of it alone brings nothing, and shows the group that polling goes on."""
STOP_SECONDS = 5.0
"""To leave the group; the pod's grace period counts on it."""
TAKE_OVER_RETRY_SECONDS = 1.0
NOT_OWNER_RETRY_SECONDS = 5.0
"""A claim disturbs the true owner, so one who cannot commit waits for the group's next word; this is the exception."""
STOPPED_RETRY_SECONDS = 30.0
"""Between looks whether an operator has mended what keeps a partition from being read."""
ASK_SECONDS = 15.0
FAILED_POLL_SECONDS = 7.0
"""FastStream waits 5 s after a poll that failed, and the next empty one proves nothing."""
MAX_POLL_INTERVAL_MILLISECONDS = 300_000


class Intake:
    """The consumer of a process, and the state of its partitions."""

    def __init__(
        self,
        settings: Settings,
        grouper: Grouper,
        metrics: Metrics,
        health: Health,
        membership: Membership,
        *,
        refuse: Callable[[Partition, Refusal], None],
        repeat: Callable[[Partition, Event, Settled], None],
        arrived: Callable[[], None],
        drain: Callable[[list[Partition]], Awaitable[None]],
        fatal: Callable[[BaseException], None],
        clock: Callable[[], float],
        given_up: Callable[[], None],
        ledger: Ledger | None = None,
    ) -> None:
        self._kafka = settings.kafka
        self._limits = settings.limits
        self._grouper = grouper
        self._metrics = metrics
        self._health = health
        self._membership = membership
        self._refuse = refuse
        self._repeat = repeat
        self._given_up = given_up
        self._ledger = ledger
        self._taking_over: set[asyncio.Task[None]] = set()
        self._arrived = arrived
        self._drain = drain
        self._fatal = fatal
        self._clock = clock
        self._paused: set[int] = set()
        self._held_since: dict[int, float] = {}
        """Partitions that are not polled because they hold their share of the buffer."""
        self._committed: dict[int, tuple[int, int]] = {}
        """Position, and how many offsets above it were settled, as last committed."""
        self._recalled: dict[int, tuple[int, set[int]]] = {}
        """The position an assignment began at, and what an earlier owner had settled above it."""
        self._recalling: set[int] = set()
        self._metadata_fits = True
        self._starts: dict[int, int] = {}
        """Where an assignment begins to read, by partition."""
        self._ends: dict[int, int] = {}
        """Where partitions ended when last asked."""
        self._committing = asyncio.Lock()
        self._beginnings: Together[TopicPartition, int] = Together(self._ask_beginnings)
        self._claims: Together[tuple[Partition, int, str], None] = Together(self._commit_claims)
        self.stopped: dict[int, str] = {}
        """Partitions that are assigned and not read, because an operator has to decide something, with the reason."""
        self.held: Callable[[], bool] = lambda: False
        """Whether reading is to stop altogether: the circuit is open, or the process is stopping."""
        self._accepted = metrics.counter("events_total", "accepted")
        self._poll_failed_at = 0.0
        self._broker = _Broker(
            membership,
            connection_arguments(settings.kafka),
            self._to_poll,
            self._polled,
            settings.kafka.bootstrap_servers.split(","),
            client_id="convoy",
            consumer_only=True,
            apply_types=False,
            graceful_timeout=1.0,
            logger=logging.getLogger("convoy.faststream"),
        )
        self._subscriber = self._broker.subscriber(
            self._kafka.events_topic,
            batch=True,
            group_id=self._kafka.group_id,
            group_instance_id=self._kafka.group_instance_id or None,
            ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_records=min(POLL_RECORDS, int(self._limits.max_buffered_events * POLL_SHARE)),
            batch_timeout_ms=POLL_MILLISECONDS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            session_timeout_ms=int(self._kafka.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(self._kafka.heartbeat_seconds * 1000),
            rebalance_timeout_ms=int(self._kafka.rebalance_timeout_seconds * 1000),
            max_poll_interval_ms=MAX_POLL_INTERVAL_MILLISECONDS,
            listener=_Listener(self),
            parser=_hand_over,
            decoder=_body,
            no_reply=True,
        )
        self._subscriber(self._take)

    @property
    def broker(self) -> KafkaBroker:
        """FastStream's broker, for the application that starts and stops it."""
        return self._broker

    def _polled(self, error: KafkaError | None, *, records: bool) -> None:
        """Note how a poll ended: what keeps us from reading is told once, and shown until it is over."""
        if error is not None:
            self._poll_failed_at = self._clock()
            why = refusal(error) or f"cannot read: {error!r}"
            if self._health.trouble("reading", why):
                log.error("cannot read, trying again", extra={"error": why})
        elif self._poll_failed_at and (records or self._clock() - self._poll_failed_at > FAILED_POLL_SECONDS):
            self._poll_failed_at = 0.0
            self._health.mended("reading")
            log.info("reading again")

    async def _take(self, records: tuple[ConsumerRecord[bytes, bytes], ...]) -> None:
        try:
            self._add(records)
        except Exception as error:  # noqa: BLE001 - FastStream would swallow it, and the records with it
            self._fatal(error)

    def _add(self, records: tuple[ConsumerRecord[bytes, bytes], ...]) -> None:
        now = self._clock()
        partitions = self._grouper.partitions
        add = self._grouper.add
        max_bytes, recalled = self._limits.max_record_bytes, self._recalled
        accepted = 0
        for record in records:
            partition = partitions.get(record.partition)
            if partition is None or partition.draining or partition.taking_over:
                # Handed over while it is being given up, or not yet taken over: it is read again.
                continue
            if record.value is None:
                self._skip(partition, record.offset, "tombstone")
                continue
            if recalled and self._settled_before(partition, record.offset):
                self._skip(partition, record.offset, "settled_before")
                continue
            try:
                event = event_of(record, max_bytes)
            except NO_EVENT as error:
                self._metrics.counter("events_total", "invalid").inc()
                self._refuse(partition, refusal_of(record, error))
                if partition.recovery is not None:
                    partition.recovery.passed(record.offset)
                continue
            if not key_matches(record, event):
                self._metrics.counter("events_total", "key_mismatch").inc()
            accepted += 1
            if partition.recovery is not None:
                event.digest = digest_of(record)
                self._recover(partition, partition.recovery, event, now)
                continue
            add(partition, event, now)
        self._accepted.inc(accepted)
        self.regulate()
        self._arrived()

    def _skip(self, partition: Partition, offset: int, result: str) -> None:
        """Pass a record that needs no outcome."""
        partition.watermark.received(offset)
        partition.watermark.settle(offset)
        self._metrics.counter("events_total", result).inc()
        if partition.recovery is not None:
            partition.recovery.passed(offset)

    def _recover(self, partition: Partition, recovery: Recovery, event: Event, now: float) -> None:
        settled = recovery.admit(event, now)
        if settled is not None:
            self._repeat(partition, event, settled)
        if recovery.over:
            partition.recovery = None

    # Rebalances

    async def revoked(self, numbers: list[int]) -> bool:
        """Give partitions up: finish what is in flight, store and commit, drop what is buffered.

        Returns whether all that was begun was finished, so that nothing of it is done once more.
        """
        partitions = [self._grouper.partitions[number] for number in numbers if number in self._grouper.partitions]
        if not partitions:
            return True
        started = self._clock()
        for partition in partitions:
            self._grouper.drain(partition.number)
        if self._membership.lease_valid():
            await self._drain(partitions)
            committed = await self._commit_last()
        else:
            # They may be somebody else's by now: what is in flight is theirs to send again, and no commit is accepted.
            log.warning("the group went on without us; nothing is waited for", extra={"partitions": sorted(numbers)})
            committed = not self._to_commit()
        finished = committed and not any(partition.busy or partition.unstored for partition in partitions)
        for partition in partitions:
            # A stop may meet a rebalance: both wait for the same drain, and one of them gets here first.
            if partition.alive:
                self._drop(partition)
        seconds = self._clock() - started
        self._metrics.histogram("drain_seconds").observe(seconds)
        log.info("partitions given up", extra={"partitions": sorted(numbers), "drain_seconds": round(seconds, 3)})
        return finished

    async def assigned(self, numbers: list[int]) -> None:
        """Begin with the partitions of a new assignment; they are read once it is known what is settled."""
        for number in numbers:
            self._begin(number)
        self._metrics.counter("rebalances_total").inc()
        self._health.waiting_for = None
        log.info("partitions assigned", extra={"partitions": sorted(numbers)})
        if numbers and self._ledger is None:
            await self._recall(numbers)

    async def _recall(self, numbers: list[int]) -> None:
        """Learn what earlier owners settled above the positions, so that it is not sent again."""
        consumer = self._subscriber.consumer
        assert consumer is not None
        places = [TopicPartition(self._kafka.events_topic, number) for number in numbers]
        # Before anything is awaited: nothing of these partitions has been fetched yet.
        consumer.pause(*places)
        self._recalling.update(numbers)
        try:
            committed = await asyncio.wait_for(committed_offsets(self._kafka, places), RECALL_SECONDS)
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning(
                "what was settled above the positions is not known and is sent again", extra={"error": repr(error)}
            )
            committed = {}
        for place, (position, text) in committed.items():
            if (settled := above.read(position, text)) and place.partition in self._grouper.partitions:
                self._recalled[place.partition] = (position, settled)
        self._recalling.difference_update(numbers)
        consumer.resume(*(place for place in places if place in consumer.assignment()))
        self._paused.difference_update(numbers)
        self.regulate()

    def _settled_before(self, partition: Partition, offset: int) -> bool:
        position, settled = self._recalled.get(partition.number, (0, ()))
        if offset < position:
            # Not read from where that was said: the topic is another one, or its positions were set back.
            del self._recalled[partition.number]
            return False
        return offset in settled

    def lost(self, partition: Partition) -> None:
        """Begin anew with a partition whose ledger shows another owner, or no answer, while it is assigned to us."""
        if not partition.alive:
            return
        self._drop(partition)
        # While it is being given up anyway, it is not ours to claim any more.
        if not partition.draining:
            self._begin(partition.number)

    def _begin(self, number: int) -> None:
        partition = self._grouper.assign(number)
        if self._health.draining:
            # A rebalance came between the drain and leaving the group: nothing must start any more.
            self._grouper.drain(number)
        elif self._ledger is not None:
            partition.taking_over = True
            task = asyncio.create_task(self._take_over(partition, self._ledger), name=f"take over {number}")
            self._taking_over.add(task)
            task.add_done_callback(self._taken_over)
        self.regulate()

    def _drop(self, partition: Partition) -> None:
        self._grouper.revoke(partition.number)
        self._committed.pop(partition.number, None)
        self._recalled.pop(partition.number, None)
        self._starts.pop(partition.number, None)
        self._ends.pop(partition.number, None)
        self._paused.discard(partition.number)
        self._held_since.pop(partition.number, None)
        self.stopped.pop(partition.number, None)
        self._given_up()

    async def _take_over(self, partition: Partition, ledger: Ledger) -> None:
        """Read the ledger until it is known what earlier owners left, then begin to read the partition."""
        place = TopicPartition(self._kafka.events_topic, partition.number)
        while partition.alive and not partition.draining:
            consumer = self._subscriber.consumer
            if consumer is None:
                return
            wait = TAKE_OVER_RETRY_SECONDS
            try:
                beginning = await self._beginnings.ask(place)
                taken = await ledger.take_over(partition, beginning, self._commit_claim)
            except LedgerStoppedError as stop:
                self._stop(partition, stop)
                if stop.claimed:
                    return
                wait = STOPPED_RETRY_SECONDS
            except NotOwnerError as refused:
                log.info("not taken over", extra={"partition": partition.number, "why": str(refused)})
                wait = NOT_OWNER_RETRY_SECONDS
            except (LogError, KafkaError, OSError, TimeoutError) as error:
                log.warning("not taken over yet", extra={"partition": partition.number, "error": repr(error)})
            else:
                if taken is not None and partition.alive and place in consumer.assignment():
                    consumer.seek(place, taken.position)
                    self._begin_reading(partition, taken)
                return
            await asyncio.sleep(wait)

    async def _ask_beginnings(self, places: Sequence[TopicPartition]) -> Sequence[int]:
        consumer = self._subscriber.consumer
        if consumer is None:
            raise LogError("not reading any more")
        async with asyncio.timeout(patience(places, ASK_SECONDS)):
            beginnings = await consumer.beginning_offsets(list(places))
        return [beginnings[place] for place in places]

    def _begin_reading(self, partition: Partition, taken: TakenOver) -> None:
        recovery = Recovery(self._grouper, partition, taken.past, taken.started)
        partition.recovery = None if recovery.over else recovery
        partition.ownership = taken.ownership
        if taken.before:
            self._recalled[partition.number] = (taken.position, taken.before)
        partition.taking_over = False
        self.stopped.pop(partition.number, None)
        self.regulate()

    def _stop(self, partition: Partition, stop: LedgerStoppedError) -> None:
        if partition.alive and self.stopped.get(partition.number) != stop.reason:
            self.stopped[partition.number] = stop.reason
            log.error("a partition is not read", extra={"reason": stop.reason, "detail": str(stop)})

    def problem(self) -> str | None:
        """Why partitions are assigned and not read, for an operator who has to decide; ``None`` when none is."""
        if not self.stopped:
            return None
        return ", ".join(f"partition {number}: {reason}" for number, reason in sorted(self.stopped.items()))

    def _taken_over(self, task: asyncio.Task[None]) -> None:
        self._taking_over.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal(error)

    # Back-pressure

    def regulate(self) -> None:
        """Hold back partitions that have their share of the buffer; pause those held for long, and all when told to."""
        consumer = self._subscriber.consumer
        partitions = self._grouper.partitions
        if consumer is None or not partitions:
            return
        now = self._clock()
        limits, share = self._limits, len(partitions)
        everything = self.held()
        full = (
            sum(p.buffered_events for p in partitions.values()) >= limits.max_buffered_events
            or sum(p.buffered_bytes for p in partitions.values()) >= limits.max_buffered_bytes
        )
        for number, partition in partitions.items():
            if partition.draining or number in self._recalling:
                continue
            load = max(
                partition.buffered_events * share / limits.max_buffered_events,
                partition.buffered_bytes * share / limits.max_buffered_bytes,
                len(partition.watermark) * share / limits.max_uncommitted_events,
            )
            if full or load >= 1:
                since = self._held_since.setdefault(number, now)
                long = now - since >= HELD_SECONDS
            else:
                self._held_since.pop(number, None)
                long = False
            paused = number in self._paused
            wanted = everything or partition.taking_over or long or (paused and load >= RESUME_BELOW)
            if wanted == paused:
                continue
            place = TopicPartition(self._kafka.events_topic, number)
            if place not in consumer.assignment():
                continue
            if wanted:
                consumer.pause(place)
                self._paused.add(number)
            else:
                consumer.resume(place)
                self._paused.discard(number)

    def _to_poll(self) -> list[TopicPartition]:
        """The partitions to poll now; none stands for all. What is fetched of the others stays where it is."""
        if self._held_since or self._paused:
            self.regulate()
        held = self._held_since.keys() - self._paused
        consumer = self._subscriber.consumer
        if not held or consumer is None:
            return []
        # Those that are paused bring nothing: polling them throws away what was fetched of them.
        polled = [place for place in consumer.assignment() if place.partition not in held]
        return polled or [TopicPartition(self._kafka.events_topic, NOWHERE)]

    @property
    def paused(self) -> int:
        """How many partitions are not being read."""
        return len(self._paused | self._held_since.keys())

    # Positions

    async def commit(self) -> bool:
        """Commit what has moved; returns whether nothing is left to commit."""
        async with self._committing:
            topic = self._kafka.events_topic
            to_commit = self._to_commit()
            consumer = self._subscriber.consumer
            if not to_commit or consumer is None:
                return True
            partitions = self._grouper.partitions
            offsets = {
                TopicPartition(topic, number): OffsetAndMetadata(
                    position, self._metadata(partitions[number], position, settled)
                )
                for number, (position, settled) in to_commit.items()
            }
            moved = {number: (position, len(settled)) for number, (position, settled) in to_commit.items()}
            try:
                await asyncio.wait_for(consumer.commit(offsets), COMMIT_SECONDS)
            except (KafkaError, IllegalStateError, TimeoutError) as error:
                self._metadata_fits = self._metadata_fits and not isinstance(error, OffsetMetadataTooLargeError)
                lost = isinstance(error, CommitFailedError | IllegalStateError)
                self._metrics.counter("commits_total", "refused" if lost else "failed").inc()
                level = logging.INFO if lost else logging.WARNING
                why = refusal(error)
                if why is None or self._health.trouble("committing", why):
                    words = "positions not committed; what they cover is read again"
                    log.log(level, words, extra={"error": why or repr(error)})
                return False
            self._health.mended("committing")
            self._metrics.counter("commits_total", "ok").inc()
            self._committed.update(
                {number: state for number, state in moved.items() if number in self._grouper.partitions}
            )
            return True

    def _to_commit(self) -> dict[int, tuple[int, set[int]]]:
        """By partition where it moved since the last commit: its position, and what is settled above that."""
        found = {}
        for number, partition in self._grouper.partitions.items():
            position = partition.watermark.position
            if position is not None:
                settled = self._settled_above(partition, position)
                if self._committed.get(number) != (position, len(settled)):
                    found[number] = (position, settled)
        return found

    async def _commit_last(self) -> bool:
        """Commit before partitions are given up, within the time for one commit, though another may be under way."""
        try:
            return await asyncio.wait_for(self.commit(), COMMIT_SECONDS)
        except TimeoutError:
            log.warning("positions not committed in time; what they cover is read again")
            return False

    def _settled_above(self, partition: Partition, position: int) -> set[int]:
        """Offsets above the position that are settled, by this owner or, where not read again yet, by one before.

        With a ledger these would not be sent again, but their outcomes would be said again.
        """
        settled = partition.watermark.above
        recalled = self._recalled.get(partition.number)
        if recalled is None:
            return settled
        before = {offset for offset in recalled[1] if offset > position}
        if before:
            return settled | before
        del self._recalled[partition.number]
        return settled

    def _metadata(self, partition: Partition, position: int, settled: set[int]) -> str:
        if not self._metadata_fits:
            settled = set()
        if self._ledger is not None:
            return self._ledger.metadata(partition, position, settled)
        return above.write(position, settled)

    async def _commit_claim(self, partition: Partition, position: int, metadata: str) -> None:
        await self._claims.ask((partition, position, metadata))

    async def _commit_claims(self, claims: Sequence[tuple[Partition, int, str]]) -> Sequence[None]:
        """Commit where partitions begin, with the texts that tell of their claims."""
        topic = self._kafka.events_topic
        async with self._committing:
            consumer = self._subscriber.consumer
            if consumer is None or not all(partition.alive for partition, _, _ in claims):
                raise NotOwnerError("given up meanwhile")
            offsets = {
                TopicPartition(topic, partition.number): OffsetAndMetadata(position, metadata)
                for partition, position, metadata in claims
            }
            try:
                await asyncio.wait_for(consumer.commit(offsets), COMMIT_SECONDS)
            except (CommitFailedError, IllegalStateError) as error:
                raise NotOwnerError(repr(error)) from error
            except (KafkaError, TimeoutError) as error:
                raise LogError(repr(error)) from error
            self._committed.update({partition.number: (position, 0) for partition, position, _ in claims})
        return [None] * len(claims)

    async def watch_ends(self) -> None:
        """Ask again and again where partitions end, for `lag`: one that is paused is not told by fetching."""
        while True:
            try:
                await asyncio.wait_for(self._look_at_ends(), ENDS_SECONDS)
            except (KafkaError, IllegalStateError, TimeoutError) as error:
                log.debug("the ends of partitions are not known", extra={"error": repr(error)})
            await asyncio.sleep(ENDS_SECONDS)

    async def _look_at_ends(self) -> None:
        consumer = self._subscriber.consumer
        if consumer is None:
            return
        places = [TopicPartition(self._kafka.events_topic, number) for number in self._grouper.partitions]
        unknown = [place for place in places if place.partition not in self._starts]
        if unknown:
            beginnings = await consumer.beginning_offsets(unknown)
            for place in unknown:
                committed = await consumer.committed(place)
                self._starts[place.partition] = beginnings[place] if committed is None else committed
        if places:
            ends = await consumer.end_offsets(places)
            self._ends = {place.partition: end for place, end in ends.items()}

    def lag(self) -> dict[int, int]:
        """Records behind the position that may be committed, by partition; one not known yet is left out."""
        consumer = self._subscriber.consumer
        if consumer is None:
            return {}
        found = {}
        for number, partition in self._grouper.partitions.items():
            place = TopicPartition(self._kafka.events_topic, number)
            fetched = consumer.highwater(place) if place in consumer.assignment() else None
            end = max(fetched or 0, self._ends.get(number, 0))
            position = partition.watermark.position
            if position is None:
                position = self._starts.get(number)
            if position is not None and (fetched is not None or number in self._ends):
                found[number] = max(0, end - position)
        return found


class ToPoll(Protocol):
    """Asked before each poll."""

    def __call__(self) -> list[TopicPartition]:
        """Return the partitions to poll; none stands for all."""


class Polled(Protocol):
    """Told how a poll ended."""

    def __call__(self, error: KafkaError | None, *, records: bool) -> None:
        """With what it failed, if it did, and whether it brought records."""


class _Broker(KafkaBroker):
    """FastStream's broker, whose consumers are watched and connect as ours do, and whose stop ends in time.

    FastStream knows no token of OAUTHBEARER. Without brokers aiokafka waits for ever to leave its group.
    """

    def __init__(
        self,
        membership: Membership,
        connection: dict[str, Any],
        to_poll: ToPoll,
        polled: Polled,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._membership = membership
        self._arguments = connection
        self._to_poll = to_poll
        self._polled = polled

    async def _connect(self) -> Callable[..., AIOKafkaConsumer]:
        build = await super()._connect()

        def build_watched(**arguments: Any) -> AIOKafkaConsumer:
            consumer = build(**arguments | self._arguments)
            self._membership.watch(consumer)
            getmany = consumer.getmany

            async def told_getmany(**options: Any) -> Any:
                try:
                    records = await getmany(*self._to_poll(), **options)
                except KafkaError as error:
                    self._polled(error, records=False)
                    if isinstance(error, GroupAuthorizationFailedError):
                        # Its heartbeats have ended for good; only a member that joins anew has others.
                        consumer._coordinator.request_rejoin()  # noqa: SLF001 - nothing public asks for it
                    raise
                self._polled(None, records=bool(records))
                return records

            consumer.getmany = told_getmany
            return consumer

        self.config.broker_config.builder = build_watched
        return build_watched

    async def stop(self, *args: Any) -> None:
        stopping = asyncio.ensure_future(super().stop(*args))
        done, _ = await asyncio.wait({stopping}, timeout=STOP_SECONDS)
        if not done:
            log.warning("the consumer did not leave its group in time")
            stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes aiokafka's rebalances on; revocation is awaited while heartbeats go on, so it may drain."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        try:
            await self._intake.revoked([place.partition for place in revoked])
        except Exception as error:  # noqa: BLE001 - aiokafka would only log it
            self._intake._fatal(error)  # noqa: SLF001

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        try:
            await self._intake.assigned([place.partition for place in assigned])
        except Exception as error:  # noqa: BLE001 - aiokafka would only log it
            self._intake._fatal(error)  # noqa: SLF001


async def _hand_over(records: tuple[Any, ...]) -> KafkaMessage:
    return KafkaMessage(body=records, raw_message=records, headers={}, consumer=None, path={})  # type: ignore[arg-type]


async def _body(message: KafkaMessage) -> Any:
    return message.body
