"""The ledger's rules: folding the log, what is void, the fence, the bookmark, ages; and its records on the wire."""

from __future__ import annotations

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from service.core.ledger import (
    NO_CLAIM,
    Claim,
    Gap,
    Intent,
    Mention,
    Outcome,
    Ownership,
    Past,
    Record,
    age_seconds,
    fold,
    read_bookmark,
    write_bookmark,
)
from service.core.model import Dead, Reason
from service.kafka.ledger import Stored, digest_of, read_record

CONVERSATION = "conv_1"


def mentions(*offsets: int) -> tuple[Mention, ...]:
    return tuple((offset, f"digest {offset}") for offset in offsets)


def claim(at: int, timestamp: int | None = 0) -> Claim:
    return Claim(at, timestamp)


def intent(at: int, by: int, *offsets: int, after: str = "", conversation: str = CONVERSATION) -> Intent:
    return Intent(at, 0, by, conversation, after, mentions(*offsets))


def outcome(at: int, by: int, *offsets: int, after: str = "msg", conversation: str = CONVERSATION) -> Outcome:
    ids = tuple(f"msg_{offset}" for offset in offsets)
    return Outcome(at, 0, by, conversation, after, mentions(*offsets), ids, None, 3)


# Folding


def test_an_intent_is_open_until_an_outcome_closes_it() -> None:
    attempt = intent(1, 0, 10, 11, after="msg_9")
    past = fold([claim(0), attempt])
    assert past.open == {CONVERSATION: attempt}
    assert past.after == {CONVERSATION: "msg_9"}
    past.take(outcome(2, 0, 10, after="msg_10"))
    assert not past.open, "what an outcome does not name was certainly not stored"
    assert past.after == {CONVERSATION: "msg_10"}
    assert set(past.settled) == {10}


def test_an_intent_takes_the_place_of_the_one_before_and_conversations_are_apart() -> None:
    other = intent(2, 0, 20, conversation="conv_2")
    again = intent(3, 0, 10, 11)
    past = fold([claim(0), intent(1, 0, 10), other, again])
    assert past.open == {CONVERSATION: again, "conv_2": other}


def test_an_outcome_tells_of_each_event_its_item_its_place_in_the_batch_and_the_attempts() -> None:
    past = fold([claim(0), outcome(1, 0, 10, 12)])
    second = past.settled[12]
    assert (second.item_id, second.digest, second.dead) == ("msg_12", "digest 12", None)
    assert (second.batch_size, second.index, second.attempts) == (2, 1, 3)


def test_a_dead_outcome_tells_why() -> None:
    dead = Dead(Reason.REJECTED, "InvalidParameter", "no", 400, 2)
    past = fold([claim(0), Outcome(1, 0, 0, CONVERSATION, "", mentions(10), (), dead, 2)])
    assert past.settled[10].dead is dead
    assert not past.settled[10].item_id


def test_of_events_below_the_position_only_the_cursor_is_kept() -> None:
    past = fold([claim(0), outcome(1, 0, 10, 11)], position=11)
    assert set(past.settled) == {11}
    assert past.mentions == [(1, 11)]
    assert not fold([claim(0), outcome(1, 0, 10)], position=11).mentions
    assert past.after == {CONVERSATION: "msg"}


def test_records_that_mention_nothing_above_what_was_mentioned_are_not_remembered() -> None:
    past = fold([claim(0), intent(1, 0, 10, 11), intent(2, 0, 11), outcome(3, 0, 12, 9), outcome(4, 0, 12)])
    assert past.mentions == [(1, 11), (3, 12)]


# What is void


def test_a_record_of_an_earlier_ownership_is_void() -> None:
    mine = intent(3, 2, 10, after="new")
    past = fold([claim(0), claim(2), mine, outcome(4, 0, 10, 11, after="old"), intent(5, 0, 12)])
    assert past.open == {CONVERSATION: mine}
    assert past.after == {CONVERSATION: "new"}
    assert not past.settled
    assert past.mentions == [(3, 10)]


def test_a_record_is_void_also_where_its_successors_claim_lies_below_what_is_read() -> None:
    assert not fold([intent(7, 0, 10)], claim_in_force=5).open
    assert fold([intent(7, 5, 10)], claim_in_force=5).open


