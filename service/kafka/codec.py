"""Bytes and headers of Kafka records to events, and outcomes back to bytes and headers.

Decides what is a valid event and how replies are written; it awaits nothing and keeps
nothing. No input raises past `decode`: what is not an event is a `Refusal` that says why. Headers are
passed on as the bytes they came as; they are never decoded, because they may be anything or null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec

from service.core.model import Event, Refusal
from service.kafka.cloudevents import CloudEventError, unwrap
from service.ops.times import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiokafka import ConsumerRecord

    from service.core.delivery import Delivered
    from service.core.model import Dead
    from service.kafka.cloudevents import CloudEvent

Headers = list[tuple[str, bytes | None]]
"""As aiokafka takes and gives them; a name may stand more than once."""
Reply = tuple[bytes, Headers]
"""Value and headers of a reply."""


@dataclass(slots=True)
class OutgoingRecord:
    """One record as it is to be written, for who has to make it smaller."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Record(Protocol):
    """What is kept of a record: aiokafka's has it, and an event."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """As they came: any bytes, or null."""


EVENT_OVERHEAD_BYTES = 600
"""What an event holds of memory beside its bytes: the record, the event and their place in a lane."""
MAX_ID_BYTES = 256
MAX_EVENT_ID_BYTES = 4300
"""As many as the longest number has digits that is read at all."""
MAX_HEADERS = 256
MAX_RECORD_BYTES = 16 << 20
"""Where nothing else is said."""
MAX_DEPTH = 100
"""Of nesting. Parsers recurse: without a limit of ours, how deep an event may be would depend on who reads it when."""
MAX_MESSAGE_CHARACTERS = 500
MAX_CODE_CHARACTERS = 200
LEAN_CHARACTERS = 1000
LEAN_HEADERS = 10
"""What is left, at most, of an event id and of the headers in a reply that a broker finds too large."""
CORRELATION_HEADERS = ("correlation_id", "kafka_correlationId")
"""FastStream's and Spring's."""
CONTENT_TYPE_JSON: tuple[str, bytes | None] = ("content-type", b"application/json")

NULL = b"null"
_ABSENT = msgspec.Raw(b"")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""An unended one matches too: looking on behind each of its escaped quotes would take the square of its length."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEEPER = [0] * 256
for _byte, _step in zip(b"[{]}", (1, 1, -1, -1), strict=True):
    _DEEPER[_byte] = _step


class _Envelope(msgspec.Struct):
    """A native or shorthand event; fields it does not name are ignored."""

    conversation_id: str | None = None
    item: msgspec.Raw = _ABSENT
    role: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    event_id: str | int | None = None
    occurred_at: str | None = None


class _Part(msgspec.Struct):
    type: str


class _Item(msgspec.Struct):
    """What is checked of an item; all else is the API's to judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[_Part], msgspec.Meta(min_length=1)]
    type: Literal["message"] | msgspec.UnsetType = msgspec.UNSET


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class InvalidEventError(Exception):
    """A record that is not an event; the message names the field and the rule."""


NO_EVENT = (InvalidEventError, CloudEventError, msgspec.DecodeError, UnicodeError, RecursionError)


def decode(record: ConsumerRecord[bytes, bytes], max_bytes: int = MAX_RECORD_BYTES) -> Event | Refusal:
    """Decode one record whose value is not null: native, shorthand, or a CloudEvent around either or a bare item.

    One of more than ``max_bytes``, key and headers included, is not looked into.
    """
    try:
        return event_of(record, max_bytes)
    except NO_EVENT as error:
        return refusal_of(record, error)


