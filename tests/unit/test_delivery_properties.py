"""Delivery under whatever a host can do, searched by Hypothesis.

Each example is a conversation or four, a list of faults that meet the requests in the order they are made
(then the weather is fine) and other writers in between. ``HYPOTHESIS_PROFILE=long`` looks much longer.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from unit.test_delivery_world import (
    ALL,
    KEY_REJECTED,
    LOCKED,
    PATIENT,
    SETTLE_SECONDS,
    UNREACHED,
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
    own_500,
    relayed_502,
    silence,
    throttled,
)

from service.core.delivery import Action, Delivered
from service.core.model import Reason

_ALWAYS = settings(deadline=None, suppress_health_check=list(HealthCheck))
PROFILE: Final = {
    "default": settings(_ALWAYS, max_examples=150),
    "long": settings(_ALWAYS, max_examples=3_000),
    "mutants": settings(_ALWAYS, max_examples=80, derandomize=True, database=None, phases=[Phase.generate]),
}[os.environ.get("HYPOTHESIS_PROFILE", "default")]

JUST_IN_TIME: Final = SETTLE_SECONDS - 0.01

counts = st.sampled_from([0, 1, 2, 3, 5, ALL])
moments = st.sampled_from([0.0, 0.02, 0.3, 2.0, 5.0, JUST_IN_TIME])


@st.composite
def landings(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    """A part of the items at one moment, more of them at a later one; or nothing at all."""
    first, second = sorted([draw(counts), draw(counts)])
    early, late = sorted([draw(moments), draw(moments)])
    return tuple((count, at) for count, at in ((first, early), (second, late)) if count)


unheard: st.SearchStrategy[Fault] = st.builds(
    lambda fault, stores: fault(*stores), st.sampled_from([cut, silence, gateway_503, relayed_502, html]), landings()
)
certain: st.SearchStrategy[Fault] = st.one_of(
    st.builds(own_500, counts),
    st.builds(throttled, st.sampled_from([None, 0.1, 4.0])),
    st.sampled_from([UNREACHED, LOCKED, KEY_REJECTED, WRONG_URL, WRONG_DASHSCOPE_URL]),
    st.sampled_from([Fault("slow", None, seconds=seconds) for seconds in (1.0, 8.0, 30.0)]),
)
faults = st.one_of(unheard, certain)

texts = st.lists(st.sampled_from(["a", "a", "b", "c"]), min_size=1, max_size=9)
texts_some_refused = st.lists(st.sampled_from(["a", "a", "b", "bad", "bad too"]), min_size=1, max_size=9)


@st.composite
def worlds(draw: st.DrawFn, words: st.SearchStrategy[list[str]]) -> World:
    host = Host(stores_prefix=draw(st.booleans()), names_culprit=draw(st.booleans()))
    host.weather = in_turn(*draw(st.lists(st.none() | faults, max_size=14)))
    host.interrupted = iter(draw(st.lists(st.booleans(), max_size=20)))
    jitter = draw(st.sampled_from([0.0, 0.3, 0.999]))
    world = World(
        host,
        policy=replace(PATIENT, read_cursor_first=draw(st.booleans()), exact=draw(st.booleans())),
        max_items=draw(st.sampled_from([1, 3, 8, 20])),
        concurrency=draw(st.integers(1, 4)),
        random=lambda: jitter,
    )
    for index in range(draw(st.integers(1, 4))):
        conversation_id = f"c{index}"
        # What lies there from before is word for word what comes.
        for text in draw(st.lists(st.sampled_from(["a", "b"]), max_size=2)):
            host.write(conversation_id, text)
        if not world.policy.read_cursor_first:
            world.know(conversation_id)
        world.add(conversation_id, *draw(words))
        if draw(st.booleans()):
            later = partial(world.add, conversation_id, *draw(words))
            world.at(world.now + draw(st.sampled_from([0.02, 1.0, 7.0])), later)
        for delay in draw(st.lists(st.sampled_from([0.03, 0.5, 3.0, 20.0]), max_size=2)):
            world.at(world.now + delay, partial(host.write, conversation_id, "of another writer"))
    return world


@settings(PROFILE)
@given(worlds(texts))
def test_whatever_the_host_does_nothing_is_lost_doubled_swapped_or_dead_lettered(world: World) -> None:
    world.run()
    world.check_exactly_once()
    world.check_dead()
    assert not world.circuit.is_open


@settings(PROFILE)
@given(worlds(texts_some_refused))
def test_whatever_the_host_does_exactly_what_it_refuses_is_dead_lettered(world: World) -> None:
    world.run()
    world.check_exactly_once()
    world.check_dead(*[tag for tag in world.events if is_bad(world.text(tag))])
    assert not world.circuit.is_open


@settings(PROFILE)
@given(st.data())
def test_a_cold_conversation_is_settled_by_its_newest_items_where_no_words_are_repeated(data: st.DataObject) -> None:
    world = World(concurrency=data.draw(st.integers(1, 3)), max_items=data.draw(st.sampled_from([1, 3, 20])))
    world.host.names_culprit = data.draw(st.booleans())
    world.host.weather = in_turn(*data.draw(st.lists(st.none() | faults, max_size=10)))
    for conversation_id in ("c0", "c1"):
        world.host.write(conversation_id, "from before")
        words = data.draw(texts_some_refused)
        world.add(conversation_id, *(f"{word} {index}" for index, word in enumerate(words)))
    world.run()
    world.check_exactly_once()
    world.check_dead(*[tag for tag in world.events if is_bad(world.text(tag))])


@settings(PROFILE)
@given(st.data())
def test_whoever_is_given_up_is_given_up_alone_after_a_look_and_nobody_else_suffers(data: st.DataObject) -> None:
    jitter = data.draw(st.sampled_from([0.1, 0.9]))
    attempts, age = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([20.0, 900.0]))
    policy = replace(
        PATIENT, max_attempts=attempts, max_age_seconds=age, backoff_max_seconds=10.0, read_cursor_first=True
    )
    world = World(Host(stores_prefix=data.draw(st.booleans())), policy=policy, random=lambda: jitter, max_items=5)
    world.know("c", "d")
    plan = in_turn(*data.draw(st.lists(st.none() | faults, min_size=5, max_size=40)))
    world.host.weather = lambda request: plan(request) if request.conversation_id == "c" else None
    tags = world.add("c", *data.draw(texts_some_refused))
    world.keep_adding(240, 2.0, "d")
    world.run()
    assert world.all_done
    assert world.idle
    assert world.dead.keys() <= set(tags)
    audit = world.audit()["c"]
    assert len(audit.stored) == len(set(audit.stored)), "doubled"
    assert audit.stored == sorted(audit.stored), "swapped"
    assert [tag for _, tag in world.order if tag in tags] == tags
    for tag in tags:
        outcome = world.outcomes[tag]
        if isinstance(outcome, Delivered):
            assert tag in audit.stored, "lost"
            continue
        dead = outcome.dead
        assert dead.reason in {Reason.EXHAUSTED, Reason.REJECTED}
        asked = [request for request in world.requests if tag in request.tags]
        if dead.fate == "unknown":
            assert asked[-1].action is Action.READ_BACK
            continue
        assert tag not in audit.stored, "dead, and stored"
        assert len(asked[-1].tags) == 1, "given up in company"
        assert dead.reason is Reason.EXHAUSTED or is_bad(world.text(tag))


@settings(PROFILE)
@given(st.data())
def test_partitions_that_come_and_go_lose_nothing_and_disturb_no_other(data: st.DataObject) -> None:
    world = World(max_items=3, concurrency=3)
    world.know("c0", "c1", "d0")
    world.host.weather = in_turn(*data.draw(st.lists(st.none() | faults, max_size=12)))
    # No words twice: a request of a former assignment is another writer, and is told from ours by its words alone.
    tags = [*world.add("c0", *"abcde"), *world.add("c1", *"abc")]
    world.add("d0", *"aabbc", partition=1)
    committed = 0
    for seconds, budget in data.draw(
        st.lists(st.tuples(st.sampled_from([0.01, 0.06, 1.0, 11.0]), st.sampled_from([0.0, 0.1, 15.0])), max_size=3)
    ):
        world.run(seconds)
        partition = world.grouper.partitions[0]
        world.grouper.drain(0)
        world.run(budget, until=lambda partition=partition: not partition.busy)  # type: ignore[misc]
        committed = partition.watermark.position or committed
        world.grouper.revoke(0)
        world.read_again(0, [tag for tag in tags if tag >= committed])
    world.run()
    assert world.all_done
    assert not world.dead
    audits = world.audit()
    assert audits["d0"].stored == audits["d0"].delivered == audits["d0"].sent
    for audit in (audits["c0"], audits["c1"]):
        # What a former assignment had under way may be there twice; nothing is missing, nothing is overtaken.
        assert list(dict.fromkeys(audit.stored)) == audit.sent
