"""Topics that live as long as one run: made for it, written to as it goes, deleted after it.

For runs that bring their own events, such as the demo's. The service under test is not told that they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from service.kafka.admin import create_topics
from service.kafka.connection import connection_arguments

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from service.settings import KafkaSettings

LINGER_MILLISECONDS = 5


class TemporaryTopics:
    """The topics the settings name, while entered.

    With ``create`` false the broker is one that makes a topic when it is first asked about.
    """

    def __init__(self, settings: KafkaSettings, *, partitions: int, create: bool) -> None:
        self._settings = settings
        self._partitions = partitions
        self._create = create
        self._names = (settings.events_topic, settings.reply_topic, settings.dead_letter_topic)
        self._producer = AIOKafkaProducer(
            **connection_arguments(settings),
            client_id="convoy-demo",
            acks="all",
            enable_idempotence=True,
            linger_ms=LINGER_MILLISECONDS,
        )
        arguments: dict[str, Any] = connection_arguments(settings)
        self._reader = AIOKafkaConsumer(**arguments, client_id="convoy-demo", enable_auto_commit=False)
        self._places: list[TopicPartition] = []
        self._created = False

    async def __aenter__(self) -> Self:
        """Make the topics and wait until the broker knows them.

        Raises:
            KafkaError: no broker answers, or one refuses.
        """
        try:
            await self._producer.start()
            await self._reader.start()
            if self._create:
                self._created = True
                await create_topics(self._settings, partitions=self._partitions, replication_factor=None)
            for name in self._names:
                numbers = await self._producer.partitions_for(name)
                self._places += [TopicPartition(name, number) for number in sorted(numbers)]
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete what was made.

        Raises:
            KafkaError: no broker answers, or one refuses; the topics stay.
        """
        await self._producer.stop()
        await self._reader.stop()
        if self._created:
            admin = AIOKafkaAdminClient(**connection_arguments(self._settings), client_id="convoy-demo")
            try:
                await admin.start()
                await admin.delete_topics(list(self._names))
            finally:
                await admin.close()

    async def publish(self, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
        """Publish an event; what is returned is done once all in-sync replicas have it."""
        sent: asyncio.Future[Any] = await self._producer.send(self._settings.events_topic, value=value, key=key)
        return sent

    async def counts(self) -> dict[str, int]:
        """How many records each topic has."""
        found = dict.fromkeys(self._names, 0)
        for place, end in (await self._reader.end_offsets(self._places)).items():
            found[place.topic] += end
        return found
