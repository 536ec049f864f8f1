"""Replies that their requesters find: CloudEvents, correlation, reply topics, traces, and a requester at work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from kafka_server import create_topics
from service_process import Record, chat

from service.emulator.faults import FaultScript, Match, Moderation, Rule

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord
    from conftest import MakeTrial
    from service_process import Trial

REQUESTER = Path(__file__).parents[2] / "examples" / "requester.py"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
STRUCTURED = b"application/cloudevents+json"


def item(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def body(text: str, conversation_id: str = "conv_000", **fields: Any) -> bytes:
    return json.dumps({"conversation_id": conversation_id, **item(text), **fields}).encode()


async def by_offset(run: Trial, topic: str | None = None) -> dict[int, ConsumerRecord[bytes, bytes]]:
    """The replies, by the offset of their event."""
    return {
        json.loads(record.value or b"")["source"]["offset"]: record
        for record in await run.records(topic or run.topics.replies)
    }


async def test_cloudevents_are_delivered_and_answered_under_their_own_ids(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    binary = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/shop"), ("ce_type", b"chat.message")]
    envelope = {"specversion": "1.0", "type": "chat.message", "source": "/shop"}
    records = [
        Record(b"conv_000", json.dumps(item("bare, by its key")).encode(), binary),
        Record(b"key", json.dumps(item("bare, by its subject")).encode(), [*binary, ("ce_subject", b"conv_001")]),
        Record(b"key", body("by its data", "conv_002"), [*binary, ("ce_subject", b"conv_001")]),
        Record(
            b"conv_000",
            json.dumps(envelope | {"id": "2", "data": {"item": item("structured")}}).encode(),
            [("content-type", STRUCTURED + b"; charset=UTF-8")],
        ),
        Record(
            None,
            json.dumps(
                envelope | {"id": "3", "subject": "conv_001", "time": "2026-01-01T00:00:00Z", "data": item("bare")}
            ).encode(),
            [("content-type", STRUCTURED)],
        ),
        Record(b"conv_000", body("no id"), [("ce_specversion", b"1.0"), ("ce_source", b"/shop")]),
        Record(b"conv_000", json.dumps(envelope).encode(), [("content-type", STRUCTURED)]),
    ]
    await run.publish(records)
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
        assert service.complaints() == []

    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (5, {"invalid_event": 2})
    replies = {offset: json.loads(record.value or b"") for offset, record in (await by_offset(run)).items()}
    assert [replies[offset]["event_id"] for offset in range(5)] == [
        "/shop/1",
        "/shop/1",
        "/shop/1",
        "/shop/2",
        "/shop/3",
    ]
    conversations = run.emulator.store.conversations
    assert conversations["conv_000"].texts() == ["bare, by its key", "structured"]
    assert conversations["conv_001"].texts() == ["bare, by its subject", "bare"]
    assert conversations["conv_002"].texts() == ["by its data"]
    assert replies[4]["occurred_at"] == "2026-01-01T00:00:00Z"


async def test_replies_carry_what_their_requesters_gave_them_byte_for_byte(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    spring = [("kafka_correlationId", bytes(range(16))), ("traceparent", TRACE), ("spring_json_header_types", b"{}")]
    await run.publish(
        [
            Record(b"conv_000", body("spring"), spring),
            Record(
                b"conv_000", body("faststream"), [("correlation_id", b"c-1"), ("content-type", b"application/json")]
            ),
            Record(b"conv_000", body("neither", event_id="e-1"), [("traceparent", TRACE)]),
            Record(b"conv_000", body("both"), [("correlation_id", b""), ("kafka_correlationId", None)]),
        ]
    )
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
        assert service.complaints() == []
    replies = await by_offset(run)
    json_type = ("content-type", b"application/json")
    assert list(replies[0].headers) == [*spring[:2], json_type]
    assert list(replies[1].headers) == [("correlation_id", b"c-1"), json_type]
    assert list(replies[2].headers) == [("correlation_id", b"e-1"), ("traceparent", TRACE), json_type]
    assert list(replies[3].headers) == [("correlation_id", b""), ("kafka_correlationId", None), json_type]


async def test_replies_go_where_they_are_asked_to_if_they_may(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    mine, gone = f"{run.topics.prefix}.mine", f"{run.topics.prefix}.gone"
    await create_topics(run.bootstrap_servers, {mine: 3})
    ask = mine.encode()
    headers: list[list[tuple[str, bytes | None]]] = [
        [("reply_to", ask)],
        [("kafka_replyTopic", ask), ("kafka_replyPartition", (2).to_bytes(4, "big"))],
        [("kafka_replyTopic", ask), ("kafka_replyPartition", (7).to_bytes(4, "big"))],
        [("reply_to", gone.encode())],
        [("reply_to", run.topics.dead_letters.encode())],
        [("reply_to", run.topics.replies.encode()), ("kafka_replyPartition", (1).to_bytes(4, "big"))],
        [("reply_to", b"\xff\xfe")],
        [],
    ]
    # One batch: its replies part ways, and its position waits for all of them.
    await run.publish(Record(b"conv_000", body(f"{n}"), asked, partition=0) for n, asked in enumerate(headers))
    async with run.process(REPLY__ALLOWED_TOPICS=f"{mine}, {gone}", BATCH__WINDOW_SECONDS="1") as service:
        await service.ready()
        await run.finished()
        counted = {
            result: await service.metric("replies_redirected_total", result=result)
            for result in ("redirected", "not_allowed", "unknown_topic", "default")
        }
        assert await service.stop() == 0
    assert counted == {"redirected": 3, "not_allowed": 2, "unknown_topic": 1, "default": 1}
    redirected = await by_offset(run, mine)
    assert sorted(redirected) == [0, 1, 2]
    assert redirected[1].partition == 2
    default = await by_offset(run)
    assert sorted(default) == [3, 4, 5, 6, 7]
    assert default[5].partition == 1
    assert await run.records(run.topics.dead_letters) == []
    assert json.loads(default[7].value or b"")["batch"] == {"size": 8, "index": 7}


async def test_an_event_given_up_is_answered_too_where_that_is_asked_for(trial: MakeTrial) -> None:
    script = FaultScript(rules=(Rule(Moderation(), Match(text="says 2")),))
    run = await trial(partitions=1, faults=script)
    mine = f"{run.topics.prefix}.mine"
    await create_topics(run.bootstrap_servers, {mine: 1})
    headers = [("correlation_id", b"c-2"), ("reply_to", mine.encode()), ("traceparent", TRACE)]
    records = list(chat(conversations=1, turns=4))
    records[2] = Record(records[2].key, records[2].value, headers)
    await run.publish([*records, Record(b"conv_000", b"no event")])
    async with run.process(REPLY__FAILURES="true", REPLY__ALLOWED_TOPICS=mine) as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert report.dead_letters == {"rejected": 1, "invalid_event": 1}
    (failed,) = await run.records(mine)
    reply = json.loads(failed.value or b"")
    assert list(failed.headers) == [headers[0], headers[2], ("content-type", b"application/json")]
    assert (failed.key, reply["status"], reply["event_id"]) == (b"conv_000", "failed", "conv_000-2")
    assert (reply["error"]["reason"], reply["error"]["code"]) == ("rejected", "DataInspectionFailed")
    assert reply["source"] == {"topic": run.topics.events, "partition": 0, "offset": 2}


async def test_the_requester_of_the_readme_hears_its_own_replies(trial: MakeTrial) -> None:
    run = await trial(partitions=2, latency_seconds=0.01)
    mine = f"{run.topics.prefix}.mine"
    await create_topics(run.bootstrap_servers, {mine: 2})
    environment = os.environ | {
        "BOOTSTRAP_SERVERS": run.bootstrap_servers,
        "EVENTS_TOPIC": run.topics.events,
        "REPLY_TOPIC": mine,
    }
    questions = [f"question {number}" for number in range(5)]
    async with run.process(REPLY__ALLOWED_TOPICS=mine) as service:
        await service.ready()
        # Two at a time on one topic: each hears the other's replies, and takes only its own.
        first, second = await asyncio.gather(
            *(
                asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, str(REQUESTER), conversation_id, *questions],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                for conversation_id in ("conv_000", "conv_001")
            )
        )
        assert await service.stop() == 0
    for done, conversation_id in ((first, "conv_000"), (second, "conv_001")):
        assert done.returncode == 0, done.stderr
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        assert [reply["conversation_id"] for reply in replies] == [conversation_id] * 5
        assert [reply["item"]["content"][0]["text"] for reply in replies] == questions
        assert sorted(run.emulator.store.conversations[conversation_id].texts()) == questions


async def test_what_the_service_writes_and_shows_fits_the_shipped_schemas(trial: MakeTrial) -> None:
    run = await trial(partitions=1, faults=FaultScript(rules=(Rule(Moderation(), Match(text="says 2")),)))
    await run.publish([*chat(conversations=3, turns=5), Record(b"conv_000", b"no event")])
    async with run.process(REPLY__FAILURES="true") as service:
        await service.ready()
        await run.finished()
        shown = (await service.get("/asyncapi.json")).json()
        assert await service.stop() == 0

    def schema(name: str) -> Draft202012Validator:
        return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))

    replies = await run.replies()
    assert {reply["status"] for reply in replies} == {"delivered", "failed"}
    for reply in replies:
        schema("reply").validate(reply)
    for letter in await run.records(run.topics.dead_letters):
        schema("dead-letter-headers").validate(
            {name: value.decode() for name, value in letter.headers if name.startswith("dlq.") and value is not None}
        )
    addresses = {channel["address"] for channel in shown["channels"].values()}
    assert addresses == {run.topics.events, run.topics.replies, run.topics.dead_letters}
