"""Dead letters as other tools read them, outcomes of any size, and the guard that stops a flood of them."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from service_process import Record, chat, until

from service.emulator.faults import FaultScript, Match, Moderation, Rule, Status

if TYPE_CHECKING:
    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial

Letter = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
HEADERS: list[tuple[str, bytes | None]] = [
    ("kafka_correlationId", b"\x00\xff\x80\x01"),
    ("nothing", None),
    ("empty", b""),
    ("twice", b"one"),
    ("twice", b"two"),
]
MODERATED = FaultScript(rules=(Rule(Moderation(), Match(text="bad")),))
REFUSAL = Status(status=400, code="InvalidParameter")
ALL_REFUSED = FaultScript(rules=(Rule(REFUSAL, Match(operations=("create_items",))),))


def read_with_another_client(servers: str, topic: str, count: int) -> list[Letter]:
    """What librdkafka finds in a topic of one partition; nothing of ours takes part."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "enable.auto.commit": False})
    letters: list[Letter] = []
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while len(letters) < count:
            message = consumer.poll(10)
            assert message is not None, f"{len(letters)} of {count} letters"
            assert message.error() is None, message.error()
            headers: list[Any] = list(message.headers() or ())
            letters.append((message.key(), message.value(), headers))
    finally:
        consumer.close()
    return letters


def of_connect(headers: dict[str, bytes]) -> dict[str, str]:
    """As Kafka Connect's own reporter writes them: all of it text."""
    prefix = "__connect.errors."
    return {name.removeprefix(prefix): value.decode() for name, value in headers.items() if name.startswith(prefix)}


def of_spring(headers: dict[str, bytes]) -> dict[str, Any]:
    """As Spring's DeadLetterPublishingRecoverer writes them: ByteBuffer.putInt and putLong, and text."""
    layouts = {"original-partition": ">i", "original-offset": ">q", "original-timestamp": ">q"}
    read: dict[str, Any] = {}
    for name, value in headers.items():
        if name.startswith("kafka_dlt-"):
            short = name.removeprefix("kafka_dlt-")
            read[short] = struct.unpack(layouts[short], value)[0] if short in layouts else value.decode()
    return read


@pytest.mark.parametrize("style", ["convoy", "connect", "spring"])
async def test_dead_letters_are_read_by_who_knows_nothing_of_us(trial: MakeTrial, style: str) -> None:
    run = await trial(partitions=1, faults=MODERATED)
    bad = json.dumps({"conversation_id": "conv_000", "role": "user", "content": "bad"}).encode()
    records = [*chat(1, 3), Record(b"conv_000", bad, HEADERS), Record(b"\xff", b"no \xfe event", HEADERS)]
    await run.publish(records)
    async with run.process(DEAD_LETTER__HEADER_STYLE=style) as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
        assert service.complaints() == []
    report = await run.audit()
    assert report.content, report.lines()

    letters = await asyncio.to_thread(read_with_another_client, run.bootstrap_servers, run.topics.dead_letters, 2)
    originals = {record.offset: record for record in await run.records(run.topics.events)}
    for key, value, headers in letters:
        assert headers[: len(HEADERS)] == HEADERS
        told = {name: content for name, content in headers[len(HEADERS) :] if content is not None}
        offset = int(told["dlq.original.offset"])
        original = originals[offset]
        assert (key, value) == (original.key, original.value)
        reason = {3: "rejected", 4: "invalid_event"}[offset]
        assert told["dlq.reason"].decode() == reason
        message = told["dlq.error.message"].decode()
        connect, spring = of_connect(told), of_spring(told)
        assert bool(connect) == (style == "connect")
        assert bool(spring) == (style == "spring")
        if connect:
            assert (connect["topic"], connect["partition"], connect["offset"]) == (run.topics.events, "0", str(offset))
            assert connect["stage"] == ("TASK_PUT" if offset == 3 else "VALUE_CONVERTER")
            assert (connect["exception.class.name"], connect["exception.message"]) == (reason, message)
        if spring:
            assert spring["original-topic"] == run.topics.events
            assert (spring["original-partition"], spring["original-offset"]) == (0, offset)
            assert (spring["original-timestamp"], spring["original-timestamp-type"]) == (
                original.timestamp,
                "CreateTime",
            )
            assert (spring["original-consumer-group"], spring["exception-message"]) == (run.topics.group, message)
            assert spring["exception-fqcn"] == reason


