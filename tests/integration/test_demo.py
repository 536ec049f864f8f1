"""`convoy demo` as a user runs it: with the embedded broker, against a given Kafka, interrupted, and found out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from jsonschema import Draft202012Validator
from service_process import until

from service.app import make
from service.commands.demo import Options, run_demo
from service.commands.demo_traffic import Arrival, traffic
from service.emulator.faults import FaultScript, Match, Rule, Status
from service.kafka.reading import read_topic
from service.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka import ConsumerRecord
    from faststream import FastStream
    from kafka_server import KafkaServer

    from service.app import Service
    from service.core.model import Answer
    from service.settings import Settings

CONVOY = str(Path(sys.executable).with_name("convoy"))
PATIENCE_SECONDS = 90
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SMALL = ("--events", "600", "--conversations", "60", "--rate", "600")
ENDLESS = ("--events", "8000", "--rate", "50")


@pytest.fixture(autouse=True)
def folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def demo(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A demo under way; it is killed when it takes longer than anybody would wait."""
    with subprocess.Popen(
        [CONVOY, "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        watchdog = threading.Timer(PATIENCE_SECONDS, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read what it prints up to a line that matches; returns all of it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"ended without {pattern!r}:\n{seen}")


def rows(out: str) -> dict[str, str]:
    """The summary: what stands in the second column."""
    return {
        label: value
        for label, value in re.findall(r"^(\w+(?: \w+)*?) {2,}([\d,.]+)", out, flags=re.MULTILINE)
        if label[0].isalpha()
    }


def assert_all_is_well(code: int, out: str, err: str, *, events: str = "600", replies: str = "599") -> None:
    assert (code, err) == (0, ""), out
    shown = rows(out)
    assert shown["events"] == events
    assert shown["replies"] == replies
    assert shown["dead letters"] == "1"
    assert (shown["lost"], shown["duplicated"], shown["out of order"]) == ("0", "0", "0")
    assert int(shown["batches"]) == int(shown["requests"])
    assert float(shown["mean batch"]) > 1
    assert out.splitlines()[-1] == "nothing lost, nothing doubled, nothing out of order"


def schema(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def fits_event(value: bytes | None) -> bool:
    """Whether it is JSON, and such as the schema of events asks for."""
    try:
        event = json.loads(value or b"")
    except ValueError:
        return False
    return bool(schema("event").is_valid(event))


async def topics_of_demos(kafka: KafkaServer) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        return {name for name in await admin.list_topics() if name.startswith("convoy-demo")}
    finally:
        await admin.close()


async def no_topics_but(before: set[str], kafka: KafkaServer) -> None:
    async def as_before() -> bool:
        return await topics_of_demos(kafka) == before

    await until("the demo's topics are deleted", as_before)


def test_the_demo_needs_nothing_but_pip_packages_and_no_settings(folder_of_logs: Path) -> None:
    with demo(*SMALL, CONVOY_BATCH__WINDOW_SECONDS="none", CONVOY_API__BASE_URL="http://127.0.0.1:1") as process:
        assert_all_is_well(*finish(process))
    assert list(folder_of_logs.iterdir()) == []


async def test_a_given_kafka_is_left_as_it_was(kafka: KafkaServer) -> None:
    before = await topics_of_demos(kafka)
    with demo(*SMALL, "--broker", kafka.bootstrap_servers) as process:
        read_until(process, r" read, ")
        assert len(await topics_of_demos(kafka) - before) == 3
        assert_all_is_well(*finish(process))
    await no_topics_but(before, kafka)


async def test_what_the_demo_wrote_fits_the_shipped_schemas(kafka: KafkaServer) -> None:
    with demo(*SMALL, "--broker", kafka.bootstrap_servers, "--keep") as process:
        (name,) = set(re.findall(r"topics (convoy-demo-\w+)\.\*", read_until(process, r"^Kafka  +")))
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)

        async def written(topic: str) -> list[ConsumerRecord[bytes, bytes]]:
            return [record async for records in read_topic(settings, f"{name}.{topic}") for record in records]

        events, replies, letters = await written("events"), await written("replies"), await written("dead-letters")
        process.send_signal(signal.SIGINT)
        assert finish(process)[0] == 0
    assert (len(replies), len(letters)) == (599, 1)
    for reply in replies:
        schema("reply").validate(json.loads(reply.value or b""))
    for letter in letters:
        told = {name: value.decode() for name, value in letter.headers if name.startswith("dlq.") and value is not None}
        schema("dead-letter-headers").validate(told)
    invalid = {letter.value for letter in letters}
    assert [event.value for event in events if not fits_event(event.value)] == [
        event.value for event in events if event.value is None or event.value in invalid
    ]


async def test_ctrl_c_drains_says_so_and_leaves_nothing_behind(kafka: KafkaServer) -> None:
    before = await topics_of_demos(kafka)
    with demo(*ENDLESS, "--broker", kafka.bootstrap_servers) as process:
        read_until(process, r" [1-9]\d* requests")
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert re.fullmatch(r"interrupted, and drained: \d+ of \d+ events published are delivered", out.splitlines()[-1])
    await no_topics_but(before, kafka)


@pytest.mark.parametrize("moment", ["Kafka at", "waiting for the consumer group"])
def test_ctrl_c_before_anything_came_through_ends_it_as_well(moment: str) -> None:
    with demo(*ENDLESS) as process:
        read_until(process, moment)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert out.splitlines()[-1].startswith("interrupted")


def test_a_demo_that_is_kept_shows_its_metrics_and_conversations_until_ctrl_c() -> None:
    with demo(*SMALL, "--keep") as process:
        out = read_until(process, r"^Kafka  +")
        addresses = dict(re.findall(r"^(metrics|conversations) +(http\S+)", out, flags=re.MULTILINE))
        metrics = httpx.get(addresses["metrics"], trust_env=False).text
        assert "convoy_delivered_items_total 599.0" in metrics
        dump = httpx.get(addresses["conversations"], trust_env=False).text
        items = [item for line in dump.splitlines() for item in msgspec.json.decode(line)["items"]]
        assert len(items) == 599
        process.send_signal(signal.SIGINT)
        code, rest, err = finish(process)
    assert (code, err) == (0, "")
    assert rest.splitlines()[-1] == "drained and ended"


def lonely(arrivals: list[Arrival]) -> Arrival:
    """An event that is the only one of its conversation, so that its batch is no larger."""
    return next(
        arrival
        for arrival in arrivals
        if arrival.text and sum(other.conversation == arrival.conversation for other in arrivals) == 1
    )


def test_an_api_that_says_stored_and_stores_nothing_is_found_out(
    capsys: pytest.CaptureFixture[str], folder_of_logs: Path
) -> None:
    options = Options(events=200, conversations=100, rate=400)
    victim = lonely(traffic(events=200, conversations=100, rate=400, seed=options.seed))
    item = {
        "id": "msg_never_stored",
        "type": "message",
        "role": victim.role,
        "content": [{"type": "input_text", "text": victim.text}],
        "status": "completed",
    }
    body = {"data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}
    lie = Rule(Status(status=200, body=msgspec.json.encode(body).decode()), Match(text=victim.text))

    assert run_demo(options, faults=FaultScript((lie,))) == 1

    out, err = capsys.readouterr()
    (log,) = folder_of_logs.glob("convoy-demo-*/convoy.log")
    assert err.splitlines()[-1] == f"  all of it: {log}"
    shown = rows(out)
    assert (shown["lost"], shown["duplicated"], shown["out of order"]) == ("1", "0", "0")
    assert out.splitlines()[-1] == "not as it should be: 1 lost, 1 wrong replies"
    assert "answered and not held" in out


def test_a_service_that_breaks_is_a_failure_with_its_log_at_hand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_fragile(settings: Settings) -> tuple[FastStream, Service]:
        app, service = make(settings)
        deliver = service.conversations.create_items

        async def break_and_deliver(*arguments: Any, **options: Any) -> Answer:
            service.fail(RuntimeError("a bug in the loop"))
            return await deliver(*arguments, **options)

        monkeypatch.setattr(service.conversations, "create_items", break_and_deliver)
        return app, service

    monkeypatch.setattr("service.commands.demo.make", make_fragile)
    assert run_demo(Options(events=200)) == 1
    err = capsys.readouterr().err
    assert err.startswith("convoy demo: the service broke: RuntimeError('a bug in the loop')\n")
    assert "critical stopping: the loop broke" in err


def test_a_broker_that_is_not_there_is_named_in_one_line() -> None:
    with demo("--broker", "127.0.0.1:1") as process:
        code, out, err = finish(process)
    assert (code, out) == (1, "")
    assert err.splitlines()[0].startswith("convoy demo: ")
    assert "127.0.0.1" in err.splitlines()[0]
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_named_in_one_line() -> None:
    with demo(*ENDLESS) as first:
        out = read_until(first, r"Kafka at")
        taken = re.search(r"API at 127\.0\.0\.1:(\d+)", out)
        assert taken is not None
        with demo(*SMALL, "--ops-port", taken[1]) as second:
            code, _, err = finish(second)
        first.send_signal(signal.SIGINT)
        assert finish(first)[0] == 130
    assert code == 1
    assert "address already in use" in err
    assert "Traceback" not in err
