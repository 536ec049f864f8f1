"""The grouper, its partitions and their positions, driven through any interleaving beside a simple model.

The model stands where Kafka and the pump would stand: it keeps the log of each partition, the committed offset
and what has an outcome; after a revoke it reads again from there. It knows of a conversation only plain lists
and from these says what is due since when. No states, no queue, no heap: nothing of what it judges.

``HYPOTHESIS_PROFILE=long`` looks much longer; ``mutants`` is the same search every time (`tests/mutants.py`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.core.grouper import AT_ONCE, Grouper, Partition
from service.core.model import Batch, Event, FlushReason, Unsettled

_ALWAYS = settings(deadline=None, suppress_health_check=list(HealthCheck))
PROFILE: Final = {
    "default": settings(_ALWAYS, max_examples=100, stateful_step_count=50),
    "long": settings(_ALWAYS, max_examples=1_000, stateful_step_count=100),
    "mutants": settings(
        _ALWAYS, max_examples=150, stateful_step_count=50, derandomize=True, database=None, phases=[Phase.generate]
    ),
}[os.environ.get("HYPOTHESIS_PROFILE", "default")]

PARTITIONS: Final = 3
CONVERSATIONS: Final = 7
LARGE_ITEM_BYTES: Final = 2_000
"""A share of more bytes than these is reckoned from these: then bytes are never what is short."""
NEVER: Final = float("inf")

Pattern = list[tuple[int, float, int, bool]]
"""Records to be, over and over: conversation, share of the bytes allowed, step from the last offset, decodable."""

Stamp = tuple[float, int]
"""A time, and which call it was: two things of one moment still have an order."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_items: int
    max_bytes: int
    window: float

    def __str__(self) -> str:
        return f"{self.max_items}-items-{self.max_bytes}-bytes-{self.window}s"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log. ``conversation`` is ``None`` where it is a tombstone or cannot be decoded."""

    offset: int
    conversation: str | None
    item: bytes


@dataclass(slots=True)
class Log:
    """One partition as Kafka keeps it, and what is known to the outside of its records."""

    records: list[Record] = field(default_factory=list)
    end: int = 0
    committed: int = 0
    stored: set[int] = field(default_factory=set)
    """Offsets whose outcome is stored, by whichever assignment."""


@dataclass(slots=True)
class Conversation:
    """One conversation within one assignment."""

    waiting: list[tuple[Event, Stamp]] = field(default_factory=list)
    """Read and never yet taken, each with when it was read."""
    parts: list[Batch] = field(default_factory=list)
    """Taken and without a decision; the first goes first."""
    in_flight: bool = False
    free: tuple[Stamp, Stamp] = ((-NEVER, 0), (-NEVER, 0))
    """Not to be taken before this: at the earliest, and at the latest."""
    late: float = -NEVER
    """When it came into its lane, if that was later than when it was read: until then others may go before."""

    def due(self, limits: Limits) -> tuple[Stamp, Stamp] | None:
        """Since when something should be taken: at the earliest, and at the latest."""
        if self.in_flight or not (self.parts or self.waiting):
            return None
        if self.parts:
            return self.free
        free_at, free_call = self.free[1]
        first_read, first_call = self.waiting[0][1]
        due = (max(first_read + limits.window, free_at), max(first_call, free_call))
        for count, (_, (read_at, call)) in enumerate(self.waiting, 1):
            if count >= limits.max_items or body_bytes(self.waiting[:count]) >= limits.max_bytes:
                due = min(due, (max(read_at, free_at), max(call, free_call)))
                break
        return due, (max(due[0], self.late), due[1])

    def next_cut(self, limits: Limits) -> tuple[list[int], FlushReason]:
        """What should travel next, as much as goes in one request, and what bounded it."""
        count = 1
        while count < min(len(self.waiting), limits.max_items):
            if body_bytes(self.waiting[: count + 1]) > limits.max_bytes:
                break
            count += 1
        used = body_bytes(self.waiting[:count])
        if count == limits.max_items and used <= limits.max_bytes:
            reason = FlushReason.SIZE
        elif count < len(self.waiting) or used >= limits.max_bytes:
            reason = FlushReason.BYTES
        else:
            reason = FlushReason.WINDOW
        return [event.offset for event, _ in self.waiting[:count]], reason


def body_bytes(waiting: list[tuple[Event, Stamp]]) -> int:
    return len(b'{"items":[' + b",".join(event.item for event, _ in waiting) + b"]}")


@dataclass(slots=True)
class Begun:
    """What a ledger says of an earlier owner: an attempt was under way with the first ``count`` events of one
    conversation. It turns out only once these are read whether they are still the same (``same``); until then
    they are received, and in no lane.
    """

    count: int
    same: bool
    held: list[tuple[Event, Stamp]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Assignment:
    """One partition from assign to revoke."""

    number: int
    partition: Partition
    log: Log
    fetch_offset: int
    draining: bool = False
    position: int | None = None
    received: list[int] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    conversations: dict[str, Conversation] = field(default_factory=dict)
    undecided: dict[str, list[int]] = field(default_factory=dict)
    """Offsets of each conversation in the order of the log, until it is decided what becomes of them."""
    buffered: dict[int, int] = field(default_factory=dict)
    """What is held, in bytes, by offset."""

    begun: Begun | None = None

    def next_position(self) -> int | None:
        if not self.received:
            return None
        return next((offset for offset in self.received if offset not in self.settled), self.received[-1] + 1)

    def due(self, limits: Limits) -> dict[str, tuple[Stamp, Stamp]]:
        """The conversations that may be taken, each with since when."""
        found = {}
        for name, conversation in self.conversations.items():
            of_unknown_fate = bool(conversation.parts) and conversation.parts[0].unsettled is not None
            when = conversation.due(limits)
            if when is not None and (of_unknown_fate or not self.draining):
                found[name] = when
        return found

    def busy(self) -> bool:
        return any(
            each.in_flight or any(part.unsettled is not None for part in each.parts)
            for each in self.conversations.values()
        )


@dataclass(slots=True, eq=False)
class Taken:
    """A batch in flight, of whichever assignment."""

    assignment: Assignment
    batch: Batch

    @property
    def conversation(self) -> Conversation:
        return self.assignment.conversations[self.batch.conversation_id]


@dataclass(slots=True, eq=False)
class Stored:
    """Offsets whose outcome is on its way into Kafka; ``events`` is empty for what never was one."""

    assignment: Assignment
    offsets: list[int]
    events: list[Event]


_picks = st.integers(0, 999)
_numbers = st.integers(0, PARTITIONS - 1)
_times = st.sampled_from([1, 2, 4, 12])
_permits = st.sampled_from([0, 1, 2, 50])
_patterns = st.lists(
    st.tuples(
        st.integers(0, CONVERSATIONS - 1),
        st.sampled_from([0.02, 0.05, 0.05, 0.1, 0.25, 0.5, 0.95, 1.0, 1.3]),
        st.sampled_from([1, 1, 1, 2, 40]),
        st.sampled_from([True, True, True, True, False]),
    ),
    min_size=1,
    max_size=4,
)


class AnyInterleaving(RuleBasedStateMachine):
    limits: ClassVar[Limits]

    def __init__(self) -> None:
        super().__init__()
        limits = self.limits
        self.now = 1_000.0
        self.calls = 0
        self.logs = [Log() for _ in range(PARTITIONS)]
        self.live: dict[int, Assignment] = {}
        self.dead: list[Assignment] = []
        self.in_flight: list[Taken] = []
        self.storing: list[Stored] = []
        self.grouper = Grouper(max_items=limits.max_items, max_bytes=limits.max_bytes, window_seconds=limits.window)

    def stamp(self) -> Stamp:
        self.calls += 1
        return (self.now, self.calls)

    # --- Kafka: the log, assignments, reading, positions ---

    @initialize(numbers=st.sets(_numbers, min_size=2), pattern=_patterns, times=_times)
    def start(self, numbers: set[int], pattern: Pattern, times: int) -> None:
        for number in sorted(numbers):
            self.assign(number)
            self.produce(number, pattern, times)
            self.read(self.live[number], times, at_once=True)

    @rule(
        number=_numbers,
        what=st.sampled_from(["assign", "assign", "drain", "drain", "revoke", "stop", "fenced"]),
        begun=st.none() | st.builds(Begun, st.integers(1, 4), st.booleans()),
    )
    def rebalance(self, number: int, what: str, begun: Begun | None) -> None:
        assignment = self.live.get(number)
        if assignment is None:
            self.assign(number)
            self.live[number].begun = begun
            self.read(self.live[number], 100, at_once=True)
        elif what in {"drain", "stop"}:
            self.grouper.drain(number)
            assignment.draining = True
        elif what == "revoke" or assignment.draining:
            self.commit(number)
            self.revoke(number)
        elif what == "fenced":
            # Its positions are refused, and it may be given its partition again without having let go of it.
            self.assign(number)

    def assign(self, number: int) -> None:
        if number in self.live:
            self.dead.append(self.live.pop(number))
        log = self.logs[number]
        self.live[number] = Assignment(number, self.grouper.assign(number), log, log.committed)

    def revoke(self, number: int) -> None:
        self.grouper.revoke(number)
        self.dead.append(self.live.pop(number))

    @rule()
    def commit_all(self) -> None:
        for number in self.live:
            self.commit(number)

    def commit(self, number: int) -> None:
        position = self.live[number].partition.watermark.position
        if position is None:
            return
        log = self.logs[number]
        assert position >= log.committed, "a position went back"
        lost = [record.offset for record in log.records if record.offset < position and record.offset not in log.stored]
        assert not lost, f"committed {position} over {lost}, which have no outcome"
        log.committed = position

    @precondition(lambda self: self.live)
    @rule(pick=_picks, pattern=_patterns, times=_times, permits=_permits)
    def events_arrive(self, pick: int, pattern: Pattern, times: int, permits: int) -> None:
        assignment = self.pick_live(pick)
        self.produce(assignment.number, pattern, times)
        self.read(assignment, 100, at_once=True)
        self.take(permits)

    @precondition(lambda self: self.live)
    @rule(pick=_picks, pattern=_patterns, count=st.integers(0, 5))
    def events_arrive_and_some_are_read(self, pick: int, pattern: Pattern, count: int) -> None:
        """The rest stays in the log; the dead letters of what cannot be decoded take their time."""
        assignment = self.pick_live(pick)
        self.produce(assignment.number, pattern, 1)
        self.read(assignment, count, at_once=False)

    @precondition(lambda self: self.dead)
    @rule(pick=_picks, count=st.sampled_from([1, 5]))
    def poll_came_back_after_the_revoke(self, pick: int, count: int) -> None:
        self.read(self.dead[pick % len(self.dead)], count, at_once=True)

    def produce(self, number: int, pattern: Pattern, times: int) -> None:
        log = self.logs[number]
        room = min(self.limits.max_bytes - body_bytes([]), LARGE_ITEM_BYTES)
        for conversation, share, gap, decodable in pattern * times:
            offset = log.end + gap - 1
            name = f"conv_{conversation}" if decodable else None
            log.records.append(Record(offset, name, b"x" * max(1, int(room * share))))
            log.end = offset + 1

    def read(self, assignment: Assignment, count: int, *, at_once: bool) -> None:
        """Pass on what one poll returned. ``at_once``: the dead letters of undecodable records are stored then."""
        ahead = [record for record in assignment.log.records if record.offset >= assignment.fetch_offset]
        for record in ahead[:count]:
            assignment.fetch_offset = record.offset + 1
            assignment.received.append(record.offset)
            if record.conversation is None:
                assignment.partition.watermark.received(record.offset)
                self.storing.append(Stored(assignment, [record.offset], []))
                if at_once:
                    self.store(len(self.storing) - 1)
            else:
                self.add(assignment, record, record.conversation)

    def add(self, assignment: Assignment, record: Record, name: str) -> None:
        event = Event(
            partition=assignment.number,
            offset=record.offset,
            conversation_id=name,
            event_id=str(record.offset),
            item=record.item,
            size=len(record.item) + 70,
        )
        assignment.undecided.setdefault(name, []).append(event.offset)
        assignment.buffered[event.offset] = event.size
        begun = assignment.begun
        if begun is not None and all(held.conversation_id == name for held, _ in begun.held):
            self.hold(assignment, begun, event)
            return
        conversation = assignment.conversations.setdefault(name, Conversation())
        conversation.waiting.append((event, self.stamp()))
        self.grouper.add(assignment.partition, event, self.now)

    def hold(self, assignment: Assignment, begun: Begun, event: Event) -> None:
        begun.held.append((event, self.stamp()))
        event.read_at = self.now
        assignment.partition.receive(event)
        if len(begun.held) < begun.count:
            return
        if begun.same:
            self.resume(assignment, begun)
        else:
            self.release(assignment, begun)

    def resume(self, assignment: Assignment, begun: Begun) -> None:
        """Go on where the earlier owner was: at once, whoever else is due."""
        assignment.begun = None
        events = [event for event, _ in begun.held]
        name = events[0].conversation_id
        self.grouper.resume(assignment.partition, events, Unsettled(self.now, None, last_word=False))
        conversation = assignment.conversations[name] = Conversation()
        conversation.parts = list(assignment.partition.lanes[name].parts)
        assert [list(part.events) for part in conversation.parts] == [events]
        conversation.free = ((-NEVER, 0), self.stamp())

    def release(self, assignment: Assignment, begun: Begun) -> None:
        """Nothing of an earlier owner: they wait like any other, each since it was read."""
        assignment.begun = None
        for event, (read_at, _) in begun.held:
            conversation = assignment.conversations.setdefault(event.conversation_id, Conversation())
            conversation.waiting.append((event, (read_at, self.stamp()[1])))
            conversation.late = self.now
            self.grouper.enqueue(assignment.partition, event, read_at)

    # --- Time ---

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 8.0]), permits=_permits)
    def time_passes(self, seconds: float, permits: int) -> None:
        self.now += seconds
        self.take(permits)

    def sleep_until_the_deadline(self, early: float) -> None:
        deadline = self.grouper.deadline()
        due = self.earliest_due()
        if due is not None:
            assert deadline is not None, f"due at {due}, and no deadline says so"
            assert deadline <= max(due, self.now), f"due at {due}, and the deadline is {deadline}"
        if deadline is not None:
            self.now = max(self.now, deadline - early)

    # --- The pump: permits, attempts, outcomes ---

    @rule(permits=_permits, early=st.sampled_from([0.0, 0.0, 0.125]))
    def the_pump_wakes(self, permits: int, early: float) -> None:
        self.sleep_until_the_deadline(early)
        self.take(permits)

    def take(self, permits: int) -> None:
        for _ in range(permits):
            if self.take_one() is None:
                break

    def take_one(self) -> Taken | None:
        due = self.due_now()
        self.calls += 1
        batch = self.grouper.take(self.now)
        if batch is None:
            assert not due, f"due and not given: {[(each.number, name) for each, name in due]}"
            self.check_rest()
            return None
        partition, name = batch.lane.partition, batch.conversation_id
        assignment = next((each for each in self.live.values() if each.partition is partition), None)
        assert assignment is not None, "a batch of a partition that was revoked"
        assert (assignment, name) in due, f"{name} is not due yet, is in flight or should drain"
        since = due.pop((assignment, name))[0]
        overtaken = [(each.number, other) for (each, other), (_, latest) in due.items() if latest < since]
        assert not overtaken, f"{name} overtook {overtaken}, which were due before"
        self.check_batch(assignment, assignment.conversations[name], batch)
        taken = Taken(assignment, batch)
        self.in_flight.append(taken)
        return taken

    def check_batch(self, assignment: Assignment, conversation: Conversation, batch: Batch) -> None:
        offsets = [event.offset for event in batch.events]
        assert offsets == assignment.undecided[batch.conversation_id][: len(offsets)], "out of order, or twice"
        if conversation.parts:
            assert batch is conversation.parts[0], "what was put back goes before anything new"
        else:
            expected, reason = conversation.next_cut(self.limits)
            assert offsets == expected
            assert batch.flush_reason is reason
            assert batch.waited_seconds == self.now - conversation.waiting[0][1][0]
            del conversation.waiting[: len(offsets)]
            conversation.parts = [batch]
        conversation.in_flight = True

    def check_rest(self) -> None:
        """Nothing can be taken: the deadline is the moment that ends this, or the loop would spin or sleep in."""
        deadline, due = self.grouper.deadline(), self.earliest_due()
        if any(assignment.draining for assignment in self.live.values()):
            # What drains may still wake the loop, once.
            assert deadline is None or deadline > self.now
            assert due is None or (deadline is not None and deadline <= due)
        else:
            assert deadline == due

    @precondition(lambda self: self.in_flight)
    @rule(pick=_picks, store=st.sampled_from(["before", "at once", "later"]), permits=_permits)
    def every_item_has_its_outcome(self, pick: int, store: str, permits: int) -> None:
        self.done(pick, store)
        self.take(permits)

    def done(self, pick: int, store: str) -> None:
        taken = self.in_flight.pop(pick % len(self.in_flight))
        conversation, batch = taken.conversation, taken.batch
        self.decide(taken, list(batch.events))
        if store == "before":
            self.store(-1)
        conversation.in_flight = False
        del conversation.parts[0]
        at = self.stamp()
        conversation.free = (at, at)
        self.grouper.done(batch, self.now)
        self.forget_if_idle(taken)
        if store == "at once":
            self.store(-1)

    @precondition(lambda self: self.in_flight)
    @rule(
        pick=_picks,
        delay=st.sampled_from([0.0, 0.25, 1.0, 5.0, 20.0, -0.5, AT_ONCE]),
        unknown_fate=st.booleans(),
        permits=_permits,
    )
    def the_same_batch_again(self, pick: int, delay: float, unknown_fate: bool, permits: int) -> None:
        taken = self.in_flight.pop(pick % len(self.in_flight))
        conversation, batch = taken.conversation, taken.batch
        batch.unsettled = Unsettled(self.now, None, last_word=False) if unknown_fate else None
        conversation.in_flight = False
        now, call = self.stamp()
        at = now + delay
        if at == AT_ONCE:
            # Before all that wait, and before or behind others of its kind.
            conversation.free = ((at, call), (at, sys.maxsize))
        else:
            # A time that has passed already counts from then or from now.
            conversation.free = ((at, call), (max(at, now), call))
        self.grouper.again(batch, at)
        self.take(permits)

    @precondition(lambda self: self.in_flight)
    @rule(pick=_picks, found=st.integers(0, 2), cuts=st.sampled_from([set(), {1}, {2}, {1, 2, 3}]), permits=_permits)
    def parts_instead(self, pick: int, found: int, cuts: set[int], permits: int) -> None:
        """Go on in parts, or with what a read-back did not find: `Delivery` does either, and both at once."""
        taken = self.in_flight.pop(pick % len(self.in_flight))
        conversation, batch = taken.conversation, taken.batch
        batch.unsettled = None
        events = list(batch.events)
        found = min(found, len(events) - 1)
        if found:
            self.decide(taken, events[:found])
        bounds = sorted({found, len(events), *(cut for cut in cuts if found < cut < len(events))})
        parts = [
            Batch(batch.lane, events[start:end], batch.flush_reason, batch.waited_seconds)
            for start, end in pairwise(bounds)
        ]
        if len(parts) == 1 and not found:
            parts = [batch]
        conversation.in_flight = False
        conversation.parts[:1] = parts
        at = self.stamp()
        conversation.free = (at, at)
        self.grouper.split(batch, parts, self.now)
        self.take(permits)

    def decide(self, taken: Taken, events: list[Event]) -> None:
        """An outcome for these: they leave their conversation, and their outcome is on its way into Kafka."""
        offsets = [event.offset for event in events]
        undecided = taken.assignment.undecided[taken.batch.conversation_id]
        assert undecided[: len(offsets)] == offsets
        del undecided[: len(offsets)]
        self.storing.append(Stored(taken.assignment, offsets, events))

    def forget_if_idle(self, taken: Taken) -> None:
        if not taken.conversation.parts and not taken.conversation.waiting:
            del taken.assignment.conversations[taken.batch.conversation_id]

    @precondition(lambda self: self.storing)
    @rule(picks=st.lists(_picks, min_size=1, max_size=4))
    def outcomes_are_stored(self, picks: list[int]) -> None:
        for pick in picks[: len(self.storing)]:
            self.store(pick)

    def store(self, pick: int) -> None:
        """The broker has acknowledged an outcome, late and in any order."""
        stored = self.storing.pop(pick % len(self.storing) if pick >= 0 else pick)
        assignment = stored.assignment
        assignment.log.stored.update(stored.offsets)
        assignment.settled.update(stored.offsets)
        if stored.events:
            for offset in stored.offsets:
                del assignment.buffered[offset]
            assignment.partition.settle(stored.events)
        else:
            assignment.partition.watermark.settle(stored.offsets[0])

    # --- What always holds ---

    @invariant()
    def every_assignment_is_what_the_model_says(self) -> None:
        assert {number: each.partition for number, each in self.live.items()} == self.grouper.partitions
        for assignment in self.live.values():
            partition, watermark = assignment.partition, assignment.partition.watermark
            assert partition.alive
            assert watermark.position == assignment.next_position()
            if assignment.position is not None:
                assert watermark.position is not None
                assert watermark.position >= assignment.position, "a position went back"
            assignment.position = watermark.position
            ahead = [offset for offset in assignment.received if offset >= (watermark.position or 0)]
            assert len(watermark) == len(ahead)
            assert partition.buffered_events == len(assignment.buffered)
            assert partition.buffered_bytes == sum(assignment.buffered.values())
            assert partition.busy is assignment.busy()
            assert set(partition.lanes) == set(assignment.conversations), "an idle conversation leaves no lane"

    @invariant()
    def what_was_revoked_holds_nothing(self) -> None:
        for assignment in self.dead:
            assert not assignment.partition.alive

    def teardown(self) -> None:
        if sys.exc_info()[1] is None:
            self.everything_gets_out()

    def everything_gets_out(self) -> None:
        while self.in_flight:
            self.done(0, "later")
        while self.storing:
            self.store(0)
        for number in range(PARTITIONS):
            if number not in self.live or self.live[number].draining:
                self.assign(number)
            assignment = self.live[number]
            self.read(assignment, sys.maxsize, at_once=True)
            if assignment.begun is not None:
                self.release(assignment, assignment.begun)
        for _ in range(2 * sum(len(log.records) for log in self.logs) + 10):
            while self.take_one() is not None:
                self.done(-1, "at once")
            deadline = self.grouper.deadline()
            if deadline is None:
                break
            self.now = deadline
        self.every_assignment_is_what_the_model_says()
        self.commit_all()
        for assignment in self.live.values():
            log = assignment.log
            assert log.stored == {record.offset for record in log.records}
            assert log.committed == log.end
            assert not assignment.partition.lanes
        assert not self.grouper._timers
        assert not self.grouper._ready

    # --- What the rules above share ---

    def pick_live(self, pick: int) -> Assignment:
        return list(self.live.values())[pick % len(self.live)]

    def due_now(self) -> dict[tuple[Assignment, str], tuple[Stamp, Stamp]]:
        return {
            (assignment, name): when
            for assignment in self.live.values()
            for name, when in assignment.due(self.limits).items()
            if when[0][0] <= self.now
        }

    def earliest_due(self) -> float | None:
        return min((when[0][0] for each in self.live.values() for when in each.due(self.limits).values()), default=None)


@pytest.mark.parametrize(
    "some_limits",
    [Limits(20, 1_000, 1.0), Limits(3, 100, 1.0), Limits(5, 64, 0.0), Limits(1, 40, 4.0), Limits(4, 1_000_000, 0.5)],
    ids=str,
)
def test_any_interleaving_keeps_every_promise_and_gets_everything_out(
    some_limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.grouper.SWEEP_FROM_TIMERS", 4)

    class WithinLimits(AnyInterleaving):
        limits = some_limits

    run_state_machine_as_test(WithinLimits, settings=PROFILE)
