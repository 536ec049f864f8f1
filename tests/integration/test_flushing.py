"""When a batch goes: what the API got, and when, told by the time at which it stored each item."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from service_process import chat, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial

SLACK_SECONDS = 2.0
"""What a busy machine may add to a wait."""


def batches(run: Trial, conversation_id: str = "conv_000") -> list[list[float]]:
    """What the API stored of a conversation: by request, when each item was stored, Unix seconds.

    The emulator stores all items of a request in the same millisecond, and the next request is one answer later.
    """
    items = run.emulator.store.conversations[conversation_id].items()
    return [list(group) for _, group in itertools.groupby(item.created_ms / 1000 for item in items)]


def stored(run: Trial, count: int) -> Callable[[], bool]:
    return lambda: run.emulator.store.items_stored == count


async def flushed(service: ServiceProcess) -> dict[str, float]:
    """The batches counted, by flush reason."""
    reasons = ("size", "bytes", "window")
    found = [await service.metric("batches_total", flush_reason=reason) for reason in reasons]
    return {reason: count for reason, count in zip(reasons, found, strict=True) if count}


async def test_a_few_events_wait_for_the_window_and_travel_together(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    async with run.process(BATCH__WINDOW_SECONDS="0.7") as service:
        await service.ready()
        await run.publish(chat(conversations=1, turns=1))
        published_at = time.time()
        await run.publish(chat(conversations=1, turns=2, first=1))
        await until("three items", stored(run, 3))
        assert await flushed(service) == {"window": 1}

    ((stored_at, *others),) = batches(run)
    assert len(others) == 2
    assert published_at + 0.7 - SLACK_SECONDS < stored_at < published_at + 0.7 + SLACK_SECONDS
    arrived_at = (await run.records(run.topics.events))[0].timestamp / 1000
    assert stored_at - arrived_at >= 0.7


async def test_twenty_events_go_at_once_and_the_rest_waits_for_the_window(trial: MakeTrial) -> None:
    run = await trial(partitions=1, latency_seconds=0.01)
    await run.publish(chat(conversations=1, turns=45))
    async with run.process(BATCH__WINDOW_SECONDS="1.5") as service:
        await service.ready()
        await until("all items", stored(run, 45))
        assert await flushed(service) == {"size": 2, "window": 1}
        assert await service.metric("batch_items_sum") == 45

    first, second, rest = batches(run)
    assert [len(first), len(second), len(rest)] == [20, 20, 5]
    assert second[0] - first[0] < 1.5
    # The last five were read with the others, so their window began then.
    assert 1.0 <= rest[0] - first[0] < 1.5 + SLACK_SECONDS


async def test_a_full_batch_does_not_wait_for_a_long_window(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    async with run.process(BATCH__WINDOW_SECONDS="600", BATCH__MAX_ITEMS="7") as service:
        await service.ready()
        await run.publish(chat(conversations=1, turns=7))
        published_at = time.time()
        await until("seven items", stored(run, 7))
        assert await flushed(service) == {"size": 1}
        # What still waits for its window is not sent at the end either: it is read again.
        await run.publish(chat(conversations=1, turns=3, first=7))
        await until("three events waiting", lambda: buffered(service, 3))
        assert await service.stop() == 0

    (batch,) = batches(run)
    assert len(batch) == 7
    assert batch[0] < published_at + SLACK_SECONDS
    assert await run.committed() == {0: 7}


async def test_a_batch_goes_when_its_bytes_are_reached(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.publish(chat(conversations=1, turns=9, words="." * 1000))
    async with run.process(BATCH__WINDOW_SECONDS="0.5", BATCH__MAX_BYTES="4096") as service:
        await service.ready()
        await run.finished()
        assert await flushed(service) == {"bytes": 2, "window": 1}

    assert [len(batch) for batch in batches(run)] == [3, 3, 3]


async def test_without_a_window_events_gather_only_behind_their_batch_in_flight(trial: MakeTrial) -> None:
    run = await trial(partitions=1, latency_seconds=1)
    async with run.process(BATCH__WINDOW_SECONDS="0") as service:
        await service.ready()
        await run.publish(chat(conversations=1, turns=1))
        await until("the first request in flight", lambda: run.emulator.stats()["in_flight"])
        await run.publish(chat(conversations=1, turns=10, first=1))
        await run.finished()
        assert await flushed(service) == {"window": 2}

    assert [len(batch) for batch in batches(run)] == [1, 10]


async def test_conversations_do_not_wait_for_each_other(trial: MakeTrial) -> None:
    run = await trial(partitions=1, latency_seconds=0.5)
    await run.publish(chat(conversations=30, turns=2))
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await flushed(service) == {"window": 30}

    assert run.emulator.stats()["max_in_flight"] >= 25
    assert run.emulator.stats()["max_writes_of_one_conversation"] == 1


async def buffered(service: ServiceProcess, count: int) -> bool:
    return await service.metric("buffered_events") == count
