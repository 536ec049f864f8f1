"""Records as no producer should write them: random bytes, and valid events with something broken in them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from service_process import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Headers = list[tuple[str, bytes | None]]

TOKENS = (
    b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"0x1", b"1.0", b"9" * 30, b"9" * 5000, b'""',
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b"\x00", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80",
    b"\\", b'"', b"{", b"}", b"[", b"]", b",", b":", b"[[[[", b'{"a":', b"// x", b"\xe2\x80\xa8", b'"role":"tool"',
    b'"type":"message"', b'"item":null', b'"item":{}', b'"conversation_id":""', b'"conversation_id":".."',
)  # fmt: skip
NAMES = (
    "ce_id", "ce_source", "ce_subject", "ce_specversion", "ce_time", "ce_type", "content-type", "correlation_id",
    "kafka_correlationId", "reply_to", "kafka_replyTopic", "kafka_replyPartition", "traceparent", "dlq.reason",
    "dlq.redrives", "dlq.original.offset", "dlq.mark", "kafka_dlt-original-offset", "__connect.errors.topic", "", "ü\n",
)  # fmt: skip
CONTENTS: tuple[bytes | None, ...] = (
    None, b"", b"\x00\xff", b"1.0", b"a", b"application/cloudevents+json", b"APPLICATION/CLOUDEVENTS+JSON; charset=x",
    b"\xff\xfe\xfd\xfc", b"\x00\x00\x00\x01", b"..", b"conversation.events", "ü語".encode(), b"9" * 6000,
)  # fmt: skip


def valid_value(rng: random.Random, number: int) -> dict[str, Any]:
    """An event in one of the forms, with a text of its own that no slip turns into another's."""
    content: Any = f"text {number} {rng.getrandbits(64):016x}"
    if rng.random() < 0.3:
        content = [{"type": "input_text", "text": content}]
    item = {"role": rng.choice(("user", "assistant", "system", "developer")), "content": content}
    event: dict[str, Any] = {"item": item} if rng.random() < 0.5 else dict(item)
    event["conversation_id"] = f"conv_{rng.randrange(50):03}"
    if rng.random() < 0.5:
        event["event_id"] = rng.choice((f"e/{number}", number, None, ""))
    if rng.random() < 0.2:
        event["occurred_at"] = "2026-01-01T00:00:00Z"
    return event


def strange_headers(rng: random.Random) -> Headers:
    if rng.random() < 0.6:
        return []
    return [(rng.choice(NAMES), rng.choice(CONTENTS)) for _ in range(rng.randrange(1, 6))]


def _flip(rng: random.Random, value: bytearray) -> None:
    if value:
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, value: bytearray) -> None:
    start = rng.randrange(len(value) + 1)
    del value[start : start + rng.randrange(1, 20)]


def _insert(rng: random.Random, value: bytearray) -> None:
    place = rng.randrange(len(value) + 1)
    value[place:place] = rng.choice(TOKENS)


def _replace(rng: random.Random, value: bytearray) -> None:
    start = rng.randrange(len(value) + 1)
    value[start : start + rng.randrange(1, 10)] = rng.choice(TOKENS)


def _repeat(rng: random.Random, value: bytearray) -> None:
    start = rng.randrange(len(value) + 1)
    value[start:start] = value[start : start + rng.randrange(1, 40)]


def _noise(rng: random.Random, value: bytearray) -> None:
    place = rng.randrange(len(value) + 1)
    value[place:place] = rng.randbytes(rng.randrange(1, 12))


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (_flip, _cut, _insert, _replace, _repeat, _noise)


def mutated(rng: random.Random, value: bytes) -> bytes:
    broken = bytearray(value)
    for _ in range(rng.randrange(1, 4)):
        rng.choice(MUTATIONS)(rng, broken)
    return bytes(broken)


def _structured(rng: random.Random, event: dict[str, Any], number: int) -> dict[str, Any]:
    envelope: dict[str, Any] = {"specversion": "1.0", "type": "chat", "source": "/fuzz", "id": str(number)}
    envelope["data"] = event
    if rng.random() < 0.2:
        envelope.pop(rng.choice(list(envelope)))
    return envelope


def _deep(rng: random.Random, event: dict[str, Any]) -> bytes:
    depth = rng.choice((50, 97, 99, 101, 500, 900, 960, 990, 1000, 3000, 20_000))
    return json.dumps(event)[:-1].encode() + b',"deep":' + b"[" * depth + b"]" * depth + b"}"


def strange_records(seed: int, count: int, *, large: float = 0.0) -> Iterator[Record]:
    """So many records, the same for the same seed; `large` is the share of those of several 100 KB."""
    rng = random.Random(seed)
    for number in range(count):
        event = valid_value(rng, number)
        headers = strange_headers(rng)
        key: bytes | None = event["conversation_id"].encode()
        kind = rng.random()
        if kind < large:
            size = rng.randrange(100_000, 900_000)
            value: bytes | None = rng.choice((json.dumps(event | {"pad": "x" * size}).encode(), rng.randbytes(size)))
        elif kind < 0.25:
            value = json.dumps(event).encode()
        elif kind < 0.3:
            value = _deep(rng, event)
        elif kind < 0.36:
            value = json.dumps(_structured(rng, event, number)).encode()
            headers.append(("content-type", b"application/cloudevents+json"))
        elif kind < 0.42:
            value = json.dumps(event.get("item", event)).encode()
            headers += [("ce_specversion", b"1.0"), ("ce_id", b"%d" % number), ("ce_source", b"/fuzz")]
        elif kind < 0.85:
            value = mutated(rng, json.dumps(event).encode())
        elif kind < 0.97:
            value = rng.randbytes(rng.randrange(0, 200))
        else:
            value = None
        if rng.random() < 0.2:
            key = rng.choice((None, b"", rng.randbytes(8), b"\xff", b"other", b"..", b"k" * 300))
        yield Record(key, value, headers)
