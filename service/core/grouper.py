"""Lanes of conversations: which batch goes next, and when.

Decides grouping and order: events of one conversation wait in one lane of one partition; a lane has
one batch in flight; a batch is due by size, bytes or window; lanes take turns. It knows no clock (time
is an argument), no API, no Kafka, and not what became of a batch beyond "again", "split" and "done".

Two structures order the work. ``_ready`` is a queue of lanes with a due batch: first due, first served,
and a lane that has more goes to the end, so a busy conversation cannot starve a quiet one. ``_timers``
is a heap of lanes that wait for their window or their back-off; an entry whose lane has moved on since
is recognised by its token and skipped, and swept out once such entries are the larger part.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from typing import TYPE_CHECKING

from service.core.model import Batch, FlushReason, item_bytes
from service.core.watermark import Watermark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.core.ledger import Ownership
    from service.core.model import Event, Unsettled
    from service.core.recovery import Recovery

BODY_OVERHEAD_BYTES = len(b'{"items":[]}') - 1
"""What a request body adds to its items, each counted with one comma."""

AT_ONCE = float("-inf")
"""When a batch goes on that was put back only to say what its next request is: ahead of the lanes that wait."""

SWEEP_FROM_TIMERS = 1000
"""A smaller heap is never swept: what lies in it is not worth the look."""


class LaneState(enum.Enum):
    """Where a lane stands."""

    WAITING = "waiting"
    """For its window or its back-off; a live timer holds it, or nothing waits in it."""
    READY = "ready"
    IN_FLIGHT = "in_flight"


class Lane:
    """One conversation on one partition: what waits, and the parts of a batch under way."""

    __slots__ = ("bytes", "conversation_id", "key", "partition", "parts", "state", "token", "waiting")

    def __init__(self, partition: Partition, first: Event) -> None:
        self.partition = partition
        self.conversation_id = first.conversation_id
        self.key = first.key
        self.waiting: list[Event] = []
        self.bytes = 0
        self.parts: tuple[Batch, ...] = ()
        """What was cut and has no outcome: the batch under way first, then what a split left behind it."""
        self.state = LaneState.WAITING
        self.token = 0


class Partition:
    """The state of one partition for one assignment.

    A new object each time the partition is assigned: what comes late for an earlier assignment finds
    an object that is no longer ``alive`` and changes nothing that counts.
    """

    __slots__ = (
        "alive",
        "buffered_bytes",
        "buffered_events",
        "draining",
        "in_flight",
        "lanes",
        "number",
        "ownership",
        "recovery",
        "taking_over",
        "unsettled",
        "unstored",
        "watermark",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.watermark = Watermark()
        self.lanes: dict[str, Lane] = {}
        self.alive = True
        self.draining = False
        self.in_flight = 0
        """Batches taken and neither done nor put back."""
        self.unsettled = 0
        """Batches put back whose last attempt is of unknown fate."""
        self.ownership: Ownership | None = None
        self.recovery: Recovery | None = None
        """What the ledger says of an earlier owner's work, while some of it is left."""
        self.taking_over = False
        """While the ledger is read, the partition is not."""
        self.unstored = 0
        """Events whose outcome is decided and not yet stored."""
        self.buffered_events = 0
        self.buffered_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether something is under way that a drain waits for."""
        return self.in_flight > 0 or self.unsettled > 0

    def receive(self, event: Event) -> None:
        """Note that ``event`` was read: it holds the position and a part of the buffer until it is settled."""
        self.watermark.received(event.offset)
        self.buffered_events += 1
        self.buffered_bytes += event.size

    def settle(self, events: Sequence[Event]) -> None:
        """Note that the outcome of each of ``events`` is stored: the position may move past them."""
        self.watermark.settle(*[event.offset for event in events])
        self.buffered_events -= len(events)
        self.buffered_bytes -= sum([event.size for event in events])


class Grouper:
    """All lanes of all assigned partitions."""

    __slots__ = (
        "_max_bytes",
        "_max_items",
        "_ready",
        "_sweep_at",
        "_timers",
        "_token",
        "_window",
        "begun",
        "partitions",
    )

    def __init__(self, *, max_items: int, max_bytes: int, window_seconds: float, begun_lanes: int = 0) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes - BODY_OVERHEAD_BYTES
        self._window = window_seconds
        self._ready: deque[Lane] = deque()
        self._timers: list[tuple[float, int, Lane]] = []
        self._sweep_at = SWEEP_FROM_TIMERS
        self._token = 0
        self.partitions: dict[int, Partition] = {}
        self.begun: deque[Lane] = deque(maxlen=begun_lanes)
        """The lanes, at most so many, that began to wait for their window last: for who can use that time."""

    def assign(self, number: int) -> Partition:
        """Begin an assignment of partition ``number``; one that was not revoked before ends here."""
        if number in self.partitions:
            self.revoke(number)
        partition = self.partitions[number] = Partition(number)
        return partition

    def drain(self, number: int) -> None:
        """Start no new batch of this partition; only attempts of unknown fate are still settled."""
        self.partitions[number].draining = True

    def revoke(self, number: int) -> None:
        """End the assignment: what is buffered is dropped, its next owner reads it again."""
        partition = self.partitions.pop(number)
        partition.alive = False
        for lane in partition.lanes.values():
            # Timers and the queue still hold the lane for a while; they must not hold its events.
            lane.waiting = []
        partition.lanes = {}
        partition.buffered_events = partition.buffered_bytes = 0

    def add(self, partition: Partition, event: Event, now: float) -> None:
        """Take in ``event``, read at ``now``, and put it at the end of its conversation's lane."""
        partition.receive(event)
        self.enqueue(partition, event, now)

    def enqueue(self, partition: Partition, event: Event, now: float) -> None:
        """Put an event that was received, read at ``now``, at the end of its conversation's lane."""
        if self._timers and self._timers[0][0] <= now:
            self._wake(now)
        event.read_at = now
        lane = partition.lanes.get(event.conversation_id)
        if lane is None:
            lane = partition.lanes[event.conversation_id] = Lane(partition, event)
        else:
            # One text for all events that wait: each was read with copies of its own.
            event.conversation_id = lane.conversation_id
            if event.key == lane.key:
                event.key = lane.key
        waiting = lane.waiting
        waiting.append(event)
        lane.bytes += len(event.item) + 1
        # Behind a batch under way or in back-off a lane only fills; it is looked at when that is done.
        if lane.state is LaneState.WAITING and not lane.parts:
            if len(waiting) >= self._max_items or lane.bytes >= self._max_bytes or self._window <= 0:
                self._make_ready(lane)
            elif len(waiting) == 1:
                self._set_timer(lane, now + self._window)
                self.begun.append(lane)

    def resume(self, partition: Partition, events: Sequence[Event], unsettled: Unsettled) -> None:
        """Go on with an attempt of an earlier owner: these received events are settled before anything else of theirs.

        The conversation must have no lane yet.
        """
        conversation_id = events[0].conversation_id
        lane = partition.lanes[conversation_id] = Lane(partition, events[0])
        batch = Batch(
            lane,
            events,
            FlushReason.RESUMED,
            0.0,
            item_bytes(events),
            setbacks=1,
            unsettled=unsettled,
            after=unsettled.after,
        )
        lane.parts = (batch,)
        partition.unsettled += 1
        self._make_ready(lane)

    def take(self, now: float) -> Batch | None:
        """Take the batch whose turn it is, or ``None`` while none is due.

        A batch taken is in flight until `again`, `split` or `done` is called with it.
        """
        self._wake(now)
        while self._ready:
            lane = self._ready.popleft()
            partition = lane.partition
            if not partition.alive:
                continue
            if partition.draining and not (lane.parts and lane.parts[0].unsettled):
                lane.state = LaneState.WAITING
                continue
            if not lane.parts:
                lane.parts = (self._cut(lane, now),)
            batch = lane.parts[0]
            lane.state = LaneState.IN_FLIGHT
            partition.in_flight += 1
            if batch.unsettled:
                partition.unsettled -= 1
            return batch
        return None

    def deadline(self) -> float | None:
        """When `take` should be asked next: a time, ``-inf`` for at once, ``None`` for not before an `add`."""
        if self._ready:
            return float("-inf")
        timers = self._timers
        while timers and not _is_live(timers[0]):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def again(self, batch: Batch, at: float) -> None:
        """Put a taken batch back, to be taken again not before ``at``; the lane waits with it."""
        lane = self._put_down(batch)
        if batch.unsettled:
            lane.partition.unsettled += 1
        if at == AT_ONCE:
            lane.token = 0
            lane.state = LaneState.READY
            self._ready.appendleft(lane)
        else:
            self._set_timer(lane, at)

    def split(self, batch: Batch, parts: Sequence[Batch], now: float) -> None:
        """Put a taken batch back as ``parts``, which go in this order, one after the other."""
        lane = self._put_down(batch)
        lane.parts = (*parts, *lane.parts[1:])
        self._next(lane, now)

    def done(self, batch: Batch, now: float) -> None:
        """Every event of a taken batch has its outcome decided: the lane is free for the next one."""
        lane = self._put_down(batch)
        lane.parts = lane.parts[1:]
        self._next(lane, now)

    def oldest_age(self, now: float) -> float:
        """Age, in seconds since it was read, of the oldest event that waits or is in flight; 0 without one."""
        oldest = self.oldest_lanes(1)
        return now - oldest[0][0] if oldest else 0.0

    def oldest_lanes(self, count: int) -> list[tuple[float, Lane]]:
        """The lanes whose first event has waited longest, each with when that was read."""
        firsts = (
            ((lane.parts[0].events if lane.parts else lane.waiting)[0].read_at, lane)
            for partition in self.partitions.values()
            for lane in partition.lanes.values()
        )
        return heapq.nsmallest(count, firsts, key=lambda found: found[0])

    def _put_down(self, batch: Batch) -> Lane:
        lane = batch.lane
        lane.partition.in_flight -= 1
        lane.state = LaneState.WAITING
        return lane

    def _next(self, lane: Lane, now: float) -> None:
        """Decide what a lane that has just become free does next."""
        if not lane.partition.alive:
            return
        self._wake(now)
        if lane.parts:
            self._make_ready(lane)
        elif not lane.waiting:
            del lane.partition.lanes[lane.conversation_id]
        elif len(lane.waiting) >= self._max_items or lane.bytes >= self._max_bytes:
            self._make_ready(lane)
        else:
            due = lane.waiting[0].read_at + self._window
            if due <= now:
                self._make_ready(lane)
            else:
                self._set_timer(lane, due)

    def _wake(self, now: float) -> None:
        """Queue the lanes whose time has come; called before a lane that becomes due by an event is queued."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, token, lane = heapq.heappop(timers)
            if lane.token == token:
                self._make_ready(lane)

    def _make_ready(self, lane: Lane) -> None:
        lane.token = 0
        lane.state = LaneState.READY
        self._ready.append(lane)

    def _set_timer(self, lane: Lane, at: float) -> None:
        timers = self._timers
        if len(timers) >= self._sweep_at:
            # A busy lane leaves an entry with every full batch; a long window would let them pile up.
            timers[:] = filter(_is_live, timers)
            heapq.heapify(timers)
            self._sweep_at = max(SWEEP_FROM_TIMERS, 2 * len(timers))
        self._token += 1
        lane.token = self._token
        heapq.heappush(timers, (at, self._token, lane))

    def _cut(self, lane: Lane, now: float) -> Batch:
        waiting = lane.waiting
        count = len(waiting)
        max_bytes = self._max_bytes
        reason = FlushReason.SIZE if count >= self._max_items else FlushReason.WINDOW
        if count <= self._max_items and lane.bytes <= max_bytes:
            events = waiting
            taken = lane.bytes
            if lane.bytes == max_bytes and reason is FlushReason.WINDOW:
                reason = FlushReason.BYTES
            lane.waiting = []
            lane.bytes = 0
        else:
            count = taken = 0
            for event in waiting[: self._max_items]:
                size = len(event.item) + 1
                if count and taken + size > max_bytes:
                    reason = FlushReason.BYTES
                    break
                taken += size
                count += 1
            if taken > max_bytes:
                reason = FlushReason.BYTES
            events = waiting[:count]
            del waiting[:count]
            lane.bytes -= taken
        return Batch(lane, events, reason, now - events[0].read_at, taken)


def _is_live(timer: tuple[float, int, Lane]) -> bool:
    """Whether the lane still waits for this timer."""
    _, token, lane = timer
    return lane.token == token and lane.partition.alive
