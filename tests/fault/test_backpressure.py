"""A full topic behind an API that stands still: memory stays bounded, polling goes on, and nothing is given up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from fault_run import Message, named, soak
from replicas import Fleet
from service_process import until

from service.emulator.faults import FaultScript, Rule, Silence

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import MakeTopics
    from kafka_server import KafkaServer

STALL_SECONDS = soak(600, 60)
LOOK_SECONDS = 0.5
SESSION_SECONDS = 6
BUFFER_BYTES = 32 << 20
ALLOWANCE_BYTES = 100 << 20
"""Of the process beside its buffer."""
LARGE, LARGE_BYTES = 160, 950_000
SMALL = 40_000


async def test_a_stalled_api_with_a_full_topic_behind_it_bounds_memory_and_keeps_the_partitions(
    kafka: KafkaServer, topics: MakeTopics, tmp_path: Path
) -> None:
    names = await topics(partitions=6)
    settings = {
        "KAFKA__SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
        "LIMITS__MAX_BUFFERED_BYTES": str(BUFFER_BYTES),
        "LIMITS__MAX_BUFFERED_EVENTS": str(SMALL // 2),
    }
    stalled = FaultScript(rules=(Rule(Silence()),))
    async with Fleet(kafka.bootstrap_servers, names, tmp_path, replicas=1, script=stalled, settings=settings) as fleet:
        people = named("full", 400)
        await fleet.publish(
            Message(people[n % len(people)], f"{n} is large " + "x" * LARGE_BYTES) for n in range(LARGE)
        )
        await fleet.publish(Message(people[n % len(people)], f"{n} is small") for n in range(SMALL))
        await fleet.start()
        (replica,) = fleet.replicas
        peak_buffered = peak_resident = 0.0

        async def look() -> dict[str, float]:
            nonlocal peak_buffered, peak_resident
            sight = await replica.look()
            assert sight is not None
            peak_buffered = max(peak_buffered, sight.numbers["buffered_bytes"])
            peak_resident = max(peak_resident, replica.process.resident_kib() << 10)
            return sight.numbers

        async def all_paused() -> bool:
            return (await look())["paused_partitions"] == fleet.partitions

        await until("a full buffer", all_paused)
        stalled_until = time.monotonic() + STALL_SECONDS
        while time.monotonic() < stalled_until:
            seen = await look()
            assert (seen["assigned_partitions"], seen["rebalances_total"]) == (fleet.partitions, 1)
            assert (await replica.process.get("/livez")).status_code == 200
            await asyncio.sleep(LOOK_SECONDS)
        assert seen["delivered_items_total"] == 0

        await fleet.api.play(FaultScript())
        ended = await fleet.end(
            f"API stalled for {STALL_SECONDS:.0f} s before a full topic",
            within_seconds=120,
            peak_resident=f"{peak_resident / 1e6:.0f} MB",
            peak_buffered=f"{peak_buffered / 1e6:.0f} MB",
        )
        assert replica.counts("rebalances_total") == 1
    ended.assert_sound()
    assert peak_resident < BUFFER_BYTES + ALLOWANCE_BYTES
    assert peak_buffered > BUFFER_BYTES / 2
