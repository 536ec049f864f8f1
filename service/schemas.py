"""The records as the outside sees them: events, replies, dead letters; JSON Schema and AsyncAPI are made of this.

Descriptions are part of the contract. Decoding uses its own, faster structures; tests hold both to each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:
    from service.settings import KafkaSettings

ASYNCAPI = "3.0.0"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
ConversationId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=256,
        description="The API's own id, at most 256 bytes of UTF-8; no control characters, not . or ..",
        json_schema_extra={"not": {"anyOf": [{"pattern": r"[\x00-\x1f\x7f-\x9f]"}, {"enum": [".", ".."]}]}},
    ),
]
EventId = Annotated[
    Annotated[str, Field(max_length=4300)] | int,
    Field(
        description="Echoed in the reply; without it: topic-partition-offset. "
        "At most 4300 bytes of UTF-8; a number is written without fraction or exponent."
    ),
]
OccurredAt = Annotated[str, Field(description="RFC 3339, UTC; echoed in the reply.")]
Role = Literal["user", "assistant", "system", "developer"]


class Part(BaseModel):
    """A part of a message's content; fields beside ``type`` are the API's to judge."""

    model_config = ConfigDict(extra="allow")
    type: str


Content = str | Annotated[list[Part], Field(min_length=1)]


class Item(BaseModel):
    """A message as it is to be stored; unknown fields are forwarded untouched."""

    model_config = ConfigDict(extra="allow")
    type: Literal["message"] = "message"
    role: Role
    content: Content


class NativeEvent(BaseModel):
    """An event that holds an item; unknown fields of the envelope are ignored. Nested no deeper than 100."""

    conversation_id: ConversationId | None = Field(
        None, description="Without it: the CloudEvent's subject, else the record's key."
    )
    item: Item
    event_id: EventId | None = None
    occurred_at: OccurredAt | None = None


class ShorthandEvent(BaseModel):
    """An event that is an item; only type, role and content are forwarded."""

    conversation_id: ConversationId | None = Field(
        None, description="Without it: the CloudEvent's subject, else the record's key."
    )
    item: None = Field(None, description="With an item it is the other form.")
    type: Literal["message"] = "message"
    role: Role
    content: Content
    event_id: EventId | None = None
    occurred_at: OccurredAt | None = None


class Source(BaseModel):
    """Where an event lies; replies are published at least once, this tells repeats apart."""

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class BatchPlace(BaseModel):
    """The batch that an event travelled in."""

    size: int = Field(ge=1, le=20)
    index: int = Field(ge=0, le=19)


class DeliveredReply(BaseModel):
    """What came of an event that was stored."""

    event_id: str
    conversation_id: str
    status: Literal["delivered"]
    item: dict[str, Any] | None = Field(
        None, description="The item as the API returned it; left out where the broker found the reply too large."
    )
    batch: BatchPlace
    attempts: int = Field(ge=0)
    source: Source
    occurred_at: OccurredAt | None = None
    delivered_at: str


class Error(BaseModel):
    """Why an event was given up."""

    reason: str
    code: str
    message: str = Field(max_length=500)


class FailedReply(BaseModel):
    """What came of an event that was given up; only with ``CONVOY_REPLY__FAILURES``."""

    event_id: str
    conversation_id: str
    status: Literal["failed"]
    error: Error
    attempts: int = Field(ge=0)
    source: Source
    occurred_at: OccurredAt | None = None
    failed_at: str


class DeadLetterHeaders(BaseModel):
    """The headers added to a dead letter, all UTF-8; its key, value and other headers are the original's."""

    model_config = ConfigDict(extra="allow")
    reason: Literal[
        "invalid_event", "rejected", "conversation_not_found", "forbidden", "too_large", "exhausted", "internal_error"
    ] = Field(alias="dlq.reason")
    error_code: str = Field(alias="dlq.error.code")
    error_message: str = Field(alias="dlq.error.message", max_length=500)
    http_status: str | None = Field(None, alias="dlq.http.status")
    attempts: str = Field(alias="dlq.attempts")
    fate: Literal["not_stored", "unknown"] = Field(alias="dlq.fate", description="unknown: it may have been stored.")
    topic: str = Field(alias="dlq.original.topic")
    partition: str = Field(alias="dlq.original.partition")
    offset: str = Field(alias="dlq.original.offset")
    timestamp: str = Field(alias="dlq.original.timestamp", description="Milliseconds since the epoch.")
    group: str = Field(alias="dlq.consumer.group")
    failed_at: str = Field(alias="dlq.failed_at")
    redrives: str = Field(alias="dlq.redrives", description="How often the event was sent again.")
    omitted: str | None = Field(
        None, alias="dlq.value.omitted", description="Set where the value was too large for the broker."
    )


