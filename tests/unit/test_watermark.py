"""The position of one partition: as far as outcomes are stored without a hole, and never further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.watermark import Watermark

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


def watermark_that_received(offsets: Iterable[int]) -> Watermark:
    watermark = Watermark()
    for offset in offsets:
        watermark.received(offset)
    return watermark


def test_there_is_no_position_before_the_first_record() -> None:
    assert Watermark().position is None


def test_a_record_without_an_outcome_is_itself_the_position() -> None:
    watermark = watermark_that_received([7, 8])
    assert watermark.position == 7
    assert len(watermark) == 2


def test_behind_the_last_outcome_the_position_is_the_offset_after_it() -> None:
    watermark = watermark_that_received([7])
    watermark.settle(7)
    assert watermark.position == 8
    assert len(watermark) == 0


def test_outcomes_that_come_early_wait_for_the_first_one() -> None:
    watermark = watermark_that_received([0, 1, 2, 3])
    for offset in (3, 1, 2):
        watermark.settle(offset)
        assert watermark.position == 0
    watermark.settle(0)
    assert watermark.position == 4


def test_the_position_stops_at_a_hole_between_outcomes() -> None:
    watermark = watermark_that_received([0, 1, 2, 3])
    for offset in (0, 1, 3):
        watermark.settle(offset)
    assert watermark.position == 2
    assert len(watermark) == 2


def test_over_a_gap_in_the_log_the_position_goes_to_the_next_record_received() -> None:
    watermark = watermark_that_received([10, 15, 90])
    watermark.settle(10)
    assert watermark.position == 15
    watermark.settle(90)
    assert watermark.position == 15
    watermark.settle(15)
    assert watermark.position == 91


def test_a_record_behind_a_gap_takes_the_position_along() -> None:
    watermark = watermark_that_received([10])
    watermark.settle(10)
    watermark.received(500)
    assert watermark.position == 500


def test_a_record_received_behind_open_ones_does_not_move_the_position() -> None:
    watermark = watermark_that_received([10])
    watermark.received(11)
    assert watermark.position == 10


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    received_ahead=st.integers(1, 30),
    order=st.randoms(use_true_random=False),
)
def test_whatever_the_order_the_position_is_the_first_offset_without_an_outcome(
    gaps: list[int], received_ahead: int, order: Random
) -> None:
    to_come = [sum(gaps[:count]) for count in range(1, len(gaps) + 1)]
    last = to_come[-1]
    watermark = Watermark()
    received: list[int] = []
    still_open: list[int] = []
    before = 0
    while to_come or still_open:
        while to_come and len(still_open) < received_ahead:
            received.append(to_come[0])
            still_open.append(to_come[0])
            watermark.received(to_come.pop(0))
        offset = order.choice(still_open)
        still_open.remove(offset)
        watermark.settle(offset)
        expected = still_open[0] if still_open else received[-1] + 1
        assert watermark.position == expected
        assert len(watermark) == sum(1 for each in received if each >= expected)
        assert expected >= before
        before = expected
    assert watermark.position == last + 1
    assert not watermark._open, "what is committed is forgotten"
    assert not watermark._settled, "what is committed is forgotten"
