"""What an event costs, in counts that do not depend on the machine: calls, blocks of memory, requests.

The whole way is walked but for the sockets: a hand-over of raw records, grouping, requests, answers, replies. A bound
here is what it cost when it was set, and a tenth more: who needs more says so by raising it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import ConsumerRecord

from service.app import Service
from service.conversations.answers import read_answer
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from service.core.model import Answer
    from service.kafka.outlet import Outgoing

CONVERSATIONS = 100
BATCHES_EACH = 4
ITEMS = 20
EVENTS = CONVERSATIONS * BATCHES_EACH * ITEMS
CALLS_PER_EVENT = 54
BLOCKS_PER_EVENT = 5


class Api:
    """Answers at once, as the real one does; what making the answer costs is not counted."""

    def __init__(self) -> None:
        self.requests = 0

    async def create_items(
        self, conversation_id: str, items: Sequence[bytes], *, still: Callable[[], bool] | None = None
    ) -> Answer:
        assert still is None or still()
        self.requests += 1
        told = b",".join(
            b'{"id":"msg_%d","status":"completed",%b' % (n, bytes(item)[1:]) for n, item in enumerate(items)
        )
        body = b'{"object":"list","data":[%b],"last_id":"msg_x","has_more":false}' % told
        return read_answer(200, {"content-type": "application/json"}, body, wall_clock=0)


class Outlet:
    """Everything handed over is stored at once."""

    def __init__(self) -> None:
        self.records = 0
        self.expected = 0
        self.all_stored = asyncio.Event()

    def partition_for(self, topic: str, key: bytes | None) -> int:
        return 0

    def store(self, topic: str, partition: int, outgoing: Outgoing) -> None:
        self.records += sum(1 for _ in outgoing.write(0))
        if outgoing.stored is not None:
            outgoing.stored()
        if self.records >= self.expected:
            self.all_stored.set()


def records(count: int) -> list[ConsumerRecord[bytes, bytes]]:
    def value(number: int) -> bytes:
        return (
            b'{"conversation_id":"conv_%04d","item":{"type":"message","role":"user","content":"message %d"},'
            b'"event_id":"evt-%d"}' % (number % CONVERSATIONS, number, number)
        )

    return [
        ConsumerRecord(
            "events", 0, n, 1_700_000_000_000, 0, b"conv_%04d" % (n % CONVERSATIONS), value(n), None, 9, 120, ()
        )
        for n in range(count)
    ]


@pytest.fixture
def service() -> Service:
    made = Service(Settings(api={"key": "k"}, batch={"window_seconds": 3600}, _env_file=None))
    made.grouper.assign(0)
    made.health.started()
    pump: Any = made.pump
    pump._conversations, pump._outlet, pump._lease = Api(), Outlet(), lambda: True
    return made


async def forward(service: Service, handed: list[ConsumerRecord[bytes, bytes]]) -> None:
    """Let the service take these and do all there is to do about them."""
    pump: Any = service.pump
    pump._outlet.expected += len(handed)
    pump._outlet.all_stored.clear()
    task = asyncio.create_task(pump.run())
    service.intake._add(tuple(handed))
    await pump._outlet.all_stored.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_event_costs_no_more_calls_and_requests_than_it_did(service: Service) -> None:
    handed = records(EVENTS)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, kind: str, argument: object) -> None:
        calls[kind] += 1

    sys.setprofile(count)
    try:
        await forward(service, handed)
    finally:
        sys.setprofile(None)
    pump: Any = service.pump
    assert pump._outlet.records == EVENTS
    assert pump._conversations.requests == EVENTS / ITEMS
    spent = (calls["call"] + calls["c_call"]) / EVENTS
    assert spent < CALLS_PER_EVENT, f"{spent:.1f} calls an event"


async def test_a_buffered_event_occupies_no_more_blocks_of_memory_than_it_did(service: Service) -> None:
    handed = tuple(records(CONVERSATIONS * (ITEMS - 1)))
    gc.collect()
    before = sys.getallocatedblocks()
    service.intake._add(handed)
    gc.collect()
    spent = (sys.getallocatedblocks() - before) / len(handed)
    assert service.grouper.partitions[0].buffered_events == len(handed)
    assert spent < BLOCKS_PER_EVENT, f"{spent:.2f} blocks an event"


async def test_an_event_that_is_done_with_leaves_nothing_behind(service: Service) -> None:
    handed = records(2 * EVENTS)
    await forward(service, handed[:EVENTS])
    gc.collect()
    before = sys.getallocatedblocks()
    await forward(service, handed[EVENTS:])
    gc.collect()
    assert (sys.getallocatedblocks() - before) / EVENTS < 0.05
