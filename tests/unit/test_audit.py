"""The judge itself: content with a clean run, and each corrupted piece of evidence is seen for what it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from service.audit import (
    SAMPLES,
    Finding,
    HeldItem,
    Place,
    PublishedEvent,
    Report,
    SeenDeadLetter,
    SeenReply,
    audit,
)

FINDINGS = [name.name for name in dataclasses.fields(Report) if isinstance(getattr(Report(), name.name), Finding)]
ALLOWED = {"duplicate_replies", "duplicate_dead_letters"}
"""Replies and dead letters are stored at least once."""


@dataclass
class Evidence:
    """Of a clean run: two partitions, three conversations, four turns of each, and one record that is no event."""

    events: list[PublishedEvent] = field(default_factory=list)
    held: dict[str, list[HeldItem]] = field(default_factory=dict)
    replies: list[SeenReply] = field(default_factory=list)
    dead_letters: list[SeenDeadLetter] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = {0: 0, 1: 0}
        for turn in range(4):
            for number in range(3):
                partition = number % 2
                place = Place(partition, ends[partition])
                ends[partition] += 1
                conversation_id, content = f"conv_{number}", f"{number} says {turn}"
                item = HeldItem(f"msg_{number}_{turn}", content)
                self.events.append(PublishedEvent(place, conversation_id, content))
                self.held.setdefault(conversation_id, []).append(item)
                self.replies.append(SeenReply(place, conversation_id, "delivered", item.id))
        self.events.append(PublishedEvent(Place(1, ends[1]), None))
        self.dead_letters.append(SeenDeadLetter(Place(1, ends[1]), "invalid_event"))
        self.positions = {0: ends[0], 1: ends[1] + 1}

    def judged(self) -> Report:
        return audit(self.events, self.held, self.replies, self.dead_letters, self.positions)

    def lose_reply(self, place: Place) -> None:
        self.replies = [reply for reply in self.replies if reply.place != place]


def found(report: Report) -> dict[str, int]:
    """What was found, by kind; a report is content as long as nothing but what is allowed was."""
    counts = {name: getattr(report, name).count for name in FINDINGS if getattr(report, name).count}
    assert report.content == (not counts.keys() - ALLOWED)
    return counts


@pytest.fixture
def evidence() -> Evidence:
    return Evidence()


def test_a_clean_run_finds_nothing(evidence: Evidence) -> None:
    report = evidence.judged()
    assert found(report) == {}
    assert (report.events, report.delivered, report.replies, report.uncommitted) == (13, 12, 12, 0)
    assert report.dead_letters == {"invalid_event": 1}


def test_a_run_of_nothing_finds_nothing() -> None:
    report = audit([], {}, [], [], {})
    assert found(report) == {}
    assert report.events == 0


# Lost


def test_an_event_without_any_outcome_is_lost(evidence: Evidence) -> None:
    evidence.lose_reply(Place(0, 0))
    evidence.positions = {}
    assert found(evidence.judged()) == {"lost": 1}


def test_an_invalid_record_without_a_dead_letter_is_lost(evidence: Evidence) -> None:
    evidence.dead_letters.clear()
    evidence.positions[1] -= 1
    assert found(evidence.judged()) == {"lost": 1}


def test_an_item_that_was_answered_and_is_not_held_is_lost(evidence: Evidence) -> None:
    del evidence.held["conv_1"][2]
    # The reply then names an item that is not there, too.
    assert found(evidence.judged()) == {"lost": 1, "wrong_replies": 1}


def test_a_whole_conversation_that_is_gone_is_lost(evidence: Evidence) -> None:
    del evidence.held["conv_2"]
    assert found(evidence.judged()) == {"lost": 4, "wrong_replies": 4}


def test_a_failures_reply_is_no_delivery(evidence: Evidence) -> None:
    evidence.replies[0] = SeenReply(Place(0, 0), "conv_0", "failed", "")
    evidence.positions = {}
    assert found(evidence.judged()) == {"lost": 1}


# Positions


def test_a_position_past_an_event_without_outcome_is_ahead(evidence: Evidence) -> None:
    evidence.lose_reply(Place(0, 3))
    report = evidence.judged()
    assert found(report) == {"lost": 1, "positions_ahead": 1}
    evidence.positions[0] = 4
    assert found(evidence.judged()) == {"lost": 1, "positions_ahead": 1}
    evidence.positions[0] = 3
    assert found(evidence.judged()) == {"lost": 1}


def test_outcomes_above_the_position_are_counted_and_no_fault(evidence: Evidence) -> None:
    evidence.positions = {0: 5}
    report = evidence.judged()
    assert found(report) == {}
    assert report.uncommitted == 3 + 5


# Duplicated


def test_an_item_held_twice_is_duplicated(evidence: Evidence) -> None:
    evidence.held["conv_0"].append(HeldItem("msg_again", "0 says 1"))
    assert found(evidence.judged()) == {"duplicated": 1}


def test_a_batch_held_twice_is_as_many_duplicates(evidence: Evidence) -> None:
    copies = [HeldItem(f"{item.id}_again", item.content) for item in evidence.held["conv_0"]]
    evidence.held["conv_0"] += copies
    assert found(evidence.judged()) == {"duplicated": 4}


def test_an_item_held_though_its_event_was_dead_lettered_is_not_held_against_the_run(evidence: Evidence) -> None:
    """An attempt of unknown fate may have been stored: the dead letter says so with ``dlq.fate``."""
    evidence.lose_reply(Place(0, 0))
    evidence.dead_letters.append(SeenDeadLetter(Place(0, 0), "exhausted"))
    assert found(evidence.judged()) == {}


def test_the_same_words_twice_in_the_log_may_be_held_twice_and_not_three_times(evidence: Evidence) -> None:
    place = Place(0, 8)
    evidence.events.append(PublishedEvent(place, "conv_0", "0 says 1"))
    evidence.positions[0] = 9
    evidence.held["conv_0"].append(HeldItem("msg_second", "0 says 1"))
    evidence.replies.append(SeenReply(place, "conv_0", "delivered", "msg_second"))
    assert found(evidence.judged()) == {}
    evidence.held["conv_0"].append(HeldItem("msg_third", "0 says 1"))
    assert found(evidence.judged()) == {"duplicated": 1}


# Order


def test_two_items_that_changed_places_are_out_of_order(evidence: Evidence) -> None:
    items = evidence.held["conv_0"]
    items[1], items[2] = items[2], items[1]
    assert found(evidence.judged()) == {"out_of_order": 1}


def test_an_item_that_came_late_is_out_of_order_once(evidence: Evidence) -> None:
    items = evidence.held["conv_0"]
    items.append(items.pop(0))
    assert found(evidence.judged()) == {"out_of_order": 1}


def test_order_holds_within_a_partition_only(evidence: Evidence) -> None:
    elsewhere = Place(1, 5)
    evidence.events.append(PublishedEvent(elsewhere, "conv_0", "from the other partition"))
    evidence.positions[1] = 6
    evidence.held["conv_0"].insert(0, HeldItem("msg_other", "from the other partition"))
    evidence.replies.append(SeenReply(elsewhere, "conv_0", "delivered", "msg_other"))
    assert found(evidence.judged()) == {}


def test_replies_that_changed_places_are_out_of_order(evidence: Evidence) -> None:
    first, second, *_ = (at for at, reply in enumerate(evidence.replies) if reply.conversation_id == "conv_0")
    evidence.replies[first], evidence.replies[second] = evidence.replies[second], evidence.replies[first]
    assert found(evidence.judged()) == {"replies_out_of_order": 1}


# Replies and dead letters


def test_a_reply_that_names_another_item_is_wrong(evidence: Evidence) -> None:
    evidence.replies[0] = SeenReply(Place(0, 0), "conv_0", "delivered", "msg_0_1")
    assert found(evidence.judged()) == {"wrong_replies": 1}


@pytest.mark.parametrize(
    "reply",
    [
        SeenReply(Place(0, 99), "conv_0", "delivered", "msg_0_0"),
        SeenReply(Place(7, 0), "conv_0", "delivered", "msg_0_0"),
        SeenReply(Place(0, 0), "conv_1", "delivered", "msg_0_0"),
        SeenReply(Place(1, 4), "conv_1", "delivered", "msg_0_0"),
    ],
)
def test_a_reply_to_nothing_published_is_wrong(evidence: Evidence, reply: SeenReply) -> None:
    evidence.replies.append(reply)
    assert found(evidence.judged()) == {"wrong_replies": 1}


def test_a_dead_letter_of_nothing_published_is_wrong(evidence: Evidence) -> None:
    evidence.dead_letters.append(SeenDeadLetter(Place(0, 99), "rejected"))
    assert found(evidence.judged()) == {"wrong_replies": 1}


def test_a_reply_without_its_item_is_counted_and_no_fault(evidence: Evidence) -> None:
    evidence.replies[0] = SeenReply(Place(0, 0), "conv_0", "delivered", "")
    report = evidence.judged()
    assert found(report) == {}
    assert report.without_item == 1
    assert ("replies", "12 (1 without item)") in report.lines()


def test_a_reply_seen_twice_is_counted_and_allowed(evidence: Evidence) -> None:
    evidence.replies.append(evidence.replies[0])
    assert found(evidence.judged()) == {"duplicate_replies": 1}


def test_a_dead_letter_seen_twice_is_counted_and_allowed(evidence: Evidence) -> None:
    evidence.dead_letters *= 2
    report = evidence.judged()
    assert found(report) == {"duplicate_dead_letters": 1}
    assert report.dead_letters == {"invalid_event": 1}


def test_an_event_delivered_and_dead_lettered_is_both(evidence: Evidence) -> None:
    evidence.dead_letters.append(SeenDeadLetter(Place(0, 0), "rejected"))
    report = evidence.judged()
    assert found(report) == {"both": 1}
    assert report.delivered == 11


def test_an_item_nobody_published_is_foreign(evidence: Evidence) -> None:
    evidence.held["conv_0"].insert(2, HeldItem("msg_x", "who said that?"))
    assert found(evidence.judged()) == {"foreign": 1}


def test_a_conversation_nobody_published_to_is_none_of_the_runs_business(evidence: Evidence) -> None:
    evidence.held["conv_9"] = [HeldItem("msg_x", "somebody else's")]
    assert found(evidence.judged()) == {}


# The report


def test_every_finding_is_told_and_all_but_the_allowed_spoil_a_run() -> None:
    for name in FINDINGS:
        report = Report()
        getattr(report, name).add(("here", 17))
        assert found(report) == {name: 1}
        label = {"both": "delivered and dead"}.get(name, name.replace("_", " "))
        assert (label, "1  [\"('here', 17)\"]") in report.lines()


def test_only_the_first_cases_are_kept() -> None:
    finding = Finding()
    for number in range(100):
        finding.add(number)
    assert (finding.count, finding.samples) == (100, [str(number) for number in range(SAMPLES)])
