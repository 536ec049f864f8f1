"""A stand-in for the Conversations API that is not the bottleneck: one asyncio protocol, no framework.

Answers create-items after a fixed latency with what was sent plus ids, as the API does, and keeps all of it
for the audit. Prints its port once it listens; `GET /dump` gives a JSON object a conversation and line,
`GET /stats` the arrival times of the first and the last request (monotonic seconds) and their number,
`GET /arrivals` when the last request of each conversation arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, cast
from urllib.parse import unquote

import msgspec
import uvloop


class Body(msgspec.Struct):
    items: list[msgspec.Raw]


class Item(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]


decode_body = msgspec.json.Decoder(Body).decode
decode_item = msgspec.json.Decoder(Item).decode


class Held:
    """What was stored, and when."""

    def __init__(self) -> None:
        self.items: dict[str, list[tuple[int, bytes]]] = {}
        self.arrived_at: dict[str, float] = {}
        self.count = 0
        self.requests = 0
        self.first: float | None = None
        self.last = 0.0

    def dump(self) -> bytes:
        lines = []
        for conversation_id, items in self.items.items():
            told = []
            for number, raw in items:
                item = decode_item(raw)
                text = item.content if isinstance(item.content, str) else "".join(p["text"] for p in item.content)
                told.append({"id": f"msg_{number}", "role": item.role, "text": text})
            lines.append(msgspec.json.encode({"conversation_id": conversation_id, "items": told}))
        return b"\n".join(lines)


class Connection(asyncio.Protocol):
    """HTTP/1.1 with a content length, one request at a time."""

    def __init__(self, held: Held, latency: float) -> None:
        self.held = held
        self.latency = latency
        self.buffer = b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end]
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ")
        if method == b"POST":
            self.create(path, body)
        elif b"/items?" in path:
            self.after_latency(self.newest(path))
        elif path == b"/dump":
            self.write(self.held.dump())
        elif path == b"/arrivals":
            self.write(msgspec.json.encode(self.held.arrived_at))
        else:
            held = self.held
            stats = {"first": held.first, "last": held.last, "requests": held.requests, "items": held.count}
            self.write(msgspec.json.encode(stats))

    def create(self, path: bytes, body: bytes) -> None:
        held = self.held
        now = time.monotonic()
        if held.first is None:
            held.first = now
        held.last = now
        held.requests += 1
        conversation_id = unquote(path.rsplit(b"/", 2)[1].decode())
        held.arrived_at[conversation_id] = now
        kept = held.items.setdefault(conversation_id, [])
        told = []
        for raw in decode_body(body).items:
            item = bytes(raw)
            number = held.count
            held.count += 1
            kept.append((number, item))
            told.append(b'{"id":"msg_%d","status":"completed",%b' % (number, item[1:]))
        last = b"msg_%d" % (held.count - 1)
        answer = b'{"object":"list","data":[%b],"first_id":"","last_id":"%b","has_more":false}' % (
            b",".join(told),
            last,
        )
        self.after_latency(answer)

    def newest(self, path: bytes) -> bytes:
        """The newest item, which is all that a cold conversation is asked for."""
        kept = self.held.items.get(unquote(path.split(b"?", 1)[0].rsplit(b"/", 2)[1].decode()), [])
        told = [b'{"id":"msg_%d",%b' % (number, item[1:]) for number, item in kept[-1:]]
        return b'{"object":"list","data":[%b],"has_more":false}' % b",".join(told)

    def after_latency(self, answer: bytes) -> None:
        if self.latency:
            self.loop.call_later(self.latency, self.write, answer)
        else:
            self.write(answer)

    def write(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        if not self.transport.is_closing():
            self.transport.write(head + body)


async def serve(port: int, latency: float) -> None:
    held = Held()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(held, latency), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.latency))
    return 0


if __name__ == "__main__":
    sys.exit(main())
