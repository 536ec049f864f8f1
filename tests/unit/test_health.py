"""Alive while the loop goes round, ready while there is work to give: told apart by a clock of the test's own."""

from __future__ import annotations

import time

import pytest

from service.ops.health import STALLED_SECONDS, Health


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock, ready_needs_api=False)


def test_it_is_alive_until_the_loop_has_not_gone_round_for_a_minute(health: Health, clock: Clock) -> None:
    clock.now += STALLED_SECONDS - 0.001
    assert health.alive() == (True, {"status": "alive", "seconds_since_progress": 59.999})
    clock.now += 0.001
    assert health.alive() == (False, {"status": "stalled", "seconds_since_progress": 60.0})
    health.looked()
    assert health.alive()[0]


def test_what_came_before_the_start_was_no_stall(health: Health, clock: Clock) -> None:
    clock.now += 1000
    health.started()
    assert health.alive() == (True, {"status": "alive", "seconds_since_progress": 0.0})


def test_waiting_draining_and_an_open_circuit_are_no_reason_to_be_killed(health: Health) -> None:
    health.waiting_for = "a broker"
    health.draining = True
    health.circuit_reason = lambda: "key_rejected"
    assert health.alive()[0]


def test_it_is_not_ready_before_it_has_joined_and_says_for_what_it_waits(health: Health) -> None:
    assert health.ready() == (False, {"status": "waiting for start", "circuit": "closed"})
    health.waiting_for = "a broker at b:9092 (NoBrokersAvailable)"
    assert health.ready()[1]["status"] == "waiting for a broker at b:9092 (NoBrokersAvailable)"
    health.waiting_for = None
    assert health.ready() == (True, {"status": "ready", "circuit": "closed"})


def test_it_is_not_ready_while_it_drains_whatever_else(health: Health) -> None:
    health.draining = True
    assert health.ready() == (False, {"status": "draining", "circuit": "closed"})
    health.waiting_for = None
    assert health.ready()[1]["status"] == "draining"


@pytest.mark.parametrize(("needed", "ready", "status"), [(False, True, "ready"), (True, False, "circuit open")])
def test_an_open_circuit_is_shown_and_fails_readiness_only_where_asked(
    clock: Clock, needed: bool, ready: bool, status: str
) -> None:
    health = Health(clock, ready_needs_api=needed)
    health.waiting_for = None
    health.circuit_reason = lambda: "unpaid_or_quota"
    assert health.ready() == (ready, {"status": status, "circuit": "unpaid_or_quota"})


def test_what_an_operator_must_decide_is_shown(health: Health) -> None:
    health.waiting_for = None
    health.problem = lambda: "ledger_gap on partition 3"
    assert health.ready()[0] is False
    assert "ledger_gap" in health.ready()[1]["status"]


def test_progress_is_told_in_unix_time(health: Health) -> None:
    assert health.last_progress == 0
    before = time.time()
    health.progressed()
    assert before <= health.last_progress <= time.time()


def test_a_part_that_is_kept_from_its_work_is_shown_until_it_is_at_it_again(health: Health) -> None:
    health.waiting_for = None
    assert health.trouble("reading", "no right to topic a")
    assert not health.trouble("reading", "no right to topic a"), "no news"
    assert not health.trouble("committing", "no right to topic a"), "no news either"
    assert health.mended("committing")
    assert health.trouble("writing", "no right to topic b")
    assert health.ready() == (False, {"status": "no right to topic a", "circuit": "closed"})
    assert health.mended("reading")
    assert health.ready()[1]["status"] == "no right to topic b"
    assert health.mended("writing")
    assert not health.mended("writing")
    assert health.ready()[0]
