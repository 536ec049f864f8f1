"""The main job: events from Kafka reach the API in batches and in order, and each is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service_process import chat

if TYPE_CHECKING:
    from conftest import MakeTrial


async def test_events_of_both_forms_are_delivered_in_order_and_each_is_answered(trial: MakeTrial) -> None:
    run = await trial(partitions=4, latency_seconds=0.01)
    count = await run.publish(chat(conversations=50, turns=40))

    async with run.process() as service:
        await service.ready()
        await run.finished()
        delivered = await service.metric("delivered_items_total")
        buffered = await service.metric("buffered_events")
        lag = await service.metric("consumer_lag_records")
        assert await service.stop() == 0
        assert service.complaints() == []

    report = await run.audit()
    assert report.content, report.lines()
    assert (report.events, report.delivered, report.replies) == (count, count, count)
    assert (report.duplicate_replies.count, report.uncommitted) == (0, 0)
    assert (delivered, buffered, lag) == (count, 0, 0)
    assert run.emulator.stats()["max_writes_of_one_conversation"] == 1
