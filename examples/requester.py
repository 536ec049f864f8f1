"""Publish a chat message and wait for its own reply, with FastStream and nothing else.

    python examples/requester.py conv_42 "Where is my parcel?"

Each event carries a correlation id and the topic its reply is to go to; Convoy sends both back. A requester reads
that topic without a consumer group, from its end: every instance sees every reply and takes those it waits for.
The topic has to be on Convoy's list: CONVOY_REPLY__ALLOWED_TOPICS=my-service.replies (or be the default reply topic).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from typing import Any, Self

from faststream.kafka import KafkaBroker, KafkaMessage


class Requester:
    """Asks on the events topic, hears on a reply topic."""

    def __init__(self, servers: str, events_topic: str, reply_topic: str) -> None:
        self._events_topic = events_topic
        self._reply_topic = reply_topic
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._broker = KafkaBroker(servers, logger=None)
        self._subscriber = self._broker.subscriber(reply_topic, auto_offset_reset="latest")
        self._subscriber(self._hear)

    async def __aenter__(self) -> Self:
        """Listen; a reply to whatever is asked from now on is heard."""
        await self._broker.start()
        consumer = self._subscriber.consumer
        assert consumer is not None
        # "From the end" is found out with the first fetch; a quick reply would be there before.
        await asyncio.gather(*(consumer.position(place) for place in consumer.assignment()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._broker.stop()

    async def ask(self, conversation_id: str, content: str, timeout_seconds: float = 60) -> dict[str, Any]:
        """Publish one message and return its reply.

        Raises:
            TimeoutError: none came. The event is not lost: it waits in Kafka, as does whatever becomes of it.
        """
        correlation_id = str(uuid.uuid4())
        reply = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        try:
            await self._broker.publish(
                {"conversation_id": conversation_id, "role": "user", "content": content, "event_id": correlation_id},
                topic=self._events_topic,
                key=conversation_id.encode(),
                correlation_id=correlation_id,
                reply_to=self._reply_topic,
            )
            return await asyncio.wait_for(reply, timeout_seconds)
        finally:
            del self._waiting[correlation_id]

    async def _hear(self, body: dict[str, Any], message: KafkaMessage) -> None:
        reply = self._waiting.get(message.correlation_id or "")
        # Replies are published at least once: a second one finds nobody waiting.
        if reply is not None and not reply.done():
            reply.set_result(body)


async def main(conversation_id: str, questions: list[str]) -> None:
    """Ask all at once, print the replies in the order of the questions."""
    servers = os.environ.get("BOOTSTRAP_SERVERS", "localhost:9092")
    events = os.environ.get("EVENTS_TOPIC", "conversation.events")
    replies = os.environ.get("REPLY_TOPIC", "my-service.replies")
    async with Requester(servers, events, replies) as requester:
        for reply in await asyncio.gather(*(requester.ask(conversation_id, question) for question in questions)):
            print(json.dumps(reply))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
