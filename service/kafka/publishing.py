"""Publishing records of one's own to a topic: what a producer of events does, for the commands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer

from service.kafka.connection import connection_arguments
from service.kafka.outlet import TopicMissingError

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
    await producer.start()
    try:
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
