"""The health of the host: when the circuit opens, what it lets through, what closes it, whom it blames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.circuit import (
    FORBIDDEN_KEPT,
    FORBIDDEN_MEMORY_SECONDS,
    PROBE_INITIAL_SECONDS,
    PROBE_MAX_SECONDS,
    READS_BEFORE_A_WRITE,
    READS_THAT_CLOSE,
    Circuit,
    CircuitReason,
)

if TYPE_CHECKING:
    from collections.abc import Callable

UNAVAILABLE = CircuitReason.API_UNAVAILABLE


def opened(at: float = 0.0) -> Circuit:
    circuit = Circuit()
    for conversation_id in "abc":
        circuit.trouble(conversation_id, at, "http_503")
    assert circuit.is_open
    return circuit


def is_open(circuit: Circuit) -> bool:
    """The same to the reader; the type checker does not see that calls between change it."""
    return circuit.is_open


def probe(circuit: Circuit, now: float, seconds: float = 0.0) -> float:
    """A probe that shows nothing; returns when the next one may start."""
    assert circuit.next_attempt(now) <= now
    circuit.ended(now + seconds, circuit.started(now))
    return circuit.next_attempt(now)


# Opening


def test_three_conversations_in_trouble_with_no_success_between_open_it() -> None:
    circuit = Circuit()
    circuit.trouble("a", 1.0, "first")
    circuit.trouble("b", 2.0, "second")
    assert not circuit.is_open
    circuit.trouble("c", 3.0, "third")
    assert (circuit.reason, circuit.detail) == (UNAVAILABLE, "third")


def test_one_conversation_in_trouble_never_opens_it() -> None:
    circuit = Circuit()
    for now in range(100):
        circuit.trouble("a", now, "http_503")
    assert not circuit.is_open
    assert circuit.next_attempt(100.0) == 100.0


def test_a_success_between_starts_the_count_again() -> None:
    circuit = Circuit()
    for conversation_id in ("a", "b", "", "c", "d"):
        if conversation_id:
            circuit.trouble(conversation_id, 1.0, "http_503")
        else:
            circuit.success("x", 1.0)
    assert not circuit.is_open


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=20))
def test_it_is_open_exactly_when_three_have_failed_since_the_last_success(calls: list[tuple[str, bool]]) -> None:
    circuit, failing = Circuit(), set[str]()
    for now, (conversation_id, good) in enumerate(calls):
        if good:
            failing = set()
            circuit.success(conversation_id, now)
        else:
            failing.add(conversation_id)
            circuit.trouble(conversation_id, now, "http_503")
        assert circuit.is_open == (len(failing) >= 3)
        for other in "abcde":
            assert circuit.others_failing(other) == bool(failing - {other})


@pytest.mark.parametrize("reason", list(CircuitReason))
def test_one_answer_for_the_operator_opens_it_at_once(reason: CircuitReason) -> None:
    circuit = Circuit()
    circuit.trip(5.0, reason, "what to mend")
    assert (circuit.reason, circuit.detail) == (reason, "what to mend")
    circuit.success("a", 6.0)
    assert circuit.reason is None
    assert circuit.detail == ""


def test_a_reason_better_known_replaces_the_first_and_does_not_start_the_probes_anew() -> None:
    circuit = opened()
    probe(circuit, 10.0)
    waiting = circuit.next_attempt(10.0)
    circuit.trip(10.0, CircuitReason.KEY_REJECTED, "invalid_api_key")
    assert circuit.reason is CircuitReason.KEY_REJECTED
    assert circuit.next_attempt(10.0) == waiting
    assert circuit.open_seconds(12.0) == 12.0


# Probing


def test_one_probe_at_a_time_and_the_next_after_a_growing_wait() -> None:
    circuit = opened()
    assert circuit.next_attempt(0.0) == PROBE_INITIAL_SECONDS
    number = circuit.started(1.0)
    assert circuit.next_attempt(1.0) == 1.0 + PROBE_MAX_SECONDS
    circuit.ended(1.0, number)
    waits, now = [circuit.next_attempt(1.0) - 1.0], circuit.next_attempt(1.0)
    for _ in range(4):
        after = probe(circuit, now)
        waits.append(after - now)
        now = after
    assert waits == [1.0, 2.0, PROBE_MAX_SECONDS, PROBE_MAX_SECONDS, PROBE_MAX_SECONDS]


@pytest.mark.parametrize("seconds", [0.0, 1.0, PROBE_MAX_SECONDS - 0.1])
def test_however_long_a_probe_takes_the_next_follows_in_time(seconds: float) -> None:
    circuit, now = opened(), 10.0
    for _ in range(5):
        after = probe(circuit, now, seconds)
        assert now < after <= now + PROBE_MAX_SECONDS
        now = max(after, now + seconds)


def test_a_probe_that_is_not_answered_does_not_keep_the_next_from_asking() -> None:
    circuit = opened()
    unheard = circuit.started(10.0)
    assert circuit.next_attempt(10.0) == 10.0 + PROBE_MAX_SECONDS
    number = circuit.started(13.0)
    circuit.ended(14.0, unheard)
    assert circuit.next_attempt(14.0) == 13.0 + PROBE_MAX_SECONDS, "one that was given up starts no other"
    circuit.ended(14.0, number)
    assert circuit.next_attempt(14.0) == 15.0


def test_an_attempt_from_before_it_opened_is_no_probe_when_it_ends() -> None:
    circuit = Circuit()
    early = circuit.started(0.0)
    for conversation_id in "abc":
        circuit.trouble(conversation_id, 1.0, "http_503")
    due = circuit.next_attempt(1.0)
    circuit.ended(1.1, early)
    assert circuit.next_attempt(1.1) == due


def test_a_read_that_works_is_followed_at_once_whichever_is_noted_first() -> None:
    for read_first in (True, False):
        circuit = opened()
        number = circuit.started(1.0)
        if read_first:
            circuit.reads_work(2.0)
            circuit.ended(2.0, number)
        else:
            circuit.ended(2.0, number)
            circuit.reads_work(2.0)
        assert circuit.is_open
        assert circuit.next_attempt(2.0) == 2.0
        assert probe(circuit, 2.0) > 2.0, "only the next one"


def test_it_opens_anew_with_short_waits_and_no_probe_under_way() -> None:
    circuit = opened()
    for now in (10.0, 20.0, 30.0):
        probe(circuit, now)
    number = circuit.started(40.0)
    circuit.success("a", 40.0)
    circuit.ended(40.0, number)
    circuit.trip(50.0, UNAVAILABLE, "again")
    assert circuit.next_attempt(50.0) == 50.0 + PROBE_INITIAL_SECONDS


def test_a_probe_that_outlives_the_opening_it_belongs_to_is_none_of_the_next() -> None:
    circuit = opened()
    number = circuit.started(0.5)
    circuit.success("under way before", 1.0)
    circuit.trip(2.0, UNAVAILABLE, "again")
    circuit.ended(2.1, number)
    assert circuit.next_attempt(2.1) == 2.0 + PROBE_INITIAL_SECONDS


def test_the_end_of_a_probe_that_closed_it_changes_nothing() -> None:
    circuit = opened()
    number = circuit.started(0.5)
    circuit.success("a", 1.0)
    circuit.ended(1.0, number)
    assert circuit.next_attempt(1.0) == 1.0


# What a probe does


def asks(circuit: Circuit) -> bool:
    """The same to the reader; the type checker does not see that calls between change it."""
    return circuit.asks


@pytest.mark.parametrize("reason", list(CircuitReason))
def test_a_probe_reads_where_what_it_writes_may_be_of_unknown_fate(reason: CircuitReason) -> None:
    circuit = Circuit()
    assert not asks(circuit)
    circuit.trip(1.0, reason, "")
    assert asks(circuit) is (reason in {UNAVAILABLE, CircuitReason.UNEXPECTED_ANSWER})


@pytest.mark.parametrize("answer", [Circuit.heard, Circuit.reads_work])
def test_once_a_read_is_answered_probes_write_until_something_fails(answer: Callable[[Circuit, float], None]) -> None:
    circuit = opened()
    number = circuit.started(1.0)
    answer(circuit, 1.2)
    circuit.ended(1.2, number)
    assert not asks(circuit)
    assert circuit.next_attempt(1.2) == 1.2
    circuit.trouble("a", 2.0, "http_503")
    assert asks(circuit)


def test_what_was_heard_in_one_outage_is_not_believed_in_the_next() -> None:
    circuit = opened()
    circuit.heard(1.0)
    circuit.success("a", 1.1)
    circuit.trip(2.0, UNAVAILABLE, "again")
    assert asks(circuit)


def test_a_host_that_answers_no_read_is_written_to_now_and_then() -> None:
    circuit = opened()
    for _ in range(3):
        for _ in range(READS_BEFORE_A_WRITE):
            assert asks(circuit)
            circuit.trouble("a", 1.0, "timeout", reading=True)
        assert not asks(circuit)
        circuit.trouble("a", 1.0, "http_503")


# Closing


def test_three_good_reads_in_a_row_close_it_once_until_a_write_succeeds() -> None:
    circuit = opened()
    for _ in range(READS_THAT_CLOSE):
        assert is_open(circuit)
        circuit.reads_work(5.0)
    assert not is_open(circuit)
    circuit.trouble("a", 6.0, "writes fail")
    assert is_open(circuit), "those in trouble are so still"
    for _ in range(10):
        circuit.reads_work(7.0)
    assert is_open(circuit)
    circuit.success("a", 8.0)
    for conversation_id in "abc":
        circuit.trouble(conversation_id, 9.0, "another outage")
    for _ in range(READS_THAT_CLOSE):
        circuit.reads_work(10.0)
    assert not is_open(circuit)


def test_trouble_between_good_reads_starts_their_count_again() -> None:
    circuit = opened()
    for _ in range(5):
        circuit.reads_work(5.0)
        circuit.reads_work(5.0)
        circuit.trouble("a", 5.0, "http_503")
    assert circuit.is_open
    for _ in range(5):
        circuit.reads_work(5.0)
        circuit.reads_work(5.0)
        circuit.trip(5.0, CircuitReason.KEY_REJECTED, "http_401")
    assert circuit.is_open


def test_good_reads_while_closed_count_for_nothing() -> None:
    circuit = Circuit()
    for _ in range(10):
        circuit.reads_work(1.0)
    for conversation_id in "abc":
        circuit.trouble(conversation_id, 2.0, "down")
    assert circuit.next_attempt(2.0) > 2.0
    circuit.reads_work(3.0)
    assert circuit.is_open


def test_the_time_it_was_open_adds_up() -> None:
    circuit = Circuit()
    assert circuit.open_seconds(100.0) == 0.0
    circuit.trip(100.0, UNAVAILABLE, "")
    assert circuit.open_seconds(107.0) == 7.0
    circuit.success("a", 110.0)
    assert circuit.open_seconds(500.0) == 10.0
    for conversation_id in "abc":
        circuit.trouble(conversation_id, 600.0, "")
    for _ in range(READS_THAT_CLOSE):
        circuit.reads_work(605.0)
    assert circuit.open_seconds(700.0) == 15.0


# Health for others


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(-1, 12), st.sampled_from("abcd"))
def test_others_are_served_when_another_conversation_succeeded_since(
    successes: list[str], since: int, conversation_id: str
) -> None:
    circuit = Circuit()
    for now, name in enumerate(successes):
        circuit.success(name, now)
    expected = any(name != conversation_id and now > since for now, name in enumerate(successes))
    assert circuit.healthy_for_others(conversation_id, since) == expected
    circuit.trip(100.0, UNAVAILABLE, "")
    assert not circuit.healthy_for_others(conversation_id, since)


# 403


def test_a_refusal_with_another_accepted_since_is_of_this_conversation_alone() -> None:
    circuit = Circuit()
    assert not circuit.forbidden("a", 1.0, "http_403")
    circuit.success("b", 2.0, started_at=1.5)
    assert circuit.forbidden("a", 3.0, "http_403")
    assert not circuit.is_open


def test_an_acceptance_of_an_attempt_begun_before_the_refusal_proves_nothing() -> None:
    circuit = Circuit()
    assert not circuit.forbidden("a", 1.0, "http_403")
    circuit.success("b", 2.0, started_at=0.9)
    circuit.success("c", 2.0)
    assert not circuit.forbidden("a", 3.0, "http_403")


def test_two_refused_with_nothing_accepted_between_have_a_key_without_rights() -> None:
    circuit = Circuit()
    assert not circuit.forbidden("a", 1.0, "http_403")
    assert not circuit.forbidden("b", 2.0, "no_access: not yours")
    assert (circuit.reason, circuit.detail) == (CircuitReason.FORBIDDEN, "no_access: not yours")


def test_an_earlier_acceptance_does_not_come_between_two_refusals() -> None:
    circuit = Circuit()
    circuit.forbidden("a", 1.0, "http_403")
    circuit.success("c", 1.5, started_at=0.5)
    circuit.forbidden("b", 2.0, "http_403")
    assert circuit.reason is CircuitReason.FORBIDDEN


def test_two_refused_with_another_accepted_between_open_nothing() -> None:
    circuit = Circuit()
    circuit.forbidden("a", 1.0, "http_403")
    circuit.success("c", 1.5, started_at=1.2)
    assert not circuit.forbidden("b", 2.0, "http_403")
    assert not circuit.is_open


def test_one_refused_again_and_again_opens_nothing() -> None:
    circuit = Circuit()
    for now in range(10):
        assert not circuit.forbidden("a", now, "http_403")
    assert not circuit.is_open


def test_nobody_is_blamed_while_it_is_open() -> None:
    circuit = Circuit()
    circuit.forbidden("a", 1.0, "http_403")
    circuit.success("c", 2.0, started_at=1.5)
    circuit.trip(3.0, CircuitReason.FORBIDDEN, "http_403")
    assert not circuit.forbidden("a", 4.0, "http_403")
    circuit.success("c", 5.0, started_at=4.5)
    assert circuit.forbidden("a", 6.0, "http_403")


def test_a_conversation_accepted_since_starts_with_a_clean_sheet() -> None:
    circuit = Circuit()
    circuit.forbidden("a", 1.0, "http_403")
    circuit.success("a", 2.0, started_at=1.5)
    circuit.success("b", 3.0, started_at=2.5)
    assert not circuit.forbidden("a", 4.0, "http_403")
    circuit.success("b", 5.0, started_at=4.5)
    assert circuit.forbidden("a", 6.0, "http_403")


def test_a_conversation_once_blamed_starts_with_a_clean_sheet() -> None:
    circuit = Circuit()
    circuit.forbidden("a", 1.0, "http_403")
    circuit.success("b", 2.0, started_at=1.5)
    assert circuit.forbidden("a", 3.0, "http_403")
    assert not circuit.forbidden("a", 4.0, "http_403")


def test_a_refusal_long_ago_is_forgotten_and_one_kept_up_is_not() -> None:
    for step, blamed in ((FORBIDDEN_MEMORY_SECONDS + 1, False), (FORBIDDEN_MEMORY_SECONDS - 1, True)):
        circuit, now = Circuit(), 0.0
        circuit.forbidden("a", now, "http_403")
        circuit.success("b", now + 2, started_at=now + 1)
        assert circuit.forbidden("a", now + step, "http_403") is blamed


def test_only_so_many_refused_conversations_are_remembered() -> None:
    circuit = Circuit()
    for number in range(FORBIDDEN_KEPT + 500):
        circuit.forbidden(f"c{number}", 1.0 + number / 1000, "http_403")
    assert len(circuit._forbidden) <= FORBIDDEN_KEPT


# Refused in words that are not the API's


def test_two_turned_away_with_nothing_accepted_between_stop_everybody() -> None:
    circuit = Circuit()
    circuit.turned_away("a", 1.0, CircuitReason.UNEXPECTED_ANSWER, "http_400")
    circuit.turned_away("a", 1.1, CircuitReason.UNEXPECTED_ANSWER, "http_400")
    assert not is_open(circuit)
    circuit.turned_away("b", 2.0, CircuitReason.UNEXPECTED_ANSWER, "http_400: Bad Request")
    assert (circuit.reason, circuit.detail) == (CircuitReason.UNEXPECTED_ANSWER, "http_400: Bad Request")


def test_two_turned_away_with_one_accepted_between_stop_nobody() -> None:
    circuit = Circuit()
    circuit.turned_away("a", 1.0, CircuitReason.FORBIDDEN, "http_403")
    circuit.success("c", 1.5, started_at=1.2)
    circuit.turned_away("b", 2.0, CircuitReason.FORBIDDEN, "http_403")
    assert not circuit.is_open


def test_only_an_attempt_begun_later_shows_that_others_are_accepted_since() -> None:
    circuit = Circuit()
    circuit.success("c", 2.0, started_at=0.9)
    assert not circuit.accepted_since(1.0)
    circuit.success("c", 2.0)
    assert not circuit.accepted_since(1.0)
    circuit.success("c", 2.0, started_at=1.1)
    assert circuit.accepted_since(1.0)
