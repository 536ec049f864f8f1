"""What is settled above a position survives its way through the commit's metadata."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kafka import above

positions = st.integers(0, 1 << 62)


@given(positions, st.sets(st.integers(1, 20_000), max_size=300))
def test_what_is_written_beside_a_position_is_read_back(position: int, distances: set[int]) -> None:
    settled = {position + distance for distance in distances}
    assert above.read(position, above.write(position, settled)) == settled


@given(positions, st.sets(st.integers(1, 1 << 22), max_size=100))
def test_nothing_is_read_that_was_not_written_and_nothing_at_or_below_the_position(
    position: int, distances: set[int]
) -> None:
    settled = {position + distance for distance in distances}
    assert above.read(position, above.write(position, settled | {position, position - 1})) <= settled


def test_what_does_not_fit_is_left_out_from_the_top() -> None:
    chance = random.Random(4)
    settled = {offset for offset in range(11, 200_000) if chance.random() < 0.5}
    text = above.write(10, settled)
    assert above.MAX_BYTES // 3 < len(text) <= above.MAX_BYTES
    kept = above.read(10, text)
    top = max(kept)
    assert kept == {offset for offset in settled if offset <= top}
    assert len(kept) > 5_000


def test_a_long_run_with_few_holes_takes_little_room() -> None:
    settled = set(range(1, 200_000)) - {7, 4711, 99_999}
    text = above.write(0, settled)
    assert len(text) < 1000
    assert above.read(0, text) == settled


def test_nothing_settled_above_is_an_empty_text() -> None:
    assert above.write(5, set()) == above.write(5, {1, 5}) == ""


@pytest.mark.parametrize("text", ["", "1:17:4", "no metadata", "0:", "0:é", "0:abcde", '0:"', above.FORM + "~" * 40])
def test_a_text_of_somebody_else_says_nothing(text: str) -> None:
    assert above.read(0, text) == set()


@given(st.text())
def test_no_text_raises(text: str) -> None:
    above.read(0, text)
    above.read(0, above.FORM + text)
