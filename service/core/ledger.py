"""The ledger's rules: what one owner of a partition may conclude from the log of claims, intents and outcomes.

For each events partition there is a ledger partition that only its owner writes. The owner claims it; writes an
*intent* before each attempt and an *outcome* before anything is said of an event. Ledger offsets are dense unless
somebody else writes, and that is the fence: a foreign claim between two of one's own records means the partition
is lost. Whoever takes over reads the log from a bookmark kept in the commit's metadata and knows of each event
whether it is settled, of each conversation which attempt is open, and which item id was newest.

Pure: no Kafka, no clock. `docs/delivery.md` has the protocol whole, and what each crash leads to; each rule is
there because a model of the protocol lost or doubled messages without it, and `tests/model` shows it of this code.
"""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.core.model import Dead

NO_CLAIM = -1
"""The claim in force before the first one ever."""
BOOKMARK_FORM = "1"
"""What a bookmark begins with; `service.kafka.above` writes the text of positions without a ledger."""

Mention = tuple[int, str]
"""An event as the ledger names it: its offset in the events partition, and a digest of its record.

The digest is compared when the event is fetched: topics are recreated and offsets used again.
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """An owner takes over; ``offset`` (its own place in the ledger) names the ownership.

    ``timestamp`` of a record is the broker's clock in milliseconds, ``None`` where the broker did not set it:
    the clocks of two owners cannot be compared.
    """

    offset: int
    timestamp: int | None
    group: str = ""
    topic: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """An attempt is about to be made with exactly these events, behind the item ``after`` (``""``: none yet)."""

    offset: int
    timestamp: int | None
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
    timestamp: int | None
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
    """What the log says of the time before a claim, folded record by record in the order of offsets.

    ``current`` is the claim in force, at first the one in force where reading begins. ``position`` is where the
    events partition will be read from: what is said of events below it is of no use any more.
    """

    current: int = NO_CLAIM
    position: int = 0
    open: dict[str, Intent] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    settled: dict[int, Settled] = field(default_factory=dict)
    mentions: list[tuple[int, int]] = field(default_factory=list)
    """Where the log first mentions an event above all it mentioned before, and which: see `Ownership.bookmark`."""
    claims: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.current != NO_CLAIM:
            self.claims.append(self.current)

    def take(self, record: Record) -> None:
        """Fold in the next record.

        A record of an ownership older than the one in force is void: its writer had lost the partition and did
        not know it yet. Its attempt, if it was sent at all, belongs to an intent that the next owner settled.
        """
        if isinstance(record, Claim):
            self.current = record.offset
            self.claims.append(record.offset)
            return
        if record.claim < self.current:
            return
        if record.claim > self.current:
            # Its claim lies below the bookmark.
            self.current = record.claim
            self.claims.append(record.claim)
        highest = max(offset for offset, _ in record.events)
        if highest >= self.position and (not self.mentions or highest > self.mentions[-1][1]):
            self.mentions.append((record.offset, highest))
        self.after[record.conversation_id] = record.after
        if isinstance(record, Intent):
            self.open[record.conversation_id] = record
            return
        self.open.pop(record.conversation_id, None)
        ids = record.ids or ("",) * len(record.events)
        for index, ((offset, digest), item_id) in enumerate(zip(record.events, ids, strict=True)):
            if offset >= self.position:
                self.settled[offset] = Settled(digest, item_id, record.dead, len(record.events), index, record.attempts)


def fold(records: Iterable[Record], claim_in_force: int = NO_CLAIM, position: int = 0) -> Past:
    """Fold the log from the bookmark on."""
    past = Past(claim_in_force, position)
    for record in records:
        past.take(record)
    return past


def age_seconds(intent: Intent, claim: Claim) -> float:
    """How long before ``claim`` the attempt of ``intent`` began, as far as is known: never more than the truth."""
    if intent.timestamp is None or claim.timestamp is None:
        return 0.0
    return max(0, claim.timestamp - intent.timestamp) / 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets ``[start, end)`` between two of our acknowledgements: they have to be read before anything goes on."""

    start: int
    end: int


class Ownership:
    """One claim on one partition, from its acknowledgement to its loss."""

    __slots__ = ("_claims", "_highest", "_mentions", "_read_before_acknowledged", "claim", "lost", "next")

    def __init__(self, claim: int, past: Past) -> None:
        self.claim = claim
        self.next = claim + 1
        """The least ledger offset that none of our records has been acknowledged at or above."""
        self.lost = False
        self._mentions = deque(past.mentions)
        self._highest = past.mentions[-1][1] if past.mentions else -1
        self._claims = sorted({*past.claims, claim})
        self._read_before_acknowledged: set[int] = set()

    def about_to_write(self, highest: int) -> None:
        """Note, before a record is produced whose highest event is this, the least place where it can come to lie."""
        if highest > self._highest:
            self._highest = highest
            self._mentions.append((self.next, highest))

    def acknowledged(self, offset: int) -> Gap | None:
        """Note the place of one of our records; returns what to read, and tell `gap_read`, before it counts."""
        if self.lost:
            return None
        if offset == self.next:
            self.next = offset + 1
            return None
        if offset > self.next:
            return Gap(self.next, offset)
        if offset in self._read_before_acknowledged:
            # Two acknowledgements that changed places; it was read as ours, with no claim before it.
            self._read_before_acknowledged.discard(offset)
            return None
        # A place we have passed: an answer to another life of the topic, or none at all (-1).
        self.lost = True
        return None

    def gap_read(self, gap: Gap, records: Iterable[Record]) -> None:
        """Judge what lies in a gap: a claim means that the partition is lost."""
        ours: set[int] = set()
        for record in records:
            if isinstance(record, Claim):
                self.lost = True
                return
            if record.claim == self.claim:
                ours.add(record.offset)
        self._read_before_acknowledged |= ours
        self.next = max(self.next, gap.end + 1)

    def bookmark(self, committed: int) -> tuple[int, int]:
        """Where the next owner must begin to read, and which claim is in force there.

        The first is the least place that mentions an event at or above the committed offset. A record whose highest
        event is not above that of all records before it is never the first to do so: it need not be remembered.
        """
        mentions = self._mentions
        while mentions and mentions[0][1] < committed:
            mentions.popleft()
        start = mentions[0][0] if mentions else self.next
        index = bisect.bisect_right(self._claims, start) - 1
        return start, self._claims[index] if index >= 0 else NO_CLAIM


def write_bookmark(start: int, claim_in_force: int) -> str:
    """The commit's metadata, at most 50 bytes; other text may follow it, after a space."""
    return f"{BOOKMARK_FORM}:{start}:{claim_in_force}"


def read_bookmark(metadata: str) -> tuple[int, int] | None:
    """Read a commit's metadata; ``None`` when it is no bookmark, and the ledger has to be read from its beginning."""
    match metadata.partition(" ")[0].split(":"):
        case [form, start, claim] if form == BOOKMARK_FORM and start.isdecimal() and claim.lstrip("-").isdecimal():
            return int(start), int(claim)
    return None
