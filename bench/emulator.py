"""How fast the emulator is, and whether it stays so: `make bench-emulator`.

`convoy emulator` is one process on one core; this one asks it for as much as it gives, over plain sockets. Printed
are requests a second and what one costs the emulator in processor time, at first and with a million items stored.
Exit code 1 if a promise is broken: 1,500 requests a second, and no slower (by a quarter) for a million items.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import cpu_seconds

CONNECTIONS = 16
PROMISED_PER_SECOND = 1500
TOLERATED = 1.25


@dataclass(frozen=True)
class Figures:
    requests: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def microseconds(self) -> float:
        return self.cpu_seconds / self.requests * 1e6


class Asker(asyncio.Protocol):
    """One connection that sends the next request as soon as the last one is answered."""

    def __init__(self, requests: list[bytes]) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._transport: asyncio.Transport | None = None
        self._left = 0
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 200"), head + body
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            self._left = int(length.partition(b":")[2])
            self._head = b""
            data = body
        self._left -= len(data)
        if not self._left:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the emulator closed"))

    def _next(self) -> None:
        assert self._transport is not None
        if self._requests:
            self._transport.write(self._requests.pop())
        else:
            self.done.set_result(None)
            self._transport.close()


def request(method: str, path: str, document: Any = None) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    head = f"{method} /v1/conversations/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-bench\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def writes(count: int, *, items: int, conversations: int) -> list[bytes]:
    item = {"type": "message", "role": "user", "content": "Where is my parcel? It was to be here yesterday. " * 2}
    return [
        request("POST", f"conv_{number % conversations}/items", {"items": [item] * items}) for number in range(count)
    ]


def resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


async def ask(process: subprocess.Popen[str], port: int, requests: list[bytes]) -> Figures:
    count = len(requests)
    loop = asyncio.get_running_loop()
    began, cpu = time.perf_counter(), cpu_seconds(process.pid)
    askers = [(await loop.create_connection(lambda: Asker(requests), "127.0.0.1", port))[1] for _ in range(CONNECTIONS)]
    await asyncio.gather(*(asker.done for asker in askers))
    return Figures(count, time.perf_counter() - began, cpu_seconds(process.pid) - cpu)


async def measure(process: subprocess.Popen[str], port: int, *, requests: int, items: int) -> dict[str, Figures]:
    """Return figures by kind of request; the conversations written to are few and long."""
    await ask(process, port, writes(500, items=1, conversations=200))
    ones = await ask(process, port, writes(requests, items=1, conversations=200))
    twenties = await ask(process, port, writes(requests // 4, items=20, conversations=200))
    lists = await ask(process, port, [request("GET", f"conv_{n % 200}/items") for n in range(requests)])
    shown = {"create 1 item": ones, "create 20 items": twenties, "list 20 items": lists}
    for kind, figures in shown.items():
        print(f"  {kind:<16} {figures.per_second:8,.0f} requests/s {figures.microseconds:8,.0f} µs of processor each")
    print(f"  resident memory  {resident_mib(process.pid):8,} MiB with {items:,} items and more")
    return shown


async def run(items: int, requests: int) -> int:
    command = [str(Path(sys.executable).with_name("convoy")), "emulator", "--port", "0", "--create-on-write"]
    with subprocess.Popen(  # noqa: ASYNC220 - it is back in a millisecond
        [*command, "--key", "sk-bench"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            origin = base_url.removesuffix("/v1")
            port = int(origin.rpartition(":")[2])
            print("empty at first:")
            first = await measure(process, port, requests=requests, items=0)
            await ask(process, port, writes(items // 20, items=20, conversations=200))
            with urllib.request.urlopen(f"{origin}/_emulator/stats") as answer:  # noqa: ASYNC210 - nothing else goes on
                stored: int = json.load(answer)["items_stored"]
            assert stored >= items
            print(f"with {stored:,} items:")
            then = await measure(process, port, requests=requests, items=stored)
        finally:
            process.terminate()
    slower = max(then[kind].microseconds / first[kind].microseconds for kind in first)
    rate = first["create 1 item"].per_second
    print(f"{rate:,.0f} create-items requests/s from one process; {slower:.2f} times the cost with {items:,} items")
    return int(rate < PROMISED_PER_SECOND or slower > TOLERATED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help="items to store in between")
    parser.add_argument("--requests", type=int, default=8000, help="requests a measurement")
    arguments = parser.parse_args()
    return asyncio.run(run(arguments.items, arguments.requests))


if __name__ == "__main__":
    sys.exit(main())
