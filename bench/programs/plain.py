"""The plain program: what one writes in an afternoon with FastStream and httpx as they come.

A batch subscriber of decoded events, groups of up to 20 a conversation or what a second gathers, httpx as it comes,
one published reply an event. It keeps no order, retries nothing, and commits what it has not sent yet.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Any

import httpx
import uvloop
from faststream import FastStream
from faststream.kafka import KafkaBroker

MAX_ITEMS = 20
IN_FLIGHT = 64
WINDOW_SECONDS = 1.0

environment = os.environ
broker = KafkaBroker(environment["CONVOY_KAFKA__BOOTSTRAP_SERVERS"], logger=None)
app = FastStream(broker, logger=None)
client = httpx.AsyncClient(
    base_url=environment["CONVOY_API__BASE_URL"],
    headers={"Authorization": "Bearer bench"},
    limits=httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT),
    timeout=60,
)


async def forward(conversation: str, events: list[dict[str, Any]]) -> None:
    async with slots:
        answer = await client.post(
            f"/conversations/{conversation}/items", json={"items": [event["item"] for event in events]}
        )
    answer.raise_for_status()
    for event, item in zip(events, answer.json()["data"], strict=True):
        reply = {"event_id": event["event_id"], "conversation_id": conversation, "status": "delivered", "item": item}
        await broker.publish(reply, environment["CONVOY_KAFKA__REPLY_TOPIC"], key=conversation.encode())


slots = asyncio.Semaphore(IN_FLIGHT)
waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)


@broker.subscriber(
    environment["CONVOY_KAFKA__EVENTS_TOPIC"],
    group_id=environment["CONVOY_KAFKA__GROUP_ID"],
    batch=True,
    auto_offset_reset="earliest",
    max_records=2000,
    batch_timeout_ms=20,
)
async def handle(events: list[dict[str, Any]]) -> None:
    full = []
    for event in events:
        group = waiting[event["conversation_id"]]
        group.append(event)
        if len(group) == MAX_ITEMS:
            full.append(forward(event["conversation_id"], waiting.pop(event["conversation_id"])))
    await asyncio.gather(*full)


async def flush() -> None:
    while True:
        await asyncio.sleep(WINDOW_SECONDS)
        groups = [(conversation, waiting.pop(conversation)) for conversation in list(waiting)]
        await asyncio.gather(*(forward(*group) for group in groups))


@app.after_startup
async def start() -> None:
    flushing.append(asyncio.create_task(flush()))


flushing: list[asyncio.Task[None]] = []

if __name__ == "__main__":
    uvloop.run(app.run())
