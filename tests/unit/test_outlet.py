"""Outcomes are gathered into requests, made while they are written, and made again when a request fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from service.kafka import outlet as outlet_module
from service.kafka.codec import OutgoingRecord
from service.kafka.outlet import Outgoing, Outlet, single
from service.ops.metrics import Metrics
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from service.kafka.codec import Reply

FIT = 3
"""Records that fit into a request."""


class Batch:
    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None]] = []

    def append(self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: Any) -> object:
        if len(self.records) == FIT:
            return None
        self.records.append((key, value))
        return self

    def close(self) -> None:
        pass


class Broker:
    """Takes requests, but for those with too large a value, and for the next ``failures``."""

    def __init__(self) -> None:
        self.stored: list[tuple[bytes | None, bytes | None]] = []
        self.requests: list[int] = []
        self.failures = 0

    def take(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        if any(value is not None and value.startswith(b"large") for _, value in records):
            raise MessageSizeTooLargeError
        if self.failures:
            self.failures -= 1
            raise KafkaConnectionError
        self.requests.append(len(records))
        self.stored += records


class Producer:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.broker.take(batch.records)
            answer.set_result(None)
        except Exception as error:  # noqa: BLE001 - as a broker's answer
            answer.set_exception(error)
        return answer


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def outlet(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Outlet:
    def fatal(error: BaseException) -> None:
        raise AssertionError from error

    monkeypatch.setattr(outlet_module, "RETRY_FIRST_SECONDS", 0.0)
    made = Outlet(KafkaSettings(), Metrics(), fatal=fatal)
    monkeypatch.setattr(made, "_new_producer", lambda: Producer(broker))
    monkeypatch.setattr(made, "_producer", Producer(broker))
    monkeypatch.setattr(made, "_partitions", {"replies": [0]})
    return made


def shorten(record: OutgoingRecord) -> bool:
    if record.value is None or not record.value.startswith(b"large"):
        return False
    record.value = record.value.removeprefix(b"large ")
    return True


def run_of(key: bytes, *values: bytes, done: asyncio.Event) -> Outgoing:
    replies: list[Reply] = [(value, []) for value in values]
    return Outgoing(key, len(replies), lambda start: replies[start:], shorten, done.set)


async def test_what_does_not_fit_into_a_request_goes_with_the_next_and_counts_when_all_of_it_is_stored(
    outlet: Outlet, broker: Broker
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    outlet.store("replies", 0, run_of(b"a", b"1", b"2", b"3", b"4", b"5", done=first))
    outlet.store("replies", 0, run_of(b"b", b"6", b"7", done=second))
    assert outlet.waiting() == 7
    await asyncio.wait_for(second.wait(), 5)
    assert first.is_set()
    assert broker.requests == [3, 3, 1]
    assert broker.stored == [(b"a", b"%d" % number) for number in range(1, 6)] + [(b"b", b"6"), (b"b", b"7")]
    assert outlet.waiting() == 0


async def test_what_a_failed_request_held_is_written_again_the_same(outlet: Outlet, broker: Broker) -> None:
    broker.failures = 2
    stored = asyncio.Event()
    outlet.store("replies", 0, run_of(b"a", b"1", b"2", b"3", b"4", done=stored))
    await asyncio.wait_for(stored.wait(), 5)
    assert broker.stored == [(b"a", b"1"), (b"a", b"2"), (b"a", b"3"), (b"a", b"4")]


async def test_one_that_is_too_large_in_the_middle_is_made_smaller_and_keeps_its_place(
    outlet: Outlet, broker: Broker
) -> None:
    stored, alone = asyncio.Event(), asyncio.Event()
    outlet.store("replies", 0, run_of(b"a", b"1", b"large 2", b"3", b"large 4", done=stored))
    outlet.store("replies", 0, single(OutgoingRecord(b"b", b"large 5", []), shorten, alone.set))
    await asyncio.wait_for(alone.wait(), 5)
    assert stored.is_set()
    assert broker.stored == [(b"a", b"1"), (b"a", b"2"), (b"a", b"3"), (b"a", b"4"), (b"b", b"5")]
    assert outlet.waiting() == 0
