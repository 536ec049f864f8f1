"""The ledger of the partitions this process owns: claims, intents and outcomes, written and read back.

The rules are `service.core.ledger`'s; here they are carried out over a log that can append, read and tell its
bounds (`service.kafka.ledger_log` is Kafka's). Anything that goes wrong with a write means that the partition is
lost: its object is dead, nothing more is written, replied or committed for it, and if it is still assigned it is
taken over anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec

from service.core.delivery import Delivered
from service.core.ledger import (
    NO_CLAIM,
    Claim,
    Intent,
    Outcome,
    Ownership,
    Past,
    age_seconds,
    read_bookmark,
    write_bookmark,
)
from service.core.model import Dead, Reason
from service.core.readback import item_id
from service.kafka import above
from service.settings import INTENT_FRESH_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

    from typing_extensions import Buffer

    from service.core.delivery import Outcome as Decided
    from service.core.grouper import Partition
    from service.core.ledger import Record
    from service.core.model import Batch, Event
    from service.core.readback import Cursors
    from service.kafka import codec
    from service.ops.metrics import Metrics
    from service.settings import KafkaSettings

log = logging.getLogger(__name__)


class LogError(Exception):
    """The log does not answer, or refuses: what was asked may be tried again."""


class LedgerStoppedError(Exception):
    """A partition cannot be taken over until an operator has decided something; ``reason`` is a short word.

    ``claimed``: asking again would write one more claim.
    """

    def __init__(self, reason: str, detail: str, *, claimed: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.claimed = claimed


class NotOwnerError(Exception):
    """The group does not let this process commit: the partition is, or is about to be, somebody else's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record of the log. ``timestamp`` is the broker's clock in milliseconds, ``None`` where a producer set it."""

    offset: int
    timestamp: int | None
    value: bytes


class LedgerLog(Protocol):
    """What the ledger needs of Kafka. Every method ends in bounded time and raises `LogError`, nothing else."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Close every connection."""

    async def twins(self) -> frozenset[int]:
        """The partitions that the ledger topic has."""

    async def committed(self, number: int) -> tuple[int, str]:
        """The group's position in an events partition and the text beside it, from one answer; -1 without one."""

    async def bounds(self, number: int) -> tuple[int, int]:
        """Where a ledger partition begins, and where the next record will lie."""

    def append(self, number: int, value: bytes, *, patient: bool = False) -> Awaitable[tuple[int, int | None]]:
        """Write a record; awaited, its offset and timestamp once all in-sync replicas have it.

        One that is ``patient`` may wait a moment for others that share its request.

        After an error nothing that was under way may be taken for written.
        """

    async def distrust(self) -> None:
        """Write what follows by other means: an answer showed that those in use are not to be trusted."""

    def read(self, number: int, start: int, end: int) -> AsyncGenerator[Sequence[Stored], None]:
        """Read the records in ``[start, end)``, in order."""


class _Line(msgspec.Struct, omit_defaults=True):
    """A record of the topic, in its short names."""

    k: str
    v: int = 0
    group: str = ""
    topic: str = ""
    owner: str = ""
    c: int = NO_CLAIM
    conv: str = ""
    after: str | None = None
    ev: list[tuple[int, str]] = []
    ids: list[str] = []
    dead: _DeadLine | None = None
    n: int = 0


class _Written(msgspec.Struct, omit_defaults=True):
    """An intent or an outcome on its way to the topic: what both mention of the same events is encoded once."""

    k: str
    c: int
    conv: str
    after: str
    ev: msgspec.Raw
    ids: list[str] = []
    dead: _DeadLine | None = None
    n: int = 0


class _DeadLine(msgspec.Struct):
    reason: Reason
    code: str
    message: str
    status: int | None
    attempts: int
    fate: str = "not_stored"


VERSION = 1
_decode_line = msgspec.json.Decoder(_Line).decode
_encode_line = msgspec.json.Encoder().encode


