"""The end of a process, and what the next one finds: nothing lost, nothing twice, whoever stops when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service_process import chat, until

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess


async def delivered(service: ServiceProcess, count: int) -> None:
    async def enough() -> bool:
        return await service.metric("delivered_items_total") >= count

    await until(f"{count} items delivered", enough)


async def test_a_process_told_to_stop_under_load_drains_commits_and_the_next_resumes(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=0.2)
    count = await run.publish(chat(conversations=120, turns=50))
    settings = {"DELIVERY__START_CONCURRENCY": "16", "DELIVERY__MAX_CONCURRENCY": "16"}

    async with run.process(**settings) as first:
        await first.ready()
        await delivered(first, 1000)
        assert await first.stop() == 0
        assert first.complaints() == []
    halfway = await run.audit()
    assert 1000 <= halfway.delivered < count
    assert (halfway.duplicated.count, halfway.out_of_order.count, halfway.positions_ahead.count) == (0, 0, 0)
    assert run.emulator.store.items_stored == halfway.delivered

    async with run.process() as second:
        await second.ready()
        await run.finished()
        assert await second.stop() == 0
    report = await run.audit()
    assert (report.lost.count, report.out_of_order.count, report.positions_ahead.count) == (0, 0, 0), report.lines()
    assert report.delivered == count
    assert report.duplicated.count <= halfway.uncommitted, report.lines()