def event_of(record: ConsumerRecord[bytes, bytes], max_bytes: int) -> Event:
    """Decode one record; what `decode` refuses raises one of `NO_EVENT`."""
    # One frame for what every event needs: this is the dearest thing done with one before it is sent.
    value, key, headers = record.value, record.key, record.headers
    assert value is not None
    size = size_of(record) if headers else EVENT_OVERHEAD_BYTES + len(value) + len(key or b"")
    if size - EVENT_OVERHEAD_BYTES > max_bytes or len(headers) > MAX_HEADERS:
        raise _too_large(record, size - EVENT_OVERHEAD_BYTES, max_bytes)
    # msgspec skips over what it does not decode without looking at its encoding; the API would not.
    if not value.isascii():
        str(value, "utf-8")
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    wrapped = unwrap(headers, value) if headers else None
    data = value if wrapped is None else wrapped.data
    if data is not value:
        _check_depth(data)
    envelope = _decode_envelope(data)
    given = envelope.item
    item = _checked(given) if len(given) > len(NULL) else _item_of(envelope, data, bare=wrapped is not None)
    if wrapped is not None:
        _lay_over(envelope, wrapped)
    conversation_id, event_id = envelope.conversation_id, envelope.event_id
    if conversation_id is None:
        conversation_id = _named_by_key(key)
    if not (
        len("..") < len(conversation_id) <= MAX_ID_BYTES and conversation_id.isascii() and conversation_id.isprintable()
    ):
        _check_conversation_id(conversation_id)
    if not isinstance(event_id, str) or not 0 < len(event_id) <= MAX_EVENT_ID_BYTES // 4:
        event_id = _event_id(record, event_id)
    return Event(
        record.partition,
        record.offset,
        conversation_id,
        event_id,
        item,
        size + len(item),
        record.topic,
        record.timestamp,
        record.timestamp_type,
        key,
        value,
        headers,
        envelope.occurred_at,
    )


def refusal_of(record: ConsumerRecord[bytes, bytes], error: Exception) -> Refusal:
    """Say why a record is no event."""
    return Refusal(record.partition, record.offset, str(error) or type(error).__name__, record)


def _lay_over(envelope: _Envelope, wrapped: CloudEvent) -> None:
    """Let a CloudEvent's attributes name the event, and fill in what the event itself leaves out."""
    envelope.event_id = wrapped.event_id
    if envelope.conversation_id is None:
        envelope.conversation_id = wrapped.subject
    if envelope.occurred_at is None:
        envelope.occurred_at = wrapped.time


def _named_by_key(key: bytes | None) -> str:
    if not key:
        raise InvalidEventError("conversation_id: missing, and the record has no key")
    return str(key, "utf-8")


def _event_id(record: Record, given: str | int | None) -> str:
    if given is None or given == "":
        return f"{record.topic}-{record.partition}-{record.offset}"
    event_id = str(given)
    size = len(event_id.encode())
    if size > MAX_EVENT_ID_BYTES:
        raise InvalidEventError(f"event_id: {size} bytes, must be {MAX_EVENT_ID_BYTES} at most")
    return event_id


def _too_large(record: Record, size: int, max_bytes: int) -> InvalidEventError:
    if len(record.headers) > MAX_HEADERS:
        return InvalidEventError(f"{len(record.headers)} headers, must be {MAX_HEADERS} at most")
    return InvalidEventError(f"{size} bytes, must be {max_bytes} at most (LIMITS__MAX_RECORD_BYTES)")


def _checked(item: bytes | msgspec.Raw) -> bytes | msgspec.Raw:
    """The item to send: as it came but for a ``type`` that was left out, which the API insists on."""
    if _decode_item(item).type is not msgspec.UNSET:
        return item
    return b'{"type":"message",' + bytes(item)[1:].lstrip()


def _item_of(envelope: _Envelope, data: bytes, *, bare: bool) -> bytes | msgspec.Raw:
    """The item of an event that names none, or of so few bytes that it cannot be one, checked."""
    item: bytes | msgspec.Raw = envelope.item
    if len(item) == len(NULL) and bytes(item) == NULL:
        item = _ABSENT
    if not len(item) and bare and envelope.conversation_id is None:
        item = data.strip()
    if len(item):
        return _checked(item)
    if not bytes(envelope.role) or not bytes(envelope.content):
        raise InvalidEventError("neither an item nor role and content")
    parts = (bytes(envelope.type) or b'"message"', envelope.role, envelope.content)
    item = b'{"type":%b,"role":%b,"content":%b}' % parts
    _decode_item(item)
    return item


def _check_depth(value: bytes) -> None:
    """Count what is open at once; a value with fewer brackets in all need not be asked."""
    brackets = _STRING.sub(b"", value).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise InvalidEventError(f"nested deeper than {MAX_DEPTH}")


def _check_conversation_id(conversation_id: str) -> None:
    size = len(conversation_id) if conversation_id.isascii() else len(conversation_id.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidEventError(f"conversation_id: {size} bytes, must be 1 to {MAX_ID_BYTES}")
    if not conversation_id.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in conversation_id):
        raise InvalidEventError("conversation_id: holds a control character")
    if conversation_id in {".", ".."}:
        raise InvalidEventError("conversation_id: is a path segment with a meaning of its own")


