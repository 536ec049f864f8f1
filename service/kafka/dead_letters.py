"""The headers of a dead letter: what happened, in our words and, at will, in those that existing tools read.

The original key, value and headers are kept as they came; this adds to them. Styles: ``connect`` adds Kafka
Connect's ``__connect.errors.*`` (all text), ``spring`` adds Spring Kafka's ``kafka_dlt-*`` (integers as big-endian
bytes), as their dead-letter tools expect them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from service.ops.times import timestamp

if TYPE_CHECKING:
    from service.core.model import Dead
    from service.kafka.codec import Headers, OutgoingRecord, Record

PREFIX = "dlq."
REDRIVES_HEADER = "dlq.redrives"
OMITTED_HEADER = "dlq.value.omitted"
MAX_MESSAGE_CHARACTERS = 500
MAX_CODE_CHARACTERS = 200
MAX_REDRIVES_DIGITS = 6
TIMESTAMP_TYPES = {0: "CreateTime", 1: "LogAppendTime"}


def dead_letter_headers(record: Record, dead: Dead, *, group: str, wall_clock: float, style: str) -> Headers:
    """The original headers untouched, plus ``dlq.*`` ones that say what happened, plus those of the style."""
    message = dead.message[:MAX_MESSAGE_CHARACTERS]
    told: list[tuple[str, str]] = [
        ("dlq.reason", dead.reason.value),
        ("dlq.error.code", dead.code[:MAX_CODE_CHARACTERS]),
        ("dlq.error.message", message),
        ("dlq.attempts", str(dead.attempts)),
        ("dlq.fate", dead.fate),
        ("dlq.original.topic", record.topic),
        ("dlq.original.partition", str(record.partition)),
        ("dlq.original.offset", str(record.offset)),
        ("dlq.original.timestamp", str(record.timestamp)),
        ("dlq.consumer.group", group),
        ("dlq.failed_at", timestamp(wall_clock)),
    ]
    if dead.status is not None:
        told.append(("dlq.http.status", str(dead.status)))
    original = [(name, value) for name, value in record.headers if not name.startswith(PREFIX)]
    headers: Headers = [
        *original,
        *((name, value.encode("utf-8", "replace")) for name, value in told),
        (REDRIVES_HEADER, b"%d" % _redrives(record)),
    ]
    if style == "connect":
        headers += _connect(record, dead, message)
    elif style == "spring":
        headers += _spring(record, dead, message, group)
    return headers


def make_lean(letter: OutgoingRecord) -> bool:
    """Leave out of a dead letter that a broker finds too large its value, then its key and the headers it came with.

    A header says what is left out, and where the original lies. False: there is nothing more to leave out.
    """
    note: dict[str, int | str] = {"see": "dlq.original.topic, .partition, .offset"}
    ours = next(index for index, (name, _) in enumerate(letter.headers) if name.startswith(PREFIX))
    if letter.value is not None:
        note["bytes"] = len(letter.value)
        letter.value = None
    elif letter.key is not None or ours:
        told = dict(letter.headers)[OMITTED_HEADER]
        note |= {**json.loads(told or b"{}"), "key_bytes": len(letter.key or b""), "headers": ours}
        letter.key = None
        letter.headers = [(name, value) for name, value in letter.headers[ours:] if name != OMITTED_HEADER]
    else:
        return False
    letter.headers = [*letter.headers, (OMITTED_HEADER, json.dumps(note).encode())]
    return True


def _redrives(record: Record) -> int:
    """How often an event was sent again, as its header says; a header that says anything else says nothing."""
    told = [value or b"" for name, value in record.headers if name == REDRIVES_HEADER]
    return int(told[-1]) if told and told[-1].isdigit() and len(told[-1]) <= MAX_REDRIVES_DIGITS else 0


def _connect(record: Record, dead: Dead, message: str) -> Headers:
    told = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "connector.name": "convoy",
        "task.id": "0",
        "stage": "VALUE_CONVERTER" if dead.reason.value == "invalid_event" else "TASK_PUT",
        "class.name": "convoy",
        "exception.class.name": dead.reason.value,
        "exception.message": message,
        "exception.stacktrace": f"{dead.reason.value}: {dead.code}: {message}",
    }
    return [(f"__connect.errors.{name}", value.encode("utf-8", "replace")) for name, value in told.items()]


def _spring(record: Record, dead: Dead, message: str, group: str) -> Headers:
    told: dict[str, bytes] = {
        "original-topic": record.topic.encode(),
        "original-partition": record.partition.to_bytes(4, "big", signed=True),
        "original-offset": record.offset.to_bytes(8, "big", signed=True),
        "original-timestamp": record.timestamp.to_bytes(8, "big", signed=True),
        "original-timestamp-type": TIMESTAMP_TYPES.get(record.timestamp_type, "NoTimestampType").encode(),
        "original-consumer-group": group.encode(),
        "exception-fqcn": dead.reason.value.encode(),
        "exception-message": message.encode("utf-8", "replace"),
        "exception-stacktrace": f"{dead.reason.value}: {dead.code}: {message}".encode("utf-8", "replace"),
    }
    return [(f"kafka_dlt-{name}", value) for name, value in told.items()]
