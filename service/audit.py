"""The audit: one function that judges a whole run from all sides.

Given what was published, what the API holds, the replies, the dead letters and the committed positions, it
says what was lost, doubled, out of order, answered wrongly or committed too early. It trusts none of the
service's own counters. Demo, integration, fault and bench runs all end in it.

Items are told apart by role and content, so runs that are to be judged give each event a text of its own;
where texts repeat within a conversation they are counted, not told apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

SAMPLES = 5


class Place(NamedTuple):
    """Where a record lies in the events topic."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event as it lies in the log. ``conversation_id`` is ``None`` for a record that is no valid event."""

    place: Place
    conversation_id: str | None
    content: Hashable = None


@dataclass(frozen=True, slots=True)
class HeldItem:
    """An item as the API holds it."""

    id: str
    content: Hashable


@dataclass(frozen=True, slots=True)
class SeenReply:
    """A reply, in the order read; ``item_id`` is empty where the reply came without its item."""

    place: Place
    conversation_id: str
    status: str
    item_id: str


@dataclass(frozen=True, slots=True)
class SeenDeadLetter:
    """A dead letter."""

    place: Place
    reason: str


@dataclass(slots=True)
class Finding:
    """How often a rule was broken, and where first."""

    count: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, sample: object) -> None:
        """Note one case."""
        self.count += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(str(sample))


@dataclass(slots=True)
class Report:
    """What the audit found. `content` is the verdict on a run that is over and drained."""

    events: int = 0
    delivered: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    lost: Finding = field(default_factory=Finding)
    """Events without any outcome, or answered as delivered and not held by the API."""
    duplicated: Finding = field(default_factory=Finding)
    """Items the API holds more often than they were published."""
    out_of_order: Finding = field(default_factory=Finding)
    """Items of a conversation that stand before one published earlier on the same partition."""
    wrong_replies: Finding = field(default_factory=Finding)
    """Replies that name another item than the API holds, or an event nobody published."""
    replies_out_of_order: Finding = field(default_factory=Finding)
    without_item: int = 0
    """Replies of deliveries that do not hold their item: the broker found them too large."""
    duplicate_replies: Finding = field(default_factory=Finding)
    """Allowed (replies are published at least once), but counted."""
    duplicate_dead_letters: Finding = field(default_factory=Finding)
    both: Finding = field(default_factory=Finding)
    """Events delivered and dead-lettered."""
    foreign: Finding = field(default_factory=Finding)
    """Items of a conversation that nobody published."""
    positions_ahead: Finding = field(default_factory=Finding)
    """Committed positions past an event without outcome."""
    uncommitted: int = 0
    """Events with an outcome that lie at or above the committed position."""

    @property
    def content(self) -> bool:
        """Whether every guarantee held."""
        findings = (
            self.lost,
            self.duplicated,
            self.out_of_order,
            self.wrong_replies,
            self.replies_out_of_order,
            self.both,
            self.foreign,
            self.positions_ahead,
        )
        return not any(finding.count for finding in findings)

    def lines(self) -> list[tuple[str, str]]:
        """The report for people: what, and how many."""
        dead = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dead_letters.items()))
        rows: list[tuple[str, str]] = [
            ("events", str(self.events)),
            ("delivered", str(self.delivered)),
            ("replies", f"{self.replies}{f' ({self.without_item} without item)' if self.without_item else ''}"),
            ("dead letters", f"{self.dead_letters.total()}{f' ({dead})' if dead else ''}"),
        ]
        for name in (
            "lost",
            "duplicated",
            "out_of_order",
            "wrong_replies",
            "replies_out_of_order",
            "both",
            "foreign",
            "positions_ahead",
            "duplicate_replies",
            "duplicate_dead_letters",
        ):
            finding: Finding = getattr(self, name)
            label = {"both": "delivered and dead"}.get(name, name.replace("_", " "))
            rows.append((label, f"{finding.count}{f'  {finding.samples}' if finding.samples else ''}"))
        rows.append(("not committed", str(self.uncommitted)))
        return rows