def size_of(record: Record) -> int:
    """What a record holds of memory, in bytes: headers and key may be larger than the value."""
    size = EVENT_OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b"")
    if record.headers:
        size += sum(len(name) + len(content or b"") for name, content in record.headers)
    return size


def key_matches(record: ConsumerRecord[bytes, bytes], event: Event) -> bool:
    """Whether the record's key is the conversation id, so that order holds over all partitions."""
    return bool(record.key == event.conversation_id.encode())


def replies(
    delivered: Delivered, topic: str, wall_clock: float, start: int = 0, end: int | None = None
) -> Iterator[Reply]:
    """Write the replies of a delivery, those of its events ``[start, end)``, value and headers of each, in order."""
    frame = (
        b'{"event_id":%%b,"conversation_id":%b,"status":"delivered","item":%%b,"batch":{"size":%d,"index":%%d},'
        b'"attempts":%d,"source":{"topic":%b,"partition":%%d,"offset":%%d},%%b"delivered_at":"%b"}'
    ) % (
        _encode(delivered.events[0].conversation_id).replace(b"%", b"%%"),
        delivered.batch_size,
        delivered.attempts,
        _encode(topic).replace(b"%", b"%%"),
        timestamp(wall_clock).encode("ascii"),
    )
    events, items = delivered.events[start:end], delivered.items[start:end]
    for index, (event, item) in enumerate(zip(events, items, strict=True), delivered.first_index + start):
        occurred = b"" if event.occurred_at is None else b'"occurred_at":%b,' % _encode(event.occurred_at)
        value = frame % (_encode(event.event_id), item, index, event.partition, event.offset, occurred)
        yield value, reply_headers(event)


def json_text(text: str) -> bytes:
    """A JSON string."""
    return _encode(text)


def make_lean(reply: OutgoingRecord) -> bool:
    """Leave out of a reply that a broker finds too large its item, then whatever else is long; false: nothing is."""
    assert reply.value is not None
    fields: dict[str, msgspec.Raw] = _decode_fields(reply.value)
    if fields.pop("item", None) is not None:
        reply.value = _encode(fields)
        return True
    event_id: str = msgspec.json.decode(fields["event_id"])
    fields["event_id"] = msgspec.Raw(_encode(event_id[:LEAN_CHARACTERS]))
    if len(bytes(fields.get("occurred_at", _ABSENT))) > LEAN_CHARACTERS:
        del fields["occurred_at"]
    short = [(name, value) for name, value in reply.headers[:-1] if len(value or b"") <= LEAN_CHARACTERS]
    lean = _encode(fields), [*short[:LEAN_HEADERS], CONTENT_TYPE_JSON]
    changed = lean != (reply.value, reply.headers)
    reply.value, reply.headers = lean
    return changed


def failed_reply(event: Event, dead: Dead, topic: str, wall_clock: float) -> bytes:
    """Write the reply that tells a producer of its dead letter."""
    value: dict[str, Any] = {
        "event_id": event.event_id,
        "conversation_id": event.conversation_id,
        "status": "failed",
        "error": {
            "reason": dead.reason.value,
            "code": dead.code[:MAX_CODE_CHARACTERS],
            "message": dead.message[:MAX_MESSAGE_CHARACTERS],
        },
        "attempts": dead.attempts,
        "source": {"topic": topic, "partition": event.partition, "offset": event.offset},
    }
    if event.occurred_at is not None:
        value["occurred_at"] = event.occurred_at
    value["failed_at"] = timestamp(wall_clock)
    return _encode(value)


def reply_headers(event: Event) -> Headers:
    """The headers of a reply: the event's correlation under its own name and bytes, its trace, the content type."""
    given = event.headers
    if not given:
        return [("correlation_id", event.event_id.encode()), CONTENT_TYPE_JSON]
    kept: Headers = [(name, value) for name, value in given if name in CORRELATION_HEADERS]
    if not kept:
        kept.append(("correlation_id", event.event_id.encode()))
    kept.extend((name, value) for name, value in given if name == "traceparent")
    return [*kept, CONTENT_TYPE_JSON]
