"""What is asked of the cluster outside the stream: creating topics, producing a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    from service.settings import KafkaSettings

SAFE_COPIES = 3
LEDGER_CONFIGS = {"cleanup.policy": "delete", "retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
"""A ledger has to reach back to what is not settled, and tells by the broker's clock how long ago an attempt began."""


async def create_topics(settings: KafkaSettings, *, partitions: int, replication_factor: int | None) -> dict[str, str]:
    """Create the topics Convoy uses; returns for each what happened: ``created`` or ``exists``.

    Without a ``replication_factor`` there are as many copies as brokers, three at most. With three or more,
    a write needs two of them, so that ``acks=all`` survives the loss of one. The ledger, where one is named,
    gets as many partitions as the events topic has.

    Raises:
        KafkaError: no broker answers, or one refuses.
    """
    admin = AIOKafkaAdminClient(**connection_arguments(settings), client_id="convoy-topics")
    try:
        await admin.start()
        if replication_factor is None:
            replication_factor = min(SAFE_COPIES, len((await admin.describe_cluster())["brokers"]))
        configs = {"min.insync.replicas": "2"} if replication_factor >= SAFE_COPIES else {}
        names = (settings.events_topic, settings.reply_topic, settings.dead_letter_topic)
        outcome = await _create(
            admin, [NewTopic(name, partitions, replication_factor, topic_configs=configs) for name in names]
        )
        if settings.ledger_topic:
            (events,) = await admin.describe_topics([settings.events_topic])
            # Each events partition needs its twin, also where the events topic was there before.
            twins = len(events["partitions"])
            ledger = NewTopic(
                settings.ledger_topic, twins, replication_factor, topic_configs={**configs, **LEDGER_CONFIGS}
            )
            outcome |= await _create(admin, [ledger])
    finally:
        await admin.close()
    return outcome


async def _create(admin: AIOKafkaAdminClient, topics: list[NewTopic]) -> dict[str, str]:
    answer = await admin.create_topics(topics)
    outcome = {}
    for name, code, *message in answer.topic_errors:
        error = for_code(code)
        if code == 0:
            outcome[name] = "created"
        elif error is TopicAlreadyExistsError:
            outcome[name] = "exists"
        else:
            raise KafkaError(f"{name}: {error.__name__} {message[0] if message and message[0] else ''}".strip())
    return outcome
