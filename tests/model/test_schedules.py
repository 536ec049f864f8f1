"""Schedules drawn from fixed seeds: crashes, stops, joins and every trouble of the API and the log, all at once.

CONVOY_SOAK=1 plays 40,000 of them.
"""

from __future__ import annotations

import pytest
from model.sweep import Swept, play_all, sweep
from switches import SOAK

SCHEDULES = 40_000 if SOAK else 600
BEYOND = 4000 if SOAK else 100
PLAYED = (
    ("ledger_recoveries_total", "open_intents"),
    ("ledger_recoveries_total", "lost"),
    ("events_total", "settled_before"),
    ("events_total", "tombstone"),
    ("events_total", "invalid"),
    ("readbacks_total", "found"),
    ("readbacks_total", "prefix"),
    ("readbacks_total", "too_early"),
    ("attempts_total", "create_items", "withdrawn", "transient"),
    ("dead_letters_total", "rejected"),
    ("dead_letters_total", "exhausted"),
    ("commits_total", "refused"),
)
"""What such schedules are about: without these a sweep would show nothing."""


def swept(count: int, *, beyond: bool = False) -> Swept:
    return sweep(0, count, beyond=beyond) if SOAK else play_all(range(count), beyond=beyond)


def test_whatever_happens_nothing_is_lost_doubled_or_out_of_order() -> None:
    shown = swept(SCHEDULES)
    assert not shown.wrong
    assert shown.played == SCHEDULES
    assert not [what for what in PLAYED if shown.counts[what] < 5]


def test_what_the_contract_leaves_open_is_all_that_remains_possible() -> None:
    """Requests that land too late are doubled, other writers' words are taken for ours; positions stay behind."""
    shown = swept(BEYOND, beyond=True)
    assert shown.played == BEYOND
    kinds = {line.partition(":")[0] for complaints in shown.wrong.values() for line in complaints}
    assert "doubled" in kinds
    assert not kinds & {"errors", "never done", "audit: positions ahead"}, kinds


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_depends_on_nothing_but_its_seed(seed: int) -> None:
    first, again = play_all([seed]), play_all([seed])
    assert first == again
