"""`convoy check`: what is wrong is named, whatever it is, and what is right is not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import pytest_asyncio
from kafka_server import create_topics
from service_process import API_KEY, ServiceProcess, until

from service.commands.check import check
from service.emulator.faults import Effect, FaultScript, Html, Rule, Status, Unpaid
from service.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import MakeTopics, Topics
    from kafka_server import KafkaServer

WRONG = "✗"
WARNS = "!"


@dataclass(frozen=True, slots=True)
class Said:
    """What one run said, and its exit code."""

    code: int
    lines: list[str]

    def of(self, mark: str) -> list[str]:
        return [line for line in self.lines if line.startswith(mark)]


@dataclass(slots=True)
class Place:
    """Where all is as it should be: topics, brokers, an API."""

    topics: Topics
    settings: dict[str, str]

    def environment(self, **settings: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVOY_", "DASHSCOPE_"))}
        return kept | {f"CONVOY_{name}": value for name, value in (self.settings | settings).items()}

    async def check(self, round_trip: str = "", /, **settings: str) -> Said:
        """Check in this process, with these settings alone in the environment."""
        with mock.patch.dict(os.environ, self.environment(**settings), clear=True):
            written = io.StringIO()
            with contextlib.redirect_stdout(written):
                code = await asyncio.to_thread(check, as_json=False, round_trip_topic=round_trip)
        assert API_KEY not in written.getvalue()
        return Said(code, written.getvalue().splitlines())

    async def command(self, *arguments: str, **settings: str) -> Said:
        """The same by the command."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(Path(sys.executable).with_name("convoy")), "check", *arguments],
            env=self.environment(**settings) | {"PYTHONWARNINGS": "error::ResourceWarning"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stderr == ""
        assert API_KEY not in done.stdout
        return Said(done.returncode, done.stdout.splitlines())


@pytest_asyncio.fixture
async def place(kafka: KafkaServer, topics: MakeTopics) -> AsyncIterator[Place]:
    made = await topics(2)
    async with EmulatorServer(key=API_KEY) as api:
        yield Place(
            made,
            {
                "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "KAFKA__GROUP_ID": made.group,
                "KAFKA__EVENTS_TOPIC": made.events,
                "KAFKA__REPLY_TOPIC": made.replies,
                "KAFKA__DEAD_LETTER_TOPIC": made.dead_letters,
                "KAFKA__LEDGER_TOPIC": made.ledger,
                "API__BASE_URL": api.base_url,
                "API__KEY": API_KEY,
            },
        )


async def test_where_all_is_well_nothing_is_wrong(place: Place) -> None:
    said = await place.command("--round-trip", place.topics.events)
    assert said.code == 0
    assert said.of(WRONG) == []
    # One broker keeps one copy: that is told, and is no reason not to start.
    assert len([line for line in said.of(WARNS) if "copies" in line]) == 4
    for words in ("✓ settings", "✓ broker", f"✓ topic: {place.topics.events}: 2 partitions", "✓ ledger", "✓ api"):
        assert any(line.startswith(words) for line in said.lines), words
    assert any(line.startswith(f"✓ round-trip: topic {place.topics.events}") for line in said.lines)


async def test_as_json_it_says_the_same(place: Place) -> None:
    said = await place.command("--json", API__KEY="sk-wrong")
    value = json.loads("\n".join(said.lines))
    assert (said.code, value["ok"]) == (1, False)
    (wrong,) = [finding for finding in value["findings"] if finding["state"] == "failed"]
    assert wrong["check"] == "api"
    assert "the key is refused" in wrong["message"]
    assert wrong["advice"]


SEEDED: list[tuple[dict[str, str], str, str]] = [
    ({"KAFKA__BOOTSTRAP_SERVERS": "nobody.invalid:9092"}, "broker.dns", "nobody knows the name nobody.invalid"),
    ({"KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "broker.tcp", "nothing listens there"),
    ({"KAFKA__SECURITY_PROTOCOL": "SSL"}, "broker.tls", "breaks the TLS handshake off"),
    (
        {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_USERNAME": "a", "KAFKA__SASL_PASSWORD": "b"},
        "broker.sasl",
        "wants no SASL",
    ),
    ({"KAFKA__EVENTS_TOPIC": "no.such.topic"}, "topic", "no.such.topic does not exist"),
    ({"KAFKA__REPLY_TOPIC": "no.such.replies"}, "topic", "no.such.replies does not exist"),
    ({"API__KEY": "sk-of-yesterday"}, "api", "the key is refused (401"),
    ({"API__BASE_URL": "http://127.0.0.1:1/v1"}, "api", "no answer (connect_error"),
]


@pytest.mark.parametrize(("settings", "name", "words"), SEEDED, ids=[words for _, _, words in SEEDED])
async def test_a_mistake_is_named_and_nothing_else_is(
    place: Place, settings: dict[str, str], name: str, words: str
) -> None:
    said = await place.check(**settings)
    assert said.code == 1
    (wrong,) = said.of(WRONG)
    assert wrong.startswith(f"{WRONG} {name}: ")
    assert words in wrong
    assert " → " in wrong, "it says what to do"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BATCH__MAX_ITEMS": "21"}, "CONVOY_BATCH__MAX_ITEMS: Input should be less than or equal to 20"),
        ({"BATCH__MAX_ITMES": "2"}, "did you mean CONVOY_BATCH__MAX_ITEMS?"),
        ({"API__KEY": ""}, "CONVOY_API__KEY: no key"),
        ({"KAFKA__SSL_CA_FILE": "/nowhere", "KAFKA__SECURITY_PROTOCOL": "SSL"}, "KAFKA__SSL_CA_FILE cannot be read"),
    ],
)
async def test_settings_that_cannot_be_used_end_it_with_a_code_of_their_own(
    place: Place, settings: dict[str, str], words: str
) -> None:
    said = await place.check(**settings)
    assert said.code == 2
    (line,) = said.lines
    assert line.startswith(f"{WRONG} settings: ")
    assert words in line


async def test_an_address_where_the_api_is_not_is_told_from_a_key_it_refuses(place: Place) -> None:
    said = await place.check(API__BASE_URL=place.settings["API__BASE_URL"].replace("/v1", "/v2"))
    (wrong,) = said.of(WRONG)
    assert "there is no such API there" in wrong
    assert "check the path in CONVOY_API__BASE_URL" in wrong


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime", "retention.ms": "-1"},
            "cleanup.policy",
        ),
        ({"message.timestamp.type": "CreateTime", "retention.ms": "-1"}, "message.timestamp.type is CreateTime"),
        ({"message.timestamp.type": "LogAppendTime", "retention.ms": "604800000"}, "retention.ms is 604800000"),
        (
            {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1", "retention.bytes": "1000000"},
            "retention.bytes is 1000000",
        ),
    ],
)
async def test_a_ledger_that_forgets_or_has_no_clock_is_refused(
    place: Place, kafka: KafkaServer, config: dict[str, str], words: str
) -> None:
    name = f"{place.topics.prefix}.other"
    await create_topics(kafka.bootstrap_servers, {name: 2}, {name: config})
    said = await place.check(KAFKA__LEDGER_TOPIC=name)
    (wrong,) = said.of(WRONG)
    assert wrong.startswith(f"{WRONG} ledger: {name}: {words}")