def test_a_record_of_a_later_ownership_tells_of_a_claim_that_is_not_read() -> None:
    past = fold([intent(7, 6, 10), outcome(8, 5, 10)], claim_in_force=5)
    assert past.current == 6
    assert past.claims == [5, 6]
    assert past.open
    assert not past.settled


# The fence


def owned(claim: int = 5, past: Past | None = None) -> Ownership:
    return Ownership(claim, past or Past())


def test_acknowledgements_without_a_gap_count_at_once() -> None:
    mine = owned(5)
    assert mine.acknowledged(6) is None
    assert mine.acknowledged(7) is None
    assert (mine.next, mine.lost) == (8, False)


def test_a_gap_is_to_be_read_and_a_claim_in_it_means_that_the_partition_is_lost() -> None:
    mine = owned(5)
    gap = mine.acknowledged(8)
    assert gap == Gap(6, 8)
    mine.gap_read(gap, [intent(6, 2, 10), claim(7)])
    assert mine.lost
    assert mine.acknowledged(9) is None, "whoever has lost it reads no more"


def test_what_a_former_owner_wrote_late_is_no_loss() -> None:
    mine = owned(5)
    gap = mine.acknowledged(7)
    assert gap is not None
    mine.gap_read(gap, [intent(6, 2, 10)])
    assert (mine.next, mine.lost) == (8, False)


def test_a_gap_that_holds_our_own_record_may_be_acknowledged_once_afterwards() -> None:
    mine = owned(5)
    gap = mine.acknowledged(7)
    assert gap is not None
    mine.gap_read(gap, [intent(6, 5, 10)])
    assert mine.acknowledged(6) is None
    assert not mine.lost
    mine.acknowledged(6)
    assert mine.lost, "a second time it is another topic's"


@pytest.mark.parametrize("place", [-1, 0, 5])
def test_an_acknowledgement_at_a_place_that_was_passed_means_loss(place: int) -> None:
    mine = owned(5)
    assert mine.acknowledged(place) is None
    assert mine.lost


# The bookmark: P and F


def test_without_a_mention_the_bookmark_is_where_the_next_record_will_lie() -> None:
    mine = owned(5)
    mine.acknowledged(6)
    assert mine.bookmark(0) == (7, 5)


def test_the_bookmark_is_the_first_mention_of_what_is_not_committed() -> None:
    mine = owned(5)
    mine.about_to_write(10)
    mine.acknowledged(6)
    mine.about_to_write(11)
    mine.acknowledged(7)
    mine.about_to_write(11)
    assert mine.bookmark(10) == (6, 5)
    assert mine.bookmark(11) == (7, 5)
    assert mine.bookmark(12) == (8, 5)


def test_an_intent_on_its_way_is_counted_from_before_it_is_produced() -> None:
    mine = owned(5)
    mine.about_to_write(11)
    # Another conversation's, behind it in the log or before it, is acknowledged first.
    assert mine.bookmark(11) == (6, 5)


def test_what_was_read_at_the_take_over_counts_as_well() -> None:
    past = fold([claim(0), intent(1, 0, 10), claim(2), outcome(3, 2, 12)])
    mine = owned(4, past)
    assert mine.bookmark(10) == (1, 0)
    assert mine.bookmark(11) == (3, 2)
    assert mine.bookmark(13) == (5, 4)


def test_the_claim_in_force_is_the_last_one_at_or_before_the_bookmark() -> None:
    past = fold([intent(4, 3, 10)], claim_in_force=3)
    assert owned(8, past).bookmark(10) == (4, 3)
    assert owned(8, fold([intent(4, NO_CLAIM, 10)])).bookmark(10) == (4, NO_CLAIM)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=30),
    st.integers(0, 31),
)
def test_nothing_that_is_not_committed_is_mentioned_below_the_bookmark(writes: list[list[int]], committed: int) -> None:
    mine = owned(0)
    records: list[Record] = [claim(0)]
    for offsets in writes:
        mine.about_to_write(max(offsets))
        records.append(intent(len(records), 0, *offsets))
        assert mine.acknowledged(records[-1].offset) is None
    start, in_force = mine.bookmark(committed)
    needed = [record.offset for record in records[1:] if any(o >= committed for o, _ in _events(record))]
    assert start == min(needed, default=len(records))
    assert in_force == 0


