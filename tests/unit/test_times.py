"""Times as they are written in records and logs."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ops.times import timestamp


@pytest.mark.parametrize(
    ("wall_clock", "written"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1767225599.9994, "2025-12-31T23:59:59.999Z"),
        (1767225599.9999999, "2026-01-01T00:00:00.000Z"),
        (1.0229994, "1970-01-01T00:00:01.022Z"),
    ],
)
def test_times_are_rfc_3339_in_milliseconds_that_have_passed(wall_clock: float, written: str) -> None:
    assert timestamp(wall_clock) == written


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_that_is_written_is_read_as_it_was(milliseconds: int) -> None:
    assert round(dt.datetime.fromisoformat(timestamp(milliseconds / 1000)).timestamp() * 1000) == milliseconds
