"""Delivery when the host itself is in trouble: outages, rejected keys, wrong addresses, 403 for all or for one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from unit.test_delivery_world import (
    ALL,
    FIREWALL,
    FIREWALL_403,
    FORBIDDEN,
    KEY_REJECTED,
    LOCKED,
    UNREACHED,
    USUAL,
    WRONG_DASHSCOPE_URL,
    WRONG_URL,
    Fault,
    Host,
    World,
    cut,
    gateway_503,
    html,
    in_turn,
    is_bad,
    outage,
    own_500,
    silence,
    throttled,
)

from service.core.circuit import PROBE_MAX_SECONDS, CircuitReason
from service.core.delivery import Action
from service.core.model import Answered, Fate, Reason, Unanswered

if TYPE_CHECKING:
    from unit.test_delivery_world import Request, Weather

OUTAGES = [
    UNREACHED,
    own_500(),
    gateway_503(),
    gateway_503((ALL, 0.02)),
    cut(),
    silence(),
    html(),
    KEY_REJECTED,
    WRONG_URL,
    WRONG_DASHSCOPE_URL,
    FORBIDDEN,
    FIREWALL,
    FIREWALL_403,
]
REASONS = {
    "html": CircuitReason.UNEXPECTED_ANSWER,
    "key_rejected": CircuitReason.KEY_REJECTED,
    "wrong_url": CircuitReason.WRONG_URL,
    "wrong_dashscope_url": CircuitReason.WRONG_URL,
    "forbidden": CircuitReason.FORBIDDEN,
    "firewall": CircuitReason.UNEXPECTED_ANSWER,
    "firewall_403": CircuitReason.FORBIDDEN,
}


def busy_world(conversations: int, seed: int = 0, **changes: object) -> tuple[World, list[str]]:
    """A world with the usual policy in which so many conversations have something to say."""
    changes = {"policy": USUAL, "concurrency": 32, "random": random.Random(seed).random, **changes}
    world = World(**changes)  # type: ignore[arg-type]
    names = [f"c{index}" for index in range(conversations)]
    world.know("fresh", *names)
    for name in names:
        world.add(name, "a", "b", "a")
    return world, names


@pytest.mark.parametrize("seconds", [5.0, 120.0], ids=["5s", "120s"])
@pytest.mark.parametrize("conversations", [3, 40])
@pytest.mark.parametrize("fault", OUTAGES, ids=repr)
def test_an_outage_pauses_consumption_dead_letters_nothing_and_is_over_in_five_seconds(
    fault: Fault, conversations: int, seconds: float
) -> None:
    for seed in range(2):
        world, names = busy_world(conversations, seed)
        begins, heals = world.now + 0.5, world.now + 0.5 + seconds
        world.host.weather = outage(fault, begins, heals)
        world.keep_adding(seconds, 1.0 if seconds < 20 else 10.0, *names)
        world.run(heals - world.now - seconds / 2)
        for _ in range(10):
            assert world.circuit.reason is REASONS.get(fault.name, CircuitReason.API_UNAVAILABLE)
            world.run(seconds / 20)
        assert not world.dead
        # While open, one request after the other, and seldom; those of the first moment were under way already.
        probes = [request for request in world.requests if request.probe]
        assert len(probes) <= 4 + seconds / PROBE_MAX_SECONDS * (10 if fault.stores else 1)
        world.run(until=lambda world=world: not world.circuit.is_open)  # type: ignore[misc]
        [fresh] = world.add("fresh", "now that partitions are read again")
        world.run(until=lambda world=world, fresh=fresh: fresh in world.outcomes)  # type: ignore[misc]
        assert world.now - heals <= 5.0
        world.run()
        world.check_exactly_once()
        world.check_dead()


@pytest.mark.parametrize("fault", [gateway_503(), silence(), html(), own_500(), FIREWALL], ids=repr)
def test_with_attempts_that_settle_slowly_all_who_waited_are_served_within_five_seconds(fault: Fault) -> None:
    """With the usual 20 s for a request and 27 s to settle, and more waiting than probes could try."""
    slow = replace(fault, seconds=20.0 if fault.name == "silence" else fault.seconds)
    for seed in range(3):
        world, _ = busy_world(40, seed, policy=replace(USUAL, settle_seconds=27.0))
        untried = [f"untried{index}" for index in range(60)]
        world.know(*untried)
        world.at(world.now + 50, lambda world=world, untried=untried: [world.add(name, "a") for name in untried])  # type: ignore[misc]
        heals = world.now + 120
        world.host.weather = outage(slow, 0, heals)
        world.run(120)
        assert world.circuit.is_open
        world.run(5)
        assert world.all_done, (slow, seed, len(world.outcomes))
        world.check_exactly_once()
        world.check_dead()


def test_an_api_whose_lists_can_not_be_had_is_found_to_store_again() -> None:
    world, _ = busy_world(40)
    heals = world.now + 60
    never = Fault("silence", Unanswered(Fate.UNKNOWN, "timeout", "no answer"), seconds=20.0)
    world.host.weather = lambda request: (
        never if request.action is not Action.SEND else UNREACHED if request.started_at < heals else None
    )
    world.run(60)
    assert world.circuit.is_open
    world.run(900)
    world.check_exactly_once()


@pytest.mark.parametrize("fault", [Fault("405", Answered(405)), Fault("400", Answered(400)), FORBIDDEN], ids=repr)
def test_an_api_that_refuses_to_list_is_found_to_store_again_in_five_seconds(fault: Fault) -> None:
    world, _ = busy_world(40)
    heals = world.now + 60
    world.host.weather = lambda request: (
        UNREACHED if request.started_at < heals else fault if request.action is not Action.SEND else None
    )
    world.run(60)
    assert world.circuit.is_open
    world.run(5)
    world.check_exactly_once()


def firewall(fault: Fault) -> Weather:
    """Refuse what is written, for its words, before the API sees it."""
    return lambda request: fault if request.action is Action.SEND and any(map(is_bad, request.texts)) else None


@pytest.mark.parametrize(("fault", "reason"), [(FIREWALL, Reason.REJECTED), (FIREWALL_403, Reason.FORBIDDEN)], ids=repr)
@pytest.mark.parametrize("known", [True, False], ids=["cursor", "cold"])
def test_what_a_firewall_refuses_for_its_content_is_given_up_alone(fault: Fault, reason: Reason, known: bool) -> None:
    world, names = busy_world(5)
    if known:
        world.know("odd")
    tags = world.add("odd", *("bad" if at in {3, 11} else f"text {at}" for at in range(20)))
    world.host.weather = firewall(fault)
    world.keep_adding(30, 0.5, *names)
    world.run()
    world.check_exactly_once()
    world.check_dead(tags[3], tags[11], reason=reason)
    assert not world.open_spans


def test_a_conversation_alone_is_rid_of_what_a_firewall_refuses_if_its_neighbours_are_accepted() -> None:
    world, _ = busy_world(0)
    world.know("c")
    world.host.weather = firewall(FIREWALL)
    [_, bad, _] = world.add("c", "a", "bad", "b")
    world.run(60)
    world.check_exactly_once()
    world.check_dead(bad)


def test_a_firewall_that_refuses_all_twice_dead_letters_nothing_the_second_time() -> None:
    world, names = busy_world(5)
    start = world.now
    world.keep_adding(200, 1.0, *names)
    world.host.weather = lambda request: (
        FIREWALL if 20 < request.started_at - start < 40 or 100 < request.started_at - start < 130 else None
    )
    world.run()
    world.check_exactly_once()
    world.check_dead()
    assert len(world.open_spans) >= 2


def test_batches_too_large_for_everybody_are_split_though_none_is_accepted_first() -> None:
    world, _ = busy_world(0)
    nginx = Fault("nginx", Answered(413))
    for name in "abc":
        world.know(name)
        world.add(name, *"xyzxyz")
    world.host.weather = lambda request: nginx if request.action is Action.SEND and len(request.tags) > 2 else None
    world.run(60)
    world.check_exactly_once()
    world.check_dead()


def test_a_firewall_that_refuses_reads_too_is_not_taken_for_a_cursor_that_is_gone() -> None:
    world, _ = busy_world(0)
    for name in "abcd":
        world.host.write(name, "same words")
        world.know(name)
        world.add(name, "same words")
    plan = {name: in_turn(cut()) for name in "abcd"}
    heals = world.now + 30
    world.host.weather = lambda request: (
        plan[request.conversation_id](request) or (FIREWALL if request.started_at < heals else None)
    )
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_an_outage_so_short_that_every_batch_has_to_settle_is_over_as_soon() -> None:
    for seed in range(20):
        world, _ = busy_world(3, seed)
        world.host.weather = outage(gateway_503(), 0, world.now + 2)
        world.run(2)
        assert world.circuit.is_open
        world.run(until=lambda world=world: not world.circuit.is_open)  # type: ignore[misc]
        assert world.now <= 1007
        world.run()
        world.check_exactly_once()
        world.check_dead()


def test_reads_that_work_close_the_circuit_once_and_writes_that_fail_keep_it_open() -> None:
    world, names = busy_world(5)
    world.host.weather = lambda request: own_500() if request.action is Action.SEND else None
    world.keep_adding(600, 1.0, *names)
    world.run(600)
    assert world.circuit.is_open
    assert len(world.open_spans) <= 1
    assert not world.outcomes
    world.host.weather = in_turn()
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_a_day_of_outage_gives_nothing_up() -> None:
    for conversations in (1, 2, 3, 7):
        world, _ = busy_world(conversations)
        world.host.weather = outage(gateway_503(), 0, world.now + 20_000)
        world.run()
        world.check_exactly_once()
        world.check_dead()


def test_answers_that_are_cut_after_storing_leave_no_open_circuit_behind() -> None:
    world, _ = busy_world(3)
    world.host.weather = lambda request: cut((ALL, 0.02)) if request.action is Action.SEND else None
    world.run()
    world.check_exactly_once()
    assert world.open_spans
    # Nothing waits any more, so nothing could be a probe: partitions would have stayed paused for ever.
    assert not world.circuit.is_open


def test_three_conversations_in_trouble_of_their_own_do_not_stop_the_others_for_long() -> None:
    world, names = busy_world(20)
    sick = names[:3]
    world.host.weather = lambda request: own_500() if request.conversation_id in sick else None
    world.keep_adding(1200, 2.0, *names[3:])
    world.run()
    assert {world.events[tag].conversation_id for tag in world.dead} == set(sick)
    assert {outcome.dead.reason for outcome in world.dead.values()} == {Reason.EXHAUSTED}
    assert sum(closed - opened for opened, closed in world.open_spans) <= 60


@pytest.mark.parametrize("of", [[Action.SEND], list(Action)], ids=["writes", "reads too"])
def test_three_sick_conversations_in_a_quiet_hour_do_not_stop_who_comes_later(of: list[Action]) -> None:
    world, names = busy_world(3)
    world.host.weather = lambda request: (
        own_500() if request.conversation_id in names and request.action in of else None
    )
    world.run(3600)
    assert world.circuit.is_open
    assert not world.outcomes
    # Holds only where reading goes on, a little, while the circuit is open: somebody healthy has to be at hand.
    fresh = world.add("fresh", "good morning")
    world.run(15)
    assert set(world.outcomes) == set(fresh)
    world.keep_adding(1800, 1.0, "fresh")
    world.run()
    world.check_exactly_once()
    assert {world.events[tag].conversation_id for tag in world.dead} <= set(names)


def test_throttling_for_all_gives_nothing_up_and_opens_nothing() -> None:
    world, _ = busy_world(10)
    world.host.weather = outage(throttled(), 0, world.now + 3000)
    world.run()
    world.check_exactly_once()
    world.check_dead()
    assert not world.open_spans


def test_a_time_the_api_names_is_waited_for_by_everybody() -> None:
    world, _ = busy_world(10, concurrency=1)
    world.host.weather = in_turn(throttled(7.0))
    world.run()
    assert world.requests[1].started_at >= world.requests[0].answered_at + 7.0
    world.check_exactly_once()


# 403


def test_a_conversation_that_is_forbidden_while_others_are_not_is_dead_lettered() -> None:
    world, names = busy_world(5)
    world.host.weather = lambda request: FORBIDDEN if request.conversation_id == "c0" else None
    world.keep_adding(20, 0.3, *names[1:])
    world.run()
    world.check_exactly_once()
    world.check_dead(0, 1, 2, reason=Reason.FORBIDDEN)
    assert not world.open_spans


def test_a_forbidden_conversation_is_found_by_the_question_for_its_cursor_too() -> None:
    world = World(policy=USUAL.__class__(8, 900.0, 0.5, 60.0, 9.0, read_cursor_first=True))
    world.add("c0", "a")
    world.host.weather = lambda request: FORBIDDEN if request.conversation_id == "c0" else None
    world.keep_adding(20, 0.3, "c1", "c2")
    world.run()
    world.check_exactly_once()
    world.check_dead(0, reason=Reason.FORBIDDEN)


def test_two_forbidden_conversations_among_many_are_told_from_a_key_without_rights() -> None:
    world, names = busy_world(12)
    world.host.weather = lambda request: FORBIDDEN if request.conversation_id in {"c0", "c1"} else None
    world.keep_adding(60, 0.3, *names[2:])
    world.run()
    world.check_exactly_once()
    world.check_dead(0, 1, 2, 3, 4, 5, reason=Reason.FORBIDDEN)


def test_a_conversation_alone_that_is_forbidden_waits_for_the_operator() -> None:
    world, _ = busy_world(1)
    world.host.weather = outage(FORBIDDEN, 0, world.now + 5000)
    world.run()
    world.check_exactly_once()
    world.check_dead()


def test_answers_under_way_when_the_key_loses_its_rights_do_not_prove_that_one_conversation_is_to_blame() -> None:
    for seed in range(10):
        world, names = busy_world(30, seed, concurrency=64)
        lost = world.now + 0.5

        def weather(request: Request, lost: float = lost) -> Fault | None:
            if request.started_at < lost:
                # Accepted before the key lost its rights, answered long after the first refusals.
                return Fault("slow", None, seconds=1.5 + request.tags[0] % 7 / 10)
            return FORBIDDEN if request.started_at < lost + 60 else None

        world.host.weather = weather
        world.run(0.45)
        world.know("late0", "late1", "late2")
        world.keep_adding(3, 0.2, *names, "late0", "late1", "late2")
        world.run()
        world.check_exactly_once()
        world.check_dead()


def test_a_key_that_loses_its_rights_twice_dead_letters_nothing_the_second_time() -> None:
    world, names = busy_world(5)
    start = world.now
    world.keep_adding(200, 1.0, *names)
    world.host.weather = lambda request: (
        FORBIDDEN if 20 < request.started_at - start < 40 or 100 < request.started_at - start < 130 else None
    )
    world.run()
    world.check_exactly_once()
    world.check_dead()
    assert len(world.open_spans) >= 2


def test_a_refusal_from_an_assignment_long_gone_is_not_held_against_a_conversation() -> None:
    world, names = busy_world(2)
    world.add("moved", "a", partition=1)
    world.host.weather = lambda request: FORBIDDEN if request.conversation_id == "moved" else None
    world.run(0.06)
    world.grouper.drain(1)
    world.grouper.revoke(1)
    world.host.weather = in_turn()
    world.keep_adding(300, 1.0, *names)
    world.run(300)
    # Back again, and at this moment the key has no rights.
    world.host.weather = outage(FORBIDDEN, 0, world.now + 20)
    world.read_again(1, [tag for tag, event in world.events.items() if event.conversation_id == "moved"])
    world.keep_adding(30, 0.5, *names)
    world.run()
    world.check_exactly_once()
    world.check_dead()


@pytest.mark.parametrize(
    "fault", [own_500(), UNREACHED, KEY_REJECTED, FORBIDDEN, LOCKED, throttled(), html()], ids=repr
)
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_a_host_that_fails_now_and_then_delays_and_no_more(fault: Fault, share: float) -> None:
    for seed in range(3):
        dice = random.Random(seed)
        world, names = busy_world(20, seed)
        world.host = Host()
        world.know("fresh", *names)
        world.host.weather = lambda request, dice=dice: fault if dice.random() < share else None  # type: ignore[misc]
        world.keep_adding(20, 0.5, *names)
        world.run()
        if fault is FORBIDDEN:
            # Refused twice running with others accepted between: it can not be told from a real refusal.
            assert {outcome.dead.reason for outcome in world.dead.values()} <= {Reason.FORBIDDEN}
            continue
        world.check_exactly_once()
        world.check_dead()


def test_the_first_trouble_after_an_outage_of_writes_gives_nothing_up() -> None:
    world, names = busy_world(4)
    heals = world.now + 600
    limping = {name: in_turn(own_500()) for name in names}

    def weather(request: Request) -> Fault | None:
        if request.action is not Action.SEND or request.conversation_id == "fresh":
            return None
        return own_500() if request.started_at < heals else limping[request.conversation_id](request)

    world.host.weather = weather
    world.at(heals, lambda: world.add("fresh", "x"))
    world.run(heals - world.now)
    world.keep_adding(30, 0.2, "fresh")
    world.run()
    world.check_exactly_once()
    world.check_dead()
