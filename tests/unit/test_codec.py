"""What is an event and what is none: no bytes in value, key or headers raise past `decode`."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strange_records import strange_records

from service.core.delivery import Delivered
from service.core.model import Dead, Event, Reason, Refusal
from service.core.readback import likeness
from service.kafka import codec
from service.kafka.codec import MAX_DEPTH, OutgoingRecord, decode, failed_reply, replies, reply_headers, size_of
from service.kafka.dead_letters import dead_letter_headers

HEADER = st.tuples(st.text(), st.none() | st.binary() | st.sampled_from([b"application/cloudevents+json", b"1.0"]))
NAMED = st.tuples(
    st.sampled_from(["ce_id", "ce_source", "ce_subject", "ce_time", "ce_specversion", "content-type", "CE_ID"]),
    st.none() | st.binary() | st.text().map(str.encode) | st.just(b"application/cloudevents+json"),
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("conversation_id", "item", "role", "content", "type", "event_id", "occurred_at", "data", "id", "source")


class _Typed(msgspec.Struct):
    type: str


def record(
    value: bytes | None, key: bytes | None = b"conv_1", headers: codec.Headers | None = None, offset: int = 7
) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("events", 3, offset, 1_700_000_000_000, 0, key, value, None, 0, 0, headers or [])


def event(**fields: Any) -> bytes:
    return json.dumps({"conversation_id": "conv_1", "role": "user", "content": "hello"} | fields).encode()


def accepted(value: bytes, **given_: Any) -> Event:
    decoded = decode(record(value, **given_))
    assert isinstance(decoded, Event), decoded
    return decoded


def refused(value: bytes, **given_: Any) -> str:
    decoded = decode(record(value, **given_))
    assert isinstance(decoded, Refusal), decoded
    assert decoded.message
    return decoded.message


def check(given_: ConsumerRecord[bytes, bytes]) -> None:
    """Whatever came, it is an event that can be written to the end, or a refusal that can be dead-lettered."""
    decoded = decode(given_)
    dead = Dead(Reason.INVALID_EVENT, "invalid_event", "m" * 9000)
    for style in ("convoy", "connect", "spring"):
        for name, value in dead_letter_headers(given_, dead, group="g", wall_clock=0, style=style):
            assert not name.startswith("dlq.") or (value is not None and value.decode())
    if isinstance(decoded, Refusal):
        assert decoded.message
        return
    assert 1 <= len(decoded.conversation_id.encode()) <= 256
    assert decoded.event_id
    assert msgspec.json.decode(decoded.item, type=_Typed).type == "message"
    likeness(decoded.item)
    delivered = Delivered([decoded], [decoded.item], 1, 0, 1, read_back=False)
    ((value, headers),) = replies(delivered, "ev%ents", 0)
    reply = OutgoingRecord(b"k", value, headers)
    assert bytes(msgspec.json.decode(value, type=dict[str, msgspec.Raw])["item"]) == bytes(decoded.item)
    while codec.make_lean(reply):
        assert reply.value is not None
    assert len(reply.value or b"") < 10_000
    msgspec.json.decode(failed_reply(decoded, dead, "events", 0))
    assert reply_headers(decoded)[-1] == ("content-type", b"application/json")


@given(st.binary(), st.none() | st.binary(), st.lists(HEADER | NAMED, max_size=4))
def test_no_bytes_raise_past_decode(value: bytes, key: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    check(record(value, key, headers))


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES), st.none() | st.binary(), st.lists(NAMED, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_json_raises_past_decode(
    value: dict[str, Any], key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    check(record(json.dumps(value).encode(), key, headers))


@pytest.mark.parametrize("seed", range(10))
def test_no_broken_event_raises_past_decode(seed: int) -> None:
    for strange in strange_records(seed, 1500):
        if strange.value is not None:
            check(record(strange.value, strange.key, list(strange.headers)))


@pytest.mark.parametrize("depth", [10, MAX_DEPTH - 2])
def test_nesting_up_to_the_limit_is_an_event(depth: int) -> None:
    deep = b'{"item":{"role":"user","content":"x","deep":%b%b}}' % (b"[" * depth, b"]" * depth)
    assert accepted(deep).item


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, 500, 960, 1000, 100_000])
@pytest.mark.parametrize("place", ["item", "envelope", "unclosed", "objects", "base64"])
def test_nesting_beyond_the_limit_is_refused_wherever_it_is(depth: int, place: str) -> None:
    deep = b"[" * depth + b"]" * depth
    if place == "item":
        value = b'{"item":{"role":"user","content":"x","deep":%b}}' % deep
    elif place == "envelope":
        value = event()[:-1] + b',"deep":[%b]}' % deep
    elif place == "unclosed":
        value = b'{"conversation_id":[' + b"[" * depth
    elif place == "objects":
        value = b'{"item":{"role":"user","content":"x","deep":' + b'{"a":' * depth + b"1" + b"}" * (depth + 2)
    else:
        inner = json.dumps({"role": "user", "content": "x", "deep": 0}).encode().replace(b"0}", b"[%b]}" % deep)
        data = msgspec.json.encode(inner).decode()
        value = b'{"specversion":"1.0","id":"1","source":"s","data_base64":%b}' % data.encode()
        assert refused(value, headers=[("content-type", b"application/cloudevents+json")]) == "nested deeper than 100"
        return
    assert refused(value) == "nested deeper than 100"


def test_brackets_in_text_are_no_nesting() -> None:
    text = '[{"' * 50_000 + "\\"
    assert likeness(accepted(event(content=text)).item) == ("user", (("text", text),))


def test_a_megabyte_is_read_within_a_blink() -> None:
    # The last two are what a careless look for strings takes the square of the length for.
    for value in (
        event(content="x" * 1_000_000),
        event(content=[{"type": "input_text", "text": "[" * 9}] * 20_000),
        b"[" * 1_000_000,
        b"[" * 200 + b'"' + b'\\"' * 500_000,
        b"[" * 200 + b'"\\' * 500_000,
    ):
        started = time.process_time()
        decode(record(value))
        assert time.process_time() - started < 1


@pytest.mark.parametrize("number", ["9" * 30, "9" * 4300, "-" + "9" * 4000, "1e999", "1E-999", "-0", "0.1"])
def test_numbers_of_any_size_travel_in_items_untouched(number: str) -> None:
    item = accepted(b'{"item":{"role":"user","content":[{"type":"t","n":%b}],"n":%b}}' % ((number.encode(),) * 2)).item
    assert item.count(number.encode()) == 2
    likeness(item)


def test_a_number_that_python_refuses_as_an_integer_can_still_be_compared() -> None:
    item = accepted(b'{"item":{"role":"user","content":[{"type":"t","n":%b}]}}' % (b"9" * 50_000)).item
    assert likeness(item)[0] == "user"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "0x1", "1_000"])
def test_what_is_no_number_in_json_is_refused(number: str) -> None:
    refused(b'{"item":{"role":"user","content":"x","n":%b}}' % number.encode())


@pytest.mark.parametrize("number", ["1.0", "1e5", "9" * 5000, "true"])
def test_an_event_id_is_text_or_an_integer_of_bounded_length(number: str) -> None:
    refused(b'{"event_id":%b,"role":"user","content":"x"}' % number.encode())


def test_of_a_key_that_stands_twice_the_last_counts_as_for_everybody_else() -> None:
    decoded = accepted(b'{"conversation_id":"a","role":"tool","role":"user","content":"x","conversation_id":"b"}')
    assert (decoded.conversation_id, json.loads(bytes(decoded.item))["role"]) == ("b", "user")
    refused(b'{"conversation_id":"a","role":"user","role":"tool","content":"x"}')


@pytest.mark.parametrize(
    "value",
    [
        event(content="\ud800"),
        b'{"role":"user","content":"x","\\ud800":1}',
        event(conversation_id="\udfff"),
        event().replace(b"hello", b"\xed\xa0\x80"),
        event().replace(b"hello", b"\xc0\x80"),
        event().replace(b"hello", b"\x00"),
        b"\xef\xbb\xbf" + event(),
        event().decode().encode("utf-16"),
        b"",
        b"\x00",
    ],
)
def test_what_is_no_text_or_no_json_is_refused(value: bytes) -> None:
    refused(value)


def test_an_escaped_nul_in_the_text_is_the_apis_to_judge_and_in_an_id_is_refused() -> None:
    assert b"\\u0000" in bytes(accepted(event(content="a\0b")).item)
    refused(event(conversation_id="a\0b"))


def test_an_item_that_is_null_is_none() -> None:
    assert accepted(event(item=None)).item
    assert refused(b'{"conversation_id":"conv_1","item":null}') == "neither an item nor role and content"


def test_key_and_headers_count_towards_the_buffer() -> None:
    small = record(event())
    large = record(event(), key=b"k" * 1000, headers=[("h" * 100, b"v" * 10_000), ("n", None)])
    assert size_of(large) - size_of(small) == 1000 - len(b"conv_1") + 10_101
    first, second = decode(small), decode(large)
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert second.size - first.size == size_of(large) - size_of(small)


def test_correlation_headers_come_back_under_their_names_with_their_bytes() -> None:
    headers: codec.Headers = [
        ("kafka_correlationId", b"\x00\xff\x80"),
        ("other", b"dropped"),
        ("correlation_id", None),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    assert reply_headers(accepted(event(event_id="e1"), headers=headers)) == [
        ("kafka_correlationId", b"\x00\xff\x80"),
        ("correlation_id", None),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("content-type", b"application/json"),
    ]


@pytest.mark.parametrize("headers", [[], [("other", b"x")], [("traceparent", b"t")]])
def test_without_a_correlation_the_event_id_is_one(headers: codec.Headers) -> None:
    assert reply_headers(accepted(event(event_id="e1"), headers=headers))[0] == ("correlation_id", b"e1")


def test_a_reply_too_large_loses_its_item_first_and_long_ids_and_headers_after() -> None:
    decoded = accepted(
        event(event_id="e" * 4000, occurred_at="t" * 50_000),
        headers=[("correlation_id", b"c" * 50_000), ("traceparent", b"t")],
    )
    item = b'{"deep":' + b"[" * 500 + b"1e999" + b"]" * 500 + b"}"
    ((value, headers),) = replies(Delivered([decoded], [item], 1, 0, 1, read_back=False), "events", 0)
    reply = OutgoingRecord(b"conv_1", value, headers)
    assert codec.make_lean(reply)
    assert "item" not in json.loads(reply.value or b"")
    assert len(json.loads(reply.value or b"")["event_id"]) == 4000
    assert codec.make_lean(reply)
    lean = json.loads(reply.value or b"")
    assert (len(lean["event_id"]), "occurred_at" in lean) == (1000, False)
    assert lean["source"] == {"topic": "events", "partition": 3, "offset": 7}
    assert reply.headers == [("traceparent", b"t"), ("content-type", b"application/json")]
    assert not codec.make_lean(reply)


# Limits against hostile input


def test_a_record_larger_than_the_limit_is_not_looked_into() -> None:
    value = event(content="x" * 1000)
    size = len(value) + len(b"conv_1")
    assert isinstance(decode(record(value), size), Event)
    told = decode(record(value), size - 1)
    assert isinstance(told, Refusal)
    assert told.message == f"{size} bytes, must be {size - 1} at most (LIMITS__MAX_RECORD_BYTES)"


def test_headers_count_for_the_size_of_a_record() -> None:
    value = event()
    headers: codec.Headers = [("a", b"x" * 5000)]
    assert isinstance(decode(record(value, headers=headers), 6000), Event)
    assert isinstance(decode(record(value, headers=headers), 5000), Refusal)


def test_more_headers_than_anybody_needs_are_refused_at_once() -> None:
    accepted(event(), headers=[("a", None)] * 256)
    assert refused(event(), headers=[("a", None)] * 257) == "257 headers, must be 256 at most"


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\U0001f600"])
def test_an_event_id_is_as_long_as_the_limit_and_no_longer(letter: str) -> None:
    fits = letter * (4300 // len(letter.encode()))
    assert accepted(event(event_id=fits)).event_id == fits
    assert refused(event(event_id=fits + letter)).startswith("event_id: ")


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "1" * 4301, "1" * 1_000_000, "0." + "1" * 1_000_000, "1e-999999999"]
)
def test_absurd_numbers_harm_nobody(number: str) -> None:
    for field_ in ("event_id", "conversation_id", "occurred_at", "role", "type"):
        given_ = event().replace(b'"hello"', b'"hello", "%b": %b' % (field_.encode(), number.encode()))
        assert isinstance(decode(record(given_)), Event | Refusal)
    item = b'{"item": {"role": "user", "content": "hello", "n": %b}}' % number.encode()
    assert isinstance(decode(record(item)), Event | Refusal)
