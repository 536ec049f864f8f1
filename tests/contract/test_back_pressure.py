"""Which partitions are polled: one with its share of the buffer is passed over, and paused when that lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import RecordMetadata
from pydantic import SecretStr
from service_process import until

from service.app import Service
from service.core.model import Event
from service.kafka.intake import HELD_SECONDS, NOWHERE
from service.settings import ApiSettings, LimitsSettings, Settings

if TYPE_CHECKING:
    from conftest import MakeTopics
    from kafka_server import KafkaServer

TOPIC = "conversation.events"
PARTITIONS = 2
LIMIT = 1_000
SHARE = LIMIT // PARTITIONS


class Consumer:
    """As much of aiokafka's as back-pressure asks for."""

    def __init__(self) -> None:
        self.paused: set[int] = set()

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(TOPIC, number) for number in range(PARTITIONS)}

    def pause(self, place: TopicPartition) -> None:
        self.paused.add(place.partition)

    def resume(self, place: TopicPartition) -> None:
        self.paused.remove(place.partition)


class Pressure:
    """The intake of a service that is not connected, with two partitions and a clock to turn."""

    def __init__(self) -> None:
        service = Service(
            Settings(api=ApiSettings(key=SecretStr("k")), limits=LimitsSettings(max_buffered_events=LIMIT))
        )
        self.now = 100.0
        self.consumer = Consumer()
        self.intake = service.intake
        self.intake._clock = lambda: self.now
        subscriber: Any = self.intake._subscriber
        subscriber.consumer = self.consumer
        self.partitions = [service.grouper.assign(number) for number in range(PARTITIONS)]
        self._offset = 0

    def hold(self, number: int, count: int) -> list[Event]:
        """Let a partition hold so many more events."""
        events = []
        for _ in range(count):
            events.append(Event(number, self._offset, "conv_1", str(self._offset), b"{}", 10))
            self.partitions[number].receive(events[-1])
            self._offset += 1
        self.intake.regulate()
        return events

    @property
    def polled(self) -> set[int]:
        """What the next poll would ask for."""
        places = self.intake._to_poll()
        return {place.partition for place in places} if places else set(range(PARTITIONS))


@pytest.fixture
def pressure() -> Pressure:
    return Pressure()


def test_a_partition_with_its_share_of_the_buffer_is_passed_over_and_not_paused(pressure: Pressure) -> None:
    pressure.hold(0, SHARE - 1)
    assert pressure.polled == {0, 1}
    pressure.hold(0, 1)
    assert pressure.polled == {1}
    assert pressure.intake.paused == 1
    assert not pressure.consumer.paused, "what was fetched of it would be thrown away"


def test_it_is_polled_again_as_soon_as_it_holds_less(pressure: Pressure) -> None:
    events = pressure.hold(0, SHARE)
    pressure.partitions[0].settle(events[:1])
    assert pressure.polled == {0, 1}
    assert pressure.intake.paused == 0


def test_one_that_holds_its_share_for_long_is_paused_and_what_was_fetched_of_it_is_let_go(pressure: Pressure) -> None:
    events = pressure.hold(0, SHARE)
    pressure.now += HELD_SECONDS
    assert pressure.polled == {0, 1}, "a poll of what is paused brings nothing and frees what was fetched"
    assert pressure.consumer.paused == {0}
    pressure.partitions[0].settle(events[: SHARE // 4])
    assert pressure.polled == {0, 1}
    assert pressure.consumer.paused == {0}, "to fetch it again for a few would cost more than it brings"
    pressure.partitions[0].settle(events[SHARE // 4 : SHARE // 2 + 1])
    assert pressure.polled == {0, 1}
    assert not pressure.consumer.paused


def test_with_the_buffer_full_nothing_is_polled_and_polling_goes_on(pressure: Pressure) -> None:
    pressure.hold(0, SHARE)
    pressure.hold(1, SHARE)
    assert pressure.polled == {NOWHERE}
    assert pressure.intake.paused == PARTITIONS


def test_a_partition_that_is_lost_is_not_remembered_as_held(pressure: Pressure) -> None:
    pressure.hold(0, SHARE)
    pressure.intake._drop(pressure.partitions[0])
    assert pressure.intake.paused == 0


async def test_a_consumer_keeps_what_it_fetched_of_a_partition_that_is_passed_over(
    kafka: KafkaServer, topics: MakeTopics
) -> None:
    names = await topics(partitions=PARTITIONS)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for number in range(PARTITIONS):
            written = await producer.send_and_wait(names.events, b"one", partition=number)
            assert isinstance(written, RecordMetadata)
    first, second = (TopicPartition(names.events, number) for number in range(PARTITIONS))
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    async with consumer:
        consumer.assign([first, second])

        async def fetched() -> bool:
            assert await consumer.getmany(TopicPartition(names.events, NOWHERE), timeout_ms=20) == {}
            return bool({first, second} <= consumer._fetcher._records.keys())

        await until("both to be fetched", fetched)
        kept = consumer._fetcher._records[first]
        assert set(await consumer.getmany(second, timeout_ms=1000)) == {second}
        assert consumer._fetcher._records[first] is kept
        assert [record.value for record in (await consumer.getmany(timeout_ms=1000))[first]] == [b"one"]