async def test_a_redriven_event_that_fails_again_says_how_often_it_was_sent(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    headers: list[tuple[str, bytes | None]] = [*HEADERS, ("dlq.reason", b"of another life"), ("dlq.redrives", b"2")]
    nonsense: list[tuple[str, bytes | None]] = [("dlq.redrives", b"\xff"), ("dlq.mark", b"redriven")]
    await run.publish([Record(b"k", b"no event", headers), Record(b"k", b"no event", nonsense)])
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
    assert (await run.audit()).dead_letters == {"invalid_event": 2}
    again, first = await asyncio.to_thread(read_with_another_client, run.bootstrap_servers, run.topics.dead_letters, 2)
    assert again[2][: len(HEADERS)] == HEADERS
    assert [value for name, value in again[2] if name == "dlq.redrives"] == [b"2"]
    assert [value for name, value in again[2] if name == "dlq.reason"] == [b"invalid_event"]
    assert [value for name, value in first[2] if name == "dlq.redrives"] == [b"0"]
    assert not [value for name, value in first[2] if name == "dlq.mark"]


async def test_records_as_large_as_a_broker_takes_block_nothing_whatever_is_large_about_them(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    huge = 1_048_100
    for topic in (run.topics.replies, run.topics.dead_letters):
        await run.configure(topic, max_message_bytes="1048200")

    def event(**fields: Any) -> bytes:
        return json.dumps({"conversation_id": "conv_000", "role": "user", "content": "hello"} | fields).encode()

    headers: list[tuple[str, bytes | None]] = [("large", b"h" * huge)]
    many: list[tuple[str, bytes | None]] = [(f"h{number:04}", b"x" * 97) for number in range(9980)]
    large = [
        Record(b"conv_000", b"x" * huge),
        Record(b"k" * huge, b"no event"),
        Record(b"k", b"no event", headers),
        Record(b"k", b"no event", many),
        Record(b"k" * (huge // 2), b"v" * (huge // 3), [("large", b"h" * (huge // 8))]),
        Record(b"conv_000", event(content="c" * huge)),
        Record(b"conv_000", event(event_id="e" * (huge - 100))),
        Record(b"conv_000", event(occurred_at="t" * (huge - 100))),
        Record(b"conv_000", event(), [("correlation_id", b"c" * (huge - 200))]),
        Record(b"conv_000", event(), [("correlation_id", b"c" * 100)] * 8000),
        Record(b"conv_000", event(event_id="e" * (huge // 2)), [("reply_to", b"r" * (huge // 3))]),
        Record(b"k" * (huge - 300), event()),
    ]
    between = chat(conversations=1, turns=len(large))
    await run.publish(record for one in large for record in (one, next(between)))
    async with run.process() as service:
        await service.ready()
        await run.finished()
        assert await service.metric("buffered_bytes") == 0
        assert await service.stop() == 0
        assert not [line for line in service.complaints() if "too large" not in line]
    report = await run.audit()
    assert report.content, report.lines()
    # Event ids and the number of headers have bounds of their own.
    assert (report.delivered, report.dead_letters) == (len(large) + 4, {"invalid_event": 8})
    notes = {}
    for letter in await run.records(run.topics.dead_letters):
        told = {name: value for name, value in letter.headers if value is not None}
        notes[int(told["dlq.original.offset"])] = json.loads(told.get("dlq.value.omitted", b"null"))
    assert [offset for offset, note in notes.items() if note] == [0, 2, 4, 6, 12]
    assert notes[0]["bytes"] == huge
    assert notes[2]["key_bytes"] == huge
    assert notes[6]["headers"] == len(many)


async def test_a_flood_of_dead_letters_stops_consumption_and_heals_when_its_cause_is_gone(trial: MakeTrial) -> None:
    run = await trial(partitions=2, faults=ALL_REFUSED)
    count = await run.publish(chat(conversations=8, turns=10))
    async with run.process(DEAD_LETTER__FLOOD_RUN="12", DELIVERY__BACKOFF_INITIAL_SECONDS="0.05") as service:
        await service.ready()
        before = await _flooded(run, service)
        # More of the same changes nothing: nobody reads it.
        count += await run.publish(chat(conversations=8, turns=5, first=10))
        await _probed(service, 3)
        assert await _dead(run) == before
        assert await service.metric("paused_partitions") == 2
        assert await service.metric("consumer_lag_records") > 0
        assert (await service.status())["circuit"]["reason"] == "flood_guard"
        assert (await service.get("/readyz")).status_code == 200

        await _mend(run)
        await run.finished()
        assert await service.metric("flood_guard_state") == 0
        assert await service.metric("paused_partitions") == 0
        assert await service.stop() == 0
        told = [line["message"] for line in service.lines() if line["message"].startswith("circuit")]
    assert told == ["circuit open, consumption pauses", "circuit closed, consumption goes on"]
    report = await run.audit()
    assert report.content, report.lines()
    assert before <= 12
    assert (report.delivered, report.dead_letters.total()) == (count - before, before)


async def test_a_flood_by_share_is_held_long_after_its_window_has_emptied(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.publish(chat(conversations=10, turns=5))
    flood = {"DEAD_LETTER__FLOOD_SHARE": "0.3", "DEAD_LETTER__FLOOD_WINDOW_SECONDS": "1"}
    async with run.process(**flood, DELIVERY__BACKOFF_INITIAL_SECONDS="0.05") as service:
        await service.ready()
        await run.finished()
        await _mend(run, ALL_REFUSED)
        await run.publish(chat(conversations=10, turns=5, first=5))
        before = await _flooded(run, service)
        # Probes are at least half a second apart.
        await _probed(service, 6)
        assert await _dead(run) == before
        await _mend(run)
        await run.finished()
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters.total()) == (100 - before, before)


async def test_what_fails_in_one_conversation_alone_is_no_flood(trial: MakeTrial) -> None:
    script = FaultScript(rules=(Rule(REFUSAL, Match(conversation="conv_003")),))
    run = await trial(partitions=1, faults=script)
    count = await run.publish(chat(conversations=6, turns=10))
    async with run.process(DEAD_LETTER__FLOOD_RUN="2", DEAD_LETTER__FLOOD_SHARE="0.05") as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0
        assert service.complaints() == []
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters) == (count - 10, {"rejected": 10})


async def test_a_flood_of_records_that_are_no_events_stops_consumption_where_that_is_asked_for(
    trial: MakeTrial,
) -> None:
    run = await trial(partitions=1)
    invalid = [Record(b"conv_%03d" % number, b"no event") for number in range(20_000)]
    await run.publish(invalid)
    async with run.process(DEAD_LETTER__FLOOD_RUN="20", DEAD_LETTER__FLOOD_COUNTS_INVALID="true") as service:
        await until("the guard", lambda: _guarded(service))
        # What one poll had handed over has its outcome; the rest stays where it is.
        assert await service.stop() == 0
    letters = len(await run.records(run.topics.dead_letters))
    assert 20 < letters < 10_000
    assert await run.committed() == {0: letters}


async def test_a_flood_goes_on_when_an_operator_says_so_until_it_is_too_many_again(trial: MakeTrial) -> None:
    run = await trial(partitions=2, faults=ALL_REFUSED)
    count = await run.publish(chat(conversations=8, turns=10))
    async with run.process(DEAD_LETTER__FLOOD_RUN="12", DELIVERY__BACKOFF_INITIAL_SECONDS="0.05") as service:
        await service.ready()
        first = await _flooded(run, service)
        second = await _let_on(run, service, first)
        assert 0 < second - first <= 12
        await _mend(run)
        await run.finished()
        # With nothing held back it changes nothing.
        service.signal(signal.SIGUSR1)
        await until("the signal", lambda: len(_told(service)) == 2)
        assert _told(service) == [True, False]
        assert await service.stop() == 0
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.delivered, report.dead_letters.total()) == (count - second, second)


async def test_a_flood_of_records_that_are_no_events_goes_on_when_an_operator_says_so(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    await run.publish(Record(b"conv_%03d" % number, b"no event") for number in range(20_000))
    async with run.process(DEAD_LETTER__FLOOD_RUN="20", DEAD_LETTER__FLOOD_COUNTS_INVALID="true") as service:
        first = await _flooded(run, service)
        second = await _let_on(run, service, first)
        assert await service.stop() == 0
    assert 20 < second - first < 10_000
    assert await run.committed() == {0: second}


def _told(service: ServiceProcess) -> list[bool]:
    """Whether anything was held back, each time it was told to go on."""
    return [line["held_back"] for line in service.lines() if line["message"] == "told that the flood is over"]


async def _let_on(run: Trial, service: ServiceProcess, before: int) -> int:
    """Tell it to go on, and wait for the next flood; returns how many dead letters there are then."""
    service.signal(signal.SIGUSR1)

    async def more() -> bool:
        return await _dead(run) > before

    await until("dead letters that were held back", more)
    return await _flooded(run, service)


async def _guarded(service: ServiceProcess) -> bool:
    return await service.metric("flood_guard_state") == 1


async def _dead(run: Trial) -> int:
    return len(await run.records(run.topics.dead_letters))


async def _flooded(run: Trial, service: ServiceProcess) -> int:
    """Wait for the guard and for what was decided before it; returns how many dead letters that makes."""
    await until("the guard", lambda: _guarded(service))

    async def stored() -> bool:
        return await _dead(run) == await service.metric("dead_letters_total")

    await until("dead letters stored", stored)
    return await _dead(run)


async def _probed(service: ServiceProcess, times: int) -> None:
    attempts = await service.metric("attempts_total")

    async def enough() -> bool:
        return await service.metric("attempts_total") >= attempts + times

    await until(f"{times} probes", enough)


async def _mend(run: Trial, script: FaultScript | None = None) -> None:
    """Have the emulator play another script, nothing by default, as an operator would."""
    async with httpx.AsyncClient(base_url=run.emulator.origin) as http:
        played = msgspec.json.encode(script or FaultScript())
        (await http.put("/_emulator/faults", content=played)).raise_for_status()
