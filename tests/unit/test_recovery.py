"""What becomes of events that an earlier owner may have begun: settled, resumed as they were sent, or new."""

from __future__ import annotations

from service.core.grouper import Grouper, Partition
from service.core.ledger import Claim, Intent, Outcome, Past, Record, Settled, fold
from service.core.model import Batch, Event, FlushReason
from service.core.recovery import Recovery

STARTED = -7.0
CLAIM = Claim(0, 0)


def event(offset: int, conversation_id: str = "conv_1", digest: str = "") -> Event:
    return Event(0, offset, conversation_id, f"e{offset}", b"{}", 10, digest=digest or f"digest {offset}")


def mentions(*offsets: int) -> tuple[tuple[int, str], ...]:
    return tuple((offset, f"digest {offset}") for offset in offsets)


def intent(*offsets: int, conversation_id: str = "conv_1", after: str = "msg_0") -> Intent:
    return Intent(1, 0, 0, conversation_id, after, mentions(*offsets))


def outcome(*offsets: int, conversation_id: str = "conv_1") -> Outcome:
    return Outcome(1, 0, 0, conversation_id, "msg", mentions(*offsets), tuple(f"msg_{o}" for o in offsets))


class Taken:
    """A partition whose past is used up: what is answered at once, and what is taken to be sent."""

    def __init__(self, *records: Record, position: int = 0) -> None:
        self.grouper = Grouper(max_items=20, max_bytes=1 << 20, window_seconds=0)
        self.partition: Partition = self.grouper.assign(0)
        past: Past = fold([CLAIM, *records], position=position)
        started = dict.fromkeys(past.open, STARTED)
        self.recovery = Recovery(self.grouper, self.partition, past, started)

    def admit(self, *events: Event) -> list[Settled | None]:
        return [self.recovery.admit(one, now=0.0) for one in events]

    def over(self) -> bool:
        return self.recovery.over

    def taken(self) -> list[Batch]:
        found = []
        while (batch := self.grouper.take(0.0)) is not None:
            found.append(batch)
        return found

    def offsets(self) -> list[list[int]]:
        return [[one.offset for one in batch.events] for batch in self.taken()]


def test_an_event_nobody_began_goes_as_it_comes() -> None:
    taken = Taken()
    assert taken.over()
    assert taken.admit(event(5)) == [None]
    assert taken.offsets() == [[5]]


def test_an_event_with_an_outcome_is_answered_and_not_sent() -> None:
    taken = Taken(outcome(5))
    (settled,) = taken.admit(event(5))
    assert settled is not None
    assert settled.item_id == "msg_5"
    assert taken.offsets() == []
    assert len(taken.partition.watermark) == 1, "it holds the position until its reply is stored"
    assert taken.over()


def test_an_outcome_of_another_record_at_the_same_offset_is_none_of_it() -> None:
    taken = Taken(outcome(5))
    assert taken.admit(event(5, digest="another")) == [None]
    assert taken.offsets() == [[5]]
    assert taken.over()


def test_the_events_of_an_open_intent_are_settled_together_before_anything_else_of_theirs() -> None:
    taken = Taken(intent(5, 7))
    taken.admit(event(5))
    assert taken.taken() == []
    taken.admit(event(6, "conv_2"))
    assert taken.offsets() == [[6]], "others do not wait"
    taken.admit(event(7), event(8))
    assert taken.over()
    (batch,) = taken.taken()
    assert [one.offset for one in batch.events] == [5, 7]
    assert batch.flush_reason is FlushReason.RESUMED
    assert batch.unsettled is not None
    assert (batch.unsettled.started_at, batch.unsettled.after) == (STARTED, "msg_0")
    assert not batch.unsettled.last_word
    taken.grouper.done(batch, 0.0)
    assert taken.offsets() == [[8]]


def test_what_is_new_in_an_intents_place_ends_the_waiting() -> None:
    taken = Taken(intent(5, 7))
    taken.admit(event(5), event(7, digest="another"), event(8))
    (batch,) = taken.taken()
    assert [one.offset for one in batch.events] == [5]
    taken.grouper.done(batch, 0.0)
    assert taken.offsets() == [[7, 8]]


def test_an_intent_none_of_whose_events_is_there_is_dropped() -> None:
    taken = Taken(intent(5, 7))
    taken.admit(event(6), event(9))
    assert taken.offsets() == [[6, 9]], "of one conversation, in order, unsettled by nobody"


def test_an_intent_whose_end_has_vanished_is_let_go_by_whatever_is_read_behind_it() -> None:
    taken = Taken(intent(5, 7))
    taken.admit(event(5))
    taken.recovery.passed(6)
    assert not taken.over()
    assert taken.taken() == []
    taken.recovery.passed(8)
    assert taken.over()
    assert taken.offsets() == [[5]]


def test_the_end_of_an_intent_taken_by_another_conversation_ends_the_waiting() -> None:
    taken = Taken(intent(5, 7))
    taken.admit(event(5), event(7, "conv_2"))
    assert sorted(taken.offsets()) == [[5], [7]]
    assert taken.over()


def test_an_intent_about_events_below_the_position_is_of_a_topic_made_anew() -> None:
    taken = Taken(intent(3, 7), position=5)
    assert taken.over()
    taken.admit(event(7))
    assert taken.offsets() == [[7]]


def test_settled_and_open_events_of_one_conversation_keep_their_order() -> None:
    taken = Taken(outcome(5), intent(6, 7))
    answered = taken.admit(event(5), event(6), event(7), event(8))
    assert [one is not None for one in answered] == [True, False, False, False]
    (batch,) = taken.taken()
    assert [one.offset for one in batch.events] == [6, 7]
    taken.grouper.done(batch, 0.0)
    assert taken.offsets() == [[8]]


def test_outcomes_of_events_that_are_passed_over_do_not_keep_the_past_alive() -> None:
    taken = Taken(outcome(5, 6, 9))
    taken.admit(event(5))
    taken.recovery.passed(8)
    assert not taken.over()
    taken.recovery.passed(9)
    assert taken.over()