def _events(record: Record) -> tuple[Mention, ...]:
    return () if isinstance(record, Claim) else record.events


@given(st.integers(0, 2**63 - 1), st.integers(-1, 2**63 - 1))
def test_a_bookmark_is_read_as_it_was_written_in_fifty_bytes(start: int, claim_in_force: int) -> None:
    text = write_bookmark(start, claim_in_force)
    assert len(text) <= 50
    assert read_bookmark(text) == (start, claim_in_force)
    assert read_bookmark(f"{text} 0:more") == (start, claim_in_force)


@pytest.mark.parametrize("text", ["", "0:abc", "1:2", "1:x:2", "1:2:y", "1:-2:3", "2:1:1", "1:1:1:1", "hello"])
def test_what_is_no_bookmark_is_read_as_none(text: str) -> None:
    assert read_bookmark(text) is None


# Ages


@pytest.mark.parametrize(
    ("begun", "claimed", "seconds"), [(1000, 4500, 3.5), (4500, 1000, 0), (None, 4500, 0), (1000, None, 0)]
)
def test_an_attempt_is_said_to_be_no_older_than_one_clock_tells(
    begun: int | None, claimed: int | None, seconds: float
) -> None:
    attempt = Intent(1, begun, 0, CONVERSATION, "", mentions(10))
    assert age_seconds(attempt, Claim(2, claimed)) == pytest.approx(seconds)


# On the wire


def read(value: bytes) -> Record:
    return read_record(Stored(7, 99, value))


def test_each_kind_of_record_is_read() -> None:
    assert read(b'{"k":"claim","v":1,"group":"g","topic":"t","owner":"o"}') == Claim(7, 99, "g", "t", "o")
    assert read(b'{"k":"intent","c":3,"conv":"conv_1","after":"","ev":[[10,"ab"]]}') == Intent(
        7, 99, 3, "conv_1", "", ((10, "ab"),)
    )
    stored = b'{"k":"outcome","c":3,"conv":"conv_1","after":"m2","ev":[[10,"ab"],[11,"cd"]],"ids":["m1","m2"],"n":4}'
    assert read(stored) == Outcome(7, 99, 3, "conv_1", "m2", ((10, "ab"), (11, "cd")), ("m1", "m2"), None, 4)
    dead = (
        b'{"k":"outcome","c":3,"conv":"conv_1","after":"","ev":[[10,"ab"]],"n":2,'
        b'"dead":{"reason":"rejected","code":"c","message":"m","status":400,"attempts":2}}'
    )
    assert read(dead) == Outcome(7, 99, 3, "conv_1", "", ((10, "ab"),), (), Dead(Reason.REJECTED, "c", "m", 400, 2), 2)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"hello",
        b"[]",
        b'{"k":"claim","v":2,"group":"g","topic":"t","owner":"o"}',
        b'{"k":"other","ev":[[1,"a"]],"after":""}',
        b'{"k":"intent","c":3,"conv":"conv_1","after":"","ev":[]}',
        b'{"k":"intent","c":3,"conv":"conv_1","ev":[[10,"ab"]]}',
        b'{"k":"intent","c":3,"conv":"conv_1","after":"","ev":[["10","ab"]]}',
        b'{"k":"outcome","c":3,"conv":"conv_1","after":"","ev":[[10,"ab"]],"ids":[]}',
        b'{"k":"outcome","c":3,"conv":"conv_1","after":"","ev":[[10,"ab"]],"dead":{"reason":"bored"}}',
    ],
)
def test_what_is_none_of_ours_is_an_error(value: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        read(value)


def record(timestamp: int = 1, key: bytes | None = b"k", value: bytes | None = b"v") -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("events", 0, 5, timestamp, 0, key, value, None, 0, 0, ())


def test_a_digest_is_eight_bytes_and_the_same_for_the_same_record() -> None:
    assert digest_of(record()) == digest_of(record())
    assert len(digest_of(record())) == 16


@pytest.mark.parametrize(
    "other",
    [record(timestamp=2), record(key=b"l"), record(value=b"w"), record(key=b"kv", value=b""), record(key=None)],
    ids=["time", "key", "value", "a byte from value to key", "no key"],
)
def test_a_digest_tells_records_apart(other: ConsumerRecord[bytes, bytes]) -> None:
    assert digest_of(other) != digest_of(record())
