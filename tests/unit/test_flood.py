"""The flood guard: many dead letters over many conversations stop the service, a few or one's own do not."""

from __future__ import annotations

from service.core.flood import CONVERSATIONS, FloodGuard


def guard(*, share: float | None = None, run: int | None = None) -> FloodGuard:
    return FloodGuard(share=share, run=run, window_seconds=60)


def test_it_is_off_unless_asked_for() -> None:
    assert not guard().on
    assert not any(guard().would_flood(f"conv_{n}", 20, now=0) for n in range(1000))


def test_one_conversation_alone_is_never_a_flood() -> None:
    watch = guard(share=0.1, run=3)
    assert not any(watch.would_flood("conv_a", 1, now=n) for n in range(1000))


def test_too_many_in_a_row_over_several_conversations_are_a_flood() -> None:
    watch = guard(run=10)
    assert [watch.would_flood(f"conv_{n}", 1, now=n) for n in range(12)] == [False] * 10 + [True] * 2


def test_a_delivery_between_ends_the_row() -> None:
    watch = guard(run=10)
    for n in range(100):
        assert not watch.would_flood(f"conv_{n}", 1, now=n)
        if n % 9 == 8:
            watch.delivered(1, now=n)


def test_too_large_a_share_is_a_flood_once_enough_conversations_are_hit() -> None:
    watch = guard(share=0.5)
    watch.delivered(CONVERSATIONS, now=0)
    seen = [watch.would_flood(f"conv_{n}", 1, now=1) for n in range(CONVERSATIONS + 1)]
    assert seen == [False] * CONVERSATIONS + [True]


def test_what_lies_behind_the_window_does_not_count() -> None:
    watch = guard(share=0.5)
    for n in range(CONVERSATIONS):
        watch.would_flood(f"conv_{n}", 1, now=0)
    watch.delivered(10, now=100)
    assert not watch.would_flood("conv_new", 5, now=101)


def test_what_was_held_back_is_not_counted_twice() -> None:
    watch = guard(run=5)
    for n in range(5):
        assert not watch.would_flood(f"conv_{n}", 1, now=n)
    assert all(watch.would_flood("conv_9", 1, now=n) for n in range(10))
    watch.delivered(1, now=20)
    assert not watch.would_flood("conv_9", 1, now=21)


def test_a_flood_lasts_until_something_is_delivered_however_long_that_takes() -> None:
    watch = guard(share=0.5)
    for n in range(CONVERSATIONS):
        watch.would_flood(f"conv_{n}", 1, now=0)
    assert watch.would_flood("conv_0", 1, now=1)
    # Long after the window: what was given up lies behind it, and one conversation probes alone.
    assert all(watch.would_flood("conv_0", 1, now=n) for n in range(100, 10_000, 100))
    watch.delivered(1, now=10_000)
    assert not watch.would_flood("conv_0", 1, now=10_001)


def test_who_is_told_that_it_may_go_on_counts_from_nothing() -> None:
    watch = guard(share=0.5, run=5)
    assert any(watch.would_flood(f"conv_{n}", 1, now=0) for n in range(CONVERSATIONS + 1))
    watch.forget()
    assert not watch.flooded
    assert [watch.would_flood("conv_0", 1, now=1) for _ in range(20)] == [False] * 20
    watch.forget()
    assert [watch.would_flood(f"conv_{n}", 1, now=2) for n in range(6)] == [False] * 4 + [True] * 2


def test_what_one_limit_holds_back_the_other_does_not_count_either() -> None:
    watch = guard(share=0.5, run=1000)
    watch.delivered(100, now=0)
    for n in range(100):
        assert not watch.would_flood(f"conv_{n}", 1, now=1)
    for _ in range(2000):
        assert watch.would_flood("conv_0", 1, now=2)
    watch.delivered(300, now=3)
    assert not watch.would_flood("conv_0", 1, now=3)


def test_flooded_it_says_so_until_something_is_delivered() -> None:
    watch = guard(run=CONVERSATIONS - 1)
    for n in range(CONVERSATIONS):
        assert not watch.flooded
        watch.would_flood(f"conv_{n}", 1, now=n)
    assert watch.flooded
    watch.delivered(1, now=20)
    assert not watch.flooded
