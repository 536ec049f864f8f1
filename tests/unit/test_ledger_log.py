"""How ledger records reach the producer: those that come during a request share the next, and what an error leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata

from service.kafka.ledger import LogError
from service.kafka.ledger_log import LOG_APPEND_TIME, KafkaLedgerLog
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from aiokafka import TopicPartition


@dataclass
class Written:
    offset: int
    timestamp: int = 1000
    timestamp_type: int = LOG_APPEND_TIME


@dataclass
class Batch:
    values: list[bytes] = field(default_factory=list)

    def append(self, *, timestamp: None, key: None, value: bytes) -> object:
        if len(self.values) == 3:
            return None
        self.values.append(value)
        return self

    def close(self) -> None:
        pass


@dataclass
class Producer:
    """Holds each request until it is told what to answer."""

    requests: list[tuple[int, list[bytes], asyncio.Future[Written]]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Written]:
        answer: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self.requests.append((partition, batch.values, answer))
        self.came.set()
        return answer

    async def stop(self) -> None:
        self.stopped = True

    async def request(self, number: int) -> tuple[int, list[bytes], asyncio.Future[Written]]:
        while len(self.requests) <= number:
            self.came.clear()
            await self.came.wait()
        return self.requests[number]


class Log(KafkaLedgerLog):
    """The log, with producers of ours."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(ledger_topic="ledger"))
        self.producers = [Producer()]

    @property
    def producer(self) -> Producer:
        return self.producers[-1]

    async def _current(self) -> Producer:
        self._producer = self.producer
        return self.producer

    def sometime(self, number: int, value: bytes) -> asyncio.Future[tuple[int, int | None]]:
        return self.append(number, value, patient=True)


async def test_records_that_come_during_a_request_share_the_next_ones_in_their_order() -> None:
    log = Log()
    alone = log.append(0, b"1")
    _, values, answer = await log.producer.request(0)
    assert values == [b"1"]
    others = [log.append(0, b"%d" % number) for number in range(2, 7)]
    answer.set_result(Written(10))
    assert await alone == (10, 1000)
    _, values, answer = await log.producer.request(1)
    assert values == [b"2", b"3", b"4"], "so many fit"
    answer.set_result(Written(11))
    _, values, answer = await log.producer.request(2)
    assert values == [b"5", b"6"]
    answer.set_result(Written(20))
    assert [place for place, _ in await asyncio.gather(*others)] == [11, 12, 13, 20, 21]


async def test_a_patient_record_waits_for_one_that_is_not_and_goes_before_it() -> None:
    log = Log()
    patient = log.sometime(0, b"1")
    await asyncio.sleep(0)
    hurried = log.append(0, b"2")
    _, values, answer = await log.producer.request(0)
    assert values == [b"1", b"2"]
    during = log.sometime(0, b"3")
    await asyncio.sleep(0)
    answer.set_result(Written(10))
    assert [place for place, _ in await asyncio.gather(patient, hurried)] == [10, 11]
    assert len(log.producer.requests) == 1, "nobody is in a hurry"
    after = log.append(0, b"4")
    _, values, answer = await log.producer.request(1)
    assert values == [b"3", b"4"]
    answer.set_result(Written(12))
    assert [place for place, _ in await asyncio.gather(during, after)] == [12, 13]


async def test_a_patient_record_without_company_goes_alone_before_long() -> None:
    log = Log()
    patient = log.sometime(0, b"1")
    _, values, answer = await asyncio.wait_for(log.producer.request(0), 5)
    assert values == [b"1"]
    answer.set_result(Written(10))
    assert await patient == (10, 1000)


async def test_patient_records_that_do_not_fit_follow_at_once() -> None:
    log = Log()
    records = [log.sometime(0, b"%d" % number) for number in range(4)]
    _, values, answer = await log.producer.request(0)
    assert values == [b"0", b"1", b"2"]
    answer.set_result(Written(10))
    _, values, answer = await log.producer.request(1)
    assert values == [b"3"]
    answer.set_result(Written(13))
    assert [place for place, _ in await asyncio.gather(*records)] == [10, 11, 12, 13]


async def test_without_a_place_or_the_brokers_time_none_is_made_up() -> None:
    log = Log()
    two = [log.append(0, b"1"), log.append(0, b"2")]
    _, _, answer = await log.producer.request(0)
    answer.set_result(Written(-1, timestamp_type=0))
    assert await asyncio.gather(*two) == [(-1, None), (-1, None)]


async def test_an_error_fails_all_that_waits_and_the_next_record_goes_by_another_producer() -> None:
    log = Log()
    failing = log.append(0, b"1")
    _, _, answer = await log.producer.request(0)
    behind = log.append(0, b"2")
    await asyncio.sleep(0)
    answer.set_exception(KafkaConnectionError())
    for one in (failing, behind):
        with pytest.raises(LogError):
            await one
    await log.stop()
    assert log.producers[0].stopped
    log.producers.append(Producer())
    again = log.append(0, b"3")
    _, values, answer = await log.producer.request(0)
    assert values == [b"3"]
    answer.set_result(Written(9))
    assert await again == (9, 1000)


@dataclass
class Coordinator:
    """Stands for the admin client; does not answer for some partitions."""

    silent_about: frozenset[int]
    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, **_: object) -> Coordinator:
        return self

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def list_consumer_group_offsets(
        self, _: str, *, partitions: list[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        numbers = [place.partition for place in partitions]
        self.asked.append(numbers)
        return {
            place: OffsetAndMetadata(100 + place.partition, f"1:{place.partition}:0")
            for place in partitions
            if place.partition not in self.silent_about
        }


async def test_positions_are_asked_for_all_partitions_at_once_and_one_without_an_answer_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coordinator = Coordinator(frozenset())
    monkeypatch.setattr("service.kafka.ledger_log.AIOKafkaAdminClient", coordinator)
    log = Log()
    answers = await asyncio.gather(*(log.committed(number) for number in range(3)))
    assert answers == [(100, "1:0:0"), (101, "1:1:0"), (102, "1:2:0")]
    assert coordinator.asked == [[0, 1, 2]]
    coordinator.silent_about = frozenset({1})
    first, second, third = await asyncio.gather(*(log.committed(number) for number in range(3)), return_exceptions=True)
    assert (first, third) == ((100, "1:0:0"), (102, "1:2:0"))
    assert isinstance(second, LogError)
