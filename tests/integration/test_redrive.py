"""`convoy dlq`: what failed is seen, understood and sent again, once, whatever interrupts it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from kafka_server import create_topics
from service_process import Record, chat, until

from service.emulator.faults import FaultScript, Match, Moderation, Rule, Status
from service.kafka.connection import KafkaError
from service.kafka.redrive import Aim, Redriver, read_dead_letters

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord
    from conftest import MakeTrial
    from service_process import ServiceProcess, Trial

HEADERS: list[tuple[str, bytes | None]] = [
    ("kafka_correlationId", b"\x00\xff"),
    ("nothing", None),
    ("__connect.errors.topic", b"of another life"),
]
MODERATED = FaultScript(rules=(Rule(Moderation(), Match(text="says 2")),))
NOT_FOUND = FaultScript(
    rules=(Rule(Status(status=404, code="conversation_not_found"), Match(operations=("create_items",))),)
)


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


async def convoy_dlq(run: Trial, *arguments: str) -> Said:
    settings = {f"CONVOY_{name}": value for name, value in run.settings().items()}
    done = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("convoy")), "dlq", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("CONVOY_")} | settings,
        capture_output=True,
        check=False,
        timeout=120,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


async def listed(run: Trial, *arguments: str) -> list[dict[str, Any]]:
    said = await convoy_dlq(run, "list", "--json", *arguments)
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


async def play(run: Trial, script: FaultScript | None = None) -> None:
    """Have the emulator play another script; without one, the cause is removed."""
    async with httpx.AsyncClient(base_url=run.emulator.origin) as http:
        played = msgspec.json.encode(script or FaultScript())
        (await http.put("/_emulator/faults", content=played)).raise_for_status()


async def settled(run: Trial) -> None:
    """Wait until the positions stand behind every record, those of a redrive included."""

    async def behind_all() -> bool:
        ends: dict[int, int] = {}
        for record in await run.records(run.topics.events):
            ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
        committed = await run.committed()
        return all(committed.get(number, 0) >= end for number, end in ends.items())

    await until("everything settled", behind_all, 60)


async def failed(run: Trial, script: FaultScript, records: list[Record], **settings: str) -> None:
    """Have these events end in dead letters, as far as `script` says."""
    await play(run, script)
    await run.publish(records)
    async with run.process(**settings) as service:
        await service.ready()
        await run.finished()
        assert await service.stop() == 0


async def redriven(run: Trial) -> list[ConsumerRecord[bytes, bytes]]:
    """What lies in the events topic a second time, committed."""
    return [
        record
        for record in await run.records(run.topics.events)
        if "dlq.redrives" in {name for name, _ in record.headers}
    ]


async def test_what_failed_is_seen_mended_sent_again_and_delivered_in_its_conversation(trial: MakeTrial) -> None:
    run = await trial(partitions=2, faults=MODERATED)
    await run.publish(chat(conversations=3, turns=4))
    async with run.process() as service:
        await service.ready()
        await run.finished()
        letters = await listed(run)
        assert [letter["event_id"] for letter in sorted(letters, key=lambda letter: letter["event_id"])] == [
            f"conv_{number:03}-2" for number in range(3)
        ]
        assert {(letter["reason"], letter["code"]) for letter in letters} == {("rejected", "DataInspectionFailed")}

        dry = await convoy_dlq(run, "redrive")
        assert (dry.code, dry.out.splitlines()[-1]) == (0, "3 would be sent; nothing was (add --execute)")
        assert await redriven(run) == []

        await play(run)
        done = await convoy_dlq(run, "redrive", "--execute")
        assert (done.code, done.out) == (0, "3 sent, 0 left\n"), done.err
        assert "100%" in done.err
        again = await convoy_dlq(run, "redrive", "--execute")
        assert (again.code, again.out) == (0, "0 sent, 0 left\n"), again.err
        await settled(run)
        assert await service.stop() == 0
        assert service.complaints() == []
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.events, report.delivered, report.dead_letters) == (15, 12, {"rejected": 3})
    for number in range(3):
        texts = run.emulator.store.conversations[f"conv_{number:03}"].texts()
        assert texts == [f"conv_{number:03} says {turn}" for turn in (0, 1, 3, 2)]
    assert await listed(run) == []
    assert {letter["mark"] for letter in await listed(run, "--redriven")} == {"redriven"}


async def test_a_redrive_killed_again_and_again_sends_everything_once_and_in_order(trial: MakeTrial) -> None:
    run = await trial(partitions=3)
    conversations, turns = 30, 50
    count = conversations * turns
    await failed(run, NOT_FOUND, list(chat(conversations, turns)))
    assert (await run.audit()).dead_letters == {"conversation_not_found": count}
    await play(run)
    redrive = ("convoy", "dlq", "redrive", "--execute")
    kills = open_when_killed = 0
    async with run.process() as service:
        await service.ready()
        # Between transactions, where a rate holds it back.
        async with run.process(command=(*redrive, "--rate", "40")) as command:
            await _some_sent(run, command, 1)
            command.kill()
            kills += 1
        # As a terminal would: the transaction under way is ended in order.
        async with run.process(command=(*redrive, "--rate", "40")) as command:
            await _some_sent(run, command, len(await redriven(run)) + 1)
            command.signal(signal.SIGINT)
            assert await command.ended() == 1
            assert "interrupted" in command.log()
            assert "Traceback" not in command.log()
        # Within a transaction: records lie in the topic that no consumer may read yet.
        for _ in range(4):
            async with run.process(command=redrive) as command:
                open_when_killed += await _transaction_open(run, command)
                command.kill()
                kills += 1
        last = await convoy_dlq(run, "redrive", "--execute")
        assert last.code == 0, last.err
        await settled(run)
        assert await service.stop() == 0
    assert open_when_killed >= 1
    sent = await redriven(run)
    assert len(sent) == count
    report = await run.audit()
    assert report.content, report.lines()
    assert (report.events, report.delivered, report.duplicated.count) == (2 * count, count, 0)
    assert report.dead_letters == {"conversation_not_found": count}
    for number in range(conversations):
        texts = run.emulator.store.conversations[f"conv_{number:03}"].texts()
        assert texts == [f"conv_{number:03} says {turn}" for turn in range(turns)]
    assert (await convoy_dlq(run, "redrive", "--execute")).out == "0 sent, 0 left\n"


async def test_two_at_once_do_not_send_anything_twice(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    await failed(run, NOT_FOUND, list(chat(20, 20)))
    both = await asyncio.gather(*(convoy_dlq(run, "redrive", "--execute") for _ in range(2)))
    # Who came second fenced the first, or found everything done.
    assert 0 in {said.code for said in both}
    assert all("Traceback" not in said.err for said in both), both
    rest = await convoy_dlq(run, "redrive", "--execute")
    assert rest.code == 0
    assert len(await redriven(run)) == 400


async def test_who_was_fenced_sends_nothing_more_and_says_so(trial: MakeTrial) -> None:
    run = await trial(partitions=2)
    await failed(run, NOT_FOUND, list(chat(4, 5)))
    aim = Aim(topic=None, parking_topic=None, cap=3)
    letters, _ = await read_dead_letters(run.kafka)
    first = Redriver(run.kafka, aim)
    with pytest.raises(KafkaError):  # noqa: PT012 - all of it is the first one's life
        async with first:
            sending = first.send(letters, chunk_size=1)
            sent = [await anext(sending) for _ in range(3)]
            async with Redriver(run.kafka, aim) as second:
                letters, marks = await read_dead_letters(run.kafka)
                left = [letter for letter in letters if letter.origin not in marks]
                assert len(left) == len(letters) - len(sent)
                sent += [one async for one in second.send(left)]
            await anext(sending)
    assert len(sent) == len(await redriven(run)) == 20


async def test_what_is_sent_again_is_what_came_whatever_the_letters_look_like(trial: MakeTrial) -> None:
    run = await trial(partitions=3)
    body = json.dumps({"conversation_id": "conv_000", "role": "user", "content": "hello"}).encode()
    large = json.dumps({"conversation_id": "conv_000", "role": "user", "content": "x" * 50_000}).encode()
    records = [
        Record(b"conv_000", body, HEADERS, partition=2),
        Record(None, body, partition=1),
        Record(b"\xff\xfe", body, [("dlq.redrives", b"1")], partition=0),
        Record(b"conv_000", large, HEADERS, partition=2),
    ]
    await run.configure(run.topics.dead_letters, max_message_bytes="10000")
    await failed(run, NOT_FOUND, records, DEAD_LETTER__HEADER_STYLE="spring")
    await play(run)
    done = await convoy_dlq(run, "redrive", "--execute")
    assert (done.code, done.out) == (0, "4 sent, 0 left\n"), done.err
    records_now = await run.records(run.topics.events)
    originals = [record for record in records_now if record.offset < run.ends[record.partition]]
    places = {(record.partition, record.key, record.value): record for record in originals}
    sent = [record for record in records_now if record.offset >= run.ends[record.partition]]
    assert len(sent) == 4
    for record in sent:
        original = places[record.partition, record.key, record.value]
        before = [(name, value) for name, value in original.headers if name != "dlq.redrives"]
        told = int(dict(original.headers).get("dlq.redrives") or b"0")
        assert list(record.headers) == [*before, ("dlq.redrives", str(told + 1).encode())]


async def test_an_event_is_sent_again_so_often_and_then_parked(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    parking = f"{run.topics.prefix}.parking"
    await create_topics(run.bootstrap_servers, {parking: 2})
    await failed(run, NOT_FOUND, list(chat(2, 1)))
    async with run.process() as service:
        await service.ready()
        for _ in range(2):
            assert (await convoy_dlq(run, "redrive", "--execute", "--max-redrives", "2")).out == "2 sent, 0 left\n"
            await settled(run)
        assert await service.stop() == 0
    assert {letter["redrives"] for letter in await listed(run)} == {2}
    cap = ("redrive", "--max-redrives", "2")
    left = await convoy_dlq(run, *cap, "--execute")
    assert left.out == "0 sent, 2 left\n"
    assert "redriven too often" in left.err
    assert "redriven too often" in (await convoy_dlq(run, *cap)).out
    missing = await convoy_dlq(run, *cap, "--execute", "--parking-topic", f"{run.topics.prefix}.nowhere")
    assert (missing.code, "does not exist" in missing.err) == (1, True)
    assert f"→ {parking}" in (await convoy_dlq(run, *cap, "--parking-topic", parking)).out
    assert (await convoy_dlq(run, *cap, "--execute", "--parking-topic", parking)).out == "2 sent, 0 left\n"
    parked = await run.records(parking)
    assert sorted(record.key or b"" for record in parked) == [b"conv_000", b"conv_001"]
    assert {dict(record.headers)["dlq.redrives"] for record in parked} == {b"2"}
    assert {letter["mark"] for letter in await listed(run, "--redriven") if letter["redrives"] == 2} == {"parked"}
    assert await listed(run) == []


async def test_another_topic_keeps_conversations_together_and_a_rate_is_kept(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    other = f"{run.topics.prefix}.other"
    await create_topics(run.bootstrap_servers, {other: 4})
    keyless = [Record(None, record.value) for record in chat(5, 4)]
    await failed(run, NOT_FOUND, keyless)
    clock = asyncio.get_running_loop().time
    started = clock()
    done = await convoy_dlq(run, "redrive", "--execute", "--topic", other, "--rate", "20")
    assert (done.code, done.out) == (0, "20 sent, 0 left\n"), done.err
    assert clock() - started >= 19 / 20
    lanes: dict[str, set[int]] = {}
    texts: dict[str, list[str]] = {}
    for record in await run.records(other):
        event = json.loads(record.value or b"")
        lanes.setdefault(event["conversation_id"], set()).add(record.partition)
        texts.setdefault(event["conversation_id"], []).append(event["event_id"])
    assert all(len(lane) == 1 for lane in lanes.values())
    assert all(ids == sorted(ids) for ids in texts.values())
    assert await redriven(run) == []


async def test_letters_are_chosen_by_what_is_known_of_them_and_shown_whole(trial: MakeTrial) -> None:
    run = await trial(partitions=1)
    tricky = "[/b] \x1b[31m\ud7ff"
    records = [
        *chat(2, 2),
        Record(b"conv_009", b"no event \xff", HEADERS),
        Record(b"k", json.dumps({"conversation_id": "conv_[/x]", "event_id": tricky, "item": {
            "role": "user", "content": "says 2"}}).encode()),
    ]  # fmt: skip
    await failed(run, MODERATED, records)
    await failed(run, NOT_FOUND, list(chat(1, 1, first=7)))
    everything = await listed(run)
    assert len(everything) == 3

    async def events(*arguments: str) -> list[str]:
        return [letter["reason"] for letter in await listed(run, *arguments)]

    assert await events("--reason", "rejected") == ["rejected"]
    assert await events("--conversation", "conv_000") == ["conversation_not_found"]
    assert await events("--text", "DATAINSPECTION") == ["rejected"]
    assert await events("--text", "UTF-8") == await events("--reason", "invalid_event") == ["invalid_event"]
    moment = everything[-1]["failed_at"]
    assert everything[-1]["reason"] == "conversation_not_found"
    assert await events("--since", moment) == ["conversation_not_found"]
    assert len(await events("--until", moment)) == 2
    assert len(await events("--since", "2020-01-01")) == 3
    assert await events("--until", "2020-01-01T00:00:00+02:00") == []
    assert (await convoy_dlq(run, "list", "--since", "yesterday")).code == 2

    table = await convoy_dlq(run, "list")
    reasons = "1 conversation_not_found, 1 invalid_event, 1 rejected"
    *_, last = table.out.splitlines()
    assert (table.code, ", ".join(sorted(last.removeprefix("3 dead letters: ").split(", ")))) == (0, reasons)
    short = (await convoy_dlq(run, "list", "--limit", "2")).out.splitlines()
    # The widths of the columns apart.
    assert [row.split() for row in short[:3]] == [row.split() for row in table.out.splitlines()[:3]]
    assert short[3].startswith("3 dead letters, the first 2 shown")
    assert "conv_[/x]" in table.out
    assert "\x1b[31m" not in table.out
    (rejected,) = await listed(run, "--reason", "rejected")
    assert rejected["event_id"] == tricky
    shown = await convoy_dlq(run, "show", rejected["place"])
    assert shown.code == 0
    assert '"content": "says 2"' in shown.out
    assert "dlq.error.code" in shown.out
    assert "\x1b" not in shown.out
    (invalid,) = await listed(run, "--reason", "invalid_event")
    raw = await convoy_dlq(run, "show", invalid["place"])
    assert b"no event \xff".hex() in raw.out
    assert (await convoy_dlq(run, "show", "7-7")).code == 1
    assert (await convoy_dlq(run, "redrive", rejected["place"])).out.splitlines()[-1].startswith("1 would be sent")


async def _some_sent(run: Trial, command: ServiceProcess, count: int) -> None:
    async def enough() -> bool:
        assert command.process.poll() is None, command.log()
        return len(await redriven(run)) >= count

    await until(f"{count} sent", enough)


async def _transaction_open(run: Trial, command: ServiceProcess) -> bool:
    """Wait until records lie behind the last stable offset; false when the command was quicker."""
    places = [TopicPartition(run.topics.events, number) for number in range(run.topics.partitions)]
    readers = [
        AIOKafkaConsumer(bootstrap_servers=run.bootstrap_servers, isolation_level=level)
        for level in ("read_uncommitted", "read_committed")
    ]
    for reader in readers:
        await reader.start()
    try:
        while command.process.poll() is None:
            written, stable = [await reader.end_offsets(places) for reader in readers]
            if any(written[place] > stable[place] for place in places):
                return True
        return False
    finally:
        for reader in readers:
            await reader.stop()