async def test_a_ledger_without_a_twin_for_each_partition_is_refused(place: Place, kafka: KafkaServer) -> None:
    name = f"{place.topics.prefix}.other"
    config = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    await create_topics(kafka.bootstrap_servers, {name: 3}, {name: config})
    said = await place.check(KAFKA__LEDGER_TOPIC=name)
    (wrong,) = said.of(WRONG)
    assert f"{name} has 3 partitions, {place.topics.events} has 2" in wrong


async def test_a_topic_that_no_write_can_satisfy_is_refused_and_compaction_is_told(
    place: Place, kafka: KafkaServer
) -> None:
    replies, events = f"{place.topics.prefix}.other-replies", f"{place.topics.prefix}.other-events"
    config = {replies: {"min.insync.replicas": "2"}, events: {"cleanup.policy": "compact"}}
    await create_topics(kafka.bootstrap_servers, {replies: 2, events: 2}, config)
    said = await place.check(KAFKA__REPLY_TOPIC=replies, KAFKA__EVENTS_TOPIC=events)
    (wrong,) = said.of(WRONG)
    assert f"{replies}: min.insync.replicas is 2 with 1 copies" in wrong
    assert any(f"{events}: cleanup.policy is compact" in line for line in said.of(WARNS))


async def test_a_round_trip_to_where_there_is_no_way_is_told(place: Place) -> None:
    said = await place.check("no.such.topic")
    (wrong,) = said.of(WRONG)
    assert wrong.startswith(f"{WRONG} round-trip: topic no.such.topic: it does not exist")


async def test_what_is_not_safe_is_told_and_does_not_fail(place: Place) -> None:
    said = await place.check(KAFKA__LEDGER_ACCEPT_GAP="2026-01-01T00:00:00Z")
    assert said.code == 0
    assert any("CONVOY_KAFKA__LEDGER_ACCEPT_GAP" in line for line in said.of(WARNS))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Unpaid(), "refuses to work for this account"),
        (Status(status=503), "unexpected answer (503"),
        (Status(status=302, headers={"location": "http://127.0.0.1:1/"}), "redirects (302"),
        (Status(status=403), "the key may not do this (403"),
        (Html(), "unexpected answer (200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_the_api_says_instead_is_told(place: Place, fault: Effect, words: str) -> None:
    async with EmulatorServer(key=API_KEY, faults=FaultScript(rules=(Rule(fault),))) as api:
        said = await place.check(API__BASE_URL=api.base_url)
    (wrong,) = said.of(WRONG)
    assert words in wrong


async def test_a_start_tells_what_is_not_safe_too(tmp_path: Path) -> None:
    settings = {"KAFKA__BOOTSTRAP_SERVERS": "nobody.invalid:9092", "API__KEY": API_KEY}
    async with ServiceProcess(settings, tmp_path) as service:
        await until("its HTTP", service.answers)
        await until("a word of the broker", lambda: "nobody knows the name" in service.log())
        assert await service.stop() == 0
    (told,) = [line for line in service.lines() if line["message"] == "allowed, and not safe"]
    assert told["level"] == "warning"
    assert told["what"].startswith("CONVOY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT: messages can be read")
