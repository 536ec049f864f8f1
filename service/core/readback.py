"""What is missing: comparing the items of an attempt with what the conversation holds.

Decides how many of the items sent are stored, from a listing of the conversation. It makes no request
and keeps no time. The API returns items in its own shape (string content comes back as a list of parts,
fields are added), so both sides are normalised to role and content before they are compared.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
ADDED_BY_THE_API = frozenset({"annotations", "logprobs", "detail"})
"""Fields the API may add to a part it returns."""

Likeness = tuple[str, tuple[tuple[str, str], ...]]
"""Role and content parts of an item, comparable however it was written."""

_decode = json.JSONDecoder(parse_int=float).decode
"""As floats numbers may be of any length; Python refuses to make integers of very long ones."""


def likeness(item: Buffer) -> Likeness:
    """Normalise an item's JSON to what identifies it in a conversation."""
    return _likeness(_decode(str(item, "utf-8")))


def found(sent: Sequence[Likeness], stored: Iterable[Likeness]) -> list[int]:
    """Match ``sent`` against ``stored`` greedily, in order; items of other writers may lie between.

    Returns for each item found its index in ``stored``; as the API stores in order, those found are a
    prefix of what was sent.
    """
    matches: list[int] = []
    for index, item in enumerate(stored):
        if len(matches) == len(sent):
            break
        if item == sent[len(matches)]:
            matches.append(index)
    return matches


class Cursors:
    """The last item id known of each conversation: a bounded LRU. ``""`` is known to be empty."""

    __slots__ = ("_limit", "_of")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def get(self, conversation_id: str) -> str | None:
        """The cursor, or ``None`` when it is not known."""
        return self._of.get(conversation_id)

    def learn(self, conversation_id: str, item_id: str) -> None:
        """Note the newest item id of a conversation."""
        self._of[conversation_id] = item_id
        self._of.move_to_end(conversation_id)
        if len(self._of) > self._limit:
            self._of.popitem(last=False)

    def clear(self) -> None:
        """Forget all: partitions were given up, and another owner writes to their conversations."""
        self._of.clear()

    def forget(self, conversation_id: str) -> None:
        """Drop a cursor that the API does not know any more."""
        self._of.pop(conversation_id, None)


def item_id(item: Buffer) -> str:
    """The id of an item as the API returned it; empty when it has none."""
    value = json.loads(bytes(item))
    found_id = value.get("id") if isinstance(value, dict) else None
    return found_id if isinstance(found_id, str) else ""


def _likeness(item: Any) -> Likeness:
    if not isinstance(item, dict):
        return ("", ())
    content = item.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        parts = []
    return (str(item.get("role", "")), tuple(_part(part) for part in parts))


def _part(part: Any) -> tuple[str, str]:
    if isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
        return ("text", part["text"])
    if isinstance(part, dict):
        part = {name: value for name, value in part.items() if name not in ADDED_BY_THE_API and value is not None}
    return ("part", json.dumps(part, sort_keys=True, ensure_ascii=False))
