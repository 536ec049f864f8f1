"""The end of a process, and what the next one finds: nothing lost, nothing twice, whoever stops when."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from service_process import chat, delivered, until

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial

SLOW = {"DELIVERY__START_CONCURRENCY": "16", "DELIVERY__MAX_CONCURRENCY": "16"}
"""With an API of 0.2 s: 1,600 items a second at most, so that a backlog lasts."""


async def test_a_process_told_to_stop_under_load_drains_commits_and_the_next_resumes(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=0.2)
    count = await run.publish(chat(conversations=120, turns=50))

    async with run.process(**SLOW) as first:
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
    assert report.content, report.lines()
    assert report.delivered == count


async def test_a_process_restarted_again_and_again_loses_and_repeats_nothing(trial: MakeTrial) -> None:
    run = await trial(partitions=3, latency_seconds=0.1)
    count = await run.publish(chat(conversations=60, turns=45))
    exits = []
    for _ in range(3):
        async with run.process(**SLOW) as service:
            await service.ready()
            await delivered(service, 300)
            exits.append(await service.stop())
            assert service.complaints() == []
    async with run.process() as service:
        await run.finished()
        exits.append(await service.stop())

    assert exits == [0] * 4
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.duplicate_replies.count) == (count, 0)


async def test_a_process_that_is_killed_under_load_has_committed_nothing_without_an_outcome(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=0.05)
    count = await run.publish(chat(conversations=80, turns=50))
    async with run.process(**SLOW) as first:
        await first.ready()
        await delivered(first, 1000)
        await until("positions that moved", lambda: _moved(run))
        first.kill()
    halfway = await run.audit()
    assert halfway.positions_ahead.count == 0

    async with run.process() as second:
        await run.finished()
        assert await second.stop() == 0
    report = await run.audit()
    assert (report.lost.count, report.out_of_order.count, report.positions_ahead.count) == (0, 0, 0), report.lines()
    assert (report.foreign.count, report.wrong_replies.count, report.delivered) == (0, 0, count)
    # What the API had stored and no commit covered is sent again: the one thing that takes a ledger.
    assert report.duplicated.count <= run.emulator.store.items_stored - count


async def test_one_replica_leaves_and_one_joins_under_load_without_loss_repeat_or_disorder(trial: MakeTrial) -> None:
    run = await trial(partitions=6, latency_seconds=0.1)
    count = await run.publish(chat(conversations=120, turns=45))

    async with run.process(**SLOW) as one, run.process(**SLOW) as two, run.process(**SLOW) as three:
        await one.ready()
        await two.ready()
        await until("two replicas at work", lambda: _share(one, two))
        await delivered(two, 300)
        exits = [await one.stop()]
        await three.ready()
        await until("the other two at work", lambda: _share(two, three))
        await delivered(three, 300)
        await run.finished()
        exits += [await two.stop(), await three.stop()]
        assert [service.complaints() for service in (one, two, three)] == [[], [], []]

    assert exits == [0, 0, 0]
    report = await run.audit()
    assert report.content, report.lines()
    assert report.delivered == count


async def test_replicas_told_to_stop_at_the_same_moment_all_drain_and_repeat_nothing(trial: MakeTrial) -> None:
    run = await trial(partitions=6, latency_seconds=0.2)
    count = await run.publish(chat(conversations=120, turns=50))

    async with run.process(**SLOW) as one, run.process(**SLOW) as two, run.process(**SLOW) as three:
        replicas = (one, two, three)
        for service in replicas:
            await service.ready()
        await until("all at work", lambda: _share(*replicas))
        for service in replicas:
            await delivered(service, 100)
        assert await asyncio.gather(*(service.stop() for service in replicas)) == [0, 0, 0]
        assert [service.complaints() for service in replicas] == [[], [], []]
    halfway = await run.audit()
    assert halfway.delivered < count
    assert run.emulator.store.items_stored == halfway.delivered

    async with run.process() as last:
        await run.finished()
        assert await last.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()


async def test_a_replica_that_joins_while_another_drains_disturbs_neither(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=3)
    await run.publish(chat(conversations=12, turns=10))

    async with run.process() as leaving:
        await leaving.ready()
        await until("requests in flight", lambda: run.emulator.stats()["in_flight"])
        leaving.signal(signal.SIGTERM)
        async with run.process() as joining:
            await joining.ready()
            assert await leaving.ended() == 0
            assert leaving.complaints() == []
            await run.finished()
            assert await joining.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()


async def test_an_interrupt_from_the_keyboard_drains_as_well(trial: MakeTrial) -> None:
    run = await trial(partitions=1, latency_seconds=0.3)
    await run.publish(chat(conversations=4, turns=3))
    async with run.process() as service:
        await until("requests in flight", lambda: run.emulator.stats()["in_flight"])
        service.signal(signal.SIGINT)
        assert await service.ended() == 0
    report = await run.audit()
    assert (report.duplicated.count, report.positions_ahead.count) == (0, 0)
    assert run.emulator.store.items_stored == report.delivered > 0


async def _moved(run: Trial) -> bool:
    return any((await run.committed()).values())


async def _share(*replicas: ServiceProcess) -> bool:
    return all([await replica.metric("assigned_partitions") for replica in replicas])
