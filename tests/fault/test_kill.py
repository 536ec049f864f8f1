"""kill -9 under load: with the ledger nothing is lost and nothing stored twice, without it no more than must be."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from fault_run import soak
from replicas import Fleet, exposure

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTopics
    from kafka_server import KafkaServer
    from replicas import Bound, Ended, Exposure, Replica

KILLS = int(soak(20, 4))
ITEMS_BEFORE = 500
"""What a replica has delivered of its present partitions before it is killed, so that each kill hits work."""
PARTITIONS = 6


async def killed(fleet: Fleet, kill: int, victim: Replica) -> list[int]:
    """Kill a replica in the middle of its work; returns the partitions it had, and prints what was hit."""
    partitions = await fleet.partitions_of(victim)
    sight = await victim.at_work(ITEMS_BEFORE)
    victim.process.kill()
    numbers = sight.numbers
    print(  # noqa: T201 - what each kill hit
        f"kill {kill}: replica {victim.number} with partitions {partitions}, {sight.since_assigned:.0f} items of them "
        f"delivered, {sight.in_flight} attempts in flight, {numbers['buffered_events']:.0f} events not settled"
    )
    return partitions


def open_intents(fleet: Fleet) -> int:
    """How many attempts of a dead owner its successors found in the ledger, without an outcome."""
    return sum(
        line.get("open_intents", 0)
        for replica in fleet.replicas
        for process in replica.processes
        for line in process.lines()
        if line["message"] == "partition taken over"
    )


@pytest.mark.parametrize("replicas", [3, 1], ids=["three-replicas", "one-replica"])
async def test_with_the_ledger_kills_lose_double_and_reorder_nothing(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path, replicas: int
) -> None:
    chances = random.Random(4)
    names = await topics(partitions=PARTITIONS)
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=replicas, ledger=True) as fleet:
        await fleet.start()
        async with fleet.load():
            for kill in range(KILLS):
                await fleet.shared()
                victim = chances.choice(fleet.replicas)
                await killed(fleet, kill, victim)
                if replicas > 1 and kill % 4 == 3:
                    # Now and then it stays away for longer than its session: the others take over.
                    await fleet.shared()
                await victim.start()
        ended = await fleet.end(
            f"{KILLS} kills, ledger, {replicas} replica(s)",
            within_seconds=120,
            open_intents_found=open_intents(fleet),
        )
    assert open_intents(fleet) > 0, "no kill hit an attempt in flight"
    ended.assert_sound()


async def test_without_the_ledger_kills_lose_and_reorder_nothing_and_double_no_more_than_was_exposed(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path
) -> None:
    chances = random.Random(4)
    names = await topics(partitions=PARTITIONS)
    exposures: list[Exposure] = []
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=3) as fleet:
        await fleet.start()
        async with fleet.load():
            for kill in range(KILLS):
                await fleet.shared()
                victim = chances.choice(fleet.replicas)
                found = await exposure(fleet.kafka, await killed(fleet, kill, victim))
                exposures.append(found)
                await victim.start()
                await victim.process.ready()
                # What the dead one had sent has landed by now, and the new one still waits for its first window.
                found.replaced_at = time.time()
        bounds: list[Bound] = []

        def bounded(ended: Ended) -> dict[str, object]:
            bounds.extend(found.of(ended, fleet.place_of) for found in exposures)
            return {"doubled at most, by the evidence": sum(len(b.in_flight) + len(b.settled) for b in bounds)}

        ended = await fleet.end(f"{KILLS} kills, no ledger, 3 replicas", within_seconds=120, noting=bounded)
    ended.assert_sound(duplicates=True)

    for kill, bound in enumerate(bounds):
        print(  # noqa: T201
            f"kill {kill}: in flight {len(bound.in_flight)}, settled since the last commit {len(bound.settled)}, "
            f"settled above the oldest unsettled and noted {len(bound.noted)}"
        )
    doubled = ended.report.duplicated.count
    allowed = sum(len(bound.in_flight) + len(bound.settled) for bound in bounds)
    print(f"duplicated {doubled}, at most {allowed} by the evidence")  # noqa: T201
    assert doubled <= allowed
    exposed = set().union(*(bound.in_flight | bound.settled for bound in bounds))
    assert {fleet.place_of[text] for text, times in ended.copies().items() if len(times) > 1} <= exposed
