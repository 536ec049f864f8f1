"""The edges of grouping, one by one; `test_grouper_properties` drives what lies between them."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from service.core import grouper as module
from service.core.grouper import AT_ONCE, Grouper, Partition
from service.core.model import Batch, Event, FlushReason, Unsettled

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 10.0


class Headers(list[tuple[str, "bytes | None"]]):
    """A part of what the Kafka edge received; unlike an event it can be watched being let go."""


class Lanes:
    """A grouper with one partition, and short words for what tests do with it."""

    def __init__(self, *, max_items: int = 20, max_bytes: int = 1 << 20, window: float = WINDOW) -> None:
        self.grouper = Grouper(max_items=max_items, max_bytes=max_bytes, window_seconds=window)
        self.partition = self.grouper.assign(0)
        self.offset = 0

    def add(
        self,
        now: float,
        *,
        count: int = 1,
        conversation: str = "a",
        item: bytes = b"{}",
        partition: Partition | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        for _ in range(count):
            event = Event(0, self.offset, conversation, str(self.offset), item, len(item) + 50, headers=headers)
            self.grouper.add(partition or self.partition, event, now)
            self.offset += 1

    def take(self, now: float) -> Batch:
        batch = self.grouper.take(now)
        assert batch is not None
        return batch

    def nothing(self, now: float) -> bool:
        return self.grouper.take(now) is None

    def busy(self) -> bool:
        return self.partition.busy

    def conversations(self, now: float) -> list[str]:
        """All that is due, in its turn."""
        taken = []
        while (batch := self.grouper.take(now)) is not None:
            taken.append(batch.conversation_id)
        return taken


def offsets(batch: Batch) -> list[int]:
    return [event.offset for event in batch.events]


def body_bytes(batch: Batch) -> int:
    return len(b'{"items":[' + b",".join(event.item for event in batch.events) + b"]}")


def halves(batch: Batch, at: int) -> Sequence[Batch]:
    events = batch.events
    return [Batch(batch.lane, part, batch.flush_reason, 0.0) for part in (events[:at], events[at:])]


# --- When a batch is due ---


def test_the_window_counts_from_the_first_event_read() -> None:
    lanes = Lanes()
    lanes.add(100)
    lanes.add(109)
    assert lanes.nothing(109.9)
    batch = lanes.take(110)
    assert offsets(batch) == [0, 1]
    assert batch.flush_reason is FlushReason.WINDOW
    assert batch.waited_seconds == 10


def test_without_a_window_an_idle_conversation_is_sent_at_once() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    assert offsets(lanes.take(100)) == [0]


def test_without_a_window_what_arrives_behind_a_batch_in_flight_goes_together() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    batch = lanes.take(100)
    lanes.add(101, count=3)
    assert lanes.nothing(101)
    lanes.grouper.done(batch, 102)
    assert offsets(lanes.take(102)) == [1, 2, 3]


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    lanes = Lanes()
    lanes.add(100, count=19)
    assert lanes.nothing(100)
    lanes.add(100, count=2)
    batch = lanes.take(100)
    assert offsets(batch) == list(range(20))
    assert batch.flush_reason is FlushReason.SIZE


def test_behind_a_batch_in_flight_a_lane_keeps_filling() -> None:
    lanes = Lanes()
    lanes.add(100, count=20)
    batch = lanes.take(100)
    lanes.add(101, count=25)
    assert lanes.nothing(200)
    lanes.grouper.done(batch, 200)
    assert offsets(lanes.take(200)) == list(range(20, 40))


def test_an_event_that_waited_behind_a_batch_does_not_wait_a_second_window() -> None:
    lanes = Lanes()
    lanes.add(100, count=20)
    batch = lanes.take(100)
    lanes.add(103)
    lanes.grouper.done(batch, 105)
    assert lanes.grouper.deadline() == 113
    assert lanes.nothing(112.9)
    assert lanes.take(113).waited_seconds == 10


def test_an_event_whose_window_passed_behind_a_batch_goes_as_soon_as_that_is_done() -> None:
    lanes = Lanes()
    lanes.add(100, count=20)
    batch = lanes.take(100)
    lanes.add(101)
    lanes.grouper.done(batch, 150)
    assert lanes.take(150).waited_seconds == 49


def test_what_is_left_of_a_full_lane_waits_for_its_own_window() -> None:
    lanes = Lanes()
    lanes.add(100, count=19)
    lanes.add(104, count=3)
    lanes.grouper.done(lanes.take(104), 105)
    assert lanes.nothing(113.9)
    assert offsets(lanes.take(114)) == [20, 21]


# --- Bytes ---


def test_a_batch_may_fill_the_request_to_the_byte_and_then_goes_at_once() -> None:
    lanes = Lanes(max_bytes=64)
    lanes.add(100, item=b"x" * 25)
    assert lanes.nothing(100)
    lanes.add(100, item=b"y" * 26)
    batch = lanes.take(100)
    assert body_bytes(batch) == 64
    assert batch.flush_reason is FlushReason.BYTES
    assert len(batch.events) == 2


def test_a_byte_more_and_the_item_travels_in_the_next_request() -> None:
    lanes = Lanes(max_bytes=64)
    lanes.add(100, item=b"x" * 25)
    lanes.add(101, item=b"y" * 27)
    batch = lanes.take(101)
    assert offsets(batch) == [0]
    assert batch.flush_reason is FlushReason.BYTES
    lanes.grouper.done(batch, 102)
    assert lanes.nothing(110.9)
    rest = lanes.take(111)
    assert offsets(rest) == [1]
    assert rest.flush_reason is FlushReason.WINDOW


def test_an_item_larger_than_a_request_travels_alone_and_in_its_place() -> None:
    lanes = Lanes(max_bytes=64)
    lanes.add(100)
    lanes.add(100, item=b"x" * 1000)
    lanes.add(100)
    sent = []
    for now in (100, 101, 110):
        batch = lanes.take(now)
        sent.append((offsets(batch), batch.flush_reason))
        lanes.grouper.done(batch, now)
    assert sent == [([0], FlushReason.BYTES), ([1], FlushReason.BYTES), ([2], FlushReason.WINDOW)]


def test_bytes_that_left_do_not_count_for_those_that_stay() -> None:
    lanes = Lanes(max_bytes=64)
    lanes.add(100, count=3, item=b"x" * 20)
    lanes.grouper.done(lanes.take(100), 100)
    assert lanes.nothing(100)
    lanes.add(101, item=b"x" * 10)
    assert lanes.nothing(101)
    assert offsets(lanes.take(110)) == [2, 3]


@pytest.mark.parametrize(
    ("count", "item_bytes", "reason"),
    [
        (3, 10, FlushReason.WINDOW),
        (4, 10, FlushReason.SIZE),
        (9, 10, FlushReason.SIZE),
        (3, 80, FlushReason.BYTES),
        (1, 500, FlushReason.BYTES),
        (4, 21, FlushReason.SIZE),  # both at once: size is what anybody would look for first
    ],
)
def test_a_batch_names_what_bounded_it(count: int, item_bytes: int, reason: FlushReason) -> None:
    lanes = Lanes(max_items=4, max_bytes=100)
    lanes.add(100, count=count, item=b"x" * item_bytes)
    assert lanes.take(110).flush_reason is reason


# --- Put back: again and in parts ---


def test_a_batch_put_back_stays_as_it_was_cut_and_comes_not_before_its_time() -> None:
    lanes = Lanes()
    lanes.add(100, count=3)
    batch = lanes.take(110)
    lanes.add(111, count=40)
    lanes.grouper.again(batch, 130)
    lanes.add(112, count=40)
    assert lanes.nothing(129.9)
    assert lanes.grouper.deadline() == 130
    assert lanes.take(130) is batch
    assert offsets(batch) == [0, 1, 2]
    lanes.grouper.done(batch, 131)
    assert offsets(lanes.take(131)) == list(range(3, 23))


def test_a_batch_put_back_to_name_its_next_request_goes_before_the_lanes_that_wait() -> None:
    lanes = Lanes(window=0)
    for name in ("a", "b", "c"):
        lanes.add(100, conversation=name)
    first = lanes.take(100)
    lanes.grouper.again(first, AT_ONCE)
    assert lanes.grouper.deadline() == AT_ONCE
    assert lanes.conversations(100) == ["a", "b", "c"]


def test_a_conversation_that_backs_off_holds_up_no_other() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    lanes.grouper.again(lanes.take(100), 1000)
    lanes.add(101, conversation="b")
    assert lanes.conversations(101) == ["b"]


def test_the_parts_of_a_split_go_one_by_one_in_order_and_before_what_waits() -> None:
    lanes = Lanes(max_items=4)
    lanes.add(100, count=6)
    batch = lanes.take(100)
    lanes.grouper.split(batch, halves(batch, 1), 101)
    first = lanes.take(101)
    assert lanes.nothing(101)
    lanes.grouper.split(first, [first], 102)
    assert lanes.take(102) is first
    lanes.grouper.done(first, 103)
    second = lanes.take(103)
    assert (offsets(first), offsets(second)) == ([0], [1, 2, 3])
    lanes.grouper.done(second, 104)
    assert offsets(lanes.take(110)) == [4, 5]


def test_parts_of_a_part_go_before_the_other_part() -> None:
    lanes = Lanes(max_items=4)
    lanes.add(100, count=4)
    whole = lanes.take(100)
    lanes.grouper.split(whole, halves(whole, 2), 101)
    first = lanes.take(101)
    lanes.grouper.split(first, halves(first, 1), 102)
    sent = []
    for _ in range(3):
        batch = lanes.take(103)
        sent += offsets(batch)
        lanes.grouper.done(batch, 103)
    assert sent == [0, 1, 2, 3]
    assert not lanes.partition.lanes


def test_a_part_that_backs_off_holds_the_parts_behind_it() -> None:
    lanes = Lanes(max_items=4)
    lanes.add(100, count=4)
    whole = lanes.take(100)
    lanes.grouper.split(whole, halves(whole, 2), 101)
    first = lanes.take(101)
    lanes.grouper.again(first, 200)
    assert lanes.nothing(199)
    assert lanes.take(200) is first


# --- Turns ---


def test_a_conversation_with_more_goes_behind_all_that_are_ready() -> None:
    lanes = Lanes(max_items=2)
    lanes.add(100, count=6, conversation="busy")
    for quiet in ("b", "c"):
        lanes.add(100, count=2, conversation=quiet)
    busy = lanes.take(100)
    lanes.grouper.done(busy, 101)
    assert lanes.conversations(101) == ["b", "c", "busy"]


def test_whose_window_has_passed_goes_before_who_becomes_ready_by_an_answer() -> None:
    lanes = Lanes(max_items=2)
    lanes.add(100, count=4, conversation="busy")
    busy = lanes.take(100)
    lanes.add(101, conversation="quiet")
    lanes.grouper.done(busy, 115)
    assert lanes.conversations(115) == ["quiet", "busy"]


def test_whose_window_has_passed_goes_before_who_becomes_full() -> None:
    lanes = Lanes(max_items=2)
    lanes.add(101, conversation="quiet")
    lanes.add(115, count=2, conversation="burst")
    assert lanes.conversations(115) == ["quiet", "burst"]


def test_a_lane_whose_window_passes_as_it_becomes_full_is_taken_once() -> None:
    lanes = Lanes(max_items=2)
    lanes.add(100)
    lanes.add(120)
    assert lanes.conversations(120) == ["a"]


def test_a_conversation_on_two_partitions_is_two_lanes() -> None:
    lanes = Lanes(window=0)
    other = lanes.grouper.assign(1)
    lanes.add(100)
    lanes.add(100, partition=other)
    assert lanes.conversations(100) == ["a", "a"]


# --- The deadline ---


def test_an_idle_grouper_has_no_deadline() -> None:
    assert Lanes().grouper.deadline() is None


def test_the_deadline_is_the_end_of_the_earliest_window() -> None:
    lanes = Lanes()
    lanes.add(100, conversation="a")
    lanes.add(101, conversation="b")
    assert lanes.grouper.deadline() == 110
    assert lanes.conversations(110) == ["a"]
    assert lanes.grouper.deadline() == 111


def test_what_is_ready_is_due_at_once() -> None:
    lanes = Lanes()
    lanes.add(100, count=20)
    assert lanes.grouper.deadline() == AT_ONCE


def test_the_window_of_a_batch_that_went_early_wakes_nobody() -> None:
    lanes = Lanes()
    lanes.add(100, count=20)
    lanes.take(100)
    assert lanes.grouper.deadline() is None
    assert lanes.nothing(110)


def test_the_window_of_a_revoked_partition_wakes_nobody() -> None:
    lanes = Lanes()
    lanes.add(100)
    lanes.grouper.revoke(0)
    assert lanes.grouper.deadline() is None


# --- What is held ---


def test_an_idle_conversation_leaves_nothing_behind() -> None:
    lanes = Lanes(window=0)
    for name in map(str, range(100)):
        lanes.add(100, conversation=name)
        batch = lanes.take(100)
        lanes.grouper.done(batch, 100)
        lanes.partition.settle(batch.events)
    assert not lanes.partition.lanes
    assert not lanes.grouper._timers
    assert not lanes.grouper._ready
    assert (lanes.partition.buffered_events, lanes.partition.buffered_bytes) == (0, 0)


def test_timers_do_not_pile_up_behind_a_long_window() -> None:
    lanes = Lanes(max_items=2, window=3600)
    lanes.add(100, conversation="quiet")
    for turn in range(5 * module.SWEEP_FROM_TIMERS):
        # Each full batch leaves the timer of its first event behind.
        lanes.add(100, count=2, conversation=f"busy-{turn % 3}")
        lanes.grouper.done(lanes.take(100), 100)
        assert len(lanes.grouper._timers) <= module.SWEEP_FROM_TIMERS
    assert lanes.grouper.deadline() == 3700
    assert lanes.conversations(3700) == ["quiet"]


def test_sweeping_timers_out_loses_none_that_somebody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_FROM_TIMERS", 5)
    lanes = Lanes(max_items=2)
    names = [f"c{number}" for number in range(40)]
    for name in names:
        lanes.grouper.assign(1)
        lanes.add(200 - int(name[1:]), conversation=name)
        lanes.add(100, count=2, conversation="busy")
        lanes.grouper.done(lanes.take(100), 100)
    assert lanes.conversations(300) == names[::-1]


def test_events_are_buffered_from_reading_until_their_outcome_is_stored() -> None:
    lanes = Lanes(max_items=2)
    lanes.add(100, count=3, item=b"x" * 100)
    held = [(3, 450)]
    batch = lanes.take(100)
    held.append((lanes.partition.buffered_events, lanes.partition.buffered_bytes))
    lanes.grouper.done(batch, 100)
    held.append((lanes.partition.buffered_events, lanes.partition.buffered_bytes))
    lanes.partition.settle(batch.events)
    assert held == [(3, 450)] * 3
    assert (lanes.partition.buffered_events, lanes.partition.buffered_bytes) == (1, 150)
    assert lanes.partition.watermark.position == 2


def test_the_oldest_event_is_the_one_longest_here_be_it_waiting_or_in_flight() -> None:
    lanes = Lanes()
    assert lanes.grouper.oldest_age(100) == 0
    lanes.add(100)
    lanes.add(105, conversation="b")
    in_flight = lanes.take(110)
    lanes.add(111)
    assert lanes.grouper.oldest_age(112) == 12
    oldest = [(read_at, lane.conversation_id) for read_at, lane in lanes.grouper.oldest_lanes(5)]
    assert oldest == [(100, "a"), (105, "b")]
    lanes.grouper.done(in_flight, 112)
    assert lanes.grouper.oldest_age(112) == 7


# --- Taken over ---


def test_what_an_earlier_owner_began_goes_first_and_the_rest_of_its_conversation_waits() -> None:
    lanes = Lanes(window=0)
    lanes.add(100, conversation="b")
    begun = [Event(0, offset, "a", str(offset), b"{}", 50) for offset in (1, 2)]
    for event in begun:
        lanes.partition.receive(event)
    unsettled = Unsettled(90, None, last_word=False)
    lanes.grouper.resume(lanes.partition, begun, unsettled)
    lanes.offset = 3
    lanes.add(100)
    lanes.grouper.drain(0)
    batch = lanes.take(100)
    assert offsets(batch) == [1, 2]
    assert batch.unsettled is unsettled
    assert batch.flush_reason is FlushReason.RESUMED
    assert lanes.nothing(100)
    assert lanes.busy()
    lanes.grouper.done(batch, 101)
    lanes.partition.settle(batch.events)
    assert not lanes.busy()
    assert lanes.partition.watermark.position == 0


def test_what_was_held_back_at_a_take_over_counts_its_window_from_reading() -> None:
    lanes = Lanes()
    event = Event(0, 0, "a", "0", b"{}", 50)
    lanes.partition.receive(event)
    lanes.grouper.enqueue(lanes.partition, event, 100)
    lanes.offset = 1
    lanes.add(108)
    assert lanes.nothing(109.9)
    assert offsets(lanes.take(110)) == [0, 1]
    assert lanes.partition.buffered_events == 2


# --- Drain and revoke ---


def test_a_draining_partition_starts_no_new_batch_and_others_go_on() -> None:
    lanes = Lanes(window=0)
    lanes.add(100, conversation="a")
    other = lanes.grouper.assign(1)
    lanes.add(100, conversation="b", partition=other)
    lanes.grouper.drain(0)
    assert lanes.conversations(100) == ["b"]
    lanes.add(101, conversation="c")
    assert lanes.nothing(101)
    assert lanes.grouper.deadline() is None
    assert not lanes.busy()


def test_a_drain_waits_for_what_is_in_flight_and_not_for_what_is_put_back() -> None:
    lanes = Lanes(window=0)
    lanes.add(100, conversation="a")
    lanes.add(100, conversation="b")
    finished, failed = lanes.take(100), lanes.take(100)
    lanes.grouper.drain(0)
    assert lanes.busy()
    lanes.grouper.done(finished, 101)
    assert lanes.busy()
    lanes.grouper.again(failed, 102)
    assert not lanes.busy()
    assert lanes.nothing(102)


def test_a_drain_settles_attempts_of_unknown_fate_and_starts_nothing_behind_them() -> None:
    lanes = Lanes(window=0)
    lanes.add(100, count=3)
    batch = lanes.take(100)
    lanes.add(100)
    batch.unsettled = Unsettled(100, None, last_word=False)
    lanes.grouper.again(batch, 105)
    lanes.grouper.drain(0)
    assert lanes.busy()
    assert lanes.nothing(104)
    assert lanes.take(105) is batch
    assert lanes.busy()
    batch.unsettled = None
    lanes.grouper.split(batch, halves(batch, 1), 106)
    assert not lanes.busy()
    assert lanes.nothing(106)


def test_an_attempt_still_of_unknown_fate_after_reading_back_keeps_the_drain_waiting() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    batch = lanes.take(100)
    lanes.grouper.drain(0)
    batch.unsettled = Unsettled(100, None, last_word=False)
    for at in (101, 102):
        lanes.grouper.again(batch, at)
        assert lanes.busy()
        assert lanes.take(at) is batch
    lanes.grouper.done(batch, 103)
    assert not lanes.busy()


@pytest.mark.parametrize("result", ["done", "again", "split"])
def test_a_result_that_comes_after_the_revoke_touches_nothing_of_the_next_assignment(result: str) -> None:
    lanes = Lanes(max_items=2)
    lanes.add(100, count=3)
    late = lanes.take(100)
    lanes.grouper.revoke(0)
    fresh = lanes.grouper.assign(0)
    lanes.offset = 0
    lanes.add(101, count=2, partition=fresh)
    in_flight = lanes.take(101)
    lanes.add(102, partition=fresh)
    if result == "done":
        lanes.grouper.done(late, 103)
    elif result == "again":
        lanes.grouper.again(late, 103)
    else:
        lanes.grouper.split(late, halves(late, 1), 103)
    old = late.lane.partition
    old.settle(late.events)
    assert lanes.nothing(200)
    assert (fresh.in_flight, fresh.buffered_events, fresh.watermark.position) == (1, 3, 0)
    lanes.grouper.done(in_flight, 200)
    assert offsets(lanes.take(200)) == [2]


def test_what_a_revoked_partition_had_ready_is_not_sent() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    lanes.grouper.revoke(0)
    assert lanes.nothing(100)


def test_an_assignment_ends_the_one_before_it() -> None:
    lanes = Lanes(window=0)
    lanes.add(100)
    fresh = lanes.grouper.assign(0)
    lanes.offset = 0
    lanes.add(101, partition=fresh)
    assert lanes.take(101).lane.partition is fresh
    assert lanes.nothing(101)
    assert not lanes.partition.alive


def test_what_a_revoked_partition_had_buffered_is_let_go_at_once() -> None:
    lanes = Lanes()
    headers = Headers()
    watched = weakref.ref(headers)
    lanes.add(100, headers=headers)
    lanes.add(100, count=20, conversation="ready", headers=headers)
    del headers
    lanes.grouper.revoke(0)
    gc.collect()
    assert watched() is None
    assert not lanes.partition.lanes
    assert lanes.partition.buffered_events == 0
    assert lanes.partition.buffered_bytes == 0
