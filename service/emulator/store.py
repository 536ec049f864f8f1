"""Holds conversations and their items, in the order in which they were stored.

Decides ids, order and what a page of a list contains. Must not know HTTP, faults or the clock: the time is an
argument, and ids follow from the seed alone, so that two runs with the same requests look the same.

It bears 10^6 items: an item is kept as the JSON document the API shows, encoded once when it is stored, and
appending, finding an item and starting a page behind it cost the same however long the conversation is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MASK_64 = (1 << 64) - 1

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _scramble(number: int) -> int:
    """Map 64 bits one to one onto 64 bits that show no order (the finaliser of SplitMix64).

    Ids must be unique and must not sort by age: a client that compares ids instead of asking for the order
    would pass here and fail against the real API.
    """
    number &= _MASK_64
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return number ^ (number >> 31)


def text_of(content: Any) -> str:
    """Return all text of a message's content, whether a string or a list of parts; anything else has none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


class NewItem(msgspec.Struct, frozen=True):
    """An item that was accepted and is not stored yet: it has no id.

    `content` is the list of parts; `extra` holds the fields the API does not name, shown again as they came.
    """

    role: str
    content: list[dict[str, Any]]
    extra: dict[str, Any]


@dataclass(slots=True, eq=False)
class Item:
    """A stored item. `document` is its JSON as the API shows it, `position` its place in its conversation."""

    id: str
    role: str
    document: bytes
    created_ms: int
    conversation: Conversation = field(repr=False)
    position: int

    @property
    def content(self) -> list[dict[str, Any]]:
        """The list of parts, as the API shows it."""
        content: list[dict[str, Any]] = _decode(self.document)["content"]
        return content

    @property
    def text(self) -> str:
        """The text of all parts, joined."""
        return text_of(self.content)


@dataclass(slots=True, eq=False)
class Conversation:
    """A conversation with its items, oldest first. A deleted item leaves a gap for the time being."""

    id: str
    created_ms: int
    metadata: dict[str, str]
    slots: list[Item | None] = field(default_factory=list, repr=False)
    gaps: int = 0

    def __len__(self) -> int:
        return len(self.slots) - self.gaps

    def items(self) -> Iterator[Item]:
        """Yield the items in the order in which they were stored."""
        return (item for item in self.slots if item is not None)

    def texts(self) -> list[str]:
        """Return the texts in the order in which they were stored."""
        return [item.text for item in self.items()]


class Store:
    """All conversations of one emulated account."""

    def __init__(self, *, seed: int = 0) -> None:
        self.conversations: dict[str, Conversation] = {}
        self.items_stored = 0
        self._items: dict[str, Item] = {}
        self._conversations_made = 0
        self._salt = _scramble(seed + 1)

    def create_conversation(
        self, *, now_ms: int, metadata: dict[str, str] | None = None, conversation_id: str | None = None
    ) -> Conversation:
        """Add an empty conversation, under an id of its own unless one is given that is still free."""
        if conversation_id is None:
            self._conversations_made += 1
            conversation_id = f"conv_{_scramble(self._salt + self._conversations_made):016x}"
        assert conversation_id not in self.conversations
        conversation = Conversation(conversation_id, now_ms, metadata or {})
        self.conversations[conversation_id] = conversation
        return conversation

    def delete_conversation(self, conversation: Conversation) -> None:
        """Forget a conversation and its items."""
        del self.conversations[conversation.id]
        for item in conversation.items():
            del self._items[item.id]

    def append(self, conversation: Conversation, items: Sequence[NewItem], *, now_ms: int) -> list[Item]:
        """Store items behind all others of the conversation, in the order given."""
        slots = conversation.slots
        stored = []
        for new in items:
            self.items_stored += 1
            item_id = f"msg_{_scramble(self._salt + self.items_stored):016x}"
            document = {
                **new.extra,
                "id": item_id,
                "type": "message",
                "role": new.role,
                "content": new.content,
                "status": "completed",
            }
            item = Item(item_id, new.role, _encode(document), now_ms, conversation, len(slots))
            slots.append(item)
            self._items[item_id] = item
            stored.append(item)
        return stored

    def item(self, conversation: Conversation, item_id: str) -> Item | None:
        """Find an item of this conversation."""
        item = self._items.get(item_id)
        return item if item is not None and item.conversation is conversation else None

    def delete_item(self, item: Item) -> None:
        """Forget one item; the order of the others stays."""
        conversation = item.conversation
        del self._items[item.id]
        conversation.slots[item.position] = None
        conversation.gaps += 1
        # Closing the gaps only when they outnumber the items keeps a page from walking over them for long, at
        # a constant cost a deletion.
        if conversation.gaps > 16 and conversation.gaps > len(conversation):
            conversation.slots = list(conversation.items())
            conversation.gaps = 0
            for position, kept in enumerate(conversation.items()):
                kept.position = position

    def page(
        self, conversation: Conversation, *, after: Item | None, limit: int, newest_first: bool
    ) -> tuple[list[Item], bool]:
        """Return up to `limit` items that follow `after` in the wanted order, and whether more follow."""
        slots = conversation.slots
        step = -1 if newest_first else 1
        oldest_or_newest = len(slots) - 1 if newest_first else 0
        position = oldest_or_newest if after is None else after.position + step
        page: list[Item] = []
        while 0 <= position < len(slots):
            item = slots[position]
            position += step
            if item is None:
                continue
            if len(page) == limit:
                return page, True
            page.append(item)
        return page, False
