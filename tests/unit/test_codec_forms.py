"""The forms of an event, one by one: what is taken of each, what is refused, and what a reply says of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from service.core.delivery import Delivered
from service.core.model import Dead, Event, Reason, Refusal
from service.kafka.codec import (
    decode,
    failed_reply,
    key_matches,
    replies,
    reply_headers,
)

ROLES = ("user", "assistant", "system", "developer")
TOPIC = "conversation.events"
NOW = 1_700_000_000.25


def record(value: bytes | None, key: bytes | None = b"conv_1", headers: Any = ()) -> ConsumerRecord[Any, Any]:
    size = len(value or b"")
    return ConsumerRecord(TOPIC, 3, 17, 1_700_000_000_000, 0, key, value, None, len(key or b""), size, headers)


def taken(value: bytes | dict[str, Any], **more: Any) -> Event:
    event = decode(record(value if isinstance(value, bytes) else json.dumps(value).encode(), **more))
    assert isinstance(event, Event), event
    return event


def refused(value: bytes | dict[str, Any], **more: Any) -> str:
    refusal = decode(record(value if isinstance(value, bytes) else json.dumps(value).encode(), **more))
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.partition, refusal.offset) == (3, 17)
    assert refusal.message
    return refusal.message


def short(**fields: Any) -> dict[str, Any]:
    return {"conversation_id": "conv_1", "role": "user", "content": "hello"} | fields


def native(**fields: Any) -> dict[str, Any]:
    return {"conversation_id": "conv_1", "item": {"role": "user", "content": "hello"} | fields}


# What is taken


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "content", ["", "hello", "ü\n\u2028👋", [{"type": "input_text", "text": "x"}], [{"type": "odd"}]]
)
def test_both_forms_give_the_item_that_is_sent(role: str, content: Any) -> None:
    wanted = {"type": "message", "role": role, "content": content}
    for value in (short(role=role, content=content), native(role=role, content=content), native(**wanted)):
        event = taken(value)
        assert json.loads(bytes(event.item)) == wanted
        assert (event.conversation_id, event.partition, event.offset) == ("conv_1", 3, 17)


def test_an_items_unknown_fields_go_along_untouched_and_those_around_it_are_ignored() -> None:
    value = (
        b'{"conversation_id":"conv_1","trace":"x","item":  {"role" : "user","content":"hello",'
        b'"metadata":{"b":1.50,"a":1e2},"id":"msg_9"} , "role":17}'
    )
    event = taken(value)
    assert bytes(event.item).endswith(b'"role" : "user","content":"hello","metadata":{"b":1.50,"a":1e2},"id":"msg_9"}')
    assert json.loads(bytes(event.item))["type"] == "message"


def test_of_a_short_event_only_type_role_and_content_are_sent() -> None:
    event = taken(short(metadata={"a": 1}, id="msg_9", type="message"))
    assert json.loads(bytes(event.item)) == {"type": "message", "role": "user", "content": "hello"}


def test_an_item_goes_before_the_short_form() -> None:
    event = taken(native() | {"role": "system", "content": "not this"})
    assert json.loads(bytes(event.item))["content"] == "hello"


@pytest.mark.parametrize(
    ("fields", "event_id"),
    [
        ({"event_id": "e-1"}, "e-1"),
        ({"event_id": 17}, "17"),
        ({"event_id": ""}, "conversation.events-3-17"),
        ({"event_id": None}, "conversation.events-3-17"),
        ({}, "conversation.events-3-17"),
        ({"event_id": "ü\u0000"}, "ü\u0000"),
    ],
)
def test_an_event_without_an_id_is_named_by_its_place(fields: dict[str, Any], event_id: str) -> None:
    assert taken(short(**fields)).event_id == event_id


def test_a_conversation_is_named_by_the_event_and_else_by_the_key() -> None:
    assert taken(short(), key=b"other").conversation_id == "conv_1"
    nameless = short()
    del nameless["conversation_id"]
    assert taken(nameless, key="größe".encode()).conversation_id == "größe"
    assert taken(short(conversation_id=None), key=b"conv_2").conversation_id == "conv_2"
    assert "no key" in refused(nameless, key=None)
    assert "no key" in refused(nameless, key=b"")
    refused(nameless, key=b"\xff")


def test_whether_the_key_is_the_conversation_decides_about_order() -> None:
    assert key_matches(record(b""), taken(short()))
    for key in (None, b"", b"conv_2", b"\xff"):
        assert not key_matches(record(b"", key=key), taken(short()))


@pytest.mark.parametrize(
    "conversation_id", ["a", "x" * 256, "語" * 85, "a/b", " ", "...", "a\u00a0b", "👋🏽", "%00", "\u2028"]
)
def test_an_id_may_be_almost_anything(conversation_id: str) -> None:
    assert taken(short(conversation_id=conversation_id)).conversation_id == conversation_id


@pytest.mark.parametrize(
    "conversation_id", ["", ".", "..", "x" * 257, "語" * 86, "a\nb", "\u0000", "a\u007f", "a\u0080", "\u009f", "\t"]
)
def test_an_id_that_no_path_can_carry_is_refused(conversation_id: str) -> None:
    assert "conversation_id" in refused(short(conversation_id=conversation_id))


# What is refused


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"17",
        b'"text"',
        b"{} x",
        b"\xef\xbb\xbf{}",
        b"{'conversation_id': 'conv_1'}",
        json.dumps(short(), ensure_ascii=False).encode("utf-16"),
        b'{"conversation_id":"conv_1","role":"user","content":"a\nb"}',
        b'{"conversation_id":"conv_1","role":"user","content":"\\ud800"}',
        b'{"conversation_id":"conv_1","role":"user","content":"\xed\xa0\x80"}',
        b'{"conversation_id":"conv_1","role":"user","content":"hello","x":NaN}',
        b'{"conversation_id":"conv_1","role":"user","content":"hello","x":01}',
        b'{"conversation_id":"conv_1","item":{"role":"user","content":"hello","x":"\xff"}}',
        b'{"conversation_id":"conv_1","item":{"role":"user","content":"hello","x":"\\q"}}',
        b'{"conversation_id":"conv_1","item":{"role":"user","content":"hello","typ\\u0065":"reasoning"}}',
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(value: bytes) -> None:
    refused(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "tool"},
        {"role": "User"},
        {"role": None},
        {"content": None},
        {"content": 5},
        {"content": []},
        {"content": {}},
        {"content": ["x"]},
        {"content": [{"text": "x"}]},
        {"content": [{"type": 5}]},
        {"type": "reasoning"},
        {"type": ""},
        {"type": None},
    ],
)
def test_both_forms_refuse_the_same_of_an_item(fields: dict[str, Any]) -> None:
    refused(short(**fields))
    refused(native(**fields))


@pytest.mark.parametrize("left_out", ["role", "content"])
def test_role_and_content_must_be_there(left_out: str) -> None:
    value = short()
    del value[left_out]
    refused(value)
    value = native()
    del value["item"][left_out]
    refused(value)


@pytest.mark.parametrize("item", [{}, [], "hello", 5, True])
def test_an_item_that_is_none_is_refused(item: Any) -> None:
    refused({"conversation_id": "conv_1", "item": item})


@given(st.text(min_size=1, max_size=30), st.sampled_from(ROLES), st.text(max_size=100), st.text(max_size=30))
def test_what_is_written_is_what_is_read(conversation_id: str, role: str, content: str, event_id: str) -> None:
    value = {"conversation_id": conversation_id, "item": {"role": role, "content": content}, "event_id": event_id}
    event = decode(record(msgspec.json.encode(value)))
    if isinstance(event, Event):
        assert event.conversation_id == conversation_id
        assert json.loads(bytes(event.item)) == {"type": "message", "role": role, "content": content}
        assert event_id in {event.event_id, ""}
    else:
        assert "conversation_id" in event.message


# What comes out


def test_a_reply_says_what_became_of_its_event() -> None:
    events = [taken(short(event_id="e-1", occurred_at="2024-01-01T00:00:00Z")), taken(short(event_id="e-2"))]
    items = [b'{"id":"msg_1","x":"100%d"}', b'{"id":"msg_2"}']
    written = replies(Delivered(events, items, 5, 3, 2, read_back=True), "a%b.events", NOW)
    first, second = (json.loads(value) for value, _ in written)
    assert first == {
        "event_id": "e-1",
        "conversation_id": "conv_1",
        "status": "delivered",
        "item": {"id": "msg_1", "x": "100%d"},
        "batch": {"size": 5, "index": 3},
        "attempts": 2,
        "source": {"topic": "a%b.events", "partition": 3, "offset": 17},
        "occurred_at": "2024-01-01T00:00:00Z",
        "delivered_at": "2023-11-14T22:13:20.250Z",
    }
    assert (second["event_id"], second["batch"]) == ("e-2", {"size": 5, "index": 4})
    assert "occurred_at" not in second


def test_replies_written_from_the_middle_on_are_those_that_were_written_before() -> None:
    events = [taken(short(event_id=f"e-{number}")) for number in range(4)]
    delivered = Delivered(events, [b'{"id":"msg_%d"}' % number for number in range(4)], 4, 0, 1, read_back=False)
    written = list(replies(delivered, "events", NOW))
    for start in range(5):
        for end in range(start, 5):
            assert list(replies(delivered, "events", NOW, start, end)) == written[start:end]


@pytest.mark.parametrize(
    ("given_headers", "kept"),
    [
        ([], [("correlation_id", b"e-1")]),
        ([("kafka_correlationId", b"\x00\xff")], [("kafka_correlationId", b"\x00\xff")]),
        ([("correlation_id", None)], [("correlation_id", None)]),
        (
            [("correlation_id", b"a"), ("kafka_correlationId", b"b")],
            [("correlation_id", b"a"), ("kafka_correlationId", b"b")],
        ),
        ([("traceparent", b"00-x"), ("other", b"1")], [("correlation_id", b"e-1"), ("traceparent", b"00-x")]),
    ],
)
def test_a_reply_carries_the_events_correlation_as_it_came(given_headers: Any, kept: Any) -> None:
    event = taken(short(event_id="e-1"), headers=given_headers)
    assert reply_headers(event) == [*kept, ("content-type", b"application/json")]


def test_a_failed_reply_says_why_and_not_at_length() -> None:
    event = taken(short(event_id="e-1", occurred_at="then"))
    dead = Dead(Reason.REJECTED, "c" * 1000, "m" * 1000, 400, 3)
    reply = json.loads(failed_reply(event, dead, TOPIC, NOW))
    assert (reply["status"], reply["event_id"], reply["attempts"]) == ("failed", "e-1", 3)
    assert reply["error"]["reason"] == "rejected"
    assert reply["occurred_at"] == "then"
    assert max(map(len, reply["error"].values())) <= 500
    assert "item" not in reply
