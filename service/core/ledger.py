"""The ledger's rules: what one owner of a partition may conclude from the log of claims, intents and outcomes.

For each events partition there is a ledger partition that only its owner writes. The owner claims it; writes an
*intent* before each attempt and an *outcome* before anything is said of an event. Ledger offsets are dense unless
somebody else writes, and that is the fence: a foreign claim between two of one's own records means the partition
is lost. Whoever takes over reads the log from a bookmark kept in the commit's metadata and knows of each event
whether it is settled, of each conversation which attempt is open, and which item id was newest.

Pure: no Kafka, no clock. `docs/delivery.md` has the protocol whole, and what each crash leads to; each rule is
there because a model of the protocol lost or doubled messages without it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.core.model import Dead

NO_CLAIM = -1
"""The claim in force before the first one ever."""

Mention = tuple[int, str]
"""An event as the ledger names it: its offset in the events partition, and a digest of its record.

The digest is compared when the event is fetched: topics are recreated and offsets used again.
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """An owner takes over; ``offset`` (its own place in the ledger) names the ownership."""

    offset: int
    timestamp: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """An attempt is about to be made with exactly these events, behind the item ``after`` (``""``: none yet)."""

    offset: int
    timestamp: int
    claim: int
    conversation_id: str
    after: str
    events: tuple[Mention, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """These events are settled: stored under ``ids``, or ``dead``.

    It closes the conversation's intent: events of the intent that it does not name were certainly not stored.
    """

    offset: int
    timestamp: int
    claim: int
    conversation_id: str
    after: str
    events: tuple[Mention, ...]
    ids: tuple[str, ...] = ()
    dead: Dead | None = None
    attempts: int = 0


Record = Claim | Intent | Outcome


@dataclass(frozen=True, slots=True)
class Settled:
    """What the ledger knows of one settled event: the item's id, or why it is dead."""

    digest: str
    item_id: str
    dead: Dead | None
    batch_size: int
    index: int
    attempts: int


@dataclass(slots=True)
class Past:
    """What the log says of the time before a claim."""

    open: dict[str, Intent] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    settled: dict[int, Settled] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    claims: list[int] = field(default_factory=list)


def fold(records: Iterable[Record], claim_in_force: int) -> Past:
    """Fold the log from the bookmark on, in offset order.

    A record of an ownership older than the one in force is void: its writer had lost the partition and did not
    know it yet. Its attempt, if it was sent at all, belongs to an intent that the next owner settled.
    """
    past = Past()
    current = claim_in_force
    for record in records:
        if isinstance(record, Claim):
            current = record.offset
            past.claims.append(record.offset)
            continue
        if record.claim < current:
            continue
        current = record.claim
        for offset, _ in record.events:
            past.first.setdefault(offset, record.offset)
        past.after[record.conversation_id] = record.after
        if isinstance(record, Intent):
            past.open[record.conversation_id] = record
            continue
        past.open.pop(record.conversation_id, None)
        ids = record.ids or ("",) * len(record.events)
        for index, ((offset, digest), item_id) in enumerate(zip(record.events, ids, strict=True)):
            past.settled[offset] = Settled(digest, item_id, record.dead, len(record.events), index, record.attempts)
    return past


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets ``[start, end)`` that somebody else wrote: they have to be read before anything goes on."""

    start: int
    end: int


class Ownership:
    """One claim on one partition, from its acknowledgement to its loss."""

    __slots__ = ("_claims", "_first", "claim", "lost", "next")

    def __init__(self, claim: int, past: Past, claim_in_force: int) -> None:
        self.claim = claim
        self.next = claim + 1
        """The least ledger offset that none of our records has been acknowledged at or above."""
        self.lost = False
        self._first = dict(past.first)
        self._claims = sorted({claim_in_force, *past.claims, claim} - {NO_CLAIM})

    def about_to_write(self, offsets: Iterable[int]) -> None:
        """Note, before a record about these events is produced, the least place where it can come to lie."""
        for offset in offsets:
            self._first.setdefault(offset, self.next)

    def acknowledged(self, offset: int) -> Gap | None:
        """Note the place of our next record; returns what lies between, to be read and told by `gap_read`.

        Acknowledgements must be told in the order of their offsets.
        """
        if self.lost:
            return None
        if offset == self.next:
            self.next = offset + 1
            return None
        if offset > self.next:
            return Gap(self.next, offset)
        # A place we have passed: an answer to another life of the topic, or none at all (-1).
        self.lost = True
        return None

    def gap_read(self, gap: Gap, records: Iterable[Record]) -> None:
        """Judge what somebody else wrote: a claim means that the partition is lost."""
        if any(isinstance(record, Claim) for record in records):
            self.lost = True
        else:
            self.next = gap.end + 1

    def bookmark(self, committed: int) -> tuple[int, int]:
        """Where the next owner must begin to read, and which claim is in force there.

        The first is the least place that mentions an event at or above the committed offset.
        """
        self._first = {offset: place for offset, place in self._first.items() if offset >= committed}
        start = min(self._first.values(), default=self.next)
        start = min(start, self.next)
        index = bisect.bisect_right(self._claims, start) - 1
        return start, self._claims[index] if index >= 0 else NO_CLAIM


def write_bookmark(start: int, claim_in_force: int) -> str:
    """The commit's metadata, at most 50 bytes."""
    return f"1:{start}:{claim_in_force}"


def read_bookmark(metadata: str) -> tuple[int, int] | None:
    """Read a commit's metadata; ``None`` when there is none.

    Raises:
        ValueError: somebody else writes metadata for this group.
    """
    if not metadata:
        return None
    version, start, claim = metadata.split(":")
    if version != "1":
        raise ValueError(f"bookmark of version {version}")
    return int(start), int(claim)


def first_waiting_match(intent: Intent, waiting: Sequence[Mention]) -> bool | None:
    """Whether the first events that wait are those of an open intent; ``None`` while too few wait to tell."""
    for expected, found in zip(intent.events, waiting, strict=False):
        if expected != found:
            return False
    return True if len(waiting) >= len(intent.events) else None
