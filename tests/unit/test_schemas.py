"""The schemas are what the code does, are shipped, and hang together."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from service.commands.asyncapi import document, write_schemas
from service.core.delivery import Delivered
from service.core.model import Dead, Event, Reason
from service.kafka.codec import MAX_ID_BYTES, OutgoingRecord, decode, failed_reply, make_lean, replies
from service.kafka.dead_letters import dead_letter_headers
from service.schemas import json_schemas
from service.settings import KafkaSettings

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "docs" / "schemas"
NAMES = ("event", "reply", "dead-letter-headers")

TEXT = st.text(max_size=6) | st.sampled_from(["", ".", "..", "a\nb", "x\x85", "x" * 256, "x" * 257, "é" * 200, "hello"])
ODD: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just([]) | st.just({})
PART = st.dictionaries(st.sampled_from(["type", "text"]), TEXT | ODD, max_size=2)
CONTENT = TEXT | st.lists(PART, max_size=2) | ODD
ROLE = st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | ODD
TYPE = st.sampled_from(["message", "reasoning"]) | st.none()


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


ITEM = some(role=ROLE, content=CONTENT, type=TYPE, extra=ODD)
EVENTS = some(
    conversation_id=TEXT | ODD, item=ITEM | ODD, role=ROLE, content=CONTENT, type=TYPE, event_id=TEXT | ODD,
    occurred_at=TEXT | ODD, more=ODD,
)  # fmt: skip
GOOD = {"role": "user", "content": "hello"}


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SHIPPED / f"{name}.schema.json").read_text()))


def record(value: bytes) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("events", 0, 5, 0, 0, b"conv_k", value, None, 0, 0, [])


def test_the_shipped_schemas_are_what_the_code_says(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    assert {file.name for file in SHIPPED.iterdir()} == {f"{name}.schema.json" for name in NAMES}
    for file in SHIPPED.iterdir():
        assert file.read_text() == (tmp_path / file.name).read_text(), "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(json_schemas()[name])


def test_the_wheel_holds_them(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/share/convoy/schemas/" in name}
    assert shipped == {f"{name}.schema.json" for name in NAMES}


@given(EVENTS)
@example({"item": None, **GOOD})
@example({"item": "hello", **GOOD})
@example({"item": GOOD, "role": "tool", "content": 5, "type": "reasoning"})
@example({"conversation_id": "conv\n", **GOOD})
@example({"event_id": 10**400, **GOOD})
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=500)
def test_the_schema_and_the_decoder_agree_on_what_is_an_event(event: dict[str, Any]) -> None:
    value = json.dumps(event)
    # JSON has no NaN; and to a schema 1.0 is an integer, as its description denies.
    if "NaN" in value or "Infinity" in value or isinstance(event.get("event_id"), float):
        return
    fits = validator("event").is_valid(event)
    decoded = decode(record(value.encode()))
    conversation_id = event.get("conversation_id")
    if isinstance(conversation_id, str) and len(conversation_id) <= MAX_ID_BYTES < len(conversation_id.encode()):
        # A schema counts characters.
        fits = False
    assert isinstance(decoded, Event) == fits, decoded


def test_replies_fit_their_schema_whole_lean_and_failed() -> None:
    check = validator("reply")
    event = decode(record(json.dumps(GOOD | {"event_id": "e", "occurred_at": "2026-01-01T00:00:00Z"}).encode()))
    assert isinstance(event, Event)
    items = [b'{"id":"msg_1","type":"message","role":"user","content":[]}']
    ((value, headers),) = replies(Delivered([event], items, 3, 2, 1, read_back=False), "events", 0)
    check.validate(json.loads(value))
    reply = OutgoingRecord(b"k", value, headers)
    make_lean(reply)
    check.validate(json.loads(reply.value or b""))
    for reason in Reason:
        check.validate(json.loads(failed_reply(event, Dead(reason, "code", "m" * 9000), "events", 0)))


@pytest.mark.parametrize("style", ["convoy", "connect", "spring"])
def test_the_headers_of_dead_letters_fit_their_schema(style: str) -> None:
    for reason in Reason:
        headers = dead_letter_headers(
            record(b""), Dead(reason, "code", "m" * 9000, status=400), group="g", wall_clock=0, style=style
        )
        told = {name: value.decode() for name, value in headers if name.startswith("dlq.") and value is not None}
        validator("dead-letter-headers").validate(told)


def test_the_asyncapi_document_names_the_topics_and_its_references_lead_somewhere() -> None:
    kafka = KafkaSettings(events_topic="in", reply_topic="out", dead_letter_topic="dead")
    whole = json.loads(document(kafka))
    assert whole["asyncapi"].startswith("3.")
    assert {channel["address"] for channel in whole["channels"].values()} == {"in", "out", "dead"}
    assert set(whole["components"]["messages"]) == {"event", "reply", "deadLetter"}
    references = list(_references(whole))
    assert len(references) > 15
    for reference in references:
        place = whole
        assert reference.startswith("#/")
        for step in reference[2:].split("/"):
            place = place[step]


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _references(inner)
