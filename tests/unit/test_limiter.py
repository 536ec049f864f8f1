"""The limiter finds what the API bears: one behaviour a file in ``limiter/``, and what holds at every moment."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limiter_simulation import Measured, Scenario, Simulation

from service.core.limiter import Limiter, Signal

SCENARIOS = sorted((Path(__file__).parent / "limiter").glob("*.toml"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_api_is_used_as_far_as_it_bears(path: Path) -> None:
    scenario = Scenario.read(path)
    simulation = Simulation(scenario).run()
    assert scenario.expect, "a file without an expectation shows nothing"
    for expected in scenario.expect:
        measured = Measured.of(simulation, expected.from_seconds, expected.to_seconds)
        assert not measured.misses(expected), scenario.description


def test_no_more_start_than_the_limit_says() -> None:
    limiter = Limiter(start_concurrency=4, max_concurrency=8)
    for _ in range(4):
        assert limiter.next_start(0.0) <= 0.0
        limiter.started(0.0)
    assert limiter.next_start(0.0) == math.inf
    assert limiter.in_flight == 4


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limiter = Limiter(start_concurrency=32, max_concurrency=256)
    for n in range(1000):
        limiter.started(n * 0.1)
        limiter.finished(n * 0.1 + 0.05, started_at=n * 0.1, signal=Signal.OK)
    assert limiter.concurrency_limit == 32


def test_nothing_starts_before_the_api_said_it_may() -> None:
    limiter = Limiter(start_concurrency=4, max_concurrency=8)
    limiter.hold_until(17.0)
    assert limiter.next_start(1.0) >= 17.0
    limiter.hold_until(5.0)
    assert limiter.next_start(1.0) >= 17.0, "a shorter wait does not undo a longer one"


def test_a_fixed_rate_is_never_passed_within_a_second() -> None:
    limiter = Limiter(start_concurrency=256, max_concurrency=256, max_requests_per_second=50)
    now, starts = 0.0, []
    while now < 10:
        at = limiter.next_start(now)
        if at <= now:
            limiter.started(now)
            starts.append(now)
            limiter.finished(now, started_at=now, signal=Signal.OK)
        else:
            now = at
    for start in starts:
        assert sum(start <= other < start + 1 for other in starts) <= 55
    assert len(starts) > 450


@given(
    st.lists(
        st.tuples(st.sampled_from([*Signal, None]), st.floats(0, 2)),
        min_size=1,
        max_size=300,
    )
)
def test_whatever_is_answered_the_limits_stay_within_their_bounds(steps: list[tuple[Signal | None, float]]) -> None:
    limiter = Limiter(start_concurrency=8, max_concurrency=16)
    under_way: list[float] = []
    now = 0.0
    for signal, seconds in steps:
        now += seconds
        if signal is None or not under_way:
            if limiter.next_start(now) <= now:
                limiter.started(now)
                under_way.append(now)
        else:
            limiter.finished(now, started_at=under_way.pop(0), signal=signal)
        assert limiter.in_flight == len(under_way)
        assert 1 <= limiter.concurrency_limit <= 16
        if not under_way:
            assert limiter.next_start(now) <= now + 1.5, "with nothing in flight something may start soon"
