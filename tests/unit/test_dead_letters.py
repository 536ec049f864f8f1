"""A dead letter: the record as it came, and what happened in headers that people and tools read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from aiokafka import ConsumerRecord

from service.core.model import Dead, Reason
from service.kafka.codec import OutgoingRecord
from service.kafka.dead_letters import dead_letter_headers, make_lean

if TYPE_CHECKING:
    from service.kafka.codec import Headers

ORIGINAL: Headers = [("kafka_correlationId", b"\x00\xff"), ("nothing", None), ("twice", b"1"), ("twice", b"2")]
DEAD = Dead(Reason.REJECTED, "DataInspectionFailed", "no", status=400, attempts=3)


def letter_headers(headers: Headers, dead: Dead = DEAD, style: str = "convoy") -> Headers:
    record = ConsumerRecord("events", 3, 7, 1_700_000_000_123, 0, b"conv_1", b"value", None, 0, 0, headers)
    return dead_letter_headers(record, dead, group="convoy", wall_clock=1_700_000_001.5, style=style)


def test_what_happened_stands_behind_the_headers_the_event_came_with() -> None:
    headers = letter_headers(ORIGINAL)
    assert headers[:4] == ORIGINAL
    assert dict(headers[4:]) == {
        "dlq.reason": b"rejected",
        "dlq.error.code": b"DataInspectionFailed",
        "dlq.error.message": b"no",
        "dlq.http.status": b"400",
        "dlq.attempts": b"3",
        "dlq.fate": b"not_stored",
        "dlq.original.topic": b"events",
        "dlq.original.partition": b"3",
        "dlq.original.offset": b"7",
        "dlq.original.timestamp": b"1700000000123",
        "dlq.consumer.group": b"convoy",
        "dlq.failed_at": b"2023-11-14T22:13:21.500Z",
        "dlq.redrives": b"0",
    }


@pytest.mark.parametrize(
    ("told", "counted"),
    [(b"2", b"2"), (b"007", b"7"), (b"", b"0"), (None, b"0"), (b"\xff", b"0"), (b"-1", b"0"), (b"9" * 5000, b"0")],
)
def test_redrives_are_counted_on_and_nonsense_counts_as_none(told: bytes | None, counted: bytes) -> None:
    headers = letter_headers([("dlq.reason", b"of another life"), ("dlq.redrives", told)])
    assert [value for name, value in headers if name == "dlq.redrives"] == [counted]
    assert [value for name, value in headers if name == "dlq.reason"] == [b"rejected"]


def test_what_others_say_is_cut_to_size_and_never_fails_to_be_written() -> None:
    told = dict(letter_headers([], Dead(Reason.REJECTED, "c" * 9000, "\ud800" + "ü" * 9000)))
    assert len((told["dlq.error.message"] or b"").decode()) == 500
    assert len(told["dlq.error.code"] or b"") == 200


@pytest.mark.parametrize("style", ["convoy", "connect", "spring"])
def test_a_letter_too_large_loses_its_value_first_and_key_and_headers_after(style: str) -> None:
    headers = letter_headers([*ORIGINAL, ("large", b"x" * 100_000)], style=style)
    ours = headers[5:]
    letter = OutgoingRecord(b"k" * 1000, b"v" * 5000, headers)
    assert make_lean(letter)
    assert (letter.key, letter.value, letter.headers[:-1]) == (b"k" * 1000, None, headers)
    assert json.loads(dict(letter.headers)["dlq.value.omitted"] or b"")["bytes"] == 5000
    assert make_lean(letter)
    assert (letter.key, letter.value, letter.headers[:-1]) == (None, None, ours)
    note = json.loads(dict(letter.headers)["dlq.value.omitted"] or b"")
    assert (note["bytes"], note["key_bytes"], note["headers"]) == (5000, 1000, 5)
    assert not make_lean(letter)
