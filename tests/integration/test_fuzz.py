"""Random and broken records through the real service: each ends in one outcome, and the process does not mind.

CONVOY_SOAK=1 makes it 1,000,000 records; CI has less time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service_process import chat, until
from strange_records import strange_records
from switches import SOAK

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess

RECORDS = 1_000_000 if SOAK else 40_000
ROUNDS = 50 if SOAK else 4
WARM_ROUNDS = ROUNDS // 2
MAX_GROWTH_KIB = 24 * 1024
"""Over the second half of the rounds: what is kept for each record would show, what is cached for a while may."""


async def test_every_random_or_broken_record_ends_in_one_outcome(trial: MakeTrial) -> None:
    run = await trial(partitions=4)
    tombstones = valued = 0
    sizes: list[int] = []
    async with run.process(DEAD_LETTER__HEADER_STYLE="spring", REPLY__FAILURES="true") as service:
        await service.ready()
        for number in range(ROUNDS):
            records = list(strange_records(number, RECORDS // ROUNDS, large=0.0005))
            tombstones += sum(record.value is None for record in records)
            valued += sum(record.value is not None for record in records)
            await run.publish(records)
            await run.finished(180)
            sizes.append(service.resident_kib())
        # It still does what it is there for.
        valued += await run.publish(chat(conversations=10, turns=5))
        await run.finished()
        await until("everything settled", lambda: nothing_held(service))
        counted = {
            result: await service.metric("events_total", result=result)
            for result in ("accepted", "invalid", "tombstone")
        }
        internal = await service.metric("dead_letters_total", reason="internal_error")
        assert (await service.get("/livez")).status_code == 200
        assert await service.stop() == 0
        assert "Traceback" not in service.log()
        assert service.complaints() == []

    report = await run.audit()
    assert report.content, "\n".join(f"{name}: {what}" for name, what in report.lines())
    assert (report.duplicate_replies.count, report.duplicate_dead_letters.count, report.uncommitted) == (0, 0, 0)
    assert report.events == valued
    assert report.delivered + report.dead_letters.total() == valued
    assert counted["tombstone"] == tombstones
    assert counted["accepted"] + counted["invalid"] == valued
    assert report.dead_letters["invalid_event"] == counted["invalid"]
    assert internal == 0
    assert "internal_error" not in report.dead_letters
    # Neither side of the fuzz is empty.
    assert min(report.delivered, report.dead_letters["invalid_event"]) > valued / 10
    assert max(sizes[WARM_ROUNDS:]) - sizes[WARM_ROUNDS - 1] < MAX_GROWTH_KIB, sizes
    print(f"{valued} records, {tombstones} tombstones, {report.lines()}, resident KiB {sizes}")  # noqa: T201


async def nothing_held(service: ServiceProcess) -> bool:
    return await service.metric("buffered_events") == 0 and await service.metric("buffered_bytes") == 0
