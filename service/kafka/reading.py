"""Reading topics whole and positions as committed, for the audit and the commands: no group, no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import UnknownTopicOrPartitionError

from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiokafka import ConsumerRecord

    from service.settings import KafkaSettings

POLL_MILLISECONDS = 500


async def read_topic(settings: KafkaSettings, topic: str) -> AsyncIterator[list[ConsumerRecord[bytes, bytes]]]:
    """Read ``topic`` from its beginning to where it ended when asked, in lists of one partition each.

    Raises:
        KafkaError: no broker answers, or the topic does not exist.
    """
    arguments: dict[str, Any] = connection_arguments(settings)
    consumer = AIOKafkaConsumer(**arguments, enable_auto_commit=False, isolation_level="read_committed")
    try:
        await consumer.start()
        metadata = await consumer._client.fetch_all_metadata()  # noqa: SLF001 - the public way needs a subscription
        places = [TopicPartition(topic, number) for number in metadata.partitions_for_topic(topic) or ()]
        if not places:
            raise UnknownTopicOrPartitionError(topic)
        consumer.assign(places)
        beginnings = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
        left = {place for place in places if ends[place] > beginnings[place]}
        for place in places:
            consumer.seek(place, beginnings[place])
        while left:
            for records in (await consumer.getmany(*left, timeout_ms=POLL_MILLISECONDS)).values():
                yield records
            # The position also passes what is no record: transaction markers, compacted offsets.
            left = {place for place in left if await consumer.position(place) < ends[place]}
    finally:
        await consumer.stop()


async def read_record(
    settings: KafkaSettings, topic: str, partition: int, offset: int
) -> ConsumerRecord[bytes, bytes] | None:
    """Read one record; ``None`` when it is not there (any more).

    Raises:
        KafkaError: no broker answers.
    """
    arguments: dict[str, Any] = connection_arguments(settings)
    consumer = AIOKafkaConsumer(**arguments, enable_auto_commit=False, isolation_level="read_committed")
    try:
        await consumer.start()
        metadata = await consumer._client.fetch_all_metadata()  # noqa: SLF001 - the public way needs a subscription
        if partition not in (metadata.partitions_for_topic(topic) or ()):
            return None
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        beginning = (await consumer.beginning_offsets([place]))[place]
        end = (await consumer.end_offsets([place]))[place]
        if not beginning <= offset < end:
            return None
        consumer.seek(place, offset)
        while await consumer.position(place) <= offset:
            for records in (await consumer.getmany(place, timeout_ms=POLL_MILLISECONDS, max_records=1)).values():
                for record in records:
                    return record if record.offset == offset else None
        return None
    finally:
        await consumer.stop()


async def committed_offsets(
    settings: KafkaSettings, places: list[TopicPartition] | None = None
) -> dict[TopicPartition, tuple[int, str]]:
    """The group's committed offsets and the metadata beside them, of ``places`` or of the events topic.

    Raises:
        KafkaError: no broker answers, or one refuses.
    """
    arguments: dict[str, Any] = connection_arguments(settings)
    admin = AIOKafkaAdminClient(**arguments)
    try:
        await admin.start()
        if places is None:
            # Asked for by name: librdkafka's mock cluster does not know the question for all of a group.
            (topic,) = await admin.describe_topics([settings.events_topic])
            places = [TopicPartition(settings.events_topic, found["partition"]) for found in topic["partitions"]]
        offsets = await admin.list_consumer_group_offsets(settings.group_id, partitions=places)
    finally:
        await admin.close()
    return {place: (found.offset, found.metadata) for place, found in offsets.items() if found.offset >= 0}


async def committed_positions(settings: KafkaSettings) -> dict[int, int]:
    """The group's committed positions in the events topic, by partition."""
    return {
        place.partition: position
        for place, (position, _) in (await committed_offsets(settings)).items()
        if place.topic == settings.events_topic
    }
