"""CloudEvents over Kafka: the envelope is taken off, and what it says is kept."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from service.core.model import Event, Refusal
from service.kafka.codec import Headers, decode

BINARY: dict[str, bytes | None] = {"ce_specversion": b"1.0", "ce_id": b"42", "ce_source": b"/shop", "ce_type": b"chat"}
STRUCTURED = {"specversion": "1.0", "id": "42", "source": "/shop", "type": "chat"}
TYPE: Headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
ITEM = {"type": "message", "role": "user", "content": "hello"}
FORMS: dict[str, dict[str, Any]] = {
    "native": {"conversation_id": "conv_d", "item": ITEM},
    "shorthand": {"conversation_id": "conv_d", "role": "user", "content": "hello"},
    "bare": ITEM,
}


def read(value: bytes, headers: Headers, key: bytes | None = b"conv_k") -> Event | Refusal:
    return decode(ConsumerRecord("events", 0, 5, 0, 0, key, value, None, 0, 0, headers))


def binary(data: Any, key: bytes | None = b"conv_k", **attributes: bytes | None) -> Event | Refusal:
    headers = [(name, value) for name, value in (BINARY | attributes).items() if value != b"-"]
    return read(json.dumps(data).encode(), headers, key)


def structured(key: bytes | None = b"conv_k", **fields: Any) -> Event | Refusal:
    envelope = {name: value for name, value in (STRUCTURED | fields).items() if value != "-"}
    return read(json.dumps(envelope).encode(), TYPE, key)


def event(decoded: Event | Refusal) -> Event:
    assert isinstance(decoded, Event), decoded
    return decoded


def why(decoded: Event | Refusal) -> str:
    assert isinstance(decoded, Refusal), decoded
    return decoded.message


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_both_envelopes(form: str) -> None:
    for decoded in (event(binary(FORMS[form])), event(structured(data=FORMS[form]))):
        assert json.loads(bytes(decoded.item)) == ITEM
        assert decoded.event_id == "/shop/42"
        assert decoded.conversation_id == ("conv_k" if form == "bare" else "conv_d")


def test_a_bare_item_is_forwarded_whole_and_given_the_type_it_lacks() -> None:
    item = {"role": "user", "content": "hello", "metadata": {"a": 1}}
    assert json.loads(event(structured(data=item)).item) == {"type": "message"} | item


def test_the_conversation_is_told_by_the_data_else_the_subject_else_the_key() -> None:
    subject = {"ce_subject": "conv_s/ü".encode()}
    assert event(binary(FORMS["native"], **subject)).conversation_id == "conv_d"
    assert event(binary(FORMS["bare"], **subject)).conversation_id == "conv_s/ü"
    assert event(structured(data=ITEM, subject="conv_s")).conversation_id == "conv_s"
    assert event(structured(data={"item": ITEM}, subject="conv_s")).conversation_id == "conv_s"
    assert event(binary(ITEM)).conversation_id == "conv_k"
    assert "conversation_id" in why(binary(ITEM, key=None))
    assert "conversation_id" in why(structured(data=ITEM, key=None))


def test_the_id_of_the_envelope_counts_not_that_of_the_data() -> None:
    assert event(binary(FORMS["native"] | {"event_id": "inner"})).event_id == "/shop/42"


def test_the_time_is_kept_unless_the_data_tells_its_own() -> None:
    moment, other = "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
    assert event(binary(ITEM, ce_time=moment.encode())).occurred_at == moment
    assert event(structured(data=ITEM, time=moment)).occurred_at == moment
    assert event(structured(data=FORMS["native"] | {"occurred_at": other}, time=moment)).occurred_at == other


def test_data_may_come_as_base64() -> None:
    data = base64.b64encode(json.dumps(ITEM).encode()).decode()
    assert json.loads(event(structured(data_base64=data)).item) == ITEM


@pytest.mark.parametrize("name", ["CE_Id", "Ce_Source", "Content-Type"])
def test_names_of_headers_are_read_in_any_case(name: str) -> None:
    if name == "Content-Type":
        decoded = read(json.dumps(STRUCTURED | {"data": ITEM}).encode(), [(name, b"Application/CloudEvents+JSON")])
    else:
        headers = [(name if header == name.lower() else header, value) for header, value in BINARY.items()]
        decoded = read(json.dumps(ITEM).encode(), headers)
    assert event(decoded).event_id == "/shop/42"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"ce_id": b"-"}, "ce_id: missing"),
        ({"ce_id": b""}, "ce_id: missing"),
        ({"ce_id": None}, "ce_id: missing"),
        ({"ce_id": b"\xff"}, "ce_id: is no text"),
        ({"ce_source": b"-"}, "ce_source: missing"),
        ({"ce_source": b"\xff\xfe"}, "ce_source: is no text"),
        ({"ce_subject": b"\x80"}, "ce_subject: is no text"),
        ({"ce_subject": b""}, "conversation_id"),
        ({"ce_subject": b".."}, "conversation_id"),
        ({"ce_time": b"\x80"}, "ce_time: is no text"),
    ],
)
def test_a_binary_one_with_bad_attributes_is_refused(attributes: dict[str, bytes | None], words: str) -> None:
    assert words in why(binary(ITEM, **attributes))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "-"},
        {"id": ""},
        {"id": 42},
        {"source": "-"},
        {"source": ""},
        {"specversion": "-"},
        {"subject": 5},
        {"subject": ""},
        {"time": 5},
        {"data": "-"},
        {"data": None},
        {"data": "hello"},
        {"data": [ITEM]},
        {"data_base64": "not base64!"},
        {"data_base64": base64.b64encode(b"\xff").decode()},
        {"data_base64": base64.b64encode(b"no JSON").decode()},
        {"data_base64": 5},
    ],
)
def test_a_structured_one_with_bad_attributes_is_refused(fields: dict[str, Any]) -> None:
    assert why(structured(**({"data": ITEM} | fields)))


def test_a_batch_of_events_or_another_value_than_an_object_is_refused() -> None:
    assert why(read(json.dumps([STRUCTURED]).encode(), [("content-type", b"application/cloudevents-batch+json")]))
    assert why(read(json.dumps([STRUCTURED]).encode(), TYPE))
    assert why(read(b"", TYPE))


def test_without_their_marks_events_are_no_cloudevents() -> None:
    headers: Headers = [("ce_type", b"chat"), ("content-type", b"application/json"), ("ce_source", None)]
    assert event(read(json.dumps(FORMS["native"]).encode(), headers)).event_id == "events-0-5"
    assert why(read(json.dumps(ITEM | {"role": "tool"}).encode(), headers))
