"""The emulated API as a plain ASGI application over the store.

Decides which operation a request means and in which order key, body and conversation are judged. What the API
accepts and how answers look is the contract's; what is stored is the store's.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from service.emulator import contract
from service.emulator.contract import Answer, Operation, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from service.emulator.store import Conversation, Store

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_OPERATIONS: dict[tuple[int, str], Operation] = {
    (0, "POST"): "create_conversation",
    (1, "GET"): "retrieve_conversation",
    (1, "POST"): "update_conversation",
    (1, "DELETE"): "delete_conversation",
    (2, "POST"): "create_items",
    (2, "GET"): "list_items",
    (3, "GET"): "retrieve_item",
    (3, "DELETE"): "delete_item",
}
"""Operation by the number of path segments behind `/conversations` and the method."""


class Request(msgspec.Struct):
    """One request for an operation of the API, read in full."""

    operation: Operation
    conversation_id: str
    item_id: str
    query: dict[str, str]
    authorization: bytes | None
    body: bytes


class EmulatorApp:
    """ASGI application: the API under `prefix`, a gateway's 404 elsewhere."""

    def __init__(
        self,
        store: Store,
        *,
        key: str | None = None,
        latency_seconds: float = 0.0,
        create_on_write: bool = False,
        prefix: str = "/v1",
        max_body_bytes: int = 8 * 1024 * 1024,
        timestamps_in_seconds: bool = False,
    ) -> None:
        self.store = store
        self._key = key
        self._latency_seconds = latency_seconds
        self._create_on_write = create_on_write
        self._root = prefix.rstrip("/").encode() + b"/conversations"
        self._max_body_bytes = max_body_bytes
        self._timestamps_in_seconds = timestamps_in_seconds
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        body = await _read_body(receive, self._max_body_bytes)
        if body is None:
            return
        self._requests += 1
        routed = self._route(scope, body)
        if isinstance(routed, Answer):
            await self._send(send, routed)
            return
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        await self._send(send, self._work(routed))

    def _route(self, scope: Scope, body: bytes) -> Request | Answer:
        path: bytes = scope["raw_path"]
        root = self._root
        if not path.startswith(root) or path[len(root) : len(root) + 1] not in {b"", b"/"}:
            return contract.gateway_not_found()
        # Split before decoding: an encoded slash belongs to the id.
        segments = path[len(root) :].split(b"/")[1:]
        depth = len(segments)
        if depth > 3 or b"" in segments or (depth > 1 and segments[1] != b"items"):
            return contract.gateway_not_found()
        operation = _OPERATIONS.get((depth, scope["method"]))
        if operation is None:
            return contract.gateway_method_not_allowed([method for at, method in _OPERATIONS if at == depth])
        try:
            ids = [unquote_to_bytes(segment).decode() for segment in segments]
        except UnicodeDecodeError:
            return contract.gateway_not_found()
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        return Request(
            operation,
            ids[0] if depth > 0 else "",
            ids[2] if depth > 2 else "",
            dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            authorization,
            body,
        )

    # -- the API ---------------------------------------------------------------------------------------

    def _work(self, request: Request) -> Answer:
        done = contract.check_key(request.authorization, self._key) or self._perform(request)
        return contract.refusal_answer(done) if isinstance(done, Refusal) else done

    def _perform(self, request: Request) -> Answer | Refusal:
        if len(request.body) > self._max_body_bytes:
            return contract.body_too_large(self._max_body_bytes)
        document = contract.read_document(request.body)
        if isinstance(document, Refusal):
            return document
        if request.operation == "create_conversation":
            return self._create_conversation(document)
        conversation = self.store.conversations.get(request.conversation_id)
        if request.operation == "create_items":
            return self._create_items(request, document, conversation)
        if conversation is None:
            return contract.conversation_not_found(request.conversation_id)
        return self._on_conversation(request, document, conversation)

    def _on_conversation(
        self, request: Request, document: dict[str, Any], conversation: Conversation
    ) -> Answer | Refusal:
        match request.operation:
            case "update_conversation":
                return self._update_conversation(conversation, document)
            case "delete_conversation":
                self.store.delete_conversation(conversation)
                return contract.conversation_deleted_answer(conversation)
            case "list_items":
                return self._list_items(conversation, request.query)
            case "retrieve_item" | "delete_item":
                return self._one_item(conversation, request)
            case _:
                return self._show(conversation)

    def _create_conversation(self, document: dict[str, Any]) -> Answer | Refusal:
        metadata = contract.read_metadata(document, required=False)
        if isinstance(metadata, Refusal):
            return metadata
        items = contract.read_items(document, required=False)
        if isinstance(items, Refusal):
            return items
        now_ms = _now_ms()
        conversation = self.store.create_conversation(now_ms=now_ms, metadata=metadata)
        self.store.append(conversation, items, now_ms=now_ms)
        return self._show(conversation)

    def _create_items(
        self, request: Request, document: dict[str, Any], conversation: Conversation | None
    ) -> Answer | Refusal:
        if conversation is None and not self._create_on_write:
            return contract.conversation_not_found(request.conversation_id)
        items = contract.read_items(document, required=True)
        if isinstance(items, Refusal):
            return items
        now_ms = _now_ms()
        if conversation is None:
            conversation = self.store.create_conversation(
                now_ms=now_ms, conversation_id=request.conversation_id
            )
        return contract.items_answer(self.store.append(conversation, items, now_ms=now_ms), has_more=False)

    def _update_conversation(self, conversation: Conversation, document: dict[str, Any]) -> Answer | Refusal:
        metadata = contract.read_metadata(document, required=True)
        if isinstance(metadata, Refusal):
            return metadata
        conversation.metadata = metadata
        return self._show(conversation)

    def _list_items(self, conversation: Conversation, query: dict[str, str]) -> Answer | Refusal:
        wanted = contract.read_list_query(query)
        if isinstance(wanted, Refusal):
            return wanted
        after = None
        if wanted.after is not None:
            after = self.store.item(conversation, wanted.after)
            if after is None:
                return contract.cursor_not_found(wanted.after)
        page, has_more = self.store.page(
            conversation, after=after, limit=wanted.limit, newest_first=wanted.newest_first
        )
        return contract.items_answer(page, has_more=has_more)

    def _one_item(self, conversation: Conversation, request: Request) -> Answer | Refusal:
        item = self.store.item(conversation, request.item_id)
        if item is None:
            return contract.item_not_found(request.item_id, conversation.id)
        if request.operation == "retrieve_item":
            return contract.item_answer(item)
        self.store.delete_item(item)
        # Deleting an item shows the conversation it was taken from.
        return self._show(conversation)

    def _show(self, conversation: Conversation) -> Answer:
        return contract.conversation_answer(conversation, in_seconds=self._timestamps_in_seconds)

    async def _send(self, send: Send, answer: Answer) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"x-request-id", b"req_%016x" % self._requests),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Read a request to its end, or None where the client left first.

    Of a body that is too large only enough is kept to show it: an answer before the client has written all
    of it would often reach it as a broken connection.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= max_bytes:
            body += message["body"]
        if not message.get("more_body", False):
            return body