@dataclass(slots=True)
class TakenOver:
    """A partition with its past: where to go on reading, and what an earlier owner left.

    ``started`` is, by conversation and in the clock of this process, when its open attempt began at the latest.
    ``before`` are offsets above the position that were settled by then.
    """

    position: int
    ownership: Ownership
    past: Past
    started: dict[str, float]
    before: set[int]


class _Owned(Ownership):
    """An ownership, and what keeps its gaps from being read twice at once."""

    __slots__ = ("by_broker", "reading")

    def __init__(self, claim: Claim, past: Past) -> None:
        super().__init__(claim.offset, past)
        self.reading = asyncio.Lock()
        self.by_broker = claim.timestamp is not None
        """Whether acknowledgements carry the broker's time; one that does not then carries no offset either."""


_new_digest = hashlib.blake2b(digest_size=8).copy
"""A copy costs half of what a new one does."""


def digest_of(record: codec.Record) -> str:
    """What tells a record from another at the same offset of a topic made anew."""
    key = record.key
    key_bytes = -1 if key is None else len(key)
    digest = _new_digest()
    digest.update(b"%d %d %b%b" % (record.timestamp, key_bytes, key or b"", record.value or b""))
    return digest.hexdigest()


class Ledger:
    """The ledger of all partitions this process owns."""

    def __init__(
        self,
        settings: KafkaSettings,
        ledger_log: LedgerLog,
        cursors: Cursors,
        metrics: Metrics,
        *,
        lost: Callable[[Partition], None],
        clock: Callable[[], float],
        boot_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._log = ledger_log
        self._cursors = cursors
        self._metrics = metrics
        self._lost = lost
        self._clock = clock
        self._boot_clock = boot_clock
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._written = {kind: metrics.counter("ledger_records_total", kind) for kind in ("claim", "intent", "outcome")}

    async def start(self) -> None:
        """Connect.

        Raises:
            LogError: no broker answers.
        """
        await self._log.start()

    async def stop(self) -> None:
        """Close the connections."""
        await self._log.stop()

    # Taking over

    async def take_over(
        self, partition: Partition, beginning: int, commit: Callable[[Partition, int, str], Awaitable[None]]
    ) -> TakenOver | None:
        """Claim ``partition`` and learn its past; ``None`` when it was given up meanwhile.

        ``beginning`` is where the events partition begins. ``commit`` must commit an offset with metadata, or
        raise `NotOwnerError` or `LogError`.

        Raises:
            LedgerStoppedError: an operator has to decide.
            NotOwnerError: somebody else owns it, or will in a moment.
            LogError: the broker does not answer; try again.
        """
        number = partition.number
        if number not in await self._log.twins():
            raise LedgerStoppedError("ledger_twin_missing", f"{self._settings.ledger_topic} has no partition {number}")
        committed, text = await self._log.committed(number)
        position = max(committed, beginning)
        before = {offset for offset in above.read(committed, text) if offset >= position}
        start, in_force, whole = await self._where_to_begin(number, text)
        if _given_up(partition):
            return None
        line = _Line("claim", VERSION, self._settings.group_id, self._settings.events_topic, self._owner)
        claim = Claim(*await self._append(number, line))
        asked = self._clock()
        past = Past(in_force, position)
        async with contextlib.aclosing(self._read(number, start, claim.offset)) as records:
            async for record in records:
                if isinstance(record, Claim):
                    self._check_claim(number, record)
                past.take(record)
        ownership = _Owned(claim, past)
        if _given_up(partition):
            return None
        await commit(partition, position, _text(ownership, position, before))
        if whole:
            for conversation_id, after in past.after.items():
                if conversation_id not in past.open:
                    self._cursors.learn(conversation_id, after)
        started = {conversation_id: asked - age_seconds(intent, claim) for conversation_id, intent in past.open.items()}
        self._metrics.counter("ledger_recoveries_total", "open_intents" if past.open else "clean").inc()
        log.info(
            "partition taken over",
            extra={
                "partition": number,
                "claim": claim.offset,
                "read": claim.offset - start,
                "open_intents": len(past.open),
            },
        )
        return TakenOver(position, ownership, past, started, before)

    async def _where_to_begin(self, number: int, text: str) -> tuple[int, int, bool]:
        """Where to begin to read, the claim in force there, and whether nothing is missing from there on.

        Where something may be missing (the ledger was off for a while, or lost records) its cursors are not the
        newest any more, and behind an old one an older message in the same words would be taken for the next.
        """
        begins, ends = await self._log.bounds(number)
        bookmark = read_bookmark(text)
        if bookmark is None:
            return begins, NO_CLAIM, False
        if begins <= bookmark[0] <= ends:
            return *bookmark, True
        gap = f"{self._settings.ledger_topic}-{number} holds [{begins}, {ends}), and has to be read from {bookmark[0]}"
        accepted_until = self._settings.ledger_accept_gap
        if accepted_until is None or datetime.now(UTC) > accepted_until:
            raise LedgerStoppedError("ledger_gap", gap)
        log.error("a gap in the ledger is accepted: messages may be stored twice", extra={"gap": gap})
        return begins, NO_CLAIM, False

    def _check_claim(self, number: int, claim: Claim) -> None:
        if (claim.group, claim.topic) != (self._settings.group_id, self._settings.events_topic):
            raise LedgerStoppedError(
                "ledger_shared",
                f"{self._settings.ledger_topic}-{number} was claimed for group {claim.group}, topic {claim.topic}: "
                "a ledger serves one group and one topic",
                claimed=True,
            )

    # The two seams of the pump

    async def before_attempt(self, batch: Batch) -> Callable[[], bool] | None:
        """Record that ``batch`` is about to be sent behind its cursor.

        Returns what is to be asked before the first byte leaves, or ``None``: it must not be sent, its partition is
        lost. A process that was stopped meanwhile, and woken, must not send: its intent is too old by then.
        """
        partition = batch.lane.partition
        if not partition.alive:
            return None
        ownership = partition.ownership
        assert ownership is not None
        assert batch.after is not None, "with a ledger a cold conversation's cursor is read first"
        began = self._boot_clock()
        if batch.mentions is None:
            batch.mentions = _mentions(batch.events)
        line = _Written("intent", ownership.claim, batch.conversation_id, batch.after, batch.mentions)
        if not await self._write(partition, line, batch.events[-1].offset):
            return None
        return lambda: not ownership.lost and partition.alive and self._boot_clock() - began <= INTENT_FRESH_SECONDS

    async def after_outcome(self, batch: Batch, outcomes: Sequence[Decided]) -> None:
        """Record what became of events; where that fails, their partition is lost: it is not ``alive`` any more."""
        partition, mentions = batch.lane.partition, batch.mentions
        for outcome in outcomes:
            if not partition.alive:
                return
            ownership = partition.ownership
            assert ownership is not None
            ids = _item_ids(outcome.items) if isinstance(outcome, Delivered) else []
            newest = self._cursors.get(batch.conversation_id)
            if newest is None:
                # Not remembered any more: what was just stored, or what the attempt was sent behind, is as new.
                newest = next(filter(None, reversed(ids)), batch.after or "")
            line = _Written(
                "outcome",
                ownership.claim,
                batch.conversation_id,
                newest,
                mentions if mentions and outcome.events is batch.events else _mentions(outcome.events),
                ids=ids,
                dead=None if isinstance(outcome, Delivered) else _dead_line(outcome.dead),
                n=batch.attempts,
            )
            if not await self._write(partition, line, outcome.events[-1].offset):
                return

    @staticmethod
    def metadata(partition: Partition, position: int, before: Collection[int]) -> str:
        """The text to commit with ``position``; ``before`` are offsets above it that are settled."""
        ownership = partition.ownership
        return _text(ownership, position, before) if ownership is not None else ""

    # Writing

    async def _write(self, partition: Partition, line: _Written, highest: int) -> bool:
        """Write a record whose highest event is this; returns whether it counts.

        It does when it is acknowledged with no foreign claim before it.
        """
        ownership = partition.ownership
        assert isinstance(ownership, _Owned)
        ownership.about_to_write(highest)
        try:
            offset, timestamp = await self._append(partition.number, line)
            if ownership.by_broker and timestamp is None:
                raise LogError(f"acknowledged without the broker's time, at {offset}")  # noqa: TRY301
            if offset == ownership.next and not ownership.reading.locked():
                ownership.acknowledged(offset)
            else:
                await self._close_gap(partition.number, ownership, offset)
            if ownership.lost and offset < ownership.next:
                await self._log.distrust()
        except (LogError, LedgerStoppedError) as error:
            ownership.lost = True
            log.warning("a ledger write failed", extra={"partition": partition.number, "error": str(error)})
        if ownership.lost and partition.alive and partition.ownership is ownership:
            partition.ownership = None
            self._metrics.counter("ledger_recoveries_total", "lost").inc()
            self._lost(partition)
        return partition.alive and not ownership.lost

    async def _close_gap(self, number: int, ownership: _Owned, offset: int) -> None:
        """Note an acknowledgement that does not follow the last one, or comes while a gap is read."""
        async with ownership.reading:
            gap = ownership.acknowledged(offset)
            if gap is not None:
                found = [record async for record in self._read(number, gap.start, gap.end)]
                ownership.gap_read(gap, found)

    async def _append(self, number: int, line: _Line | _Written) -> tuple[int, int | None]:
        offset, timestamp = await self._log.append(number, _encode_line(line), patient=line.k == "outcome")
        if offset < 0:
            # The broker knows the record and not its place any more.
            await self._log.distrust()
            raise LogError("acknowledged without an offset")
        self._written[line.k].inc()
        return offset, timestamp

    # Reading

    async def _read(self, number: int, start: int, end: int) -> AsyncGenerator[Record, None]:
        if start >= end:
            return
        async with contextlib.aclosing(self._log.read(number, start, end)) as found:
            async for records in found:
                for stored in records:
                    try:
                        yield read_record(stored)
                    except (msgspec.DecodeError, ValueError) as error:
                        place = f"{self._settings.ledger_topic}-{number} at {stored.offset}"
                        raise LedgerStoppedError("ledger_unreadable", f"{place}: {error}", claimed=True) from error


def read_record(stored: Stored) -> Record:
    """Read one record of the topic.

    Raises:
        ValueError, msgspec.DecodeError: it is none of ours, or of a later version.
    """
    line = _decode_line(stored.value)
    if line.k == "claim":
        if line.v != VERSION:
            raise ValueError(f"a claim of version {line.v}")
        return Claim(stored.offset, stored.timestamp, line.group, line.topic, line.owner)
    if line.k not in {"intent", "outcome"} or not line.ev or line.after is None:
        raise ValueError(f"no claim, intent or outcome: {line.k}")
    place = (stored.offset, stored.timestamp, line.c, line.conv, line.after, tuple(line.ev))
    if line.k == "intent":
        return Intent(*place)
    dead = line.dead
    if dead is None:
        if len(line.ids) != len(line.ev):
            raise ValueError("an outcome that does not name an item for each event")
        return Outcome(*place, tuple(line.ids), None, line.n)
    told = Dead(dead.reason, dead.code, dead.message, dead.status, dead.attempts, dead.fate)
    return Outcome(*place, (), told, line.n)


def _given_up(partition: Partition) -> bool:
    return partition.draining or not partition.alive


def _text(ownership: Ownership, position: int, before: Collection[int]) -> str:
    text = write_bookmark(*ownership.bookmark(position))
    return f"{text} {above.write(position, before)}" if before else text


def _dead_line(dead: Dead) -> _DeadLine:
    return _DeadLine(dead.reason, dead.code, dead.message, dead.status, dead.attempts, dead.fate)


def _mentions(events: Sequence[Event]) -> msgspec.Raw:
    # Made only now: carried by each event from the start, digests would fill caches and memory that events need.
    return msgspec.Raw(_encode_line([(event.offset, digest_of(event)) for event in events]))


class _Identified(msgspec.Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_Identified).decode


def _item_ids(items: Sequence[Buffer]) -> list[str]:
    """The id of each item; empty where it has none."""
    try:
        return [_decode_id(item).id for item in items]
    except msgspec.ValidationError:
        return [item_id(item) for item in items]
