"""An API that is slow, or refuses everybody: reading pauses, memory stays bounded, nothing is given up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from service_process import chat, delivered, until

from service.emulator.faults import FaultScript, Match, Rule, Status, Unauthorized, Unpaid

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess

    from service.emulator.faults import Effect

ONE_POLL = 50
"""Records the consumer hands over at once, with a limit of 500: by so many it may be overrun."""


async def test_a_slow_api_pauses_partitions_and_bounds_what_is_held(trial: MakeTrial) -> None:
    run = await trial(partitions=2, latency_seconds=0.05)
    count = await run.publish(chat(conversations=80, turns=50))
    settings = {"LIMITS__MAX_BUFFERED_EVENTS": "500", "DELIVERY__MAX_CONCURRENCY": "8"}
    async with run.process(**settings) as service:
        await service.ready()
        seen: list[tuple[float, float]] = []

        async def finished() -> bool:
            seen.append((await service.metric("buffered_events"), await service.metric("paused_partitions")))
            return await run.committed() == run.ends

        await until("everything committed", finished, 60, every_seconds=0.1)
        assert (await service.metric("buffered_events"), await service.metric("buffered_bytes")) == (0, 0)
        assert await service.stop() == 0

    assert max(buffered for buffered, _ in seen) <= 500 + ONE_POLL
    assert {paused for _, paused in seen} >= {2}
    report = await run.audit()
    assert report.content, report.lines()
    assert report.delivered == count


async def test_a_backlog_of_large_events_is_bounded_by_its_bytes(trial: MakeTrial) -> None:
    run = await trial(partitions=1, latency_seconds=0.1)
    size = 10_000
    count = await run.publish(chat(conversations=50, turns=20, words="." * size))
    settings = {"LIMITS__MAX_BUFFERED_BYTES": str(1 << 20), "DELIVERY__MAX_CONCURRENCY": "4"}
    async with run.process(**settings) as service:
        await service.ready()
        peak = 0.0

        async def finished() -> bool:
            nonlocal peak
            peak = max(peak, await service.metric("buffered_bytes"))
            return await run.committed() == run.ends

        await until("everything committed", finished, 60, every_seconds=0.1)
        assert await service.stop() == 0
    # A fetch is at most 0.5 MiB a partition, and an event is held as its record and as its item.
    assert size < peak <= 3 * (1 << 20) + 3 * size
    report = await run.audit()
    assert report.content, report.lines()
    assert report.delivered == count


async def opened(service: ServiceProcess, reason: str) -> bool:
    return bool((await service.status())["circuit"]["reason"] == reason)


@pytest.mark.parametrize(
    ("effect", "reason"),
    [
        (Unauthorized(), "key_rejected"),
        (Unpaid(), "unpaid_or_quota"),
        (Status(status=404, body="<h1>Not Found</h1>"), "wrong_url"),
    ],
)
async def test_what_an_operator_must_mend_pauses_consumption_and_gives_nothing_up(
    trial: MakeTrial, effect: Effect, reason: str
) -> None:
    run = await trial(partitions=2)
    await run.publish(chat(conversations=60, turns=2))
    # Reading stops while conversations wait that were not tried yet: with few permits, most of them do.
    async with run.process(DELIVERY__MAX_CONCURRENCY="4") as service:
        await service.ready()
        await run.finished()
        before = await run.committed()

        run.emulator.play(FaultScript(rules=(Rule(effect, Match(operations=("create_items", "list_items"))),)))
        await run.publish(chat(conversations=60, turns=10, first=2))
        await until("an open circuit", lambda: opened(service, reason))
        await until("paused partitions", lambda: _all_paused(service))
        assert await service.metric("circuit_state", reason=reason) == 1
        assert await service.readiness() == (200, "ready")
        assert (await service.get("/readyz")).json()["circuit"] == reason
        assert (await service.get("/livez")).status_code == 200
        # Beside the four that were under way only probes go out, one at a time and seconds apart.
        answers = run.emulator.stats()["requests"]["create_items"]
        assert sum(count for status, count in answers.items() if status != "200") < 4 + 20
        assert await run.committed() == before

        run.emulator.play(FaultScript())
        await run.finished()
        assert await service.metric("circuit_state", reason=reason) == 0
        assert await service.stop() == 0
        assert API_WORDS[reason] in service.log()
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (60 * 12, {})


API_WORDS = {"key_rejected": "invalid_api_key", "unpaid_or_quota": "Arrearage", "wrong_url": "http_404"}


async def test_readiness_can_be_made_to_follow_the_circuit(trial: MakeTrial) -> None:
    run = await trial(partitions=1, faults=FaultScript(rules=(Rule(Unauthorized()),)))
    await run.publish(chat(conversations=2, turns=1))
    async with run.process(OPS__READY_NEEDS_API="true") as service:
        await until("not ready for the circuit", lambda: _is(service, (503, "circuit open")))
        run.emulator.play(FaultScript())
        await service.ready()
        await run.finished()


async def test_a_process_told_to_stop_during_an_outage_stops_soon_and_the_next_delivers(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    count = await run.publish(chat(conversations=40, turns=10))
    run.emulator.play(FaultScript(rules=(Rule(Unauthorized()),)))
    async with run.process() as service:
        await until("an open circuit", lambda: opened(service, "key_rejected"))
        assert await service.stop(within_seconds=10) == 0
    assert run.emulator.store.items_stored == 0

    run.emulator.play(FaultScript())
    async with run.process() as service:
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (count, {})


async def test_a_server_error_after_storing_is_read_back_and_not_sent_twice(trial: MakeTrial) -> None:
    stored_all_the_same = Rule(Status(status=500, stores="all"), Match(operations=("create_items",)))
    run = await trial(partitions=2, faults=FaultScript(rules=(stored_all_the_same,)))
    count = await run.publish(chat(conversations=10, turns=20))
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.metric("duplicates_prevented_total") == count
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert report.delivered == count


async def test_two_slow_replicas_and_a_tiny_buffer_get_everything_out(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=0.05)
    count = await run.publish(chat(conversations=60, turns=40))
    settings = {"LIMITS__MAX_BUFFERED_EVENTS": "100", "DELIVERY__MAX_CONCURRENCY": "8"}
    async with run.process(**settings) as one, run.process(**settings) as two:
        await asyncio.gather(delivered(one, 200), delivered(two, 200))
        await run.finished()
        exits = await asyncio.gather(one.stop(), two.stop())
    assert set(exits) == {0}
    report = await run.audit()
    assert report.content, report.lines()
    assert report.delivered == count


async def _all_paused(service: ServiceProcess) -> bool:
    return await service.metric("paused_partitions") == await service.metric("assigned_partitions")


async def _is(service: ServiceProcess, readiness: tuple[int, str]) -> bool:
    return await service.readiness() == readiness
