"""Delivery, one behaviour a test: read-back, refusals, giving up, revocation. Played in `test_delivery_world`."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from unit.test_delivery_world import (
    ALL,
    LATENCY_SECONDS,
    LOCKED,
    NOT_FOUND,
    SETTLE_SECONDS,
    UNREACHED,
    USUAL,
    Fault,
    Host,
    World,
    cut,
    gateway_503,
    html,
    in_turn,
    is_bad,
    nested,
    own_500,
    relayed_502,
    silence,
    throttled,
    world_of,
)

from service.core.circuit import Circuit, CircuitReason
from service.core.delivery import Action, Delivered, Delivery, operator_reason
from service.core.grouper import Grouper
from service.core.model import Answered, Event, Reason
from service.core.readback import Cursors
from service.core.verdict import Kind, Verdict

if TYPE_CHECKING:
    from unit.test_delivery_world import Request, Weather

    from service.core.model import Batch

SEND, READ_BACK, READ_CURSOR = Action.SEND, Action.READ_BACK, Action.READ_CURSOR


def actions(world: World) -> list[Action]:
    return [request.action for request in world.requests]


def only(conversation_id: str, weather: Weather) -> Weather:
    return lambda request: weather(request) if request.conversation_id == conversation_id else None


def always(fault: Fault, *of: Action) -> Weather:
    return lambda request: fault if not of or request.action in of else None


# Read-back


@pytest.mark.parametrize("fault", [cut(), silence(), gateway_503(), relayed_502(), html()], ids=repr)
def test_absent_counts_only_in_a_read_begun_after_the_settling_delay(fault: Fault) -> None:
    world = world_of()
    world.add("c", "a")
    world.host.weather = in_turn(fault)
    world.run()
    world.check_exactly_once()
    first, *reads, second = world.requests
    assert {read.action for read in reads} == {READ_BACK}
    assert reads[-1].started_at >= first.started_at + SETTLE_SECONDS
    assert all(read.started_at < first.started_at + SETTLE_SECONDS for read in reads[:-1])
    assert second.action is SEND


def test_a_read_begun_too_early_tells_nothing_however_late_it_is_answered() -> None:
    world = world_of()
    world.add("c", "a")
    slow = Fault("slow", None, seconds=SETTLE_SECONDS + 1)
    world.host.weather = in_turn(cut((ALL, SETTLE_SECONDS - 1)), slow)
    world.run()
    world.check_exactly_once()
    assert world.count(SEND) == 1


def test_absent_counts_at_once_after_an_error_in_the_own_form_of_the_api() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.host.weather = in_turn(own_500(1))
    world.run()
    world.check_exactly_once()
    assert actions(world) == [SEND, READ_BACK, SEND]
    assert world.requests[-1].tags == (1,)
    assert world.now < world.requests[0].started_at + 1


def test_found_is_final_at_once() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.host.weather = in_turn(cut((ALL, 0.02)))
    world.run()
    world.check_exactly_once()
    assert actions(world) == [SEND, READ_BACK]
    assert world.now < world.requests[0].started_at + 1
    outcome = world.outcomes[1]
    assert isinstance(outcome, Delivered)
    assert outcome.read_back
    assert (outcome.batch_size, outcome.first_index, outcome.attempts) == (2, 0, 1)


def test_only_the_missing_suffix_is_sent_again() -> None:
    world = world_of()
    world.add("c", "a", "a", "a", "b")
    world.host.weather = in_turn(cut((2, 0.02)))
    world.run()
    world.check_exactly_once()
    assert [request.tags for request in world.requests if request.action is SEND] == [(0, 1, 2, 3), (2, 3)]


def test_a_request_that_lands_late_but_in_time_is_not_sent_again() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.host.weather = in_turn(cut((1, 3.0), (2, SETTLE_SECONDS - 0.01)))
    world.run()
    world.check_exactly_once()
    assert world.count(SEND) == 1


def test_a_landing_later_than_the_settling_delay_is_the_only_duplicate() -> None:
    world = world_of()
    world.know("d")
    world.add("c", "a", "b")
    world.add("d", "a")
    world.host.weather = only("c", in_turn(cut((ALL, SETTLE_SECONDS + 5))))
    world.run()
    world.run(30)
    audits = world.audit()
    assert audits["c"].stored == [0, 1, 0, 1]
    assert audits["d"].stored == [2]
    assert not world.dead


def test_others_do_not_wait_while_a_conversation_settles() -> None:
    world = world_of(concurrency=1)
    world.know("d")
    world.add("c", "a")
    world.host.weather = only("c", in_turn(cut()))
    world.keep_adding(8.0, 0.5, "d")
    world.run()
    world.check_exactly_once()
    latest = max(at - 1000.0 - index * 0.5 for index, at in enumerate(at for at, tag in world.order if tag != 0))
    assert latest <= 3 * LATENCY_SECONDS


def test_an_old_message_in_the_same_words_is_not_taken_for_the_new_one() -> None:
    world = World()
    world.host.write("c", "a")
    world.know("c")
    world.add("c", "a")
    world.host.weather = in_turn(cut())
    world.run()
    world.check_exactly_once()


def test_a_cold_conversation_is_asked_for_its_newest_item_once_if_wanted() -> None:
    world = World(policy=replace(USUAL, read_cursor_first=True))
    world.host.write("c", "a")
    world.add("c", "a")
    world.host.weather = lambda request: cut() if len(world.requests) == 2 else None
    world.run()
    world.add("c", "b")
    world.run()
    world.check_exactly_once()
    assert actions(world).count(READ_CURSOR) == 1
    assert actions(world)[:2] == [READ_CURSOR, SEND]


def test_without_a_cursor_the_newest_items_are_compared() -> None:
    world = World()
    for text in "pqrst":
        world.host.write("c", text)
    world.add("c", "a", "b", "c")
    world.host.weather = in_turn(cut((2, 0.02)))
    world.run()
    world.check_exactly_once()
    assert [request.tags for request in world.requests if request.action is SEND] == [(0, 1, 2), (2,)]


def test_where_the_item_read_behind_is_gone_the_newest_items_are_compared() -> None:
    world = World()
    world.cursors.learn("c", "msg_deleted")
    world.add("c", "a", "b")
    world.host.weather = in_turn(cut((1, 0.02)))
    world.run()
    world.check_exactly_once()
    assert [request.tags for request in world.requests if request.action is SEND] == [(0, 1), (1,)]


def test_a_conversation_deleted_while_its_batch_is_unsettled_is_dead_lettered_as_not_found() -> None:
    world = world_of()
    world.add("c", "a", "b")
    world.host.weather = lambda request: cut() if len(world.requests) == 1 else NOT_FOUND
    world.run()
    world.check_dead(0, 1, reason=Reason.CONVERSATION_NOT_FOUND)


def test_what_another_partition_sends_to_the_conversation_does_not_hide_what_was_stored() -> None:
    world = world_of()
    world.add("c", "a", partition=0)
    world.at(world.now + 0.01, lambda: world.add("c", "b", partition=1))
    # The first is stored, then the second is stored and answered, then the first is found cut.
    world.host.weather = in_turn(Fault("cut late", cut().answer, ((ALL, 0.02),), seconds=0.5))
    world.run()
    assert world.audit()["c"].stored == [0, 1]
    assert world.all_done


def test_a_cursor_that_falls_out_of_memory_under_way_is_still_the_one_read_behind() -> None:
    world = World(known_conversations=1)
    world.host.write("c", "a")
    world.know("c")
    world.add("c", "a")
    world.at(world.now + 0.01, lambda: world.add("d", "x"))
    world.host.weather = only("c", in_turn(Fault("cut late", cut().answer, seconds=0.5)))
    world.run()
    assert world.audit()["c"].stored == [0]


def test_an_answer_without_ids_leaves_the_conversation_unknown_and_not_empty() -> None:
    delivery, batch = _one_batch()
    delivery.cursors.learn("c", "msg_1")
    delivery.began(batch, SEND, 1.0)
    items = [b'{"role":"user","content":"a"}']
    delivery.sent(batch, Verdict(Kind.DELIVERED), items, "", started_at=1.0, now=1.1)
    assert delivery.cursors.get("c") is None


def test_a_listing_without_ids_is_no_cursor_and_stops_consumption_when_repeated() -> None:
    delivery, batch = _one_batch(read_cursor_first=True)
    items = [b'{"role":"user","content":"a"}']
    for now in (1.0, 2.0):
        assert delivery.action(batch) is READ_CURSOR
        delivery.began(batch, READ_CURSOR, now)
        result = delivery.cursor_read(batch, Verdict(Kind.DELIVERED), items, now)
        assert result.again_at is not None
        assert result.again_at > now
    assert delivery.circuit.reason is CircuitReason.UNEXPECTED_ANSWER


def _one_batch(*, read_cursor_first: bool = False) -> tuple[Delivery, Batch]:
    grouper = Grouper(max_items=20, max_bytes=1 << 20, window_seconds=0.0)
    item = b'{"role":"user","content":"a"}'
    grouper.add(grouper.assign(0), Event(0, 0, "c", "e0", item, len(item)), 1.0)
    batch = grouper.take(1.0)
    assert batch is not None
    policy = replace(USUAL, read_cursor_first=read_cursor_first)
    return Delivery(policy, Circuit(), Cursors(10), lambda: 0.5), batch


# Refusals


@pytest.mark.parametrize("known", [True, False], ids=["cursor", "cold"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "searched"])
@pytest.mark.parametrize("stores_prefix", [True, False], ids=["prefix", "whole"])
def test_one_culprit_among_twenty_costs_at_most_two_log_twenty_and_two_requests(
    stores_prefix: bool, named: bool, known: bool
) -> None:
    for index in range(20):
        world = World(Host(stores_prefix=stores_prefix and known, names_culprit=named))
        if known:
            world.know("c")
        world.add("c", *("bad" if at == index else f"text {at}" for at in range(20)))
        world.run()
        world.check_exactly_once()
        world.check_dead(index)
        bound = 5 if named else 2 * math.log2(20) + 2
        assert len(world.requests) <= bound, f"culprit at {index}: {actions(world)}"


@pytest.mark.parametrize(
    "culprits",
    [
        [0],
        [19],
        [7],
        [0, 1],
        [0, 19],
        [0, 5],
        [9, 10],
        [3, 16],
        [18, 19],
        [0, 7, 13],
        list(range(20)),
        list(range(1, 20)),
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "searched"])
@pytest.mark.parametrize("stores_prefix", [True, False], ids=["prefix", "whole"])
def test_whoever_is_refused_the_others_are_delivered_once_and_in_order(
    stores_prefix: bool, named: bool, culprits: list[int]
) -> None:
    world = World(Host(stores_prefix=stores_prefix, names_culprit=named))
    world.know("c")
    world.add("c", *("bad" if at in culprits else "same words" for at in range(20)), "afterwards")
    world.run()
    world.check_exactly_once()
    world.check_dead(*culprits)
    assert len(world.requests) <= 4 * len(culprits) + 10


def test_an_api_that_names_the_wrong_culprit_is_outlived() -> None:
    for named in (0, 3, 4):
        world = world_of()
        world.add("c", "a", "b", "bad", "c", "d")
        error = nested("invalid_value", "no", named)

        def misnaming(request: Request, error: object = error) -> Fault | None:
            if request.action is not SEND or not any(map(is_bad, request.texts)):
                return None
            return Fault("refused", Answered(400, error=error))  # type: ignore[arg-type]

        world.host.weather = misnaming
        world.run()
        world.check_exactly_once()
        world.check_dead(2)


def test_a_half_that_is_cut_while_the_culprit_is_searched_is_read_back_too() -> None:
    for turn, stored in itertools.product(range(1, 9), (0, 1, ALL)):
        for stores_prefix in (False, True):
            world = World(Host(stores_prefix=stores_prefix))
            world.know("c")
            world.add("c", *("bad" if at == 11 else "same words" for at in range(20)))
            world.host.weather = in_turn(*[None] * turn, cut((stored, 0.02)))
            world.run()
            world.check_exactly_once()
            world.check_dead(11)


def test_what_is_too_large_is_split_and_alone_a_dead_letter() -> None:
    def limited(request: Request) -> Fault | None:
        size = sum(int(text) for text in request.texts)
        return Fault("too large", Answered(413)) if request.action is SEND and size > 100 else None

    world = world_of()
    world.add("c", *["30"] * 6, "101", *["50"] * 3)
    world.host.weather = limited
    world.run()
    world.check_exactly_once()
    world.check_dead(6, reason=Reason.TOO_LARGE)


def test_a_refusal_for_size_says_nothing_of_how_content_is_refused() -> None:
    def limited(request: Request) -> Fault | None:
        return Fault("too large", Answered(413)) if request.action is SEND and len(request.texts) > 10 else None

    world = World(Host(stores_prefix=True))
    world.know("c")
    world.add("c", *["a"] * 4, "bad", *["a"] * 10, "bad", *["a"] * 4)
    world.host.weather = limited
    world.run()
    world.check_exactly_once()
    world.check_dead(4, 15)


def test_a_conversation_that_is_not_there_is_dead_lettered_by_the_batch() -> None:
    world = world_of()
    world.add("c", *["a"] * 25)
    world.host.weather = always(NOT_FOUND, SEND)
    world.run()
    world.check_dead(*range(25), reason=Reason.CONVERSATION_NOT_FOUND)
    assert len(world.requests) == 2


def test_a_dead_letter_tells_what_the_api_said_and_how_often_it_was_asked() -> None:
    world = world_of()
    world.add("c", "bad")
    world.host.weather = in_turn(throttled())
    world.run()
    dead = world.dead[0].dead
    assert (dead.code, dead.message, dead.status) == ("DataInspectionFailed", "inappropriate content", 400)
    assert (dead.attempts, dead.fate) == (2, "not_stored")


# Giving up

HASTY = replace(USUAL, max_age_seconds=0.001)
"""Attempts alone decide."""


def poisoned(request: Request) -> Fault | None:
    return own_500() if request.action is SEND and "poison" in request.texts else None


def test_a_batch_whose_attempts_are_used_up_is_split_and_only_the_item_that_fails_alone_is_given_up() -> None:
    world = world_of(policy=HASTY)
    world.know("d")
    world.host.weather = poisoned
    world.keep_adding(200, 0.06, "d")
    world.run(0.2)
    tags = world.add("c", "a", "b", "poison", "d")
    world.run()
    world.check_exactly_once()
    world.check_dead(tags[2], reason=Reason.EXHAUSTED)
    assert world.dead[tags[2]].dead.fate == "not_stored"
    sends = [request for request in world.requests if request.action is SEND and request.conversation_id == "c"]
    assert [len(request.tags) for request in sends] == [4] * USUAL.max_attempts + [1] * 4
    asked = [request for request in world.requests if tags[2] in request.tags]
    assert asked[-1].action is READ_BACK, "given up without having looked"


def test_what_is_left_of_a_stored_prefix_is_not_given_up_before_it_was_sent_alone() -> None:
    world = world_of(policy=replace(HASTY, max_attempts=1))
    world.know("d")
    world.host.weather = only("c", in_turn(own_500(1)))
    world.keep_adding(10, 0.01, "d")
    world.run(0.08)
    world.add("c", "a", "b")
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_an_attempt_that_is_refused_service_counts_without_a_read_back() -> None:
    timed_out = Fault("408", Answered(408))
    world = world_of(policy=replace(HASTY, max_attempts=3))
    world.know("d")
    world.host.weather = only("c", always(timed_out))
    world.keep_adding(100, 0.06, "d")
    world.run(0.2)
    tags = world.add("c", "a", "b")
    world.run()
    world.check_exactly_once()
    world.check_dead(*tags, reason=Reason.EXHAUSTED)
    assert [len(r.tags) for r in world.requests if r.conversation_id == "c"] == [2, 2, 2, 1, 1]
    assert world.dead[tags[0]].dead.status == 408


def test_what_can_not_be_read_back_is_given_up_with_its_fate_unknown() -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a", "b")
    world.host.weather = only("c", always(gateway_503()))
    world.keep_adding(1200, 0.5, "d")
    world.run()
    world.check_dead(0, 1, reason=Reason.EXHAUSTED)
    assert {outcome.dead.fate for outcome in world.dead.values()} == {"unknown"}
    assert world.count(READ_BACK) >= 3


def test_with_the_ledger_nothing_is_given_up_unread() -> None:
    world = world_of(policy=replace(USUAL, read_cursor_first=True, exact=True))
    world.know("d")
    world.add("c", "a", "b")
    world.host.weather = only("c", lambda request: gateway_503() if request.started_at < 4000 else None)
    world.keep_adding(3100, 2.0, "d")
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_more_conversations_than_are_remembered_are_written_to_all_the_same() -> None:
    for remembered in (0, 1, 2):
        world = World(policy=replace(USUAL, read_cursor_first=True), known_conversations=remembered, concurrency=1)
        for index in range(5):
            world.add(f"c{index}", "a", "a")
        world.host.weather = in_turn(None, cut(), None, cut((1, 0.02)))
        world.run()
        world.check_exactly_once()


def test_what_was_given_up_unread_is_not_taken_for_the_next_in_the_same_words() -> None:
    world = World(policy=replace(HASTY, max_attempts=2, read_cursor_first=True), max_items=1)
    world.know("c", "d")
    world.add("c", "a", "a")
    sends = in_turn(cut((ALL, SETTLE_SECONDS - 0.1)), cut())

    def weather(request: Request) -> Fault | None:
        if request.action is READ_BACK and request.tags == (0,):
            return own_500()
        return sends(request) if request.action is SEND else None

    world.host.weather = only("c", weather)
    world.keep_adding(60, 0.02, "d")
    world.run()
    assert world.dead[0].dead.fate == "unknown"
    assert world.audit()["c"].stored == [0, 1]
    assert isinstance(world.outcomes[1], Delivered)


def test_attempts_used_up_give_nothing_up_before_the_time_is_over() -> None:
    """A part of the API may be away for a while that serves some conversations and not the others."""
    world = world_of(policy=replace(USUAL, backoff_max_seconds=5.0, max_age_seconds=300))
    world.know("d")
    world.add("c", "poison")
    world.host.weather = poisoned
    world.keep_adding(600, 1.0, "d")
    world.run(299)
    assert world.count(SEND) > 299 + 2 * USUAL.max_attempts
    assert not world.dead
    world.run(15)
    world.check_dead(0, reason=Reason.EXHAUSTED)


def test_time_that_is_over_gives_nothing_up_before_the_attempts_are_used_up() -> None:
    world = world_of(policy=replace(USUAL, backoff_initial_seconds=40.0, max_age_seconds=30))
    world.know("d")
    world.add("c", "poison")
    world.host.weather = poisoned
    world.keep_adding(600, 1.0, "d")
    world.run()
    world.check_dead(0, reason=Reason.EXHAUSTED)
    assert world.dead[0].dead.attempts == USUAL.max_attempts + 1


def test_time_in_which_nobody_got_through_is_not_held_against_a_conversation() -> None:
    world = world_of(policy=replace(USUAL, max_age_seconds=300))
    world.know("d")
    start = world.now
    world.add("c", "a")
    world.keep_adding(150, 1.0, "d")
    world.host.weather = only("c", lambda request: own_500() if request.started_at < start + 4000 else None)
    # Then nobody speaks for an hour, and those who do speak again get through.
    world.at(start + 3800, lambda: world.keep_adding(100, 1.0, "d"))
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_a_conversation_alone_is_never_given_up_nor_opens_the_circuit() -> None:
    world = world_of(policy=USUAL)
    world.add("c", "a", "poison")
    world.host.weather = always(gateway_503())
    world.run(7200)
    assert not world.outcomes
    assert not world.open_spans
    assert not world.circuit.is_open
    world.host.weather = always(own_500(), SEND)
    world.run(7200)
    assert not world.outcomes
    world.host.weather = in_turn()
    world.run()
    world.check_exactly_once()
    world.check_dead()


@pytest.mark.parametrize(
    "fault", [LOCKED, throttled(), throttled(30.0), UNREACHED], ids=["locked", "throttled", "retry after", "unreached"]
)
def test_a_wait_that_is_not_the_conversations_fault_never_gives_it_up(fault: Fault) -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a")
    world.host.weather = only("c", lambda request: fault if request.started_at < 8200 else None)
    world.keep_adding(7300, 5.0, "d")
    world.run()
    world.check_exactly_once()
    world.check_dead()


@pytest.mark.parametrize("fault", [LOCKED, throttled(), UNREACHED], ids=repr)
def test_the_first_troubles_after_a_long_wait_do_not_give_up_for_age(fault: Fault) -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a")
    limping = in_turn(*[own_500(), None] * (USUAL.max_attempts + 2))
    world.host.weather = only("c", lambda request: fault if request.started_at < 3000 else limping(request))
    world.keep_adding(3000, 1.0, "d")
    world.run()
    world.check_exactly_once()
    world.check_dead()
    assert world.outcomes[0].attempts > USUAL.max_attempts  # type: ignore[union-attr]


def test_age_alone_gives_nothing_up_that_failed_once() -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a")
    world.host.weather = only("c", in_turn(own_500()))
    world.at(world.now + 0.02, lambda: setattr(world, "held_until", world.now + 2000))
    world.add("d", "x")
    world.run()
    world.check_exactly_once()
    world.check_dead()


@pytest.mark.parametrize("every", [gateway_503(), own_500(), UNREACHED, silence(), cut()], ids=repr)
def test_two_conversations_in_an_outage_are_not_given_up_though_one_got_through_before(every: Fault) -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a", "b")
    start = world.now
    world.at(start + 0.1, lambda: world.add("d", "just in time"))
    world.at(start + 1.0, lambda: world.add("d", "x", "y"))

    def weather(request: Request) -> Fault | None:
        if request.conversation_id == "c" and request.started_at < start + 0.5:
            return every
        if 0.5 < request.started_at - start < 7200:
            return every
        # A host that comes back does so limping.
        return own_500() if request.conversation_id == "c" and request.started_at < start + 7300 else None

    world.host.weather = weather
    world.keep_adding(7400, 90.0, "d")
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_an_answer_that_lists_nothing_is_the_conversations_own_trouble_while_others_get_through() -> None:
    world = world_of(policy=USUAL)
    world.know("d")
    world.add("c", "a")
    world.host.weather = only("c", always(html(), SEND))
    world.keep_adding(2400, 1.0, "d")
    world.run()
    world.check_dead(0, reason=Reason.EXHAUSTED)
    assert not world.open_spans


def test_giving_up_says_nothing_of_other_conversations() -> None:
    world = world_of(policy=replace(HASTY, max_attempts=2))
    others = [f"d{index}" for index in range(5)]
    world.know(*others)
    world.add("c", *["poison"] * 3)
    world.host.weather = poisoned
    world.keep_adding(120, 0.5, *others)
    world.run()
    world.check_exactly_once()
    world.check_dead(0, 1, 2, reason=Reason.EXHAUSTED)


# Revocation


def test_what_comes_late_of_a_revoked_partition_changes_nothing_for_its_next_assignment() -> None:
    world = world_of()
    tags = world.add("c", "a", "b")
    late = Fault("late answer", cut().answer, ((ALL, 0.02),), seconds=1.0)
    world.host.weather = in_turn(late)
    world.run(0.1)
    old = world.grouper.partitions[0]
    world.grouper.drain(0)
    world.grouper.revoke(0)
    world.run(0.1)
    world.read_again(0, tags)
    world.run()
    assert world.all_done
    assert not old.lanes
    assert old.in_flight == 0
    # Nobody wrote down that the first was under way: this is what the ledger is for.
    assert world.audit()["c"].stored == [0, 1, 0, 1]


def test_a_draining_partition_settles_what_is_unsettled_and_sends_nothing_more() -> None:
    world = world_of(max_items=2)
    world.add("c", "a", "b", "c", "d")
    world.host.weather = in_turn(cut((1, 0.02)))
    world.run(0.1)
    partition = world.grouper.partitions[0]
    world.grouper.drain(0)
    world.run()
    assert not partition.busy
    assert world.count(SEND) == 1
    assert list(world.outcomes) == [0]
    assert partition.watermark.position == 1


# Reasons


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (None, "tls_error", CircuitReason.TLS),
        (400, "Arrearage", CircuitReason.UNPAID_OR_QUOTA),
        (400, "InvalidApiKey", CircuitReason.KEY_REJECTED),
        (400, "InvalidParameter", CircuitReason.WRONG_URL),
        (401, "http_401", CircuitReason.KEY_REJECTED),
        (402, "http_402", CircuitReason.UNPAID_OR_QUOTA),
        (403, "AllocationQuota.FreeTierOnly", CircuitReason.UNPAID_OR_QUOTA),
        (403, "made_operator_by_settings", CircuitReason.FORBIDDEN),
        (404, "http_404", CircuitReason.WRONG_URL),
        (407, "http_407", CircuitReason.KEY_REJECTED),
        (429, "insufficient_quota", CircuitReason.UNPAID_OR_QUOTA),
        (429, "http_429", CircuitReason.UNPAID_OR_QUOTA),
        (301, "http_301", CircuitReason.WRONG_URL),
        (429, "billing_not_active", CircuitReason.UNPAID_OR_QUOTA),
    ],
)
def test_the_operator_is_told_which_thing_to_mend(status: int | None, code: str, reason: CircuitReason) -> None:
    assert operator_reason(Verdict(Kind.OPERATOR, code, status=status)) is reason
