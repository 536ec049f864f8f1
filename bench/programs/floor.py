"""The floor: the same job with the same parts, bare, and none of the guarantees.

Raw records in batches, msgspec, the service's own httpx transport with ready requests, replies gathered a partition.
The replies are the service's, header by header. Nothing is checked, retried, judged or read back; positions are
committed as read; what fails ends it. What the service costs above this is what its promises cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections import defaultdict, deque
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from service.conversations.transport import AiohttpTransport

MAX_ITEMS = 20
MAX_BUFFERED = 50_000
IN_FLIGHT = 256
LINGER_SECONDS = 0.005
SWEEP_SECONDS = 0.02
GC_THRESHOLD = 50_000


class Value(msgspec.Struct):
    conversation_id: str
    item: msgspec.Raw
    event_id: str


class Listed(msgspec.Struct):
    data: list[msgspec.Raw]


decode = msgspec.json.Decoder(Value).decode
decode_list = msgspec.json.Decoder(Listed).decode
CONTENT_TYPE = ("content-type", b"application/json")
Headers = list[tuple[str, bytes]]
Event = tuple[str, bytes, str, int, int, float]
"""Conversation, item, event id, partition, offset, when it was read."""


class Floor:
    """One process that does the job."""

    def __init__(self) -> None:
        environment = os.environ
        self.events_topic = environment["CONVOY_KAFKA__EVENTS_TOPIC"]
        self.reply_topic = environment["CONVOY_KAFKA__REPLY_TOPIC"]
        self.window = float(environment.get("CONVOY_BATCH__WINDOW_SECONDS", "1"))
        self.servers = environment["CONVOY_KAFKA__BOOTSTRAP_SERVERS"]
        self.group = environment["CONVOY_KAFKA__GROUP_ID"]
        base = environment["CONVOY_API__BASE_URL"]
        self.url = httpx.URL(base)
        self.path = self.url.raw_path.decode()
        self.headers = httpx.Headers({"Authorization": "Bearer bench", "Content-Type": "application/json"})
        self.buffers: dict[str, deque[Event]] = defaultdict(deque)
        self.due: deque[tuple[float, str]] = deque()
        self.busy: set[str] = set()
        self.ready: deque[str] = deque()
        self.buffered = 0
        self.in_flight = 0
        self.outgoing: dict[int, list[tuple[bytes, bytes, Headers]]] = defaultdict(list)
        self.senders: set[int] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.partition_of: dict[str, int] = {}

    async def run(self) -> None:
        transport = AiohttpTransport(connect_timeout_seconds=5, total_timeout_seconds=20)
        consumer = AIOKafkaConsumer(
            self.events_topic,
            bootstrap_servers=self.servers,
            group_id=self.group,
            auto_offset_reset="earliest",
            enable_auto_commit=True,
            auto_commit_interval_ms=1000,
        )
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.servers, enable_idempotence=True, max_batch_size=512 << 10
        )
        async with transport, consumer, self.producer:
            self.transport = transport
            self.partitions = sorted(await self.producer.partitions_for(self.reply_topic))
            self.spawn(self.sweep())
            while True:
                if self.buffered >= MAX_BUFFERED:
                    await asyncio.sleep(SWEEP_SECONDS)
                    continue
                found = await consumer.getmany(timeout_ms=20, max_records=2000)
                for records in found.values():
                    self.add(records)
                self.fill()
                await asyncio.sleep(0)

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise SystemExit(repr(task.exception()))

    def add(self, records: list[Any]) -> None:
        now = time.monotonic()
        for record in records:
            value = decode(record.value)
            conversation = value.conversation_id
            buffer = self.buffers[conversation]
            buffer.append((conversation, bytes(value.item), value.event_id, record.partition, record.offset, now))
            if len(buffer) == 1 and conversation not in self.busy:
                self.due.append((now + self.window, conversation))
            elif len(buffer) == MAX_ITEMS and conversation not in self.busy:
                self.busy.add(conversation)
                self.ready.append(conversation)
        self.buffered += len(records)

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                conversation = self.due.popleft()[1]
                if conversation not in self.busy and self.buffers.get(conversation):
                    self.busy.add(conversation)
                    self.ready.append(conversation)
            self.fill()

    def fill(self) -> None:
        while self.ready and self.in_flight < IN_FLIGHT:
            self.in_flight += 1
            self.spawn(self.send(self.ready.popleft()))

    async def send(self, conversation: str) -> None:
        buffer = self.buffers[conversation]
        events = [buffer.popleft() for _ in range(min(MAX_ITEMS, len(buffer)))]
        self.buffered -= len(events)
        request = httpx.Request(
            "POST",
            self.url,
            headers=self.headers,
            stream=httpx.ByteStream(b'{"items":[%b]}' % b",".join(event[1] for event in events)),
            extensions={"target": f"{self.path}/conversations/{conversation}/items".encode()},
        )
        answer = await self.transport.handle_async_request(request)
        assert isinstance(answer.stream, httpx.SyncByteStream)
        self.reply(conversation, events, decode_list(b"".join(answer.stream)).data)
        self.in_flight -= 1
        if len(buffer) >= MAX_ITEMS:
            self.ready.append(conversation)
        else:
            self.busy.discard(conversation)
            if buffer:
                self.due.append((time.monotonic() + self.window, conversation))
            else:
                del self.buffers[conversation]
        self.fill()

    def reply(self, conversation: str, events: list[Event], items: list[msgspec.Raw]) -> None:
        key = conversation.encode()
        partition = self.partition_of.get(conversation)
        if partition is None:
            partition = DefaultPartitioner()(key, self.partitions, self.partitions)
            self.partition_of[conversation] = partition
        size = len(events)
        topic = self.events_topic.encode()
        at = f"{datetime.now(UTC).isoformat(timespec='milliseconds')[:-6]}Z".encode()
        outgoing = self.outgoing[partition]
        for index, (event, item) in enumerate(zip(events, items, strict=True)):
            outgoing.append(
                (
                    key,
                    b'{"event_id":"%b","conversation_id":"%b","status":"delivered","item":%b,"batch":{"size":%d,"index":%d},'
                    b'"attempts":1,"source":{"topic":"%b","partition":%d,"offset":%d},"delivered_at":"%b"}'
                    % (event[2].encode(), key, item, size, index, topic, event[3], event[4], at),
                    [("correlation_id", event[2].encode()), CONTENT_TYPE],
                )
            )
        if partition not in self.senders:
            self.senders.add(partition)
            self.spawn(self.store(partition))

    async def store(self, partition: int) -> None:
        while self.outgoing[partition]:
            await asyncio.sleep(LINGER_SECONDS)
            waiting = self.outgoing[partition]
            batch = self.producer.create_batch()
            count = 0
            for key, value, headers in waiting:
                if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                    break
                count += 1
            del waiting[:count]
            batch.close()
            await (await self.producer.send_batch(batch, self.reply_topic, partition=partition))
        self.senders.discard(partition)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(Floor().run())
