"""Records that are no events: each lies in the dead letters as it came, and its neighbours are delivered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from service_process import Record, chat

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord
    from conftest import MakeTrial

KEY = b"conv_000"
HEADERS: list[tuple[str, bytes | None]] = [
    ("kafka_correlationId", b"\x00\xff\x80\x01"),
    ("nothing", None),
    ("empty", b""),
    ("twice", b"one"),
    ("twice", b"two"),
    ("überschrift", "später".encode()),
]


def event(**fields: object) -> bytes:
    return json.dumps({"conversation_id": "conv_000", "role": "user", "content": "hello"} | fields).encode()


def item(**fields: object) -> bytes:
    return json.dumps({"conversation_id": "conv_000", "item": {"role": "user", "content": "hello"} | fields}).encode()


NO_EVENTS = {
    "half an object": b'{"conversation_id": "conv_000", "role": "us',
    "no JSON": b"hello",
    "nothing at all": b"",
    "an array": b"[1, 2]",
    "a number": b"42",
    "null": b"null",
    "bytes that are no UTF-8": event().replace(b"hello", b"hell\xff\xfe"),
    "a lone surrogate": event().replace(b"hello", b"\\ud800"),
    "deep nesting": b"[" * 100_000,
    "an empty conversation id": event(conversation_id=""),
    "a conversation id with a line break": event(conversation_id="conv\n000"),
    "a conversation id with a null byte": event(conversation_id="conv\x00000"),
    "a conversation id with a C1 control": event(conversation_id="conv\x85"),
    "a conversation id that climbs": event(conversation_id=".."),
    "a conversation id of 257 bytes": event(conversation_id="x" * 257),
    "a conversation id of 86 three-byte letters": event(conversation_id="語" * 86),
    "a numeric conversation id": event(conversation_id=17),
    "an unknown role": event(role="tool"),
    "no role": json.dumps({"conversation_id": "conv_000", "content": "hello"}).encode(),
    "no content": json.dumps({"conversation_id": "conv_000", "role": "user"}).encode(),
    "content that is a number": event(content=5),
    "content without parts": event(content=[]),
    "a part without type": event(content=[{"text": "hello"}]),
    "a part that is text": event(content=["hello"]),
    "a type that is no message": event(type="function_call"),
    "an item of another type": item(type="reasoning"),
    "an item with an unknown role": item(role="root"),
    "an item that is text": event(item="hello"),
    "a numeric time": event(occurred_at=1700000000),
}


async def test_what_is_no_event_is_kept_as_it_came_and_its_neighbours_are_delivered(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    good = chat(conversations=1, turns=len(NO_EVENTS) + 2)
    records = [next(good)]
    for value in NO_EVENTS.values():
        records += [Record(KEY, value, HEADERS), next(good)]
    records += [Record(None, b'{"role": "user", "content": "whose?"}', HEADERS), next(good)]
    records += [Record(b"\xff\xfe", b'{"role": "user", "content": "whose?"}'), Record(b"bad\tkey", event()[:-1])]
    await run.publish(records)
    bad = len(NO_EVENTS) + 3

    async with run.process() as service:
        await service.ready()
        await run.finished()
        counted = {
            result: await service.metric("events_total", result=result)
            for result in ("accepted", "invalid", "tombstone", "key_mismatch")
        }
        assert await service.metric("dead_letters_total", reason="invalid_event") == bad
        assert await service.stop() == 0
        assert service.complaints() == []

    assert counted == {"accepted": len(NO_EVENTS) + 2, "invalid": bad, "tombstone": 0, "key_mismatch": 0}
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (len(NO_EVENTS) + 2, {"invalid_event": bad})
    originals = {record.offset: record for record in await run.records(run.topics.events)}
    letters = await run.records(run.topics.dead_letters)
    for letter in letters:
        told = dlq_headers(letter)
        original = originals[int(told["dlq.original.offset"])]
        assert (letter.key, letter.value) == (original.key, original.value)
        assert list(letter.headers)[: len(original.headers)] == list(original.headers)
        assert told["dlq.reason"] == "invalid_event"
        assert told["dlq.error.message"]
        assert told["dlq.original.topic"] == run.topics.events
        assert told["dlq.original.partition"] == "0"
        assert told["dlq.original.timestamp"] == str(original.timestamp)
        assert told["dlq.consumer.group"] == run.topics.group
        assert (told["dlq.attempts"], told["dlq.fate"], told["dlq.redrives"]) == ("0", "not_stored", "0")


async def test_unusual_records_that_are_events_are_delivered(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    strange = "conv/ü ?#%2F&=+語"
    records = [
        Record(KEY, event(content="binary headers"), HEADERS),
        Record(None, event(content="no key")),
        Record(b"\xff\xfe", event(content="a key that is no text")),
        Record(b"another", event(content="a key of another conversation")),
        Record(KEY, None),
        Record(None, None, HEADERS),
        Record(strange.encode(), b'{"role": "user", "content": "named by its key"}'),
        Record(KEY, event(content="", event_id=12)),
        Record(KEY, item(content=[{"type": "input_text", "text": "of parts"}], extra={"is": "kept"})),
        Record(KEY, b' \n{ "item" : \t{"content":"spaced", "role":"user" } , "conversation_id":"conv_000"} '),
    ]
    await run.publish(records)
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.metric("events_total", result="tombstone") == 2
        assert await service.metric("events_total", result="key_mismatch") == 3
        assert await service.stop() == 0
        assert service.complaints() == []

    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (8, {})
    assert run.emulator.store.conversations[strange].texts() == ["named by its key"]
    replies = {
        json.loads(record.value or b"")["source"]["offset"]: record for record in await run.records(run.topics.replies)
    }
    assert dict(replies[0].headers)["kafka_correlationId"] == b"\x00\xff\x80\x01"
    assert dict(replies[1].headers)["correlation_id"] == f"{run.topics.events}-0-1".encode()
    assert dict(replies[7].headers)["correlation_id"] == b"12"
    assert replies[6].key == strange.encode()
    assert json.loads(replies[8].value or b"")["item"]["extra"] == {"is": "kept"}


def dlq_headers(letter: ConsumerRecord[bytes, bytes]) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers if name.startswith("dlq.")}