EVENT: TypeAdapter[Any] = TypeAdapter(NativeEvent | ShorthandEvent)
REPLY: TypeAdapter[Any] = TypeAdapter(DeliveredReply | FailedReply)
DEAD_LETTER_HEADERS: TypeAdapter[Any] = TypeAdapter(DeadLetterHeaders)


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas, by the name of their file."""
    return {
        "event": _schema(EVENT, "A message event: the value of a record of the events topic"),
        "reply": _schema(REPLY, "What came of an event: the value of a record of the reply topic"),
        "dead-letter-headers": _schema(DEAD_LETTER_HEADERS, "The headers added to a dead letter"),
    }


def asyncapi(kafka: KafkaSettings, version: str) -> dict[str, Any]:
    """The AsyncAPI document of a deployment: its topics, headers and payloads."""
    schemas: dict[str, Any] = {}
    for name, adapter in (("event", EVENT), ("reply", REPLY), ("deadLetterHeaders", DEAD_LETTER_HEADERS)):
        # References count from the root of the document that holds them.
        schema = adapter.json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    correlation = {
        "type": "object",
        "properties": {
            "correlation_id": {"type": "string", "description": "The event's own, byte for byte; else its event id."},
            "kafka_correlationId": {"description": "Spring's, byte for byte, where the event came with it."},
            "traceparent": {"type": "string"},
            "content-type": {"const": "application/json"},
        },
    }
    asked = {
        "type": "object",
        "properties": {
            "correlation_id": {"type": "string", "description": "Comes back with the reply, whatever bytes it is."},
            "kafka_correlationId": {"description": "Spring's; comes back byte for byte."},
            "reply_to": {"type": "string", "description": "The topic for the reply, if it is allowed."},
            "kafka_replyTopic": {"type": "string", "description": "The same, Spring's."},
            "kafka_replyPartition": {"description": "Of that topic; four bytes, big-endian."},
            "traceparent": {"type": "string", "description": "W3C Trace Context; comes back with the reply."},
            "content-type": {
                "type": "string",
                "description": "application/cloudevents+json: an envelope.",
            },
            **{
                f"ce_{name}": {"type": "string", "description": "CloudEvents, binary content mode."}
                for name in ("specversion", "id", "source", "type", "subject", "time")
            },
        },
    }
    keyed = {"kafka": {"key": {"type": "string", "description": "The conversation id."}, "bindingVersion": "0.5.0"}}
    channels = {
        "events": _channel(kafka.events_topic, "Message events, keyed by conversation.", "event"),
        "replies": _channel(kafka.reply_topic, "What came of each event, keyed by conversation.", "reply"),
        "deadLetters": _channel(kafka.dead_letter_topic, "Events given up, as they came.", "deadLetter"),
    }
    messages = {
        "event": {
            "contentType": "application/json",
            "description": "As it is, or as the data of a CloudEvent.",
            "headers": asked,
            "payload": {"$ref": "#/components/schemas/event"},
            "bindings": keyed,
        },
        "reply": {
            "contentType": "application/json",
            "headers": correlation,
            "payload": {"$ref": "#/components/schemas/reply"},
            "bindings": keyed,
        },
        "deadLetter": {"headers": {"$ref": "#/components/schemas/deadLetterHeaders"}, "payload": {}},
    }
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Convoy",
            "version": version,
            "description": "Forwards message events of conversations to a Conversations API, in order.",
        },
        "servers": {"kafka": {"host": kafka.bootstrap_servers.split(",")[0], "protocol": "kafka"}},
        "channels": channels,
        "operations": {
            "takeEvents": {"action": "receive", "channel": {"$ref": "#/channels/events"}},
            "reply": {"action": "send", "channel": {"$ref": "#/channels/replies"}},
            "giveUp": {"action": "send", "channel": {"$ref": "#/channels/deadLetters"}},
        },
        "components": {
            "messages": messages,
            "schemas": schemas,
        },
    }


def _channel(topic: str, description: str, message: str) -> dict[str, Any]:
    return {
        "address": topic,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _schema(adapter: TypeAdapter[Any], title: str) -> dict[str, Any]:
    return {"$schema": DRAFT, "title": title, **adapter.json_schema(by_alias=True)}
