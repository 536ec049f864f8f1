"""How bytes leave the emulator: an answer as it should be, or one that ends, stalls or breaks.

Decides nothing about what is answered. Needs more than ASGI offers: the connection itself, which the server hands
over in the scope.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from service.emulator.contract import Answer

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

TRANSPORT_EXTENSION = "emulator.transport"
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Wire:
    """One request's connection to its client."""

    __slots__ = ("_receive", "_request_id", "_scope", "_send")

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id.encode()

    async def read_body(self, max_bytes: int) -> bytes | None:
        """Read a request to its end, or None where the client left first.

        Of a body that is too large only enough is kept to show it, but all of it is read: an answer before the
        client has written everything would often reach it as a broken connection.
        """
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            if len(body) <= max_bytes:
                body += message["body"]
            if not message.get("more_body", False):
                return body

    async def answer(self, answer: Answer) -> None:
        """Give an answer as it should be."""
        await self._start(answer, len(answer.body))
        await self._send({"type": "http.response.body", "body": answer.body})

    async def answer_half(self, answer: Answer, *, cut: bool) -> None:
        """Give the first half of an answer's body, honestly announced, or announced whole and then cut."""
        half = answer.body[: len(answer.body) // 2]
        await self._start(answer, len(answer.body) if cut else len(half))
        await self._send({"type": "http.response.body", "body": half, "more_body": cut})
        if cut:
            await self.cut(reset=False)

    async def drip(self, answer: Answer, *, seconds: float) -> None:
        """Give an answer's body byte by byte over some seconds, or until the client leaves."""
        await self._start(answer, len(answer.body))
        last = len(answer.body) - 1
        began = time.monotonic()
        for index in range(len(answer.body)):
            # Until a moment, not for a while: uvloop counts in milliseconds, and shorter waits would be none.
            while (wait := began + seconds * (index + 1) / len(answer.body) - time.monotonic()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(max(wait, 0.001))
            if self._transport.is_closing():
                return
            byte = answer.body[index : index + 1]
            await self._send({"type": "http.response.body", "body": byte, "more_body": index < last})

    async def stream(self, content_type: bytes, chunks: Any) -> None:
        """Give an answer of unknown length, at the client's pace."""
        headers = [(b"content-type", content_type)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in chunks:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def cut(self, *, reset: bool) -> None:
        """End the connection: in order (FIN), or abruptly (RST), which also drops what is not yet delivered."""
        transport = self._transport
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            transport.abort()
        else:
            transport.close()
        await self.wait_until_gone()

    async def wait_until_gone(self) -> None:
        """Wait until the connection is closed from either side."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @property
    def _transport(self) -> Any:
        return self._scope["extensions"][TRANSPORT_EXTENSION]["transport"]

    async def _start(self, answer: Answer, length: int) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % length),
            (b"x-request-id", self._request_id),
            *answer.headers,
        ]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