def audit(
    events: Iterable[PublishedEvent],
    held: Mapping[str, Iterable[HeldItem]],
    replies: Iterable[SeenReply],
    dead_letters: Iterable[SeenDeadLetter],
    positions: Mapping[int, int],
) -> Report:
    """Judge a run. ``positions`` maps partitions to committed offsets; those without one are at 0."""
    report = Report()
    by_place = {event.place: event for event in events}
    report.events = len(by_place)
    dead = _judge_dead_letters(report, by_place, dead_letters)
    items = {conversation_id: list(of_one) for conversation_id, of_one in held.items()}
    answered = _judge_replies(report, by_place, replies, items)
    for place, event in by_place.items():
        if place in answered and place in dead:
            report.both.add(place)
        elif place in answered:
            report.delivered += 1
        elif place not in dead:
            report.lost.add(("no outcome", event.place))
    _judge_conversations(report, by_place, answered, items)
    _judge_positions(report, by_place, answered.keys() | dead.keys(), positions)
    return report


def _judge_dead_letters(
    report: Report, events: Mapping[Place, PublishedEvent], dead_letters: Iterable[SeenDeadLetter]
) -> dict[Place, str]:
    dead: dict[Place, str] = {}
    for letter in dead_letters:
        if letter.place not in events:
            report.wrong_replies.add(("dead letter of nothing published", letter.place))
        elif letter.place in dead:
            report.duplicate_dead_letters.add(letter.place)
        else:
            dead[letter.place] = letter.reason
            report.dead_letters[letter.reason] += 1
    return dead


def _judge_replies(
    report: Report,
    events: Mapping[Place, PublishedEvent],
    replies: Iterable[SeenReply],
    items: Mapping[str, list[HeldItem]],
) -> dict[Place, SeenReply]:
    answered: dict[Place, SeenReply] = {}
    newest: dict[tuple[str, int], int] = {}
    contents = {item.id: item.content for of_one in items.values() for item in of_one}
    for reply in replies:
        event = events.get(reply.place)
        if event is None or event.conversation_id != reply.conversation_id:
            report.wrong_replies.add(("reply of nothing published", reply.place))
            continue
        if reply.status != "delivered":
            continue
        report.replies += 1
        if reply.place in answered:
            report.duplicate_replies.add(reply.place)
            continue
        answered[reply.place] = reply
        if not reply.item_id:
            report.without_item += 1
        elif contents.get(reply.item_id) != event.content:
            report.wrong_replies.add(("names another item", reply.place, reply.item_id))
        lane = (reply.conversation_id, reply.place.partition)
        if newest.get(lane, -1) > reply.place.offset:
            report.replies_out_of_order.add(reply.place)
        newest[lane] = max(newest.get(lane, -1), reply.place.offset)
    return answered


def _judge_conversations(
    report: Report,
    events: Mapping[Place, PublishedEvent],
    answered: Mapping[Place, SeenReply],
    items: Mapping[str, list[HeldItem]],
) -> None:
    published: dict[str, dict[Hashable, list[Place]]] = defaultdict(lambda: defaultdict(list))
    # What was given up and sent again lies at two places; the item held is that of the one that was answered.
    for place in sorted(events, key=lambda place: (place not in answered, place)):
        event = events[place]
        if event.conversation_id is not None:
            published[event.conversation_id][event.content].append(place)
    for conversation_id, by_content in published.items():
        seen: Counter[Hashable] = Counter()
        newest: dict[int, int] = {}
        for item in items.get(conversation_id, ()):
            places = by_content.get(item.content)
            if places is None:
                report.foreign.add((conversation_id, item.id))
                continue
            copy = seen[item.content]
            seen[item.content] += 1
            if copy >= len(places):
                report.duplicated.add((conversation_id, places[0], item.id))
                continue
            place = places[copy]
            if newest.get(place.partition, -1) > place.offset:
                report.out_of_order.add((conversation_id, place))
            newest[place.partition] = max(newest.get(place.partition, -1), place.offset)
        for content, places in by_content.items():
            missing = sum(place in answered for place in places) - seen[content]
            if missing > 0:
                report.lost.add((f"{missing} answered and not held", conversation_id, places[0]))


def _judge_positions(
    report: Report,
    events: Mapping[Place, PublishedEvent],
    settled: Iterable[Place],
    positions: Mapping[int, int],
) -> None:
    settled = set(settled)
    for place in sorted(events):
        committed = positions.get(place.partition, 0)
        if place not in settled and place.offset < committed:
            report.positions_ahead.add((place, f"committed {committed}"))
        elif place in settled and place.offset >= committed:
            report.uncommitted += 1
