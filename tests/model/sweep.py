"""Play many schedules: ``python tests/model/sweep.py FIRST COUNT`` prints the seeds of those that went wrong.

``python tests/model/sweep.py SEED`` plays one and tells its story. ``--beyond`` adds the trouble that the contract
leaves open: requests that land later than the settling time, and other writers with the same words.
"""

# ruff: noqa: T201 - what it prints is what it is for

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from model.process import without_faststream
from model.schedules import play

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

CHUNK = 25


@dataclass
class Swept:
    """What came of many schedules: how many, what was counted in them, and of each that went wrong, what."""

    played: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    wrong: dict[int, list[str]] = field(default_factory=dict)

    def __iadd__(self, other: Swept) -> Self:
        self.played += other.played
        self.counts += other.counts
        self.wrong |= other.wrong
        return self


def play_all(seeds: Iterable[int], *, beyond: bool = False) -> Swept:
    """Play ``seeds``, one after the other."""
    logging.disable(logging.CRITICAL)
    swept = Swept()
    try:
        with without_faststream():
            for seed in seeds:
                _, verdict = play(seed, beyond=beyond)
                wrong = {} if verdict.sound else {seed: verdict.complaints()}
                swept += Swept(1, verdict.counts, wrong)
    finally:
        logging.disable(logging.NOTSET)
    return swept


def sweep(first: int, count: int, *, beyond: bool = False) -> Swept:
    """Play ``count`` schedules in as many processes as there are cores."""
    swept = Swept()
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(functools.partial(play_all, beyond=beyond), chunks):
            swept += part
    return swept


def main() -> int:
    """Play what the command line says; 0 when all of it went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int, help="the seed of the first schedule, or of the only one")
    parser.add_argument("count", type=int, nargs="?")
    parser.add_argument("--beyond", action="store_true", help="with what the contract leaves open")
    options = parser.parse_args()
    if options.count is None:
        with without_faststream():
            run, verdict = play(options.first, beyond=options.beyond)
        print("\n".join([*run.world.story, *verdict.complaints()]))
        return not verdict.sound
    started = time.monotonic()
    swept = sweep(options.first, options.count, beyond=options.beyond)
    for name, number in sorted(swept.counts.items()):
        print(f"    {' '.join(name):50} {number:8}")
    for seed, complaints in sorted(swept.wrong.items()):
        print(f"{seed}: {'; '.join(complaints)}")
    print(f"{swept.played} schedules in {time.monotonic() - started:.0f} s, {len(swept.wrong)} of them wrong")
    return bool(swept.wrong)


if __name__ == "__main__":
    sys.exit(main())
