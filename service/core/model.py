"""The nouns of delivery: what the core passes around, and nothing about how bytes travel.

An event's life, and the tree of outcomes it may end in::

    record ─ codec ─┬─ Event ─ lane ─ batch ─ attempt ─┬─ delivered
                    │                                  └─ dead letter ─┬─ rejected
                    │                                                  ├─ conversation_not_found
                    ├─ Refusal ── dead letter: invalid_event           ├─ forbidden
                    └─ tombstone ─ (skipped, counted)                  ├─ too_large
                                                                       ├─ exhausted
                                                                       └─ internal_error

Events and batches are made per record and per request, so they are slotted and not frozen:
a frozen dataclass sets each field through ``object.__setattr__``, three times the cost.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Raw
    from typing_extensions import Buffer

    from service.core.grouper import Lane
    from service.core.verdict import Verdict


class Reason(enum.StrEnum):
    """Why an event became a dead letter; the value of the ``dlq.reason`` header."""

    INVALID_EVENT = "invalid_event"
    REJECTED = "rejected"
    CONVERSATION_NOT_FOUND = "conversation_not_found"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too_large"
    EXHAUSTED = "exhausted"
    INTERNAL_ERROR = "internal_error"


class FlushReason(enum.StrEnum):
    """What made a batch due."""

    SIZE = "size"
    BYTES = "bytes"
    WINDOW = "window"
    RESUMED = "resumed"
    """Not cut here: an attempt that an earlier owner of the partition left open."""


@dataclass(slots=True)
class Event:
    """One decoded record: one item for one conversation.

    ``item`` is the JSON object to be stored, ready to send: where it came as one, a view of ``value``. ``size`` is
    what the event holds of the buffer, in bytes; ``read_at`` when this process read it (monotonic seconds);
    ``digest`` what tells its record from another at the same offset, made only while an earlier owner's work is sought.

    ``topic`` to ``headers`` are the rest of the record: the core never looks inside, a dead letter needs it whole. It
    is kept in parts, because fifty thousand of aiokafka's record objects take more memory than all else here.
    """

    partition: int
    offset: int
    conversation_id: str
    event_id: str
    item: bytes | Raw
    size: int
    topic: str = ""
    timestamp: int = 0
    timestamp_type: int = 0
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    occurred_at: str | None = None
    read_at: float = 0.0
    digest: str = ""


def item_bytes(events: Sequence[Event]) -> int:
    """What the items of these events take in a request, each with its comma."""
    return sum(len(event.item) + 1 for event in events)


@dataclass(slots=True, frozen=True)
class Refusal:
    """A record that fails the checks of the input contract: dead-lettered with its raw bytes."""

    partition: int
    offset: int
    message: str
    source: Any


@dataclass(slots=True, frozen=True)
class Dead:
    """Why one event is given up: the content of its dead letter's headers."""

    reason: Reason
    code: str = ""
    message: str = ""
    status: int | None = None
    attempts: int = 0
    fate: str = "not_stored"


@dataclass(slots=True)
class Unsettled:
    """An attempt of unknown fate: what a read-back needs to settle it.

    ``started_at`` is the clock when the attempt began, ``after`` the cursor it was sent behind
    (``None``: unknown, ``""``: the conversation is known to be empty). ``last_word`` is true when
    the API itself answered with an error of its own form: it has finished with the request, so an
    absent item is absent for good and need not be waited for. ``refused`` is set when the attempt was
    refused as a whole: the read-back finds out whether a prefix was stored before the rest is split.
    """

    started_at: float
    after: str | None
    last_word: bool
    refused: Verdict | None = None
    reads: int = 0
    """Read-backs in a row that failed."""
    looks: int = 0
    """Read-backs that worked and came too early to tell."""


@dataclass(slots=True, eq=False)
class Batch:
    """1 to 20 items of one conversation, in partition order, that travel in one request.

    A batch keeps its events until each has an outcome; what is retried is exactly what was cut.
    ``attempts`` counts requests that carried these events, ``setbacks`` all that were put back (the exponent of
    the back-off), ``troubles`` those that failed for reasons of this conversation's own: others got through since
    the last time. ``troubled_seconds`` is how long that has gone on, without the time the circuit was open.
    """

    lane: Lane
    events: Sequence[Event]
    flush_reason: FlushReason
    waited_seconds: float
    item_bytes: int = 0
    """Of its items, each with a comma: what a request in flight carries."""
    attempts: int = 0
    troubles: int = 0
    troubled_seconds: float = 0.0
    setbacks: int = 0
    began_at: float | None = None
    """When the first attempt started since it last had to wait for what was not its conversation's fault."""
    counted_at: float = 0.0
    """What passed before that is counted, or was the fault of others."""
    open_when_counted: float = 0.0
    """How long the circuit had been open by then, in seconds."""
    refused_at: float | None = None
    """When these items were first refused in words that are not the API's."""
    unsettled: Unsettled | None = None
    after: str | None = None
    """The cursor behind which the last attempt was sent, or the next one will be where nothing newer is known."""
    unexpected_answers: int = 0
    twin: Batch | None = None
    """The other half of a split: once this half is accepted, that one holds the culprit."""
    known_guilty: bool = False
    """A half whose other half the API accepted: it holds the culprit, so it is split without being sent."""
    mentions: Any = None
    """What the journal wrote of its events before the last attempt; the core never looks inside."""
    trace: Any = None
    """What tracing keeps with it and with its parts, if it is sampled; the core never looks inside."""
    atomic_refusal: bool = False
    """A read-back showed that the API stored nothing of a request it refused; its parts need not look again."""

    @property
    def conversation_id(self) -> str:
        """The conversation all events of this batch belong to."""
        return self.lane.conversation_id


class Fate(enum.Enum):
    """What is known of a request that got no answer."""

    NOT_SENT = "not_sent"
    """Refused before the first byte left: the API cannot have stored anything."""
    UNKNOWN = "unknown"
    """Cut or silent after sending began: it may have been stored, or still be."""


class ErrorForm(enum.Enum):
    """How an error body was written."""

    NESTED = "nested"
    """``{"error": {"code", "message", "param", "type"}}``: OpenAI's form."""
    FLAT = "flat"
    """``{"error": "text"}``."""
    DASHSCOPE = "dashscope"
    """``{"code", "message", "request_id"}``: Alibaba's native form."""


@dataclass(slots=True, frozen=True)
class ErrorBody:
    """An error as the API worded it; ``culprit`` is the item index that its ``param`` names."""

    form: ErrorForm
    code: str
    message: str
    culprit: int | None = None


@dataclass(slots=True, frozen=True)
class Answered:
    """The API, or something before it, answered.

    ``items`` are the items a 2xx listed, each as its JSON, in order; ``None`` when its body is no such
    list; ``last_id`` is the id of the last of them. ``error`` is ``None`` when the body is in none of the
    known forms.
    """

    status: int
    items: Sequence[Buffer] | None = None
    last_id: str = ""
    has_more: bool = False
    error: ErrorBody | None = None
    retry_after_seconds: float | None = None
    should_retry: bool | None = None


@dataclass(slots=True, frozen=True)
class Unanswered:
    """No answer came. ``code`` is a short stable word, ``message`` the error as the transport told it."""

    fate: Fate
    code: str
    message: str


Answer = Answered | Unanswered
