"""The API when nothing goes wrong: requests in, store changed, answers out.

Decides which operation a path and a method mean, and in which order key, body and conversation are judged. What
is acceptable and how answers look is the contract's. Must not know faults; it only lends them two levers: to
store fewer of a request's items than were sent, and to list fewer than were stored.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from service.emulator import contract
from service.emulator.contract import Answer, Operation, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.emulator.store import Conversation, Store

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
"""Operation by the number of path segments behind `/conversations`, and the method."""


class Request(msgspec.Struct, frozen=True):
    """One request for an operation, its body decoded or refused, and judged no further."""

    operation: Operation
    conversation_id: str
    item_id: str
    query: dict[str, str]
    authorization: bytes | None
    body_bytes: int
    document: dict[str, Any] | Refusal

    @property
    def items(self) -> list[Any]:
        """The items as they were sent, unchecked; none where there is no list of them."""
        items = self.document.get("items") if isinstance(self.document, dict) else None
        return items if isinstance(items, list) else []


class Api:
    """The operations, over one store."""

    def __init__(
        self,
        store: Store,
        *,
        key: str | None,
        create_on_write: bool,
        prefix: str,
        max_body_bytes: int,
        timestamps_in_seconds: bool,
    ) -> None:
        self.store = store
        self.max_body_bytes = max_body_bytes
        self._key = key
        self._create_on_write = create_on_write
        self.base_path = prefix
        self._root = prefix.encode() + b"/conversations"
        self._timestamps_in_seconds = timestamps_in_seconds

    @property
    def needs_key(self) -> bool:
        """Whether a bearer key is insisted on."""
        return self._key is not None

    def read_request(self, scope: Mapping[str, Any], body: bytes) -> Request | Answer:
        """Find out what is asked for; a path the API does not have is answered as by a gateway before it."""
        path: bytes = scope["raw_path"]
        if not (path + b"/").startswith(self._root + b"/"):
            return contract.gateway_not_found()
        # Split before decoding: an encoded slash belongs to the id.
        segments = path[len(self._root) :].split(b"/")[1:]
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
        if len(body) > self.max_body_bytes:
            document: dict[str, Any] | Refusal = contract.body_too_large(self.max_body_bytes)
        else:
            document = contract.read_document(body)
        query = scope["query_string"].decode("latin-1")
        return Request(
            operation,
            ids[0] if depth > 0 else "",
            ids[2] if depth > 2 else "",
            dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            next((value for name, value in scope["headers"] if name == b"authorization"), None),
            len(body),
            document,
        )

    def perform(self, request: Request, *, keep: int | None = None, listed: int | None = None) -> Answer:
        """Do what is asked for. `keep` and `listed` are the faults' levers; None does and shows everything."""
        outcome: Answer | Refusal
        if refusal := contract.check_key(request.authorization, self._key):
            outcome = refusal
        elif isinstance(request.document, Refusal):
            outcome = request.document
        elif request.operation == "create_conversation":
            outcome = self._create_conversation(request.document, keep)
        elif request.operation == "create_items":
            outcome = self._create_items(request.conversation_id, request.document, keep, listed)
        else:
            outcome = self._with_conversation(request, request.document)
        return contract.refusal_answer(outcome) if isinstance(outcome, Refusal) else outcome

    def _with_conversation(self, request: Request, document: dict[str, Any]) -> Answer | Refusal:
        conversation = self.store.conversations.get(request.conversation_id)
        if conversation is None:
            return contract.conversation_not_found(request.conversation_id)
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

    def _create_conversation(self, document: dict[str, Any], keep: int | None) -> Answer | Refusal:
        metadata = contract.read_metadata(document, required=False)
        if isinstance(metadata, Refusal):
            return metadata
        items = contract.read_items(document, required=False)
        if isinstance(items, Refusal):
            return items
        now_ms = _now_ms()
        conversation = self.store.create_conversation(now_ms=now_ms, metadata=metadata)
        self.store.append(conversation, items[:keep], now_ms=now_ms)
        return self._show(conversation)

    def _create_items(
        self, conversation_id: str, document: dict[str, Any], keep: int | None, listed: int | None
    ) -> Answer | Refusal:
        conversation = self.store.conversations.get(conversation_id)
        if conversation is None and not self._create_on_write:
            return contract.conversation_not_found(conversation_id)
        items = contract.read_items(document, required=True)
        if isinstance(items, Refusal):
            return items
        now_ms = _now_ms()
        if conversation is None:
            conversation = self.store.create_conversation(now_ms=now_ms, conversation_id=conversation_id)
        stored = self.store.append(conversation, items[:keep], now_ms=now_ms)
        return contract.items_answer(stored[:listed], has_more=False)

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


def _now_ms() -> int:
    return int(time.time() * 1000)
