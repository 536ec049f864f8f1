"""The demo's traffic: made from a seed alone, every text its own, arrivals as they are in life."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from aiokafka import ConsumerRecord

from service.commands.demo_traffic import Arrival, count, traffic
from service.core.model import Refusal
from service.kafka.codec import decode


def arrivals(events: int = 4000, conversations: int = 300, rate: float = 400.0, seed: int = 1) -> list[Arrival]:
    return traffic(events=events, conversations=conversations, rate=rate, seed=seed)


def record_of(arrival: Arrival) -> ConsumerRecord[bytes, bytes]:
    key, value = arrival.write(f"conv_{arrival.conversation}", "2026-01-01T00:00:00.000Z")
    size = len(value or b"")
    return ConsumerRecord("events", 0, arrival.number, 0, 0, key, value, None, len(key), size, ())


def test_the_same_seed_makes_the_same_traffic_and_another_one_other() -> None:
    assert arrivals() == arrivals()
    assert arrivals() != arrivals(seed=2)


@pytest.mark.parametrize("events", [1, 2, 3, 600, 4000])
def test_there_are_as_many_events_as_asked_for_and_a_tombstone_more(events: int) -> None:
    made = arrivals(events)
    assert count(made, "native", "shorthand", "invalid") == events
    assert count(made, "tombstone") == 1
    assert [arrival.number for arrival in made] == list(range(events + 1))


def test_every_text_is_its_events_own() -> None:
    texts = [arrival.text for arrival in arrivals() if arrival.text]
    assert len(set(texts)) == len(texts) == count(arrivals(), "native", "shorthand")


def test_arrivals_follow_one_another_at_random_at_the_rate_asked_for() -> None:
    times = [arrival.at_seconds for arrival in arrivals(rate=200)]
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert all(gap > 0 for gap in gaps)
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 200, rel=0.1)
    # Of an exponential distribution, 1/e of all gaps are longer than the mean.
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.37, abs=0.03)


def test_some_conversations_are_much_livelier_than_others() -> None:
    by_conversation = Counter(arrival.conversation for arrival in arrivals())
    assert set(by_conversation) <= set(range(300))
    (_, most), *_ = by_conversation.most_common()
    assert 0.1 < most / 4001 < 0.25
    assert len(by_conversation) > 250


def test_user_and_assistant_take_turns_in_each_conversation() -> None:
    roles: dict[int, list[str]] = {}
    for arrival in arrivals():
        if arrival.role:
            roles.setdefault(arrival.conversation, []).append(arrival.role)
    for of_one in roles.values():
        assert of_one == [("user", "assistant")[turn % 2] for turn in range(len(of_one))]


def test_a_few_percent_come_in_the_short_form() -> None:
    assert 0.02 < count(arrivals(), "shorthand") / 4000 < 0.06


def test_what_is_meant_to_be_an_event_is_one_and_a_handful_are_none() -> None:
    made = arrivals()
    assert 2 < count(made, "invalid") < 20
    for arrival in made:
        if arrival.form == "tombstone":
            assert record_of(arrival).value is None
            continue
        decoded = decode(record_of(arrival))
        if arrival.form == "invalid":
            assert isinstance(decoded, Refusal)
        else:
            assert not isinstance(decoded, Refusal)
            assert decoded.conversation_id == f"conv_{arrival.conversation}"
            item = json.loads(bytes(decoded.item))
            assert (item["role"], item["content"]) == (arrival.role, arrival.text)


def test_invalid_events_are_invalid_in_different_ways() -> None:
    messages = {
        decoded.message
        for arrival in arrivals()
        if arrival.form == "invalid" and isinstance(decoded := decode(record_of(arrival)), Refusal)
    }
    assert len(messages) > 4
