"""Publishing records of one's own to a topic: what a producer of events does, for the commands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer

from service.kafka.connection import KafkaError, connection_arguments
from service.kafka.outlet import TopicMissingError
from service.kafka.reading import read_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.settings import KafkaSettings

IN_FLIGHT = 1000


async def publish(settings: KafkaSettings, topic: str, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Publish ``records`` (key, value), in order, each acknowledged by all replicas; returns how many.

    Raises:
        KafkaError: no broker answers, or one refuses.
        TopicMissingError: the topic does not exist; aiokafka would wait for it.
    """
    producer = AIOKafkaProducer(
        **connection_arguments(settings), client_id="convoy-publish", acks="all", enable_idempotence=True
    )
    try:
        await producer.start()
        metadata = await producer.client.fetch_all_metadata()
        if not metadata.partitions_for_topic(topic):
            raise TopicMissingError(topic)
        count = 0
        sent: list[asyncio.Future[object]] = []
        for key, value in records:
            sent.append(await producer.send(topic, value=value, key=key))
            count += 1
            if len(sent) >= IN_FLIGHT:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)
        return count
    finally:
        await producer.stop()


async def round_trip(settings: KafkaSettings, topic: str) -> tuple[int, int]:
    """Write one record without value, which every consumer passes over, and read it back; returns where it lies.

    Raises:
        KafkaError: a broker refuses, or what was acknowledged is not there.
        TopicMissingError: the topic does not exist.
    """
    producer = AIOKafkaProducer(
        **connection_arguments(settings), client_id="convoy-check", acks="all", enable_idempotence=True
    )
    try:
        await producer.start()
        if not (await producer.client.fetch_all_metadata()).partitions_for_topic(topic):
            raise TopicMissingError(topic)
        stored = await producer.send_and_wait(topic, key=b"convoy-check")
    finally:
        await producer.stop()
    if await read_record(settings, topic, stored.partition, stored.offset) is None:
        raise KafkaError("the record that was acknowledged is not there")
    place: tuple[int, int] = stored.partition, stored.offset
    return place
